"""Studies and training on the embedded pairs, kept in the repository and left out of the wheel."""
