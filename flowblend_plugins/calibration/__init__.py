"""Measurements from which stage boundaries are chosen: what is measured, what is searched, and how it is written."""
