"""Deciding which denoiser answers a call: the clock, the router, and replay of recorded calls."""
