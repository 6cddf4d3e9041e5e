"""``flowblend calibrate teacache``, the fits that come with the package, and what ``--dry-run`` knows before a run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.teacache import estimates
from flowblend_adapters.feature_caching.teacache.adapter import TeaCache
from flowblend_adapters.feature_caching.teacache.calibration import (
    MIN_R_SQUARED,
    PoorFitError,
    Trajectory,
    fit_denoiser,
    record_changes,
    refuse_poor,
)
from flowblend_adapters.feature_caching.teacache.fits import read_fits, shipped_fits
from flowblend_adapters.feature_caching.teacache.published import PROJECTED_TIME, TIME
from flowblend_adapters.step_reduction.unipc import UniPC
from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.feature_caching.test_teacache import fits_for_tiny_denoisers
from tests.conftest import Result
from tests.exactness.pipelines import FAMILIES

Flowblend = Callable[..., Result]


def trajectories(noise: float, count: int = 3, steps: int = 20) -> list[Trajectory]:
    """The output's change is a known polynomial of the signals', and noise."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        x = generator.uniform(0.02, 0.2, steps - 1)
        y = 0.01 + 0.5 * x + 3 * x**2 + noise * generator.normal(size=steps - 1)
        made.append(Trajectory(steps, list(range(1, steps)), {TIME: list(x), PROJECTED_TIME: list(x)}, list(y)))
    return made


def test_a_known_polynomial_is_found_again() -> None:
    for fit in fit_denoiser(tiny_wan_denoiser(), trajectories(noise=0.0)):
        assert fit.r_squared == pytest.approx(1.0)
        assert fit.degree == 4
        assert fit.num_points == 57
        low, high = fit.estimate.polynomial.domain
        assert 0.02 <= low < 0.04
        assert 0.18 < high <= 0.2
        for change in np.linspace(low, high, 7):
            assert fit.estimate.polynomial(change) == pytest.approx(0.01 + 0.5 * change + 3 * change**2, abs=1e-9)
        assert fit.estimate.polynomial(0.3) is None
        refuse_poor("L", fit)


@pytest.mark.parametrize(("speed", "share"), [("slow", 1 / 3), ("fast", 1 / 2)])
def test_the_thresholds_reuse_the_share_they_promise(speed: str, share: float) -> None:
    """Counted again here, from the rule as it is written down."""
    data = trajectories(noise=0.0)
    fit = next(fit for fit in fit_denoiser(tiny_wan_denoiser(), data) if fit.signal == TIME)
    threshold, reused = getattr(fit.estimate, speed), 0
    for one in data:
        distance = 0.0
        for step, change in zip(one.steps, one.signals[TIME], strict=True):
            distance += float(np.polyval(fit.estimate.polynomial.coefficients, change))
            if step == 19 or distance >= threshold:
                distance = 0.0
            else:
                reused += 1
    assert share <= reused / 60 < share + 0.1


def test_a_poor_fit_is_refused_with_the_figure_and_the_limit() -> None:
    fit = fit_denoiser(tiny_wan_denoiser(), trajectories(noise=0.5))[0]
    assert fit.r_squared < MIN_R_SQUARED
    with pytest.raises(PoorFitError, match=rf"R\^2 = {fit.r_squared:.3f} .* at least {MIN_R_SQUARED:g} is needed"):
        refuse_poor("L", fit)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(fb.FlowBlendError, match=r"7 different changes .* --steps 10 or more"):
        fit_denoiser(tiny_wan_denoiser(), trajectories(noise=0.0, count=1, steps=8))


