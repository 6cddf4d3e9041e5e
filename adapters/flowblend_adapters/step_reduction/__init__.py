"""Adapters that exchange the sampler or its timesteps, so that fewer steps suffice."""
