"""``distilled_small``: a few-step small denoiser between guided large steps, held against a loop written by hand."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

import flowblend_plugins as fb
from flowblend_adapters.distilled_samplers.own_levels import mix_levels
from flowblend_plugins.testing import AdapterContract, PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline
from flowblend_plugins.testing.contract import seen_calls
from tests.adapters.distilled_samplers.lora_files import write_lora
from tests.exactness.pipelines import FAMILIES, VIDEO_TO_VIDEO

LDL = "L:3,S:4,L:3"


def enabled(pipe: Any, lora: str, *further: str, schedule: str = LDL) -> fb.Blend:
    return fb.enable(pipe, tiny_wan_denoiser(), schedule, adapters=[f"distilled_small(small={lora!r})", *further])


@torch.no_grad()
def by_hand(scheduler: Any, denoisers: dict[str, Any], letters: Sequence[str], guidance_scale: float) -> torch.Tensor:
    """Wan's sampling loop in which the small denoiser is never asked for the unconditional branch."""
    text = torch.Generator().manual_seed(1234)
    prompt, negative = (torch.randn(1, 8, 16, generator=text) for _ in range(2))
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(len(letters))
    for letter, t in zip(letters, scheduler.timesteps, strict=True):
        velocity = denoisers[letter](latents, t.expand(1), prompt, return_dict=False)[0]
        if letter == "L":
            uncond = denoisers[letter](latents, t.expand(1), negative, return_dict=False)[0]
            velocity = uncond + guidance_scale * (velocity - uncond)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents


class TestDistilledSmall(AdapterContract):
    wrong_specs = (
        "distilled_small(distilled_steps=0)",
        "distilled_small(lora_scale=-1.0)",
        "distilled_small(small=3)",
        "distilled_small(num_inference_steps=4)",
    )
    spec: ClassVar[str] = ""

    @pytest.fixture(autouse=True)
    def _files(self, wan_loras: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "lora", wan_loras["small"], raising=False)
        monkeypatch.setattr(type(self), "spec", f"distilled_small(small={wan_loras['small']!r})")

    def enabled(self, pipe: Any, schedule: str) -> fb.Blend:
        """The technique alone is the small denoiser alone, without guidance."""
        return super().enabled(pipe, "SSS" if schedule == "LLL" else schedule)

    def by_hand(self, pipe: Any) -> torch.Tensor:
        small = tiny_wan_denoiser()
        lora: str = type(self).lora  # type: ignore[attr-defined]
        small.load_lora_adapter(lora, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
        pipe.transformer = small
        return generate(pipe, guidance_scale=1.0)

    def test_guidance_branches_never_mix(self) -> None:
        """Without guidance there is one branch: what is answered for the other is the same, whatever its text."""
        pipe = self.make_pipeline()
        with self.enabled(pipe, "LLL") as blend:
            first = generate(pipe)
            with seen_calls(blend, "S") as calls:
                assert torch.equal(generate(pipe, negative_prompt_embeds=torch.ones(1, 8, 16)), first)
            assert not torch.equal(generate(pipe, prompt_embeds=torch.ones(1, 8, 16)), first)
        by_step = itertools.groupby(calls, key=lambda call: call.step.step_index)
        for _, (cond, uncond) in by_step:
            assert (cond.step.branch, uncond.step.branch) == ("cond", "uncond")
            assert torch.equal(cond.output, uncond.output)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.7])
def test_each_side_has_its_own_guidance(wan_loras: dict[str, str], guidance_scale: float) -> None:
    plain, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    small.load_lora_adapter(wan_loras["small"], weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    expected = by_hand(
        plain.scheduler, {"L": plain.transformer, "S": small}, [*"LLLSSSSLLL"], guidance_scale=guidance_scale
    )
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras["small"]) as blend:
        assert torch.equal(generate(pipe, guidance_scale=guidance_scale), expected)
        last = blend.trace.generations[-1]
        assert (last.num_forwards("L", "compute"), last.num_forwards("S", "compute")) == (12, 4)
        assert last.num_forwards("S", "reuse") == 4
        assert any("guidance is off for S; 4 times" in note for note in last.notes)


