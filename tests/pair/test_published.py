"""The published pairs: their data against really built models, and tiny models of their very flags blended.

A tiny model keeps the public config's flags, latent channels and patch; widths and depths shrink, the larger side
staying larger. The text width shrinks alike on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.cli.options import find_preset, read_schedule
from flowblend_plugins.errors import UsageError
from flowblend_plugins.manager import make_plugin_manager, pairs_by_name
from flowblend_plugins.pairs.configs import denoiser_config
from flowblend_plugins.pairs.facts import differences
from flowblend_plugins.pairs.open import open_pair
from flowblend_plugins.pairs.preset import PairPreset
from flowblend_plugins.published_pairs import PUBLISHED_PAIRS
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline
from tests.exactness.oracles import wan_by_hand
from tests.exactness.pipelines import FAMILIES, seeded, text

WAN = FAMILIES["wan"]
PAIRS = {pair.name: pair for pair in PUBLISHED_PAIRS}


@pytest.mark.parametrize("pair", PUBLISHED_PAIRS, ids=lambda pair: pair.name)
def test_public_configs_build_models_of_the_stated_sizes_that_pass_validation(pair: PairPreset) -> None:
    described = {}
    for letter, published in pair.published.items():
        denoiser_class = getattr(diffusers, published.class_name)
        with torch.device("meta"):
            denoiser = denoiser_class.from_config(dict(published.config))
        assert sum(weight.numel() for weight in denoiser.parameters()) == published.num_parameters
        assert published.source
        described[letter] = {"denoiser": denoiser_config(denoiser_class, published.config)}
    assert pair.published["L"].num_parameters > pair.published["S"].num_parameters
    assert set(described) == {"L", "S", *pair.experts}
    for letter in set(described) - {"L"}:
        assert not [*differences(described["L"], described[letter])]
    assert pair.verified
    assert "Boundaries" in pair.source or "boundaries" in pair.source
    assert read_schedule(None, None, None, pair).text == pair.schedule


def test_published_pairs_are_registered() -> None:
    assert PAIRS.items() <= pairs_by_name(make_plugin_manager()).items()


# Tiny models of the same flags ----------------------------------------------------------------------------------


def shrunk_wan(config: Mapping[str, Any], heads: int, layers: int, seed: int, name: str) -> Any:
    """Of the public config with its flags: latents of 4 channels, as the tiny pipeline's VAE has them."""
    sizes = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32}
    sizes |= {"attention_head_dim": 12, "num_attention_heads": heads, "num_layers": layers}
    if "vace_layers" in config:
        every = config["vace_layers"][1]
        sizes |= {"vace_layers": tuple(range(0, layers, every)), "vace_in_channels": 72}
    return seeded(lambda: getattr(diffusers, name).from_config(dict(config) | sizes), seed)


def shrunk_vace(letter: str) -> Any:
    published = PAIRS["wan2.1-vace"].published[letter]
    heads, layers, seed = {"L": (2, 6, 0), "S": (1, 6, 7)}[letter]
    return shrunk_wan(published.config, heads, layers, seed, published.class_name)


def vace(letter: str) -> Any:
    plain = tiny_wan_pipeline()
    pipe = diffusers.WanVACEPipeline(
        tokenizer=None, text_encoder=None, vae=plain.vae, scheduler=plain.scheduler, transformer=shrunk_vace(letter)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def run_vace(pipe: Any, **call: Any) -> torch.Tensor:
    arguments = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "output_type": "latent"}
    return pipe(**text(1, 16), **(arguments | call), generator=torch.Generator().manual_seed(0)).frames


def test_vace_with_another_number_of_control_layers(tmp_path: Path) -> None:
    pipe, on_small = vace("L"), vace("S")
    assert [len(one.transformer.config.vace_layers) for one in (pipe, on_small)] == [2, 3]
    on_small.save_pretrained(tmp_path / "small")
    plain = run_vace(pipe, conditioning_scale=0.7)
    hooks = dict(on_small.transformer._forward_pre_hooks)
    with fb.enable(pipe, tmp_path / "small", "LLL"):
        assert torch.equal(run_vace(pipe, conditioning_scale=0.7), plain)
    with fb.enable(pipe, on_small.transformer, "SSS"):
        assert torch.equal(run_vace(pipe, conditioning_scale=0.7), run_vace(on_small, conditioning_scale=0.7))
        with pytest.raises(fb.RoutingError, match=r"2 values that differ.*3 control layers. Pass one number"):
            run_vace(pipe, conditioning_scale=[0.5, 0.7])
    assert dict(on_small.transformer._forward_pre_hooks) == hooks
    with fb.enable(pipe, tmp_path / "small", "LSL") as blend:
        assert run_vace(pipe).isfinite().all()
        assert blend.trace.last is not None
        assert {call.step.denoiser for call in blend.trace.last.calls} == {"L", "S"}
    assert torch.equal(run_vace(pipe, conditioning_scale=0.7), plain)


class LocalWan22:
    """Wan 2.2's preset with its models in folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @fb.hookimpl
    def flowblend_register_pairs(self) -> list[PairPreset]:
        from dataclasses import replace

        return [replace(PAIRS["wan2.2-t2v"], name="local", large=self.folder / "large", small=self.folder / "small")]


def test_wan_2_2_through_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = diffusers.WanPipeline(
        **{**WAN.pipe().components, "transformer_2": tiny_wan_denoiser(9, 2, 2)}, boundary_ratio=0.8
    )
    experts.save_pretrained(tmp_path / "large")
    tiny_wan_denoiser(seed=4).save_pretrained(tmp_path / "small")
    monkeypatch.setattr(  # without a text encoder the pipeline's class must be told so
        "flowblend_plugins.pairs.open.load_pipeline",
        lambda folder, placement: diffusers.WanPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None),
    )
    manager = make_plugin_manager([LocalWan22(tmp_path)])
    opened = open_pair(find_preset(manager, "local", None))
    schedule = read_schedule(None, None, None, opened.preset)
    pipe = opened.pipeline
    assert opened.further == {"M": pipe.transformer_2}
    pipe.set_progress_bar_config(disable=True)
    plain = WAN.run(pipe, 10)
    small = tiny_wan_denoiser(seed=4)
    by_letter = {"L": pipe.transformer, "S": small, "M": pipe.transformer_2}
    expected = wan_by_hand(WAN.pipe().scheduler, lambda i, _: by_letter["LLLLSSSSMM"[i]], text(1, 16), 10)
    with fb.enable(pipe, opened.small, schedule, denoisers=opened.further):
        assert torch.equal(WAN.run(pipe, 10), expected)
    # Where the small one has no step, the experts by their own boundary are diffusers' two-transformer pipeline.
    by_boundary = fb.StageSchedule.by_sigma("LM", [0.8])
    with fb.enable(pipe, opened.small, by_boundary, denoisers=opened.further):
        assert torch.equal(WAN.run(pipe, 10), plain)
    assert torch.equal(WAN.run(pipe, 10), plain)


def test_letters_that_a_pair_does_not_have() -> None:
    assert read_schedule("LSM", None, None, PAIRS["wan2.2-t2v"]).letters == {"L", "S", "M"}
    with pytest.raises(UsageError, match=r"calls denoiser M, but this pair has L \(large\), S \(small\)"):
        read_schedule("LSM", None, None, PAIRS["wan2.1-t2v"])
