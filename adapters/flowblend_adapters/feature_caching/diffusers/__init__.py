"""Caches that ship with diffusers, put on each denoiser and adopted from the user's set-up."""
