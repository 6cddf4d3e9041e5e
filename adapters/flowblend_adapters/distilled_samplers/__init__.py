"""Few-step denoisers: distilled LoRAs and checkpoints on the large, the small or both, and how they are sampled."""
