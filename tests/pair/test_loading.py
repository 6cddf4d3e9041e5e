"""``small`` from everywhere a user keeps it: bit for bit what was saved, in the large denoiser's dtype, or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowblend_plugins as fb
from flowblend_plugins import testing
from flowblend_plugins.pairs.loading import load_denoiser

WEIGHTS = "diffusion_pytorch_model.safetensors"
CopyOf = Callable[[str], Path]


def snapshot(pipe: Any) -> dict[str, Any]:
    """All that a failed ``enable()`` could have changed; taken after a generation, which adds attributes."""
    latents = testing.generate(pipe, num_inference_steps=2)
    return {
        "class": type(pipe),
        "attributes": sorted(pipe.__dict__),
        "components": {name: id(component) for name, component in pipe.components.items()},
        "config": dict(pipe.config),
        "denoiser class": type(pipe.transformer),
        "denoiser attributes": sorted(pipe.transformer.__dict__),
        "forward hooks": len(pipe.transformer._forward_hooks) + len(pipe.transformer._forward_pre_hooks),
        "latents": latents.tolist(),
    }


def refusal(pipe: Any, small: Any) -> str:
    """The message of the one clear line that ``enable()`` must refuse with, leaving the pipeline as it was."""
    before = snapshot(pipe)
    with pytest.raises(fb.PairError) as caught:
        fb.enable(pipe, small=small)
    assert snapshot(pipe) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
@pytest.mark.parametrize("name", ["wan", "denoiser"])
def test_a_folder_loads_the_saved_tensors_bit_for_bit(pipe: Any, saved: Path, name: str, as_text: bool) -> None:
    folder = saved / name
    denoiser = load_denoiser(str(folder) if as_text else folder, pipe, "transformer")
    stored = load_file(folder / ("transformer" if name == "wan" else "") / WEIGHTS)
    state = denoiser.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[key], state[key]) for key in stored)
    assert not denoiser.training


def test_all_sources_generate_the_same_video(pipe: Any, saved: Path) -> None:
    other = testing.tiny_wan_pipeline(seed=9)
    other.register_modules(transformer=testing.tiny_wan_denoiser(seed=4))
    other.vae.register_to_config(**{key: pipe.vae.config[key] for key in ("latents_mean", "latents_std")})
    videos = []
    for small in (saved / "wan", str(saved / "denoiser"), other, testing.tiny_wan_denoiser(seed=4)):
        with fb.enable(pipe, small=small, schedule="LSL"):
            videos.append(testing.generate(pipe, num_inference_steps=5))
    large_alone = testing.generate(pipe, num_inference_steps=5)
    assert all(torch.equal(video, videos[0]) for video in videos)
    assert not torch.equal(videos[0], large_alone)


def test_a_pipeline_with_a_unet_takes_the_unet_folder(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    def unet(layers: int) -> Any:
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=layers,
            cross_attention_dim=16,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
        )

    def pipeline(layers: int) -> Any:
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
        parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        return StableDiffusionPipeline(
            vae=vae, unet=unet(layers), scheduler=DDIMScheduler(), requires_safety_checker=False, **parts
        )

    pipeline(1).save_pretrained(tmp_path / "sd")
    with fb.enable(pipeline(2), small=tmp_path / "sd") as blend:
        stored = load_file(tmp_path / "sd" / "unet" / WEIGHTS)
        assert all(torch.equal(stored[key], value) for key, value in blend.denoisers["S"].state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_follows_the_large_denoiser(saved: Path, dtype: torch.dtype) -> None:
    pipe = testing.tiny_wan_pipeline()
    pipe.vae.register_to_config(latents_mean=[-0.75, 0.1, 0.3, 1.2], latents_std=[2.8, 1.4, 2.3, 1.9])
    pipe.transformer.save_pretrained(saved.parent / f"large-{dtype}")
    large = type(pipe.transformer).from_pretrained(saved.parent / f"large-{dtype}", torch_dtype=dtype)
    pipe.register_modules(transformer=large)
    denoiser: Any = load_denoiser(saved / "wan", pipe, "transformer")
    assert denoiser.dtype == dtype
    # Wan keeps its normalisations and time embedding in float32; the small one must agree name by name.
    assert {k: v.dtype for k, v in denoiser.state_dict().items()} == {
        k: v.dtype for k, v in large.state_dict().items() if k in denoiser.state_dict()
    }


def test_beside_a_group_offloaded_large_denoiser_it_computes_on_the_same_device(pipe: Any, saved: Path) -> None:
    pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with fb.enable(pipe, small=saved / "denoiser", schedule="LSL"):
        offloaded = testing.generate(pipe, num_inference_steps=5)
    with fb.enable(fresh := testing.tiny_wan_pipeline(), small=saved / "denoiser", schedule="LSL"):
        assert torch.equal(offloaded, testing.generate(fresh, num_inference_steps=5))


def test_beside_a_sequentially_offloaded_large_denoiser_it_computes_on_the_same_device(saved: Path) -> None:
    from accelerate import cpu_offload

    pipe = testing.tiny_wan_pipeline()
    with fb.enable(pipe, small=saved / "denoiser", schedule="LSL"):
        expected = testing.generate(pipe, num_inference_steps=5)
    for component in (pipe.vae, pipe.transformer):  # what enable_sequential_cpu_offload() does, with CPU as accelerator
        cpu_offload(component, torch.device("cpu"), offload_buffers=True)
    assert pipe.transformer.device.type == "meta"
    with fb.enable(pipe, small=saved / "denoiser", schedule="LSL"):
        assert torch.equal(expected, testing.generate(pipe, num_inference_steps=5))


def test_a_half_precision_variant_is_found(pipe: Any, tmp_path: Path) -> None:
    small = testing.tiny_wan_denoiser(seed=4).to(torch.float16)
    small.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert not (tmp_path / "fp16" / WEIGHTS).exists()
    loaded = load_denoiser(tmp_path / "fp16", pipe, "transformer")
    assert all(torch.equal(value.float(), loaded.state_dict()[key]) for key, value in small.state_dict().items())


def test_sharded_weights_load(pipe: Any, tmp_path: Path) -> None:
    small = testing.tiny_wan_denoiser(seed=4)
    small.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    loaded = load_denoiser(tmp_path / "shards", pipe, "transformer")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in small.state_dict().items())


@pytest.fixture
def hub_cache(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache as the hub client lays it out, holding one repository, ``someone/small-wan``."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small-wan"
    shutil.copytree(saved / "wan", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    return repository / "snapshots" / commit


def test_a_hub_id_loads_from_the_hub_cache(pipe: Any, hub_cache: Path) -> None:
    denoiser = load_denoiser("someone/small-wan", pipe, "transformer")
    stored = load_file(hub_cache / "transformer" / WEIGHTS)
    assert all(torch.equal(stored[key], value) for key, value in denoiser.state_dict().items())


def test_a_hub_pair_is_judged_before_its_weights_are_fetched(pipe: Any, hub_cache: Path) -> None:
    (hub_cache / "transformer" / WEIGHTS).unlink()
    edit_json(hub_cache / "vae" / "config.json", latents_std=[1.0, 1.0, 1.0, 1.0])
    assert "VAE latents_std: 1x1x1x1, but 2.8x1.4x2.3x1.9 for the large one" in refusal(pipe, "someone/small-wan")


def test_an_unknown_hub_id_offline(pipe: Any, hub_cache: Path) -> None:
    message = refusal(pipe, "someone/no-such-thing")
    assert "'someone/no-such-thing' is no folder here" in message
    assert "hf download someone/no-such-thing" in message


def test_a_local_folder_is_read_without_network(pipe: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a local folder must not reach for the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    fb.enable(pipe, small=saved / "wan").disable()


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "missing", ["/no/such/folder", "./no-such-folder", "~/no-such-folder-here", "a/b/c", "weights/small.safetensors"]
)
def test_a_missing_folder(pipe: Any, missing: str) -> None:
    assert f"there is no folder or file {missing!r}" in refusal(pipe, missing)


def test_a_missing_path_object_is_never_a_hub_id(pipe: Any) -> None:
    assert "there is no folder or file 'someone/small'" in refusal(pipe, Path("someone/small"))


@pytest.mark.parametrize("text", ["wan", "", "someone / small", "http:x"])
def test_a_text_that_is_neither_folder_nor_hub_id(
    pipe: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(pipe, text)
    assert repr(text) in message
    assert "folder" in message


@pytest.mark.parametrize("thing", [42, {"transformer": 1}, torch.zeros(1)])
def test_a_thing_that_is_no_source(pipe: Any, thing: Any) -> None:
    assert "Pass a hub id, a folder, a loaded diffusers pipeline or a loaded denoiser" in refusal(pipe, thing)


def test_a_folder_that_is_no_pipeline(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    message = refusal(pipe, tmp_path)
    assert str(tmp_path) in message
    assert "neither model_index.json nor config.json" in message


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt"])
def test_a_pickle_only_folder_is_refused_unread(pipe: Any, copy_of: CopyOf, tmp_path: Path, suffix: str) -> None:
    folder, mark = copy_of("denoiser"), tmp_path / "executed"
    (folder / WEIGHTS).unlink()
    torch.save(MakesFolder(mark), folder / f"diffusion_pytorch_model.{suffix}")
    message = refusal(pipe, folder)
    assert "pickle" in message
    assert "save_pretrained(folder)" in message
    (folder / "config.json").unlink()
    assert "pickle" in refusal(pipe, folder)
    assert "is a pickle file" in refusal(pipe, folder / f"diffusion_pytorch_model.{suffix}")
    assert not mark.exists()
    torch.load(folder / f"diffusion_pytorch_model.{suffix}", weights_only=False)
    assert mark.exists(), "the trap must spring for one who does load it"


class MakesFolder:
    """Unpickling it makes a folder, so that it cannot go unseen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_single_file_is_refused_with_the_way_to_load_it(pipe: Any, saved: Path) -> None:
    assert "from_single_file()" in refusal(pipe, saved / "denoiser" / WEIGHTS)


