"""Published pairs that share a latent space, by the name that ``--pair`` takes. None is downloaded before it is used.

LTX-Video is not here: its 2B and 13B models in diffusers format (0.9.5 and 0.9.7) come with VAEs of their own, and that
these span one latent space is documented nowhere. From local folders, pair validation compares their statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

from .markers import hookimpl
from .presets import PairPreset

WAN_2_1_T2V = PairPreset(
    name="wan2.1-t2v",
    large="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    small="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    early=0.4,
    late=0.2,
    call_defaults={
        "height": 480,
        "width": 832,
        "num_frames": 61,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
    },
    source=(
        "Size, frames, steps and boundaries: FlowBlending (arXiv 2512.24724). Guidance scale: default of diffusers' "
        "WanPipeline; the paper states none. Keep the scheduler's flow_shift at 3.0, Wan 2.1's value for 480p."
    ),
    example_prompts=("A cat surfing on a wave at sunset, slow motion, the camera follows from the side.",),
)


@hookimpl
def flowblend_register_pairs() -> Iterable[PairPreset]:
    """Wan 2.1 text-to-video, 14B and 1.3B."""
    return [WAN_2_1_T2V]
