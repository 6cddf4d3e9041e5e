"""Measuring cells on a loaded pair: baselines, metrics, figures and verdicts."""