@pytest.mark.parametrize("name", ["wan", "ltx"])
@pytest.mark.parametrize("letter", ["L", "S"])
def test_what_is_recorded_is_what_changed(name: str, letter: str) -> None:
    """Against outputs collected beside, and nothing of it stays on the denoiser."""
    family = FAMILIES[name]
    pipe, small = family.pipe(), family.make_small()
    module = pipe.transformer if letter == "L" else small
    outputs: dict[float, list[torch.Tensor]] = {}
    handle = module.register_forward_hook(
        lambda m, a, kw, out: outputs.setdefault(kw["encoder_hidden_states"].sum().item(), []).append(out[0].clone()),
        with_kwargs=True,
    )
    classes = [type(part) for part in module.modules()]
    denoiser, recorded = record_changes(pipe, small, letter, [lambda p: family.run(p, 12)] * 2)
    handle.remove()
    assert denoiser is module
    assert [type(part) for part in module.modules()] == classes
    assert len(recorded) == 2 * len(outputs)
    for branch, seen in enumerate(outputs.values()):
        for generation, start in enumerate((0, 12)):
            own = seen[start : start + 12]
            changes = [((b - a).abs().mean() / a.abs().mean()).item() for a, b in itertools.pairwise(own)]
            one = recorded[generation * len(outputs) + branch]
            assert one.outputs == pytest.approx(changes)
            assert one.steps == list(range(1, 12))
            assert all(len(values) == 11 for values in one.signals.values())


def test_each_expert_of_wan_2_2_is_recorded_over_a_whole_generation_of_its_own() -> None:
    pipe: Any = FAMILIES["wan"].pipe()
    experts = type(pipe)(**{**pipe.components, "transformer_2": tiny_wan_denoiser(9, 2, 2)}, boundary_ratio=0.8)
    experts.set_progress_bar_config(disable=True)
    further = {"M": experts.transformer_2}
    generations = [lambda p: FAMILIES["wan"].run(p, 6)]
    for letter, expert in (("L", experts.transformer), ("M", experts.transformer_2)):
        denoiser, recorded = record_changes(experts, None, letter, generations, further)
        assert denoiser is expert
        # Alone in a pipeline of one denoiser it changes as much.
        alone = type(pipe)(**{**pipe.components, "transformer": expert})
        alone.set_progress_bar_config(disable=True)
        assert [one.outputs for one in record_changes(alone, None, "L", generations)[1]] == [
            one.outputs for one in recorded
        ]


def test_the_command_writes_a_file_that_the_adapter_takes(
    flowblend: Flowblend, saved_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowblend_adapters.feature_caching.teacache.calibration.MIN_R_SQUARED", -1.0)
    out = tmp_path / "new" / "fits.json"
    pair = ("--large", saved_pair / "large", "--small", saved_pair / "small")
    size = ("--prompt", "a red circle", "--height", "32", "--width", "32", "--num-frames", "9")
    result = flowblend("calibrate", "teacache", *pair, *size, "--steps", "12", "--steps", "16", "--out", out)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["L projected_time", "L time", "S projected_time", "S time"]
    assert all("degree 4, R^2 " in line and "domain" in line for line in lines[:4])
    fits = read_fits(out)
    assert {(fit.signal, fit.denoiser["num_layers"]) for fit in fits} == {
        (signal, layers) for signal in (TIME, PROJECTED_TIME) for layers in (2, 1)
    }
    assert all(fit.num_inference_steps == (12, 16) and fit.num_points == 2 * (11 + 15) for fit in fits)
    adapter = f"teacache(coefficients={str(out)!r})"
    planned = flowblend("run", *pair, "--steps", "12", "--dry-run", "--adapter", adapter, "--json")
    assert planned.code == 0, planned.err
    assert len(json.loads(planned.out)["adapters"][adapter]) == 12


def test_the_command_refuses_a_poor_fit(
    flowblend: Flowblend, saved_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowblend_adapters.feature_caching.teacache.calibration.MIN_R_SQUARED", 1.01)
    out = tmp_path / "fits.json"
    pair = ("--large", saved_pair / "large", "--small", saved_pair / "small")
    size = ("--prompt", "a red circle", "--height", "32", "--width", "32", "--num-frames", "9", "--steps", "12")
    result = flowblend("calibrate", "teacache", *pair, *size, "--out", out)
    assert result.code == 1
    assert "at least 1.01 is needed" in result.error_line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--large", "nowhere"), "Say what to generate with --prompt"),
        (("--pair", "nobody"), "there is no such pair"),
        (("--large", "./nowhere", "--prompt", "a"), "there is no folder or file"),
    ],
)
def test_bad_input_is_one_line(
    flowblend: Flowblend, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    result = flowblend("calibrate", "teacache", *arguments, "--out", tmp_path / "fits.json")
    assert result.code in (1, 2)
    assert complaint in result.error_line


# -- what comes with the package -----------------------------------------------------------------------------------


def test_the_reference_pair_has_fits_that_are_good_enough() -> None:
    from diffusers import WanTransformer3DModel

    for denoiser in (
        WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(REFERENCE.large / "transformer")),
        WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(REFERENCE.small)),
    ):
        fits = [fit for fit in shipped_fits() if fit.is_for(denoiser)]
        assert {fit.signal for fit in fits} == {TIME, PROJECTED_TIME}
        for fit in fits:
            refuse_poor("?", fit)
            estimate = estimates.estimate_for("L", denoiser, fit.signal, None)
            assert estimate == fit.estimate
            assert estimate.slow is not None
            assert estimate.fast is not None
            assert 0 < estimates.threshold_for("L", estimate, None) < estimates.threshold_for("L", estimate, "fast")


