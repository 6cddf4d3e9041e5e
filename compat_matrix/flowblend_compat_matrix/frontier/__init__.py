"""Tuned stacks against every single technique over its range: ``python -m flowblend_compat_matrix.frontier``."""
