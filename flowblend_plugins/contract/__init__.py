"""Contract for plugin authors: markers, traits, adapters, denoiser calls, and the verdict on a stack."""