# -- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentry", ["recompute", "keep"])
@pytest.mark.parametrize(
    "adapter",
    [
        TeaCache(threshold=0.65),
        TeaCache(threshold=1.2, retention=False),
        TeaCache(threshold=1e6, retention=False, warmup_steps=2, denoisers="L"),
    ],
    ids=["retention", "no retention", "warm-up on L"],
)
def test_the_plan_of_wan_is_what_then_happens(adapter: TeaCache, reentry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = fits_for_tiny_denoisers()
    monkeypatch.setattr(estimates, "shipped_fits", lambda: fits)
    pipe = tiny_wan_pipeline()
    family = FAMILIES["wan"]
    with fb.enable(pipe, tiny_wan_denoiser(), "L:8,S:6,L:6", adapters=[adapter], reentry=reentry) as blend:
        steps, (planned,) = blend.preview(20)
        family.run(pipe, 20)
        assert blend.trace.last is not None
        for branch in ("cond", "uncond"):
            calls = [call for call in blend.trace.last.calls if call.step.branch == branch]
            assert planned == [call.outcome for call in calls]
            assert steps == [call.step._replace(branch=None) for call in calls]
    assert {"compute", "reuse"} == set(planned)


def test_the_plan_of_a_signal_that_depends_on_content_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = fits_for_tiny_denoisers()
    monkeypatch.setattr(estimates, "shipped_fits", lambda: fits)
    family = FAMILIES["ltx"]
    pipe: Any = family.pipe()
    levels = UniPC(num_inference_steps=4, sigmas=(1.0, 0.75, 0.5, 0.25))
    with fb.enable(pipe, family.make_small(), "L:2,S:1,L:1", adapters=[TeaCache(threshold=0.1), levels]) as blend:
        assert blend.preview(4)[1][0] is None
    with (
        fb.enable(family.pipe(), family.make_small(), adapters=[TeaCache(threshold=0.1)]) as blend,
        pytest.raises(fb.RoutingError, match=r"timesteps that LTXPipeline sets in .* are not known before the call"),
    ):
        blend.preview(10)


def test_run_plan_prints_it_and_makes_nothing(flowblend: Flowblend, tmp_path: Path) -> None:
    result = flowblend("run", "--dry-run", "--adapter", "teacache(threshold=1e6)", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    schedule, sigmas, plan = result.out.splitlines()
    assert schedule.startswith("LSL: L 1-")
    assert sigmas.startswith("sigmas: 1, ")
    assert plan.startswith("teacache(threshold=1000000.0): compute 5, ")
    assert plan.endswith("of 20 steps are not computed)")
    assert not (tmp_path / "out").exists()
