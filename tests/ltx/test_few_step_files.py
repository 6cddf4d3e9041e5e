"""Whole few-step checkpoints in single files: the reader of small denoisers, on a denoiser that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import flowblend_plugins as fb
from flowblend_plugins.testing import generate, tiny_ltx_denoiser, tiny_ltx_pipeline, tiny_wan_denoiser
from tests.ltx.files import authors_tensors, scaled_fp8, write

LEVELS = "sigmas=(1.0, 0.6)"


@pytest.fixture
def distilled() -> Any:
    return tiny_ltx_denoiser(seed=9, layers=2, heads=2)  # of the large one's size


def sampled(pipe: Any, source: Path) -> torch.Tensor:
    with fb.enable(pipe, schedule="LLL", adapters=[f"distilled(large={str(source)!r}, {LEVELS})"]):
        return generate(pipe, None, guidance_scale=1.0)


def by_hand(distilled: Any) -> torch.Tensor:
    pipe = tiny_ltx_pipeline()
    pipe.transformer = distilled
    with fb.enable(pipe, schedule="LLL", adapters=[f"flow_euler({LEVELS})"]):
        return generate(pipe, None, guidance_scale=1.0)


def test_a_checkpoint_in_the_authors_layout(tmp_path: Path, distilled: Any) -> None:
    path = write(tmp_path / "distilled.safetensors", authors_tensors(distilled, torch.float32), distilled)
    pipe = tiny_ltx_pipeline()
    plain = generate(pipe, 3)
    assert torch.allclose(sampled(pipe, path), by_hand(distilled), atol=1e-6)  # tensors may lie otherwise in memory
    assert torch.equal(generate(pipe, 3), plain)


@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
def test_scales_of_fp8_are_applied(tmp_path: Path, distilled: Any, ending: str) -> None:
    tensors = scaled_fp8(authors_tensors(distilled, torch.float32), ending)
    path = write(tmp_path / "distilled_fp8.safetensors", tensors, distilled)
    expected = by_hand(distilled)
    error = float((sampled(tiny_ltx_pipeline(), path) - expected).abs().mean() / expected.abs().mean())
    assert error < 0.05


def test_a_scale_without_its_weight_and_a_gate_are_named(tmp_path: Path, distilled: Any) -> None:
    gate = "model.diffusion_model.transformer_blocks.0.attn1.to_gate_compress.weight"
    for name in (gate, "model.diffusion_model.absent.scale_weight"):
        tensors = authors_tensors(distilled) | {name: torch.ones(1)}
        path = write(tmp_path / "odd.safetensors", tensors, distilled)
        with pytest.raises(fb.StackError, match=name.removeprefix("model.diffusion_model.").split(".weight")[0]):
            sampled(tiny_ltx_pipeline(), path)


def test_nan_is_refused_by_name(tmp_path: Path, distilled: Any) -> None:
    tensors = authors_tensors(distilled)
    tensors["model.diffusion_model.proj_out.bias"][0] = float("inf")
    path = write(tmp_path / "nan.safetensors", tensors, distilled)
    with pytest.raises(fb.StackError, match=r"'model.diffusion_model.proj_out.bias' .* holds NaN or inf"):
        sampled(tiny_ltx_pipeline(), path)


def test_a_checkpoint_of_wan_in_its_authors_layout_is_still_read(tmp_path: Path) -> None:
    """A converter that changes more than names, or is not known for the class, is told apart from one that renames."""
    from flowblend_plugins.pairs.single_file import SingleFile

    denoiser = tiny_wan_denoiser(seed=4)
    own = {name: tensor.contiguous() for name, tensor in denoiser.state_dict().items()}
    path = tmp_path / "wan.safetensors"
    save_file({name: tensor.clone() for name, tensor in own.items()}, path)
    found = SingleFile("wan", path).read(type(denoiser), set(own), lambda name: torch.float32)
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


class QuantisedTensor(torch.Tensor):
    """A tensor subclass as torchao's are: its data are elsewhere."""


def test_a_checkpoint_onto_a_quantised_denoiser_is_refused_by_the_type_of_its_tensors(
    tmp_path: Path, distilled: Any
) -> None:
    path = write(tmp_path / "distilled.safetensors", authors_tensors(distilled), distilled)
    for weight in (torch.zeros(32, 8).as_subclass(QuantisedTensor), torch.zeros(32, 8, dtype=torch.int8)):
        pipe = tiny_ltx_pipeline()
        pipe.transformer.proj_in.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(fb.StackError, match="is quantised"):
            fb.enable(pipe, schedule="LLL", adapters=[f"distilled(large={str(path)!r}, {LEVELS})"])
