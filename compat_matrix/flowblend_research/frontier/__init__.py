"""Tuned stacks against every single technique over its range: ``python -m flowblend_research.frontier``."""
