"""Computing the steps that the large denoiser must answer, from the moments of its velocities alone."""
