"""Write the table of every adapter on every LTX pipeline into docs/ltx.md: ``python -m tests.ltx.adapter_table``.

With names after it, only the rows of these adapters are measured again.

An adapter is right on a pipeline where it passes three oracles: with the small denoiser alone it gives bit for bit what
it gives on a pipeline built on that denoiser; a second generation under LSL is the first; after ``disable()`` the
pipeline gives bit for bit what it gave before.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch

import flowblend_plugins as fb
from flowblend_plugins.manager import make_adapters, make_plugin_manager
from flowblend_plugins.testing import tiny_ltx_denoiser
from tests.exactness.pipelines import Family
from tests.ltx.pipelines import CONDITION_IMAGE, IMAGE, LTX2, TEXT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ltx.md"
PIPELINES = {
    "LTXPipeline": TEXT,
    "LTXConditionPipeline": CONDITION_IMAGE,
    "LTXImageToVideoPipeline": IMAGE,
    "LTX2Pipeline": LTX2,
}
_AS_LOADED = "large='as_loaded', small='as_loaded'"
SPECS = {
    "distilled": f"distilled({_AS_LOADED}, num_inference_steps=6)",
    "distilled_small": "distilled_small(small='as_loaded')",
    "ltx_distilled": f"ltx_distilled({_AS_LOADED})",
    "guided_refresh": "guided_refresh(threshold=0.05)",
    "teacache": "teacache(threshold=0.1)",
}
"""Options of those adapters that need some; the others are taken as they are."""

_BEGIN, _END = "<!-- made by tests/ltx/adapter_table.py -->", "<!-- end -->"


def adapter_names() -> list[str]:
    """Every adapter of this distribution that users ask for by name."""
    (own,) = (
        p for p in make_plugin_manager().get_plugins() if getattr(p, "__name__", "") == "flowblend_adapters.plugin"
    )
    return sorted(one.name for one in own.flowblend_register_adapters() if not one.name.startswith("adopted"))


def cell(name: str, family: Family) -> str:
    """``"right"``, or ``"refused: ..."`` with the reason; anything else raises."""
    spec = SPECS.get(name, name)
    pipe = family.pipe()
    try:
        (adapter,) = make_adapters(make_plugin_manager(), [spec])
        blend = fb.enable(pipe, _small(family), "SSS", adapters=[adapter])
    except fb.FlowBlendError as refused:
        return f"refused: {_reason(str(refused), name)}"
    steps = getattr(adapter, "num_inference_steps", None) or 6
    call = {"guidance_scale": 1.0} if adapter.traits_with_options().needs_guidance_off else {}
    alone = family.pipe()
    alone.transformer = _small(family)
    try:
        with blend:
            routed = family.run(pipe, steps, **call)
        plain = family.run(pipe, steps)
        if adapter.traits_with_options().own_guidance:  # alone it is that denoiser without guidance
            expected = family.run(alone, steps, guidance_scale=1.0)
        else:
            with fb.enable(alone, schedule="LLL", adapters=[_on_large(spec)]):
                expected = family.run(alone, steps, **call)
        assert torch.equal(expected, routed), f"{name} on {family.name} differs from itself alone"
        with fb.enable(pipe, _small(family), "LSL", adapters=[spec]):
            first, second = family.run(pipe, steps, **call), family.run(pipe, steps, **call)
        assert torch.equal(first, second), f"{name} on {family.name} keeps state"
    except fb.FlowBlendError as refused:
        return f"refused in the call: {_reason(str(refused), name)}"
    assert torch.equal(family.run(pipe, steps), plain), f"{name} on {family.name} leaves something behind"
    return "right"


def _small(family: Family) -> Any:
    """A denoiser of three blocks, for caches that need two or more."""
    return family.make_small() if family is LTX2 else tiny_ltx_denoiser(layers=3)


def _on_large(spec: str) -> str:
    """The same technique on the denoiser that is the large one of its pipeline."""
    return spec.replace(", small='as_loaded'", "")


def _reason(text: str, name: str) -> str:
    first = re.split(r"\.(?: |$)", re.sub(r"^this stack cannot work, for \d+ reasons: \(1\) ", "", text))[0]
    first = first.removeprefix(f"adapter {name!r}: ").removeprefix(f"{name!r}: ").removeprefix(f"{name!r} ")
    return first.replace("|", "/").rstrip(".")


def rows() -> dict[str, list[str]]:
    """Rows of the page: an adapter's name to its cells."""
    lines = re.findall(r"^\| (`\w+` \| .*) \|$", PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2], re.M)
    cells = [[part.strip() for part in line.split(" | ")] for line in lines]
    return {name.strip("`"): row for name, *row in cells}


def main() -> None:
    """Measure the named adapters, or all of them, and write their rows."""
    kept, names = rows(), sys.argv[1:] or adapter_names()
    kept |= {name: [cell(name, family) for family in PIPELINES.values()] for name in names}
    lines = [f"| adapter | {' | '.join(f'`{name}`' for name in PIPELINES)} |", "|---" * (len(PIPELINES) + 1) + "|"]
    lines += [f"| `{name}` | {' | '.join(kept[name])} |" for name in adapter_names()]
    text = PAGE.read_text(encoding="utf-8")
    made = "\n\n".join((_BEGIN, "\n".join(lines), _END))
    PAGE.write_text(re.sub(f"{_BEGIN}.*?{_END}", lambda _: made, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
