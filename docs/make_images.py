"""Write the picture in the README from the videos of a matrix run: ``python docs/make_images.py out/demo``."""

import json
import sys
from pathlib import Path

import av
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

FRAMES = (0, 4, 8)
SCHEDULES = ("LLL", "LSL", "LSS", "SSS")
TARGET = Path(__file__).parent / "images" / "schedules.png"

folder = Path(sys.argv[1])
matrix = json.loads((folder / "matrix.json").read_text())
cells = {cell["schedule"]: cell for cell in matrix["cells"] if not cell["adapters"]}
prompts = matrix["run"]["prompts"][:2]

figure, axes = plt.subplots(len(SCHEDULES), len(FRAMES) * len(prompts), figsize=(9.6, 6.8))
for row, schedule in enumerate(SCHEDULES):
    cell = cells[schedule]
    for number, prompt in enumerate(prompts):
        with av.open(str(folder / cell["videos"][number])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for place, frame in enumerate(FRAMES):
            axis = axes[row][number * len(FRAMES) + place]
            axis.imshow(frames[frame], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0 and place == len(FRAMES) // 2:
                axis.set_title(prompt, fontsize=8)
    score = "large only" if cell["psnr_db"] is None else f"{cell['psnr_db']:.1f} dB"
    axes[row][0].set_ylabel(f"{schedule}\n{score}\n{cell['flops_fraction_full']:.0%} of the FLOPs", fontsize=8)
figure.tight_layout(pad=0.4)
TARGET.parent.mkdir(exist_ok=True)
figure.savefig(TARGET, dpi=110)
