"""Records of what ran and what it cost: generations, traces and FLOPs."""

from .trace import Outcome, Trace

__all__ = ["Outcome", "Trace"]
