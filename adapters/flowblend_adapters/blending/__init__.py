"""Blending that does more than route: the small denoiser corrected by the large one, recalled, or split by branch."""
