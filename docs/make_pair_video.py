"""Write the moving picture of the reference pair page from the shipped weights: `python docs/make_pair_video.py`."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flowblend_compat_matrix.reference import evaluation_captions, load_pair
from flowblend_research.training.wan.behaviour import STEPS, blended, generate

TARGET = Path(__file__).parent / "images" / "reference_pair.webp"
PROMPTS = (0, 3, 5, 8)
SCALE, LINE = 2, 13

pair = load_pair()
captions = [evaluation_captions(max(PROMPTS) + 1)[number] for number in PROMPTS]
ways = {
    f"LLL, {STEPS} steps": generate(pair, captions),
    "LSL": blended(pair, captions, "LSL")[0],
    "SSS": blended(pair, captions, "SSS")[0],
    f"LLL, {STEPS // 2} steps": generate(pair, captions, num_inference_steps=STEPS // 2),
}

num_frames, size = next(iter(ways.values())).shape[1:3]
tile = size * SCALE
pictures = []
for frame in range(num_frames):
    picture = Image.new("RGB", (len(ways) * (tile + 6), LINE + len(captions) * (tile + LINE + 6)), "white")
    draw = ImageDraw.Draw(picture)
    for column, (name, videos) in enumerate(ways.items()):
        draw.text((column * (tile + 6) + 2, 0), name, fill="black")
        for row, caption in enumerate(captions):
            top = LINE + row * (tile + LINE + 6)
            if column == 0:
                draw.text((2, top), caption.text, fill="dimgray")
            still = Image.fromarray(np.round(videos[row, frame] * 255).astype(np.uint8))
            picture.paste(still.resize((tile, tile), Image.Resampling.NEAREST), (column * (tile + 6), top + LINE))
    pictures.append(picture)
TARGET.parent.mkdir(exist_ok=True)
pictures[0].save(TARGET, save_all=True, append_images=pictures[1:], duration=[160] * 8 + [700], loop=0, quality=85)
print(f"{TARGET.name}: {TARGET.stat().st_size / 1000:.0f} kB")
