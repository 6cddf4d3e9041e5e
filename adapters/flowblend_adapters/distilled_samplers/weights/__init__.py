"""Reading few-step weights from LoRA files and checkpoints onto a denoiser."""
