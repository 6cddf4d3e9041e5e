"""``python -m flowblend_research.planning_study predictions|calibration``: figures of docs/planning.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study that is asked for."""
    parser = argparse.ArgumentParser(prog="planning_study", description=(__doc__ or "").strip())
    parser.add_argument("what", choices=("predictions", "calibration"))
    parser.add_argument("--pair", default="wan", choices=("wan", "wan-distilled", "unet"))
    parser.add_argument("--other-samplers", action="store_true", help="with solvers, steps and shifts at random")
    parser.add_argument("--placements", type=int, default=60, help="at random (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="for every figure (default: %(default)s)")
    parser.add_argument("--calibration-prompts", type=int, default=8, help="where no moments are shipped")
    parser.add_argument("--out", type=Path, default=Path("out/planning_study.json"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        if given.what == "predictions":
            from .predictions import measured_moments, predict, summary

            moments = measured_moments(given.pair, given.calibration_prompts)
            found = predict(given.pair, moments, given.placements, given.prompts, given.other_samplers)
            record = {"pair": given.pair, **summary(found), "placements": [asdict(one) for one in found]}
            print(f"{given.pair}: {len(found)} placements, {given.prompts} prompts each")
            for name, value in summary(found).items():
                print(f"  {name}: {value:.2f}")
        else:
            from .calibration_size import study, to_markdown

            record = study(given.prompts)
            print(to_markdown(record))
    given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
