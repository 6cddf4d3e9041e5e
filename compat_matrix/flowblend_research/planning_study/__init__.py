"""How good computed stacks and their predictions are: ``python -m flowblend_research.planning_study --help``."""
