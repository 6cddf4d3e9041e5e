"""``distilled``: few-step LoRAs and checkpoints on both denoisers, held against diffusers used by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LTXPipeline,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    AdapterContract,
    PipelineSnapshot,
    generate,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)
from tests.adapters.distilled_samplers.lora_files import write_lora, write_original_wan_lora
from tests.exactness.oracles import swapped
from tests.exactness.pipelines import FAMILIES

LEVELS = (1.0, 0.9, 0.6, 0.3)
CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}


def spec(loras: dict[str, str], options: str = "num_inference_steps=4") -> str:
    return f"distilled(large={loras['large']!r}, small={loras['small']!r}, {options})"


def enabled(
    pipe: Any, loras: dict[str, str], schedule: str = "LLL", options: str = "num_inference_steps=4"
) -> fb.Blend:
    return fb.enable(pipe, tiny_wan_denoiser(), schedule, adapters=[spec(loras, options)])


def by_hand(pipe: Any, lora: str, scheduler: Any, **call: Any) -> torch.Tensor:
    """What a user of diffusers writes: the LoRA, the sampler, guidance off."""
    pipe.load_lora_weights(lora)
    pipe.scheduler = scheduler
    return generate(pipe, **{**CALL, **call})


def with_levels(scheduler: Any) -> Any:
    """A scheduler that is set to ``LEVELS``: neither ``WanPipeline`` nor ``LTXPipeline`` has an argument for them."""
    plain = scheduler.set_timesteps

    def set_timesteps(num_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
        plain(sigmas=np.array(LEVELS), device=device)

    scheduler.set_timesteps = set_timesteps
    return scheduler


def unipc() -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


class TestDistilled(AdapterContract):
    wrong_specs = (
        "distilled",
        "distilled(num_inference_steps=0)",
        "distilled(num_inference_steps=3, sigmas=(1.0, 0.5))",
        "distilled(sigmas=(0.5, 0.9))",
        "distilled(sigmas=(1.0, 0.5), flow_shift=3.0)",
        "distilled(num_inference_steps=4, sampler='dpm')",
        "distilled(num_inference_steps=4, lora_scale=0.0)",
        "distilled(num_inference_steps=4, guidance_scale=0.0)",
        "distilled(num_inference_steps=4, larg='x')",
    )
    call: ClassVar[Mapping[str, Any]] = CALL

    @pytest.fixture(autouse=True)
    def _files(self, wan_loras: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "lora", wan_loras["large"], raising=False)
        monkeypatch.setattr(type(self), "spec", spec(wan_loras), raising=False)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        lora: str = type(self).lora  # type: ignore[attr-defined]
        return by_hand(pipe, lora, FlowMatchEulerDiscreteScheduler(shift=3.0))


@pytest.mark.parametrize(
    ("options", "scheduler"),
    [
        ("num_inference_steps=4, flow_shift=5.0", lambda: FlowMatchEulerDiscreteScheduler(shift=5.0)),
        (f"sigmas={LEVELS}", lambda: with_levels(FlowMatchEulerDiscreteScheduler())),
        (f"sigmas={LEVELS}, sampler='unipc'", lambda: with_levels(unipc())),
    ],
)
def test_samplers_by_hand(wan_loras: dict[str, str], options: str, scheduler: Callable[[], Any]) -> None:
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras, options=options):
        seen = generate(pipe, None)
    assert torch.equal(seen, by_hand(tiny_wan_pipeline(), wan_loras["large"], scheduler()))


def test_lcm_by_hand_draws_its_noise_from_the_call(wan_loras: dict[str, str]) -> None:
    """``WanPipeline`` hands ``step`` no generator, so by hand it must be given the same one."""
    generator = torch.Generator().manual_seed(0)
    scheduler = with_levels(FlowMatchLCMScheduler())
    scheduler.step = functools.partial(scheduler.step, generator=generator)
    expected = by_hand(tiny_wan_pipeline(), wan_loras["large"], scheduler, generator=generator)
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras, options=f"sigmas={LEVELS}, sampler='lcm'"):
        assert torch.equal(generate(pipe, None), expected)
        assert not torch.equal(generate(pipe, None, seed=1), expected)
        assert torch.equal(generate(pipe, None), expected)


def test_both_denoisers_by_hand(wan_loras: dict[str, str]) -> None:
    family = FAMILIES["wan"]
    plain, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    plain.load_lora_weights(wan_loras["large"])
    small.load_lora_adapter(wan_loras["small"], weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoisers = {"L": plain.transformer, "S": small}
    expected = swapped(family, plain, denoisers, "LSSL", num_inference_steps=4, guidance_scale=1.0)
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras, "L:1,S:2,L:1"):
        assert torch.equal(family.run(pipe, num_inference_steps=4), expected)


def test_lora_scale_by_hand(wan_loras: dict[str, str]) -> None:
    plain = tiny_wan_pipeline()
    plain.load_lora_weights(wan_loras["large"], adapter_name="distilled")
    plain.set_adapters("distilled", 0.5)
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras, options="num_inference_steps=4, lora_scale=0.5"):
        assert torch.equal(generate(pipe, None), generate(plain, **CALL))


@pytest.mark.parametrize("disabled", [False, True])
def test_loras_of_the_users_own_stay(wan_loras: dict[str, str], disabled: bool) -> None:
    """Active, it works beside the few-step LoRA; disabled, it stays out. Both are as before afterwards."""

    def styled() -> Any:
        pipe = tiny_wan_pipeline()
        pipe.load_lora_weights(wan_loras["large style"], adapter_name="style")
        pipe.set_adapters("style", 0.7)
        if disabled:
            pipe.disable_lora()
        return pipe

    plain = tiny_wan_pipeline() if disabled else styled()
    plain.load_lora_weights(wan_loras["large"], adapter_name="distilled")
    if not disabled:
        plain.set_adapters(["style", "distilled"], [0.7, 1.0])
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected = generate(plain, **CALL)

    pipe = styled()
    before, snapshot = generate(pipe, **CALL), PipelineSnapshot.of(pipe)
    trainable = {name for name, weight in pipe.transformer.named_parameters() if weight.requires_grad}
    layers = lora_state(pipe.transformer)
    with enabled(pipe, wan_loras):
        assert torch.equal(generate(pipe, None), expected)
    assert torch.equal(generate(pipe, **CALL), before)
    assert not snapshot.differences(pipe)
    assert lora_state(pipe.transformer) == layers
    assert {name for name, weight in pipe.transformer.named_parameters() if weight.requires_grad} == trainable
    assert pipe.get_list_adapters() == {"transformer": ["style"]}


def lora_state(denoiser: Any) -> dict[str, Any]:
    """What PEFT keeps of its LoRAs, layer by layer."""
    kept = {
        name: (module._active_adapter, module._disable_adapters, dict(module.r), dict(module.scaling))
        for name, module in denoiser.named_modules()
        if hasattr(module, "_active_adapter")
    }
    return kept | {"configs": sorted(denoiser.peft_config)}


def test_a_lora_loaded_meanwhile_stays(wan_loras: dict[str, str]) -> None:
    pipe, plain = tiny_wan_pipeline(), tiny_wan_pipeline()
    plain.load_lora_weights(wan_loras["large style"], adapter_name="style")
    with enabled(pipe, wan_loras):
        pipe.load_lora_weights(wan_loras["large style"], adapter_name="style")
        with pytest.raises(fb.StackError, match="made inactive since"):
            generate(pipe, None)
    assert pipe.get_list_adapters() == {"transformer": ["style"]}
    assert torch.equal(generate(pipe), generate(plain))


def test_a_lora_unloaded_meanwhile_is_missed(wan_loras: dict[str, str]) -> None:
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras):
        pipe.unload_lora_weights()
        with pytest.raises(fb.StackError, match="was unloaded or made inactive"):
            generate(pipe, None)
    assert torch.equal(generate(pipe), generate(tiny_wan_pipeline()))


def test_a_fused_lora_is_refused(wan_loras: dict[str, str]) -> None:
    pipe = tiny_wan_pipeline()
    pipe.load_lora_weights(wan_loras["large style"], adapter_name="style")
    pipe.fuse_lora()
    snapshot = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.StackError, match=r"fused into its weights \(style\)"):
        enabled(pipe, wan_loras)
    assert not snapshot.differences(pipe)


def test_the_names_of_wans_own_code(tmp_path: Path) -> None:
    file = write_original_wan_lora(tmp_path / "lora.safetensors", 5, width=24, num_blocks=2)
    expected = by_hand(tiny_wan_pipeline(), file, FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe = tiny_wan_pipeline()
    assert not torch.equal(expected, generate(pipe, **CALL))
    with fb.enable(pipe, schedule="LLL", adapters=[f"distilled(large={file!r}, num_inference_steps=4)"]):
        assert torch.equal(generate(pipe, None), expected)


def test_on_ltx_by_hand(tmp_path: Path) -> None:
    """Its sampler shifts by the size of the video, and explicit noise levels are not shifted."""
    lora = write_lora(tmp_path, LTXPipeline, tiny_ltx_pipeline().transformer, 6)
    plain = tiny_ltx_pipeline()
    plain.load_lora_weights(lora)
    plain.scheduler = with_levels(FlowMatchEulerDiscreteScheduler())
    expected = generate(plain, None, guidance_scale=1.0)
    pipe = tiny_ltx_pipeline()
    specs = [f"distilled(large={lora!r}, sigmas={LEVELS})"]
    with fb.enable(pipe, tiny_ltx_denoiser(), "LLL", adapters=specs):
        assert torch.equal(generate(pipe, None), expected)


@pytest.mark.parametrize("form", ["folder", "file", "pipeline"])
def test_a_checkpoint_in_place_of_the_weights(tmp_path: Path, form: str) -> None:
    plain = tiny_wan_pipeline(seed=8)
    if form == "pipeline":
        plain.save_pretrained(tmp_path)
    else:
        plain.transformer.save_pretrained(tmp_path)
    source = tmp_path / "diffusion_pytorch_model.safetensors" if form == "file" else tmp_path
    subfolder = "transformer" if form == "pipeline" else None
    plain.transformer = WanTransformer3DModel.from_pretrained(tmp_path, subfolder=subfolder)  # lies as the adapter's do
    if form == "file":  # whose tensors are copied out of it
        for parameter in plain.transformer.parameters():
            parameter.data = parameter.data.clone()
    plain.vae = tiny_wan_pipeline().vae
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = tiny_wan_pipeline()
    before, snapshot = generate(pipe, **CALL), PipelineSnapshot.of(pipe)
    specs = [f"distilled(large={str(source)!r}, small='as_loaded', num_inference_steps=4)"]
    with fb.enable(pipe, tiny_wan_denoiser(), "LSL", adapters=specs):
        generate(pipe, None)
    with fb.enable(pipe, tiny_wan_denoiser(), "LLL", adapters=specs):
        assert torch.equal(generate(pipe, None), generate(plain, **CALL))
    assert torch.equal(generate(pipe, **CALL), before)
    assert not snapshot.differences(pipe)


def test_a_checkpoint_beneath_a_lora_of_the_users_own(tmp_path: Path, wan_loras: dict[str, str]) -> None:
    plain, pipe = tiny_wan_pipeline(seed=8), tiny_wan_pipeline()
    plain.transformer.save_pretrained(tmp_path)
    plain.transformer = WanTransformer3DModel.from_pretrained(tmp_path)  # its weights lie in memory as the adapter's do
    plain.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for each in (plain, pipe):
        each.load_lora_weights(wan_loras["large style"], adapter_name="style")
    snapshot = PipelineSnapshot.of(pipe)
    with fb.enable(pipe, schedule="LLL", adapters=[f"distilled(large={str(tmp_path)!r}, num_inference_steps=4)"]):
        assert torch.equal(generate(pipe, None), generate(plain, **CALL))
    pipe.__dict__.pop("_guidance_scale", None)
    assert not [found for found in snapshot.differences(pipe) if not found.startswith("attribute _")]


def test_saving_while_enabled_saves_the_pipelines_own(tmp_path: Path, wan_loras: dict[str, str]) -> None:
    """The few-step sampler is written with the pipeline, as for every solver; afterwards its own is again."""
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras):
        assert pipe.config["scheduler"][1] == "FlowMatchEulerDiscreteScheduler"
    assert pipe.config["scheduler"][1] == "UniPCMultistepScheduler"
    assert type(pipe.scheduler) is UniPCMultistepScheduler
