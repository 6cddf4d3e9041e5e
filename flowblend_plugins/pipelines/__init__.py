"""Knowledge of diffusers pipelines: components, control scales, and what their source says."""