def test_flops_count_what_ran(wan_loras: dict[str, str]) -> None:
    """Six large steps of two branches, four small ones of one."""
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "SSS") as blend:
        generate(pipe, guidance_scale=1.0)
        small = blend.trace.flops().linear // 10
    with enabled(pipe, wan_loras["small"]) as blend:
        generate(pipe)
        mixed = blend.trace.flops()
    with fb.enable(pipe, schedule="LLL") as blend:
        generate(pipe)
        large = blend.trace.flops().linear // 20
    assert mixed.linear == 12 * large + 4 * small
    assert mixed.linear_fraction_of_large == pytest.approx(mixed.linear / (20 * large))


def test_guidance_off_in_the_call_leaves_nothing_to_do(wan_loras: dict[str, str]) -> None:
    plain, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    small.load_lora_adapter(wan_loras["small"], weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    pipe = tiny_wan_pipeline()
    with enabled(pipe, wan_loras["small"]) as blend:
        seen = generate(pipe, guidance_scale=1.0)
        assert not blend.trace.generations[-1].notes
    with fb.enable(plain, small, LDL):
        assert torch.equal(seen, generate(plain, guidance_scale=1.0))


def test_with_a_solver_and_a_cache(wan_loras: dict[str, str]) -> None:
    """It leaves the sampler alone, so a solver may stand beside it; a cache sees conditional calls only."""
    pipe = tiny_wan_pipeline()
    solver, cache = "flow_euler(num_inference_steps=10)", "first_block_cache(denoisers='L', threshold=0.0)"
    with enabled(pipe, wan_loras["small"], solver) as blend:
        without = generate(pipe, None)
    with enabled(pipe, wan_loras["small"], solver, cache) as blend:
        assert torch.equal(generate(pipe, None), without)
        assert blend.trace.generations[-1].num_forwards("S", "reuse") == 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_under_model_offloading_in_every_generation(wan_loras: dict[str, str], when: str) -> None:
    """Offloading takes every denoiser's forward apart and together again at the end of each generation."""
    plain = tiny_wan_pipeline()
    with enabled(plain, wan_loras["small"]):
        expected = generate(plain)
    pipe = tiny_wan_pipeline()
    if when == "before":
        pipe.enable_model_cpu_offload(device="cpu")
    with enabled(pipe, wan_loras["small"]) as blend:
        if when == "after":
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(3):
            assert torch.equal(generate(pipe), expected)
            assert blend.trace.generations[-1].num_forwards("S", "reuse") == 4
    assert torch.equal(generate(pipe), generate(tiny_wan_pipeline()))


def test_the_forward_is_put_back_between_generations(wan_loras: dict[str, str]) -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    with fb.enable(pipe, small, LDL, adapters=[f"distilled_small(small={wan_loras['small']!r})"]):
        generate(pipe)
        assert "forward" not in vars(small)


def test_where_guidance_cannot_be_off_for_one() -> None:
    """A pipeline that does not say which branch a call is could be answered wrongly."""
    family = VIDEO_TO_VIDEO
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "LSL", adapters=["distilled_small(small='as_loaded')"]):
        with pytest.raises(
            fb.StackError, match=r"calls it without saying for which branch\. Call it with guidance_scale"
        ):
            family.run(pipe)
        family.run(pipe, guidance_scale=1.0)


@pytest.mark.parametrize(("name", "batch"), [("ltx", 1), ("ltx-condition", 2), ("cogvideox", 1), ("mochi", 2)])
def test_both_branches_in_one_batch(name: str, batch: int) -> None:
    """There the conditional half alone is run: the small denoiser in a guided call is itself without guidance."""
    family = FAMILIES[name]
    plain, pipe = family.pipe(), family.pipe()
    plain.transformer = family.make_small()
    expected = family.run(plain, batch=batch, guidance_scale=1.0)
    with fb.enable(pipe, family.make_small(), "SSS", adapters=["distilled_small(small='as_loaded')"]) as blend:
        assert torch.equal(family.run(pipe, batch=batch, guidance_scale=4.0), expected)
        guided = blend.trace.flops()
        assert any("times its conditional output" in note for note in blend.trace.generations[-1].notes)
    with fb.enable(pipe, family.make_small(), "SSS") as blend:
        family.run(pipe, batch=batch, guidance_scale=4.0)
        both = blend.trace.flops()
    assert guided.full == pytest.approx(both.full / 2, rel=1e-3)  # Mochi computes positions once for a batch
    assert guided.full_fraction_of_large == pytest.approx(both.full_fraction_of_large / 2, rel=1e-3)


