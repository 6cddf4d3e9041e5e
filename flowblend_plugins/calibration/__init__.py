"""Measurements from which stage boundaries are chosen."""
