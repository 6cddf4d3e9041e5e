"""Cells measured on a tiny real pair: what a good one records, and that a bad one costs itself alone."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from flowblend_compat_matrix.measuring.bench import Bench
from flowblend_compat_matrix.measuring.denoisers_alone import PairBaselines
from flowblend_compat_matrix.measuring.metrics import psnr_db, ssim
from flowblend_compat_matrix.measuring.runner import MatrixRunner, Measured
from flowblend_compat_matrix.results.cells import CellSpec
from flowblend_compat_matrix.results.matrix_results import CellResult
from flowblend_compat_matrix.results.verdicts import QualityBudget, agrees
from flowblend_plugins import Adapter, AdapterTraits, AttachTarget, StageSchedule, hookimpl
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import FlowBlendError

METRICS = {"psnr_db": psnr_db, "ssim": ssim}
ANYTHING_GOES = QualityBudget(min_psnr_db=0.0, min_ssim=-1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misbehaving(Adapter):
    """An adapter that does what ``how`` says."""

    name: ClassVar[str] = "misbehaving"
    traits: ClassVar[AdapterTraits] = AdapterTraits(family=Family.FEATURE_CACHING)
    how: str

    @contextlib.contextmanager
    def attach(self, target: AttachTarget) -> Iterator[None]:
        large: Any = target.denoisers["L"]
        if self.how == "raises":
            raise ZeroDivisionError("of course")
        if self.how == "needs a package":
            raise ModuleNotFoundError("No module named 'accelerator'", name="accelerator")
        if self.how == "leaves its hand in":
            with torch.no_grad():
                large.proj_out.bias += 1.0
        hooks, num_calls = [], itertools.count(1)
        if self.how == "changes a little":
            hooks.append(large.register_forward_hook(lambda m, a, o: (o[0] * 1.01,)))
        if self.how == "drifts while it is on":
            hooks.append(large.register_forward_hook(lambda m, a, o: (o[0] * (1.0 + 0.01 * next(num_calls)),)))
        if self.how in ("makes no number", "counts generations"):
            hooks.append(large.register_forward_hook(self._spoil))
        yield
        for hook in hooks:
            hook.remove()

    def _spoil(self, module: Any, args: Any, output: Any) -> Any:
        if self.how == "makes no number":
            return (output[0] * float("nan"),)
        module.times_called = getattr(module, "times_called", 0) + 1
        return (output[0] * (1.0 + 0.01 * module.times_called),)


class MisbehavingPlugin:
    @hookimpl
    def flowblend_register_adapters(self) -> list[type[Adapter]]:
        return [Misbehaving]


@pytest.fixture
def measured(make_bench: Callable[..., Bench]) -> Callable[..., tuple[Measured, PairBaselines, Bench]]:
    """Measure one cell on a fresh bench."""

    def measure(
        schedule: str, *stack: str, budget: QualityBudget = ANYTHING_GOES, repeats: int = 1, **changes: Any
    ) -> tuple[Measured, PairBaselines, Bench]:
        bench = make_bench(plugins=(MisbehavingPlugin(),), **changes)
        runner = MatrixRunner(bench, "tiny", METRICS, repeats, budget)
        baseline = runner.measure_baseline()
        return runner.measure(CellSpec(StageSchedule.parse(schedule), stack), baseline), baseline, bench

    return measure


def test_a_blend_records_what_ran(measured: Any) -> None:
    one, baseline, bench = measured("LSL", repeats=2)
    result = one.result
    assert result.observed == "pass", result.reasons
    assert result.declared == "composes"
    assert result.stages == "L 1-2, S 3-4, L 5"
    # Guidance is on, and Wan calls its denoiser once for each branch.
    assert (result.num_large_forwards, result.num_small_forwards, result.num_reused_forwards) == (6, 4, 0)
    assert [row["denoiser"] for row in result.timeline] == list("LLSSL")
    assert all(row["outcomes"] == {"cond": "compute", "uncond": "compute"} for row in result.timeline)
    assert sum(row["num"] for row in result.forwards) == 10
    assert result.is_warm_equal
    assert result.is_teardown_clean
    assert not result.is_identical_to_large
    # 3 of 5 steps at full cost, the rest cheaper: between 3/5 and 1, and not at either end.
    assert 0.6 < result.flops_fraction_linear < 1.0
    assert 0.6 < result.flops_fraction_full < 1.0
    assert result.latency_ms > 0.0
    low, high = result.speedup_over_large_range
    assert low <= result.speedup_over_large <= high
    assert result.stacking_efficiency is None
    # Fidelity is that of these very videos to those of the plain pipeline.
    plain = bench.make_videos(None, "")
    assert np.array_equal(plain, baseline.videos[0])
    assert result.psnr_db == pytest.approx(psnr_db(one.videos, plain))
    assert result.ssim == pytest.approx(ssim(one.videos, plain))


def test_large_only_under_the_router_is_large_only(measured: Any) -> None:
    one, baseline, _ = measured("LLL")
    result = one.result
    assert result.observed == "pass"
    assert result.is_identical_to_large
    assert result.psnr_db is None
    assert result.ssim == pytest.approx(1.0)
    assert result.ssim_interval is None
    assert result.flops_fraction_linear == result.flops_fraction_full == 1.0
    assert np.array_equal(one.videos, baseline.videos[0])


def test_small_only_calls_no_large_denoiser(measured: Any) -> None:
    result = measured("SSS")[0].result
    assert (result.num_large_forwards, result.num_small_forwards) == (0, 10)
    assert result.flops_fraction_full < 0.6


def test_a_stack_is_held_against_its_parts(measured: Any) -> None:
    one, baseline, _ = measured("LSL", "flow_euler(num_inference_steps=3)")
    result = one.result
    assert result.observed == "pass", result.reasons
    assert result.num_large_forwards + result.num_small_forwards == 6
    large, blend, stack = result.speedup_over_large, result.speedup_over_blend, result.speedup_over_stack
    # One repeat: the ratios are of the same four times, so the parts multiply out exactly.
    assert result.stacking_efficiency == pytest.approx(large / ((large / blend) * (large / stack)))
    # Fewer steps cost less: these FLOPs are held against the large denoiser at its own number of steps.
    assert result.flops_fraction_full < 3 / 5
    assert baseline.large.num_forwards == 10


def test_asking_for_steps_and_for_an_adapter_that_sets_others_is_refused(measured: Any) -> None:
    result = measured("LSL", "flow_euler(num_inference_steps=3)", asked=frozenset({"num_inference_steps"}))[0].result
    assert result.observed in ("refused", "broken")
    assert any("num_inference_steps" in reason for reason in result.reasons)


def test_below_the_budget_is_degraded(measured: Any) -> None:
    result = measured("SSS", budget=QualityBudget(min_psnr_db=90.0))[0].result
    assert result.observed == "degraded"
    assert "90.00" in result.reasons[0]
    assert result.is_screened, "two prompts make nothing certain"


def test_two_solvers_are_refused_before_anything_runs(measured: Any) -> None:
    one = measured("LSL", "flow_euler", "unipc")[0]
    assert one.videos is None
    assert one.result.declared == one.result.observed == "refused"
    assert "both decide the sampler" in one.result.reasons[0]
    assert one.result.psnr_db is one.result.latency_ms is None


def test_a_cell_that_raises_is_broken_and_leaves_the_rest_alone(measured: Any) -> None:
    one, baseline, bench = measured("LSL", "misbehaving(how='raises')")
    assert one.result.observed == "broken"
    blamed = "Adapter 'misbehaving' fails in attach(). Correct the object passed as adapter."
    assert one.result.reasons == [f"It raised ZeroDivisionError: of course. {blamed}"]
    assert "ZeroDivisionError" in one.result.error
    assert one.result.is_teardown_clean
    assert torch.equal(bench.time_latents(None, "").latents, baseline.latents)


def test_state_left_behind_is_broken_and_the_next_cell_has_a_fresh_pair(measured: Any) -> None:
    one, baseline, bench = measured("LSL", "misbehaving(how='leaves its hand in')")
    assert one.result.observed == "broken"
    assert one.result.is_teardown_clean is False
    assert any("freshly loaded" in reason for reason in one.result.reasons)
    assert torch.equal(bench.time_latents(None, "").latents, baseline.latents)


@pytest.mark.parametrize("how", ["counts generations", "drifts while it is on"])
def test_state_carried_into_the_next_generation_is_broken(measured: Any, how: str) -> None:
    result = measured("LSL", f"misbehaving(how={how!r})")[0].result
    assert result.observed == "broken"
    assert result.is_warm_equal is False


def test_an_output_that_is_no_number_is_broken(measured: Any) -> None:
    result = measured("LSL", "misbehaving(how='makes no number')")[0].result
    assert result.observed == "broken"
    assert result.reasons == ["The output holds NaN or infinity."]


def test_an_adapter_that_changes_nothing_is_inert(measured: Any) -> None:
    result = measured("LSL", "misbehaving(how='nothing')")[0].result
    assert result.observed == "inert"
    assert "without them" in result.reasons[0]


def test_a_missing_package_is_skipped_by_name(measured: Any) -> None:
    result = measured("LSL", "misbehaving(how='needs a package')")[0].result
    assert result.observed == "skipped"
    assert "accelerator" in result.reasons[0]


def test_an_interruption_is_no_result(make_bench: Callable[..., Bench]) -> None:
    def interrupt(what: str) -> None:
        if "LSL" in what:
            raise KeyboardInterrupt

    bench = make_bench()
    runner = MatrixRunner(bench, "tiny", METRICS, 1)
    baseline = runner.measure_baseline()
    bench.tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        runner.measure(CellSpec(StageSchedule.named("LSL")), baseline)


def test_a_pair_that_does_not_repeat_itself_is_no_baseline(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.pipe.transformer.register_forward_hook(lambda m, a, o: (o[0] + torch.rand(()),))
    with pytest.raises(FlowBlendError, match="does not repeat itself"):
        MatrixRunner(bench, "tiny", METRICS, 1).measure_baseline()


def test_a_stack_of_which_no_cell_runs_gives_each_cell_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(plugins=(MisbehavingPlugin(),))
    runner = MatrixRunner(bench, "tiny", METRICS, 1, ANYTHING_GOES)
    baseline = runner.measure_baseline()
    for stack, observed in ((("flow_euler", "unipc"), "refused"), (("misbehaving(how='raises')",), "broken")):
        specs = [CellSpec(StageSchedule.named(name), stack) for name in ("LSL", "LSS")]
        found = [one.result for one in runner.measure_together(specs, baseline) if isinstance(one, Measured)]
        assert sorted((one.id, one.observed) for one in found) == sorted((spec.id, observed) for spec in specs)


def test_a_refusal_is_audited_by_running_it(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    traits = dataclasses.replace(Misbehaving.traits, needs_guidance_off=True)
    monkeypatch.setattr(Misbehaving, "traits", traits)
    bench = make_bench(plugins=(MisbehavingPlugin(),), runs_refused=True)
    runner = MatrixRunner(bench, "tiny", METRICS, 1, ANYTHING_GOES)
    baseline = runner.measure_baseline()

    def audited(how: str) -> CellResult:
        return runner.measure(CellSpec(StageSchedule.named("LSL"), (f"misbehaving(how={how!r})",)), baseline).result

    right, wrong = audited("raises"), audited("changes a little")
    assert (right.declared, right.observed) == ("refused", "broken")
    assert (wrong.declared, wrong.observed) == ("refused", "pass"), "it refuses what does no harm"
    assert agrees(right.declared, right.observed)
    assert not agrees(wrong.declared, wrong.observed)
    assert "guidance is on" in wrong.declared_reasons[0]


def test_of_two_solvers_that_are_stacked_all_the_same_one_is_found_to_do_nothing(
    make_bench: Callable[..., Bench],
) -> None:
    runner = MatrixRunner(make_bench(runs_refused=True), "tiny", METRICS, 1, ANYTHING_GOES)
    stack = ("dpmpp_2m(num_inference_steps=5)", "flow_euler(num_inference_steps=5)")
    result = runner.measure(CellSpec(StageSchedule.named("LSL"), stack), runner.measure_baseline()).result
    assert (result.declared, result.observed) == ("refused", "inert")
    assert [reason.partition(" changed")[0] for reason in result.reasons] == ["dpmpp_2m(num_inference_steps=5)"]
    assert agrees(result.declared, result.observed)


@pytest.mark.parametrize(("how", "seen"), [("nothing", "changed nothing"), ("changes a little", "all the same")])
def test_what_is_declared_inert_beside_another_adapter_is_looked_at(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, how: str, seen: str
) -> None:
    monkeypatch.setattr(Misbehaving, "traits", dataclasses.replace(Misbehaving.traits, min_useful_steps=6))
    runner = MatrixRunner(make_bench(plugins=(MisbehavingPlugin(),)), "tiny", METRICS, 1, ANYTHING_GOES)
    spec = CellSpec(StageSchedule.named("LSL"), ("flow_euler(num_inference_steps=5)", f"misbehaving(how={how!r})"))
    result = runner.measure(spec, runner.measure_baseline()).result
    assert (result.declared, result.observed) == ("composes", "pass")
    assert "fewer than 6 steps" in " ".join(result.declared_reasons)
    assert [how in reason and seen in reason for reason in result.reasons] == [False, True]
