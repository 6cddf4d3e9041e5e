"""Running a matrix: planning jobs, worker processes, resuming, and the output folder."""