def test_large_steps_of_a_batch_stay_guided() -> None:
    family = FAMILIES["ltx"]
    pipe, specs = family.pipe(), ["distilled_small(small='as_loaded')"]
    with fb.enable(pipe, family.make_small(), "L:3,S:3", adapters=specs) as blend:
        mixed = family.run(pipe, guidance_scale=4.0)
        flops = blend.trace.flops()
        with fb.enable(family.pipe(), schedule="LLL") as large:
            family.run(large.pipeline, guidance_scale=4.0)
    assert not torch.equal(mixed, family.run(family.pipe(), guidance_scale=4.0))
    assert flops.linear > large.trace.flops().linear / 2  # three of six large steps, both branches, and a little


def test_a_small_denoiser_compiled_as_a_whole_is_refused(wan_loras: dict[str, str]) -> None:
    pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    small.compile(backend="eager")
    with (
        fb.enable(pipe, small, LDL, adapters=[f"distilled_small(small={wan_loras['small']!r})"]),
        pytest.raises(fb.StackError, match="compiled as a whole"),
    ):
        generate(pipe)


def test_a_lora_of_the_large_denoiser_is_refused(tmp_path: Path) -> None:
    lora = write_lora(tmp_path, WanPipeline, tiny_wan_pipeline().transformer, 1)
    pipe = tiny_wan_pipeline()
    snapshot = PipelineSnapshot.of(pipe)
    with pytest.raises(
        fb.StackError, match=r"24 wide, and denoiser S is 12 wide .* It fits denoiser L: give it as large="
    ):
        enabled(pipe, lora)
    assert not snapshot.differences(pipe)


def test_without_a_small_denoiser() -> None:
    with pytest.raises(fb.StackError, match="no small denoiser"):
        fb.enable(tiny_wan_pipeline(), schedule="LLL", adapters=["distilled_small(small='as_loaded')"])


def test_on_wan_image_to_video() -> None:
    family = FAMILIES["wan-i2v"]
    pipe = family.pipe()
    with fb.enable(pipe, family.make_small(), "L:2,S:2,L:2", adapters=["distilled_small(small='as_loaded')"]) as blend:
        family.run(pipe)
        assert blend.trace.generations[-1].num_forwards("S", "reuse") == 2


# -- at the small denoiser's own noise levels -------------------------------------------------------------------------

