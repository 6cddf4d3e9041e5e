"""A table like that of FlowBlending (arXiv 2512.24724) on the reference pair, beside the paper's published FLOPs.

``python -m flowblend_research.paper_table [--prompts N] [--repeats N] [--json FILE] [--page FILE]``
"""
