"""For plugin authors: tiny real pipelines, a plugin that records every hook call, and the contract of an adapter.

Nothing here is a mock: the pipelines are diffusers' own, with random weights of a few kilobytes, and generate in a
fraction of a second on a CPU. Text embeddings are passed directly, so no tokenizer or text encoder is needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from .adapter import Adapter
from .adapter_spec import adapter_from_spec, write_spec
from .blend import Blend, enable
from .errors import AdapterError
from .manager import adapters_by_name, make_plugin_manager
from .markers import hookimpl


def tiny_wan_denoiser(seed: int = 1, layers: int = 1, heads: int = 1) -> Any:
    """A random ``WanTransformer3DModel``: 4 latent channels, text width 16, ``heads`` x 12 wide."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=heads,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ).eval()


def tiny_wan_pipeline(seed: int = 0) -> Any:
    """A ``WanPipeline`` on a random denoiser of two layers, with UniPC as Wan 2.1 has it."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    transformer = tiny_wan_denoiser(seed, layers=2, heads=2)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_ltx_denoiser(seed: int = 1, layers: int = 1, heads: int = 1) -> Any:
    """A random ``LTXVideoTransformer3DModel``: 8 latent channels, text width 16, ``heads`` x 16 wide."""
    from diffusers import LTXVideoTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=heads,
            attention_head_dim=16,
            cross_attention_dim=heads * 16,
            num_layers=layers,
            caption_channels=16,
        ).eval()


def tiny_ltx_pipeline(seed: int = 0) -> Any:
    """An ``LTXPipeline`` on a random denoiser of two layers, with flow-match Euler as LTX-Video has it."""
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False, False, False, False, False),
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    transformer = tiny_ltx_denoiser(seed, layers=2, heads=2)
    pipe = LTXPipeline(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def generate(pipe: Any, num_inference_steps: int | None = 10, seed: int = 0, **overrides: Any) -> torch.Tensor:
    """Latents of one generation on a tiny pipeline: 32x32 pixels, 9 frames, guidance on, fixed random text.

    Args:
        pipe: a pipeline of this module, or one that takes the same arguments.
        num_inference_steps: ``None`` leaves the argument out of the call, for adapters that set it.
        seed: of the noise; the text is always the same.
        overrides: further arguments of the pipeline call, in place of those chosen here.
    """
    config = pipe.transformer.config
    width = config.get("text_dim") or config["caption_channels"]
    text = torch.Generator().manual_seed(1234)
    arguments: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, 8, width, generator=text),
        "negative_prompt_embeds": torch.randn(1, 8, width, generator=text),
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
    if "prompt_attention_mask" in inspect.signature(pipe.__call__).parameters:
        mask = torch.ones(1, 8)
        arguments |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    if num_inference_steps is not None:
        arguments["num_inference_steps"] = num_inference_steps
    return pipe(**(arguments | overrides)).frames


class RecordingPlugin:
    """A plugin that changes nothing and keeps every hook call: ``calls`` is a list of (hook name, arguments)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def of(self, hook: str) -> list[dict[str, Any]]:
        """The arguments of every call of one hook, in order."""
        return [arguments for name, arguments in self.calls if name == hook]

    @hookimpl
    def flowblend_register_adapters(self) -> None:
        self.calls.append(("flowblend_register_adapters", {}))

    @hookimpl
    def flowblend_register_pairs(self) -> None:
        self.calls.append(("flowblend_register_pairs", {}))

    @hookimpl
    def flowblend_register_metrics(self) -> None:
        self.calls.append(("flowblend_register_metrics", {}))

    @hookimpl
    def flowblend_register_commands(self, app: Any) -> None:
        self.calls.append(("flowblend_register_commands", {"app": app}))

    @hookimpl
    def flowblend_adopt(self, pipeline: Any) -> None:
        self.calls.append(("flowblend_adopt", {"pipeline": pipeline}))

    @hookimpl
    def flowblend_configure_generation(self, pipeline: Any, call_arguments: dict[str, Any]) -> None:
        self.calls.append(
            ("flowblend_configure_generation", {"pipeline": pipeline, "call_arguments": dict(call_arguments)})
        )

    @hookimpl
    def flowblend_route(self, step: Any) -> None:
        self.calls.append(("flowblend_route", {"step": step}))

    @hookimpl
    def flowblend_stage_entered(self, step: Any, denoiser: nn.Module, reentry: str) -> None:
        self.calls.append(("flowblend_stage_entered", {"step": step, "denoiser": denoiser, "reentry": reentry}))

    @hookimpl
    def flowblend_denoiser_called(self, step: Any, denoiser: nn.Module, outcome: str, time_ms: float) -> None:
        arguments = {"step": step, "denoiser": denoiser, "outcome": outcome, "time_ms": time_ms}
        self.calls.append(("flowblend_denoiser_called", arguments))

    @hookimpl
    def flowblend_generation_finished(self, pipeline: Any, trace: Any, error: BaseException | None) -> None:
        arguments = {"pipeline": pipeline, "trace": trace, "error": error}
        self.calls.append(("flowblend_generation_finished", arguments))


