"""Stacks as wholes: measured side by side, searched for, and chosen by a fidelity budget."""
