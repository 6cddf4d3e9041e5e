"""DeepCache on UNets, one helper for each denoiser."""
