"""Simulated matrices: how often verdicts and headlines are wrong, and how often nothing can be said."""
