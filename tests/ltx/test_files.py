"""LTX-Video denoisers from single files: what is loaded equals what was written, and what cannot be read is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.pairs.stored import find_denoiser
from flowblend_plugins.testing import generate, tiny_ltx_denoiser, tiny_ltx_pipeline
from tests.ltx.files import FP8, authors_tensors, scaled_fp8, vae_tensors, write


@pytest.fixture
def small() -> Any:
    return tiny_ltx_denoiser(seed=3)


def loaded(path: Path | str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return find_denoiser(path, "transformer").load(dtype).state_dict()


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        allowed = tolerance * float(tensor.float().abs().max())
        assert float((found[name].float() - tensor.float()).abs().max()) <= allowed, name


def test_the_authors_layout_is_loaded_as_diffusers_loads_it(tmp_path: Path, small: Any) -> None:
    path = write(tmp_path / "ltxv-2b.safetensors", authors_tensors(small, torch.float32), small)
    denoiser = find_denoiser(path, "transformer").load(torch.float32)
    assert_same(denoiser.state_dict(), small.state_dict())
    keys = ("num_attention_heads", "attention_head_dim", "num_layers", "cross_attention_dim", "caption_channels")
    assert [denoiser.config[key] for key in keys] == [small.config[key] for key in keys]
    assert not denoiser.training
    by_diffusers = type(small).from_single_file(str(path), config=_folder(tmp_path, small), local_files_only=True)
    assert_same(denoiser.state_dict(), by_diffusers.state_dict())


def _folder(tmp_path: Path, small: Any) -> str:
    small.save_config(tmp_path / "config")
    return str(tmp_path / "config")


def test_diffusers_own_layout_in_one_file(tmp_path: Path, small: Any) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in small.state_dict().items()}
    with pytest.raises(fb.PairError, match="no layout that is known here"):
        loaded(write(tmp_path / "plain.safetensors", tensors, small))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_in_the_large_denoisers_dtype(tmp_path: Path, small: Any, dtype: torch.dtype) -> None:
    path = write(tmp_path / "small.safetensors", authors_tensors(small), small)
    assert {tensor.dtype for tensor in loaded(path, dtype).values()} == {dtype}


def test_a_blend_with_a_file_is_the_blend_with_the_denoiser(tmp_path: Path, small: Any) -> None:
    pipe = tiny_ltx_pipeline()
    tensors = authors_tensors(small, torch.float32) | vae_tensors(pipe.vae)
    path = write(tmp_path / "small.safetensors", tensors, small)
    with fb.enable(pipe, small):
        expected = generate(pipe, 5)
    for source in (path, str(path)):
        with fb.enable(pipe, source):
            assert torch.equal(generate(pipe, 5), expected)


@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("by_row", [False, True])
def test_scales_of_fp8_are_applied(tmp_path: Path, small: Any, ending: str, by_row: bool) -> None:
    tensors = scaled_fp8(authors_tensors(small, torch.float32), ending, by_row)
    tensors |= {"scaled_fp8": torch.zeros(2, dtype=FP8), "model.diffusion_model.proj_out.input_scale": torch.ones(())}
    path = write(tmp_path / "fp8.safetensors", tensors, small)
    assert_same(loaded(path), small.state_dict(), tolerance=0.04)


def test_fp8_without_scales_is_what_it_says(tmp_path: Path, small: Any) -> None:
    tensors = authors_tensors(small, FP8)
    found = loaded(write(tmp_path / "fp8.safetensors", tensors, small))
    assert_same(found, {name: tensor.to(FP8) for name, tensor in small.state_dict().items()})


def test_latent_statistics_in_the_file_are_compared_with_the_large_vae(tmp_path: Path, small: Any) -> None:
    pipe = tiny_ltx_pipeline()
    other = vae_tensors(pipe.vae)
    other["vae.per_channel_statistics.std-of-means"] += 0.5
    path = write(tmp_path / "small.safetensors", authors_tensors(small) | other, small)
    with pytest.raises(fb.PairError, match="latents_std"):
        fb.enable(pipe, path)


def _with(name: str, tensor: torch.Tensor | None) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        changed = {**tensors, name: tensor}
        return {key: value for key, value in changed.items() if value is not None}

    return change


_PROJ = "model.diffusion_model.proj_out.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_with("model.diffusion_model.transformer_blocks.0.to_gate_compress.weight", torch.ones(4, 4)), "to_gate"),
        (_with("model.diffusion_model.proj_out.bias", None), "lacks 'proj_out.bias'"),
        (_with("model.diffusion_model.proj_out.bias", torch.full((8,), float("nan"))), "NaN or inf"),
        (_with(_PROJ, torch.ones(8, 16, dtype=torch.int8)), "quantised"),
        (_with("model.diffusion_model.proj_out.scale_weight", torch.ones(8, 2)), "in blocks"),
        (_with("model.diffusion_model.nothing.scale_weight", torch.ones(())), "no weight for it"),
        (_with("model.diffusion_model.proj_out.bias", torch.ones(9)), "proj_out.bias"),
        (_with("model.diffusion_model.patchify_proj.weight", None), "no layout that is known"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_by_name(tmp_path: Path, small: Any, change: Any, told: str) -> None:
    path = write(tmp_path / "bad.safetensors", change(authors_tensors(small)), small)
    with pytest.raises(fb.PairError) as refused:
        loaded(path)
    assert told in str(refused.value)
    assert "bad.safetensors" in str(refused.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(fb.PairError, match="cannot be read as safetensors"):
        loaded(path)


def test_gguf_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    path = tmp_path / "ltxv-13b.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(fb.PairError, match="GGUFQuantizationConfig"):
        loaded(path)


def test_a_file_of_a_hub_repository_is_found_in_the_cache(tmp_path: Path, small: Any) -> None:
    snapshot = tmp_path / "hub" / "models--Lightricks--LTX-Video" / "snapshots" / ("0" * 40)
    write(snapshot / "ltxv-2b-0.9.8-distilled.safetensors", authors_tensors(small, torch.float32), small)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    script = (
        "import sys; from flowblend_plugins.pairs.stored import find_denoiser\n"
        "stored = find_denoiser('Lightricks/LTX-Video/ltxv-2b-0.9.8-distilled.safetensors', 'transformer')\n"
        "print(stored.load(None).config.num_layers)"
    )
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "1", ran.stderr
    missing = subprocess.run(
        [sys.executable, "-c", script.replace("distilled", "dev")], env=env, capture_output=True, text=True, check=False
    )
    assert "hf download Lightricks/LTX-Video ltxv-2b-0.9.8-dev.safetensors" in missing.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peak memory from /proc")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_peak_memory_is_one_copy(tmp_path: Path, stored: torch.dtype) -> None:
    """At most 1.2 times the larger of the file and of what is loaded from it."""
    large = tiny_ltx_denoiser(layers=12, heads=32)
    path = write(tmp_path / "large.safetensors", authors_tensors(large, stored), large)
    tiny = tiny_ltx_denoiser()
    warm = write(tmp_path / "tiny.safetensors", authors_tensors(tiny), tiny)
    script = (
        "import torch\n"
        "from flowblend_plugins.pairs.stored import find_denoiser\n"
        f"find_denoiser({str(warm)!r}, 'transformer').load(torch.bfloat16)\n"  # imports what loading imports
        "def read(what):\n"
        "    line = next(one for one in open('/proc/self/status') if one.startswith(what))\n"
        "    return int(line.split()[1]) * 1024\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = read('VmRSS')\n"
        f"model = find_denoiser({str(path)!r}, 'transformer').load(torch.bfloat16)\n"
        "print(read('VmHWM') - before, sum(t.nbytes for t in model.state_dict().values()))"
    )
    held = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # else glibc keeps what was freed, more or less of it
    ran = subprocess.run([sys.executable, "-c", script], env=held, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    peak, size = map(int, ran.stdout.split())
    assert size > 50e6
    assert peak < 1.2 * max(size, path.stat().st_size)