def test_incomplete_weights_would_stay_random(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("denoiser")
    state = load_file(folder / WEIGHTS)
    lost = sorted(state)[0]
    del state[lost]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    message = refusal(pipe, folder)
    assert "1 tensors" in message
    assert lost in message


def test_a_truncated_file(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("denoiser")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000])
    assert "could not be loaded" in refusal(pipe, folder)


def test_weights_of_another_size(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("denoiser")
    edit_json(folder / "config.json", ffn_dim=64)
    assert "could not be loaded" in refusal(pipe, folder)


def test_a_config_without_weights(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("denoiser")
    (folder / WEIGHTS).unlink()
    assert "has a config but no weights" in refusal(pipe, folder)


def test_a_broken_config(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("denoiser")
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(pipe, folder)


@pytest.mark.parametrize("name", ["MyOwnTransformer", "AutoencoderKLWan", "os", None])
def test_only_denoisers_that_diffusers_exports(pipe: Any, copy_of: CopyOf, name: str | None) -> None:
    folder = copy_of("denoiser")
    edit_json(folder / "config.json", _class_name=name, auto_map={"AutoModel": "modeling.MyOwnTransformer"})
    (folder / "modeling.py").write_text("raise SystemExit('code of a model folder ran')")
    assert "no denoiser that diffusers exports" in refusal(pipe, folder)


def test_a_pipeline_folder_without_its_denoiser(pipe: Any, copy_of: CopyOf) -> None:
    folder = copy_of("wan")
    shutil.rmtree(folder / "transformer")
    assert "without a `transformer` folder (it holds text_encoder, vae)" in refusal(pipe, folder)


def test_a_loaded_pipeline_without_its_denoiser(pipe: Any) -> None:
    other = testing.tiny_wan_pipeline()
    other.register_modules(transformer=None)
    assert "WanPipeline has no loaded `transformer`" in refusal(pipe, other)
