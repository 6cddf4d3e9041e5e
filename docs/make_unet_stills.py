"""Write the picture of docs/unet_reference_pair.md from the shipped weights: ``python docs/make_unet_stills.py``."""

import re
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt

from flowblend_compat_matrix.reference.pair import evaluation_captions
from flowblend_compat_matrix.reference.unet import load_unet_pair
from flowblend_research.training.unet.behaviour import SETTINGS, make_stills

SHOWN = ("large only (LLL)", "LSL", "LSL + deepcache(interval=2)", "small only (SSS)")
NUM_PROMPTS = 8
TARGET = Path(__file__).parent / "images" / "unet_stills.png"

torch.set_num_threads(1)
captions, pair = evaluation_captions(NUM_PROMPTS), load_unet_pair()
figure, axes = plt.subplots(len(SHOWN), NUM_PROMPTS, figsize=(9.6, 5.2))
for row, name in enumerate(SHOWN):
    setting = next(setting for setting in SETTINGS if setting.name == name)
    for axis, still, caption in zip(axes[row], make_stills(pair, captions, setting), captions, strict=True):
        axis.imshow(still, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        if row == 0:
            axis.set_title(re.sub(r" (over|moving|standing)", r"\n\1", caption.text), fontsize=5)
    axes[row][0].set_ylabel(name.replace(" + ", "\n+ ").replace(" (", "\n("), fontsize=6)
figure.tight_layout(pad=0.4)
figure.savefig(TARGET, dpi=110)