MIXED = (1.0, 0.9, 0.8, 0.7, 0.45, 0.3, 0.2)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_its_own_noise_levels_by_hand(wan_loras: dict[str, str], solver: str) -> None:
    """Euler bit for bit. With UniPC the small denoiser's steps are Euler's up to rounding, the large one's are not."""
    plain, small = tiny_wan_pipeline(), tiny_wan_denoiser()
    small.load_lora_adapter(wan_loras["small"], weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    scheduler = FlowMatchEulerDiscreteScheduler()
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda num_steps: set_timesteps(sigmas=list(MIXED))  # type: ignore[method-assign]
    expected = by_hand(scheduler, {"L": plain.transformer, "S": small}, [*"LLLSSLL"], guidance_scale=5.0)
    pipe = tiny_wan_pipeline()
    if solver == "euler":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    snapshot = PipelineSnapshot.of(pipe)
    spec = f"distilled_small(small={wan_loras['small']!r}, sigmas={MIXED})"
    with fb.enable(pipe, tiny_wan_denoiser(), "L:3,S:2,L:2", adapters=[spec]) as blend:
        seen = generate(pipe, None)
        assert torch.equal(seen, expected) == (solver == "euler")
        assert [call.step.sigma for call in blend.trace.generations[-1].calls][::2] == pytest.approx(MIXED, abs=1e-5)
        with pytest.raises(fb.StackError, match="num_inference_steps=10, and 'distilled_small' was asked for"):
            generate(pipe, 10)
    left = snapshot.differences(pipe)
    assert all(found.startswith("attribute _") for found in left), left  # what a pipeline notes of its last call


def test_small_steps_are_of_first_order_whatever_the_sampler(wan_loras: dict[str, str]) -> None:
    """UniPC comes to Euler's steps but for its whole-numbered timesteps; with its history it is far from them."""

    def run(scheduler: Any, *specs: str, **call: Any) -> torch.Tensor:
        pipe = tiny_wan_pipeline()
        pipe.scheduler = scheduler or pipe.scheduler
        with fb.enable(pipe, tiny_wan_denoiser(), "SSS", adapters=specs):
            return generate(pipe, None, **call)

    spec = f"distilled_small(small={wan_loras['small']!r}, sigmas={MIXED})"
    euler, unipc = run(FlowMatchEulerDiscreteScheduler(), spec), run(None, spec)
    beside = f"distilled_small(small={wan_loras['small']!r})"
    of_second_order = run(None, beside, f"unipc(sigmas={MIXED})")
    assert 5 * (unipc - euler).abs().max() < (of_second_order - euler).abs().max()


def test_a_solver_beside_explicit_levels_is_refused() -> None:
    stack = [f"distilled_small(small='as_loaded', sigmas={MIXED})", "unipc(num_inference_steps=7)"]
    with pytest.raises(fb.StackError, match="'distilled_small' prescribes the list of sigmas, and 'unipc'"):
        fb.enable(tiny_wan_pipeline(), tiny_wan_denoiser(), "LSL", adapters=stack)


TENTHS = [1.0 - step / 10 for step in range(10)]
FIFTHS = [1.0, 0.75, 0.55, 0.35, 0.15]


@pytest.mark.parametrize(
    ("letters", "few", "sigmas", "schedule"),
    [
        ("LLLLSSSSLL", FIFTHS, (1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.35, 0.15, 0.1), "L:5,S:2,L:2"),
        ("SSSSSSSSSS", FIFTHS, tuple(FIFTHS), "S:5"),
        ("SSSSSSLLLL", FIFTHS, (1.0, 0.75, 0.55, 0.35, 0.3, 0.2, 0.1), "S:3,L:4"),
        ("LLLLSSSSSS", FIFTHS, (1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.35, 0.15), "L:5,S:3"),
        ("LLLLLLLLLL", FIFTHS, tuple(TENTHS), "L:10"),
        ("LLLLLLLLLL", [], tuple(TENTHS), "L:10"),
    ],
)
def test_mixed_levels(letters: str, few: list[float], sigmas: tuple[float, ...], schedule: str) -> None:
    """The small denoiser's steps are whole ones of its own: each from one of its levels to the next."""
    mixed = mix_levels(TENTHS, letters, few)
    assert mixed is not None
    assert mixed.sigmas == pytest.approx(sigmas)
    assert mixed.schedule == schedule


@pytest.mark.parametrize(("letters", "few"), [("LLLLLSLLLL", [1.0, 0.6, 0.1]), ("LLMMSSSSLL", FIFTHS)])
def test_where_levels_cannot_be_mixed(letters: str, few: list[float]) -> None:
    assert mix_levels(TENTHS, letters, few) is None


def test_flops_as_the_paper_counts_them_for_ltx() -> None:
    """20 of 40 large steps and the 4 of 8 distilled ones that lie between them, the large ones evenly spaced."""
    dense, few = [1.0 - step / 40 for step in range(40)], [1.0 - step / 8 for step in range(8)]
    mixed = mix_levels(dense, "L" * 10 + "S" * 20 + "L" * 10, few)
    assert mixed is not None
    assert mixed.schedule == "L:10,S:4,L:10"


def test_weights_that_say_their_levels_are_told_how_to_be_sampled(tmp_path: Path, wan_loras: dict[str, str]) -> None:
    """And what the note says can be done as it stands."""
    name = "pytorch_lora_weights.safetensors"
    (tmp_path / name).write_bytes((Path(wan_loras["small"]) / name).read_bytes())
    (tmp_path / "distilled.json").write_text(json.dumps({"num_inference_steps": 5, "sigmas": FIFTHS}))
    pipe = tiny_wan_pipeline()
    with enabled(pipe, str(tmp_path), schedule="LSL") as blend:
        generate(pipe)
        (note,) = (note for note in blend.trace.generations[-1].notes if "other noise levels" in note)
    schedule, spec = re.findall(r'schedule "(.*?)", distilled_small\((.*)\)$', note)[0]
    specs = [f"distilled_small(small={str(tmp_path)!r}, {spec})"]
    with fb.enable(pipe, tiny_wan_denoiser(), schedule, adapters=specs) as blend:
        generate(pipe, None)
        last = blend.trace.generations[-1]
        assert not any("other noise levels" in note for note in last.notes)
        of_small = {call.step.sigma or 0.0 for call in last.calls if call.step.denoiser == "S"}
        assert all(any(abs(sigma - level) < 1e-4 for level in FIFTHS) for sigma in of_small)
