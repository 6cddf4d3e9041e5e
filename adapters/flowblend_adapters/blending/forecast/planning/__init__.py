"""Which steps the large denoiser must answer, computed from the moments of its velocities; no video is generated."""
