"""The LTX pair: its world, and loading what was trained on it."""
