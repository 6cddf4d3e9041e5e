"""Write the tables of docs/choose.md from the measured data and the registered pairs (a test compares them)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flowblend_plugins.published_pairs import PUBLISHED_PAIRS

DOCS = Path(__file__).parent
PAGE = DOCS / "choose.md"
_LEVELS_DB = (20, 22.5, 25, 30, 35)
_QUANTILE = 2.069  # of Student's t with 23 degrees of freedom, for 95 % over 24 prompts

# Pipelines of diffusers that were tried, whether tests run them, and which registered pairs they take or why none.
PIPELINES: Mapping[str, tuple[str, ...] | str] = {
    "WanPipeline": ("wan2.1-t2v", "wan2.2-t2v"),
    "WanVACEPipeline": ("wan2.1-vace",),
    "WanImageToVideoPipeline": "Wan 2.1 image-to-video was published at 14B only",
    "WanVideoToVideoPipeline": "none of its own; in Python it takes the denoisers of `wan2.1-t2v`",
    "SkyReelsV2ImageToVideoPipeline": ("skyreels-v2-i2v",),
    "SkyReelsV2Pipeline": "SkyReels-V2 text-to-video was published at 14B only",
    "LTXPipeline": "every published 13B loads as `LTXConditionPipeline`; in Python `LTXPipeline(**pipe.components)`",
    "LTXConditionPipeline": ("ltx-0.9.7", "ltx-0.9.8", "ltx-0.9.8-distilled"),
    "LTX2Pipeline": "published at one size; a distilled denoiser of that size saves guidance",
    "Kandinsky5T2VPipeline": ("kandinsky5-t2v",),
    "CogVideoXPipeline": "2B and 5B scale latents and shift noise differently",
    "MochiPipeline": "published at one size",
    "StableVideoDiffusionPipeline": "published at one size",
    "AnimateDiffPipeline": "a motion module fits the one UNet that it was trained on",
    "Cosmos2TextToImagePipeline": ("cosmos-predict2-t2i",),
    "StableDiffusion3Pipeline": ("sd3.5",),
    "StableDiffusionXLPipeline": ("sdxl-ssd-1b", "sdxl-vega"),
    "StableDiffusionPipeline": ("sd1.5-bk-sdm",),
}
# What tests run of each, on tiny random models; the others: its pair is blended, LLL is large-only and SSS small-only.
ORACLES = "tiny random models: LLL, SSS and LSL bit for bit against denoisers exchanged by hand; caches; undo"
BLENDED = "tiny random models, with the public configs' flags where a pair is published, blended"
WITH_ORACLES = (
    *("WanPipeline", "WanImageToVideoPipeline", "LTXPipeline", "LTXConditionPipeline", "LTX2Pipeline"),
    *("CogVideoXPipeline", "MochiPipeline", "SkyReelsV2Pipeline"),
    *("StableDiffusionPipeline", "StableVideoDiffusionPipeline", "AnimateDiffPipeline"),
)


def read(name: str) -> Any:
    """Measured data beside the pages."""
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def lowest(point: Mapping[str, Any], num_prompts: int) -> float:
    """Lower end of the 95 % interval of a stack's mean PSNR over prompts, in dB."""
    return point["psnr_db"] - _QUANTILE * point["psnr_std_db"] / math.sqrt(num_prompts)


def levels() -> Iterable[str]:
    """The fastest stack that certainly keeps each level of PSNR, with and without calibration of the pair."""
    measured = read("frontier.json")
    points, num = measured["points"], measured["num_prompts"]
    yield f"| at least (95 % over {num} prompts) | with the pair's calibration files | without any calibration |"
    yield "|---|---|---|"
    kinds: tuple[Callable[[str], bool], ...] = (lambda text: True, lambda text: "'reference'" not in text)
    for level in _LEVELS_DB:
        cells = []
        for takes in kinds:
            fit = [one for one in points if lowest(one, num) >= level and takes(one["config"])]
            best = max(fit, key=lambda one: one["speedup_over_large"], default=None)
            cells.append("none was measured" if best is None else _stack(best, lowest(best, num)))
        yield f"| {level:g} dB | {' | '.join(cells)} |"


def _stack(point: Mapping[str, Any], low: float) -> str:
    quarter, three_quarters = point["speedup_quartiles"]
    return (
        f"{point['speedup_over_large']:.2f}× ({quarter:.2f}–{three_quarters:.2f}), {point['psnr_db']:.1f} dB (from "
        f"{low:.1f}): `{point['config']}`"
    )


def paper() -> Iterable[str]:
    """The paper's schedule on each column's sampler, beside the published FLOPs."""
    table = read("paper_table.json")
    yield "| sampled with | schedule | on the embedded pair | FLOPs there (linear) | published FLOPs (linear) |"
    yield "|---|---|---|---|---|"
    for column in table["columns"]:
        rows = {cell["schedule"]: cell for cell in table["cells"] if cell["column"] == column["name"]}
        one, control = rows.get("LSL"), rows.get("LLL")
        if one is None or control is None or one["psnr_to_control_db"] is None:
            continue
        published = column["published"]
        share = f"{published['LSL'] / published['LLL']:.0%}, {column['published_setting']}" if published else "none"
        yield (
            f"| {column['name']} | LSL ({one['steps']}) | {one['speedup_over_control']:.2f}× as fast as LLL at "
            f"{one['psnr_to_control_db']:.1f} ± {one['psnr_to_control_std_db']:.1f} dB | "
            f"{one['linear_flops'] / control['linear_flops']:.0%} | {share} |"
        )


def partners() -> Iterable[str]:
    """Every pipeline that was tried: its published pairs, or why it has none, and how it was tested."""
    pairs = {pair.name: pair for pair in PUBLISHED_PAIRS}
    yield "| pipeline | published small partner | tested how |"
    yield "|---|---|---|"
    for pipeline, found in PIPELINES.items():
        told = f"no: {found}" if isinstance(found, str) else "<br>".join(map(_partner, map(pairs.__getitem__, found)))
        yield f"| `{pipeline}` | {told} | {ORACLES if pipeline in WITH_ORACLES else BLENDED} |"


def _partner(pair: Any) -> str:
    sizes = " / ".join(f"{letter} {one.num_parameters / 1e9:.3g}B" for letter, one in pair.published.items())
    return f"yes: `--pair {pair.name}` ({sizes})"


TABLES: Mapping[str, Callable[[], Iterable[str]]] = {"levels": levels, "paper": paper, "partners": partners}


def page_with_tables(page: str) -> str:
    """The page with every table made anew."""

    def made(match: re.Match[str]) -> str:
        return f"<!-- made: {match[1]} -->\n" + "\n".join(TABLES[match[1]]()) + "\n<!-- end -->"

    return re.sub(r"<!-- made: (\w+) -->\n.*?<!-- end -->", made, page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
