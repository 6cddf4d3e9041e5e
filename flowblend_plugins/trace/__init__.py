"""Records of what ran and what it cost: generations, traces and FLOPs."""

from ..step import Outcome
from .trace import Trace

__all__ = ["Outcome", "Trace"]
