"""Adapters that stack accelerations on FlowBlending: solvers, caches, distilled samplers, corrections."""
