"""Timesteps selected for one pair by a dense run, and the command that selects them."""