@dataclass(frozen=True)
class PipelineSnapshot:
    """What a pipeline is: to take before ``enable()``, and to compare with after ``disable()``."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, pipe: Any) -> PipelineSnapshot:
        facts: dict[str, Any] = {"class": type(pipe), "config": dict(pipe.config)}
        for name, value in vars(pipe).items():
            if isinstance(value, torch.Tensor):
                continue
            is_plain = value is None or isinstance(value, (bool, int, float, str, dict))
            facts[f"attribute {name}"] = value if is_plain else id(value)
        tensors = {f"attribute {k}": v.clone() for k, v in vars(pipe).items() if isinstance(v, torch.Tensor)}
        for name, component in pipe.components.items():
            facts |= {f"{name} class": type(component), f"{name} identity": id(component)}
            if isinstance(component, nn.Module):
                for path, module in component.named_modules(prefix=name):
                    own = {k for k in vars(module) if k not in ("_parameters", "_buffers", "_modules")}
                    facts[f"{path} attributes"] = own | {("forward", id(module.__dict__.get("forward")))}
                    facts[f"{path} class"] = type(module)
                    facts[f"{path} hooks"] = (tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
                tensors |= {f"{name}.{key}": value.clone() for key, value in component.state_dict().items()}
            elif hasattr(component, "config"):
                facts[f"{name} config"] = dict(component.config)
        return cls(facts, tensors)

    def differences(self, pipe: Any) -> list[str]:
        """What of the pipeline is no longer as it was, in words; empty if nothing."""
        now = PipelineSnapshot.of(pipe)
        found = [f for f in sorted(self.facts.keys() | now.facts.keys()) if self.facts.get(f) != now.facts.get(f)]
        for name in sorted(self.tensors.keys() | now.tensors.keys()):
            before, after = self.tensors.get(name), now.tensors.get(name)
            if before is None or after is None or not torch.equal(before, after):
                found.append(f"tensor {name}")
        return found


class AdapterContract:
    """What every adapter must hold to. Subclass it in a test module, as ``class TestMine(AdapterContract)``.

    Attributes:
        spec: the adapter as users write it, with options that make a difference.
        wrong_specs: texts that must be refused: options out of range, of a wrong type, unknown.
        call: arguments of :func:`generate` while the adapter is attached.
        plugins: plugin objects to register, for an adapter that is not installed.
        make_pipeline, make_small: the large pipeline and the small denoiser to try it on.
    """

    spec: ClassVar[str]
    wrong_specs: ClassVar[Sequence[str]]
    call: ClassVar[Mapping[str, Any]] = {}
    plugins: ClassVar[Sequence[Any]] = ()
    make_pipeline: Callable[[], Any] = staticmethod(tiny_wan_pipeline)
    make_small: Callable[[], Any] = staticmethod(tiny_wan_denoiser)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        """Latents of the technique put on a fresh pipeline without FlowBlending, for the same ``call``."""
        raise NotImplementedError(f"{type(self).__name__} must say how {self.spec} is done by hand")

    def enabled(self, pipe: Any, schedule: str) -> Blend:
        return enable(pipe, self.make_small(), schedule, adapters=[self.spec], plugins=self.plugins)

    def expect_nothing_left(self, differences: list[str]) -> None:
        assert not differences, f"{self.spec} leaves behind: {', '.join(differences)}"

    def adapter(self, spec: str) -> Adapter:
        return adapter_from_spec(spec, adapters_by_name(make_plugin_manager(self.plugins)))

    def test_alone_it_equals_the_technique_by_hand(self) -> None:
        with torch.no_grad():
            expected = self.by_hand(self.make_pipeline())
        pipe = self.make_pipeline()
        plain = generate(pipe, **self.call)
        with self.enabled(pipe, "LLL"):
            assert torch.equal(generate(pipe, **self.call), expected), f"{self.spec} is not the technique by hand"
        assert not torch.equal(plain, expected), f"{self.spec} changes nothing here: choose options that do"

    def test_second_generation_equals_the_first(self) -> None:
        pipe = self.make_pipeline()
        with self.enabled(pipe, "LSL"):
            first = generate(pipe, **self.call)
            generate(pipe, seed=1, **self.call)
            assert torch.equal(generate(pipe, **self.call), first), f"{self.spec} carries state between generations"

    def test_disable_restores_everything(self) -> None:
        pipe = self.make_pipeline()
        before = generate(pipe, **self.call)
        snapshot = PipelineSnapshot.of(pipe)
        with self.enabled(pipe, "LSL"):
            generate(pipe, **self.call)
        assert torch.equal(generate(pipe, **self.call), before), f"{self.spec} still has an effect after disable()"
        self.expect_nothing_left(snapshot.differences(pipe))

    def test_a_failed_generation_leaves_nothing_behind(self) -> None:
        pipe = self.make_pipeline()
        generate(pipe, **self.call)
        snapshot = PipelineSnapshot.of(pipe)

        def interrupt(pipeline: Any, step_index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            raise KeyboardInterrupt

        with self.enabled(pipe, "LSL"):
            expected = generate(pipe, **self.call)
            try:
                generate(pipe, **{**self.call, "callback_on_step_end": interrupt})
            except KeyboardInterrupt:
                pass
            else:
                raise AssertionError("the generation was not interrupted")
            again = generate(pipe, **self.call)
            assert torch.equal(again, expected), f"{self.spec} carries state over from an interrupted generation"
        generate(pipe, **self.call)  # a pipeline notes its last call on itself, so both snapshots follow the same one
        self.expect_nothing_left(snapshot.differences(pipe))

    def test_text_gives_the_same_adapter_again(self) -> None:
        adapter = self.adapter(self.spec)
        assert self.adapter(write_spec(adapter)) == adapter, f"{write_spec(adapter)} is not {adapter}"

    def test_suggested_settings_are_its_own(self) -> None:
        for text in type(self.adapter(self.spec)).suggested:
            assert type(self.adapter(text)) is type(self.adapter(self.spec)), f"{text} is another adapter"

    def test_wrong_options_are_refused_by_name(self) -> None:
        assert self.wrong_specs, "wrong_specs is empty: say what must be refused"
        for spec in self.wrong_specs:
            try:
                self.adapter(spec)
            except AdapterError as error:
                message = str(error)
            else:
                raise AssertionError(f"{spec} was accepted")
            name = self.adapter(self.spec).name
            assert repr(name) in message, f"the error on {spec} does not name {name}: {message}"
