"""Memory and FLOPs of a published pair, computed from configs alone, and the placements that fit a GPU."""
