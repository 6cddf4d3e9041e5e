"""Forecasts of the large denoiser's velocity from its own past, and their calibration."""
