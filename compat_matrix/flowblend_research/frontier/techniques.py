"""Techniques that are compared: each single one over its range, blending with each cache, and computed stacks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flowblend_plugins.errors import FlowBlendError

from .race import Configuration

COMPUTED = "computed"
WITH_BLENDING = "LSL + "
"""Begins the name of a technique that is plain blending with one more."""

CACHES: Mapping[str, tuple[str, ...]] = {
    "FirstBlockCache": tuple(f"first_block_cache(threshold={one})" for one in (0.1, 0.2, 0.3, 0.5, 0.8)),
    "TeaCache": tuple(f"teacache(threshold={one})" for one in (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)),
    "MagCache": tuple(
        f"mag_cache(ratios='reference', threshold={limit}, max_skip_steps={most})"
        for limit, most in ((0.06, 3), (0.12, 3), (0.24, 5), (0.5, 6))
    ),
    "SeaCache": tuple(f"sea_cache(threshold={one})" for one in (0.1, 0.25, 0.4, 0.6)),
    "TaylorSeer": (
        *(f"taylorseer(cache_interval={one})" for one in (2, 3, 4)),
        *(f"taylorseer(is_lite=True, cache_interval={one})" for one in (2, 3, 4)),
    ),
    "cache-dit": tuple(f"cache_dit(threshold={one})" for one in (0.08, 0.15, 0.3)),
}
"""Settings of each cache from careful to bold, as far as they are of use on the reference pair."""

STEPS = (16, 14, 12, 10, 9, 8, 7, 6, 5)
SOLVERS = {
    "fewer steps, UniPC": "unipc(num_inference_steps={})",
    "fewer steps, UniPC, shift 2": "unipc(num_inference_steps={}, flow_shift=2.0)",
    "fewer steps, UniPC, selected": "unipc(num_inference_steps={}, timesteps='reference')",
    "fewer steps, DPM++ 2M": "dpmpp_2m(num_inference_steps={})",
}
BOUNDARIES = ("L:12,S:4,L:4", "L:10,S:6,L:4", "L:8,S:8,L:4", "L:8,S:10,L:2", "L:8,S:12", "L:5,S:15")


def single_techniques() -> dict[str, list[Configuration]]:
    """Settings of every technique, by the name that the plot gives it."""
    found = {name: [Configuration("LLL", (solver.format(num),)) for num in STEPS] for name, solver in SOLVERS.items()}
    found |= {name: [Configuration("LLL", (text,)) for text in texts] for name, texts in CACHES.items()}
    found["plain LSL"] = [Configuration(schedule) for schedule in BOUNDARIES]
    return found


def blended_techniques() -> dict[str, list[Configuration]]:
    """Plain blending with each cache on both denoisers, at the cache's first, middle and boldest settings."""
    return {
        f"{WITH_BLENDING}{name}": [Configuration("L:8,S:8,L:4", (text,)) for text in _some(texts)]
        for name, texts in CACHES.items()
    }


def computed_techniques(paths: Sequence[Path]) -> dict[str, list[Configuration]]:
    """The fronts of ``flowblend plan``, as one. Raises ``FlowBlendError`` where a file is none of its."""
    return {COMPUTED: list(dict.fromkeys(one for path in paths for one in _read_front(path)))}


def _read_front(path: Path) -> list[Configuration]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["api_version"] != 1:
            raise ValueError(f"api_version {found['api_version']}")
        return [Configuration(one["schedule"], tuple(one["adapters"])) for one in found["front"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlowBlendError(f"{path} is no result of `flowblend plan`: {type(error).__name__}: {error}.") from error


def is_single(technique: str) -> bool:
    return technique != COMPUTED and not technique.startswith(WITH_BLENDING)


def _some(texts: Sequence[str]) -> Iterator[str]:
    yield from dict.fromkeys((texts[0], texts[len(texts) // 2], texts[-1]))
