"""Figures on computed stacks and their predictions: ``python -m flowblend_research.planning_study --help``."""
