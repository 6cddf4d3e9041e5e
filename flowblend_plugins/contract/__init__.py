"""What a plugin author uses: markers, traits, adapters, denoiser calls, and the verdict on a stack."""
