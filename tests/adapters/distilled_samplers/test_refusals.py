"""What is refused of few-step weights and calls, with what was found and what to do, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from tests.adapters.distilled_samplers.lora_files import write_lora

FILE = "pytorch_lora_weights.safetensors"


def refused(*specs: str, schedule: str = "LSL", pipe: Any = None, small: Any = None, **options: Any) -> str:
    """The refusal, after which the pipeline is what it was."""
    pipe = tiny_wan_pipeline() if pipe is None else pipe
    snapshot = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError) as caught:
        fb.enable(pipe, tiny_wan_denoiser() if small is None else small, schedule, adapters=specs, **options)
    assert not snapshot.differences(pipe)
    message = str(caught.value)
    assert "\n" not in message
    return message


def distilled(large: Any = "as_loaded", small: Any = "as_loaded", options: str = "num_inference_steps=4") -> str:
    return f"distilled(large={str(large)!r}, small={str(small)!r}, {options})"


# -- weights -------------------------------------------------------------------------------------------------------


def test_swapped_loras(wan_loras: dict[str, str]) -> None:
    message = refused(distilled(wan_loras["small"], wan_loras["large"]))
    assert "was made for a denoiser 12 wide, and denoiser L is 24 wide" in message
    assert "It fits denoiser S: give it as small=" in message


def test_the_second_of_two_refused_takes_off_the_first(wan_loras: dict[str, str]) -> None:
    assert "denoiser S is 12 wide" in refused(distilled(wan_loras["large"], wan_loras["large"]))


def test_a_lora_of_a_deeper_denoiser(tmp_path: Path) -> None:
    deeper = tiny_wan_denoiser(layers=3, heads=2)
    lora = write_lora(tmp_path, WanPipeline, deeper, 1)
    message = refused(distilled(lora))
    assert "4 of the 12 layers" not in message  # three blocks of two attentions
    assert "8 of the 24 layers" in message
    assert "'blocks.2.attn1.to_k'" in message


def test_a_lora_of_another_architecture(tmp_path: Path) -> None:
    save_file(
        {f"transformer.single_blocks.0.proj.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}, tmp_path / FILE
    )
    message = refused(distilled(tmp_path))
    assert "none of the 1 layers" in message
    assert "WanTransformer3DModel" in message


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"transformer.blocks.0.attn1.to_q.lora_A.weight": (2, 24)}, "holds no LoRA layers"),
        ({"diffusion_model.blocks.0.strange.lora_down.weight": (2, 24)}, "is no LoRA that diffusers can read"),
        ({"text_encoder.q.lora_A.weight": (2, 4), "text_encoder.q.lora_B.weight": (4, 2)}, "none of the 1 layers"),
    ],
)
def test_what_is_no_lora_of_this_family(tmp_path: Path, tensors: Mapping[str, tuple[int, int]], found: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / FILE)
    assert found in refused(distilled(tmp_path))


def _folder(names: Mapping[str, bytes]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        for name, content in names.items():
            (root / name).write_bytes(content)
        return root

    return make


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda root: root / "nowhere", "no such file or folder here, and no hub id"),
        (lambda root: _folder({"lora.bin": b"x"})(root) / "lora.bin", "pickle is refused"),
        (_folder({"lora.pt": b"x"}), "pickle only"),
        (_folder({"a.safetensors": b"x", "b.safetensors": b"x"}), "holds 2 safetensors files"),
        (_folder({}), "holds no .safetensors file"),
        (_folder({FILE: b"not safetensors"}), "cannot be read as safetensors"),
        (lambda root: "someone/never-downloaded", "cannot be asked for its files"),
        (lambda root: "someone/never-downloaded/lora.safetensors", "cannot be had"),
    ],
)
def test_what_is_not_there(tmp_path: Path, make: Callable[[Path], Any], found: str) -> None:
    assert found in refused(distilled(make(tmp_path)))


def test_a_checkpoint_of_another_size(tmp_path: Path) -> None:
    tiny_wan_denoiser(seed=3).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        message = refused(distilled(source))
        assert "is not of the size of denoiser L" in message
        assert "It fits denoiser S" in message


def test_a_checkpoint_with_tensors_that_diffusers_would_drop(tmp_path: Path) -> None:
    """Sparse-attention gates, say, without which it does not compute what was distilled."""
    tiny_wan_pipeline(seed=3).transformer.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file) | {"blocks.0.to_gate_compress.weight": torch.zeros(24, 24)}
    save_file(tensors, file, metadata={"format": "pt"})
    for source in (tmp_path, file):
        assert "blocks.0.to_gate_compress.weight" in refused(distilled(source))


def test_missing_peft_is_one_line(wan_loras: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    assert 'pip install "flowblend-plugins[lora]"' in refused(distilled(wan_loras["large"]))


@pytest.mark.parametrize("how", ["sequential", "group"])
def test_streamed_weights(wan_loras: dict[str, str], how: str) -> None:
    pipe = tiny_wan_pipeline()
    if how == "sequential":
        pipe.enable_sequential_cpu_offload(device="cpu")
        with pytest.raises(fb.StackError, match="under sequential offloading"):
            fb.enable(pipe, schedule="LLL", adapters=[distilled(wan_loras["large"])])
        return
    device = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")
    with pytest.raises(fb.StackError, match="under group offloading"):
        fb.enable(pipe, schedule="LLL", adapters=[f"distilled(large={wan_loras['large']!r}, num_inference_steps=4)"])


# -- what the weights say ------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path, wan_loras: dict[str, str]) -> Callable[..., str]:
    """A few-step LoRA of the large or small denoiser, with what ``distilled.json`` says beside it."""

    def make(side: str, **says: Any) -> str:
        folder = tmp_path / side
        folder.mkdir()
        (folder / FILE).write_bytes((Path(wan_loras[side]) / FILE).read_bytes())
        (folder / "distilled.json").write_text(json.dumps(says))
        return str(folder)

    return make


def test_the_levels_that_the_weights_say(told: Callable[..., str], wan_loras: dict[str, str]) -> None:
    levels = [1.0, 0.8, 0.5]
    large = told("large", num_inference_steps=3, sigmas=levels, sampler="unipc", guidance_scale=1.0)
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, schedule="LLL", adapters=[f"distilled(large={large!r}, num_inference_steps=3)"]) as blend:
        seen = generate(pipe, None)
        assert [call.step.sigma for call in blend.trace.generations[-1].calls] == pytest.approx(levels, abs=1e-5)
    same = f"distilled(large={wan_loras['large']!r}, sigmas={tuple(levels)}, sampler='unipc')"
    with fb.enable(pipe, schedule="LLL", adapters=[same]):
        assert torch.equal(generate(pipe, None), seen)


def test_another_number_of_steps_than_the_weights_say(told: Callable[..., str]) -> None:
    large = told("large", num_inference_steps=8, sigmas=[1.0 - i / 8 for i in range(8)])
    assert "was distilled for 8 steps, and 'distilled' was asked for 4. Ask for 8" in refused(distilled(large))


def test_two_that_were_made_for_different_samplers(told: Callable[..., str]) -> None:
    large = told("large", num_inference_steps=2, sigmas=[1.0, 0.5], sampler="euler")
    small = told("small", num_inference_steps=2, sigmas=[1.0, 0.6], sampler="euler")
    message = refused(distilled(large, small, "num_inference_steps=2"))
    assert "both denoisers share one sampler" in message


@pytest.mark.parametrize("says", [{"sigmas": [0.5, 1.0]}, {"sampler": "magic"}, {"sigmas": "all"}])
def test_what_the_weights_say_makes_no_sense(told: Callable[..., str], says: dict[str, Any]) -> None:
    message = refused(distilled(told("large", num_inference_steps=2, **says), options="num_inference_steps=2"))
    assert "cannot be used" in message


# -- the pair's own ------------------------------------------------------------------------------------------------


class Pair:
    """A pair that is kept in folders and names few-step weights, registered for one blend."""

    def __init__(self, root: Path, weights: Mapping[str, str]) -> None:
        tiny_wan_pipeline().save_pretrained(root / "large")
        tiny_wan_denoiser().save_pretrained(root / "small")
        self.preset = fb.PairPreset(
            name="kept", large=root / "large", small=root / "small", source="tests", distilled=dict(weights)
        )

    @fb.hookimpl
    def flowblend_register_pairs(self) -> list[fb.PairPreset]:
        return [self.preset]

    def pipe(self) -> Any:
        missing: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "transformer_2"))
        pipe = WanPipeline.from_pretrained(self.preset.large, **missing)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def test_a_registered_pair_names_its_weights(tmp_path: Path, wan_loras: dict[str, str]) -> None:
    pair = Pair(tmp_path, {f"{side}-4": wan_loras[side] for side in ("large", "small")})
    seen = {}
    for spec in ("distilled(num_inference_steps=4)", distilled(wan_loras["large"], wan_loras["small"])):
        pipe = pair.pipe()
        with fb.enable(pipe, pair.preset.small, "LSL", adapters=[spec], plugins=[pair]):
            seen[spec] = generate(pipe, None)
    first, second = seen.values()
    assert torch.equal(first, second)
    pipe = pair.pipe()
    with fb.enable(pipe, pair.preset.small, "LSL", adapters=["distilled_small(distilled_steps=4)"], plugins=[pair]):
        generate(pipe)


def test_steps_that_the_pair_has_no_weights_for(tmp_path: Path, wan_loras: dict[str, str]) -> None:
    pair = Pair(tmp_path, {"large-4": wan_loras["large"], "large-8": wan_loras["large"]})
    message = refused("distilled(num_inference_steps=6)", pipe=pair.pipe(), small=pair.preset.small, plugins=[pair])
    assert "has few-step weights of its large denoiser for 4 or 8 steps, and 6 were asked for" in message


def test_another_small_denoiser_is_another_pair(tmp_path: Path, wan_loras: dict[str, str]) -> None:
    pair = Pair(tmp_path, {f"{side}-4": wan_loras[side] for side in ("large", "small")})
    message = refused("distilled(num_inference_steps=4)", pipe=pair.pipe(), plugins=[pair])
    assert "the few-step weights of denoiser L are not known" in message


# -- calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ({"guidance_scale": 5.0}, "gives guidance_scale=5, and 'distilled' samples with 1 (guidance off)"),
        ({"num_inference_steps": 30}, "gives num_inference_steps=30"),
        ({"guidance_scale_2": 3.0}, "gives guidance_scale_2=3"),
    ],
)
def test_a_call_that_contradicts_is_refused(call: dict[str, Any], found: str) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=[distilled()]):
        with pytest.raises(fb.StackError) as caught:
            generate(pipe, **dict[str, Any]({"num_inference_steps": None} | call))
        assert found in str(caught.value)
        assert generate(pipe, 4, guidance_scale=1.0).isfinite().all()


def test_guidance_that_was_asked_for(wan_loras: dict[str, str]) -> None:
    """Some few-step weights take a little guidance; then the call may not say another."""
    pipe, plain = tiny_wan_pipeline(), tiny_wan_pipeline()
    from diffusers import FlowMatchEulerDiscreteScheduler

    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with fb.enable(
        pipe, schedule="LLL", adapters=["distilled(large='as_loaded', num_inference_steps=4, guidance_scale=2.0)"]
    ):
        assert torch.equal(generate(pipe, None), generate(plain, 4, guidance_scale=2.0))
        with pytest.raises(fb.StackError, match="gives guidance_scale=1, and 'distilled' samples with 2"):
            generate(pipe, None, guidance_scale=1.0)


def test_a_third_denoiser_has_no_few_step_weights() -> None:
    message = refused(distilled(), schedule="L:1,M:1,S:2", denoisers={"M": tiny_wan_denoiser(seed=7)})
    assert "the schedule calls M too" in message


def test_samplers_that_a_pipeline_does_not_take() -> None:
    """LTX hands its sampler ``mu``; every few-step sampler takes it."""
    pipe = tiny_ltx_pipeline()
    with fb.enable(pipe, schedule="LLL", adapters=["distilled(large='as_loaded', num_inference_steps=4)"]):
        assert generate(pipe, None).isfinite().all()
