"""Two denoisers in one latent space: presets, the facts that must agree, and loading."""
