"""Keep small checkpoints of a training in the repository, which outlive the machine that made them.

``python -m flowblend_research.training.checkpoints OUT TARGET`` writes, for every stage in OUT that trains, its record
and the moving average of its weights in float16. A copy of TARGET is a folder that a training goes on from.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def keep(out: Path, target: Path) -> list[str]:
    """Write the small checkpoints of all stages in ``out`` into ``target``, and return the names of the stages."""
    names = []
    for record in sorted(out.glob("*/record.json")):
        folder = target / record.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        # A codec whose latents were shaped is what the denoisers saw; its average before is of no use any more.
        shaped = record.parent / "shaped.safetensors"
        kept = shaped if shaped.exists() else record.parent / "average.safetensors"
        halves = {name: value.half() if value.is_floating_point() else value for name, value in load_file(kept).items()}
        save_file(halves, folder / kept.name)
        shutil.copy(record, folder / "record.json")
        names.append(record.parent.name)
    return names


if __name__ == "__main__":
    print("kept:", ", ".join(keep(Path(sys.argv[1]), Path(sys.argv[2]))) or "nothing")
