"""Results of a matrix run: cells, verdicts, expectations, and the difference of two runs."""
