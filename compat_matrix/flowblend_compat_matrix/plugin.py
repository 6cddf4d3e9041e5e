"""What this package contributes, through the same door as a stranger's plugin."""
