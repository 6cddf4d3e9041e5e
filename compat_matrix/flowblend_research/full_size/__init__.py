"""Measurements at the published sizes, on random weights and one large GPU: ``make full-size``."""
