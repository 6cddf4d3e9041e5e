"""``calibrate boundaries`` on real pipelines: what the whole grid finds, at the cost it promises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import flowblend_plugins as fb
from flowblend_compat_matrix.plugin import REFERENCE
from flowblend_compat_matrix.reference import CALL_DEFAULTS, evaluation_captions, load_pair
from flowblend_plugins.calibration.boundaries import search_boundaries
from flowblend_plugins.calibration.calibration import Calibration
from flowblend_plugins.calibration.curve import boundaries_of_divergence
from flowblend_plugins.calibration.measuring import Order, boundaries_by_divergence, measure_divergence
from flowblend_plugins.calibration.similarity import NamedSimilarity
from flowblend_plugins.errors import AdapterError, FlowBlendError, ScheduleError
from flowblend_plugins.testing import PipelineSnapshot

from .conftest import ARTEFACT, SSIM

STEPS = 10
THRESHOLD = 0.3
"""Random denoisers through a random decoder: two videos of theirs are never much alike."""


@contextmanager
def counted(**modules: nn.Module) -> Iterator[dict[str, int]]:
    """Forwards that really ran, by hooks of torch's own."""
    counts = dict.fromkeys(modules, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in modules.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def loaded(order: Order) -> nn.Module:
    with fb.enable(order.pipe, order.small, "LSL") as blend:
        return blend.denoisers["S"]


@pytest.mark.parametrize("threshold", [THRESHOLD, 0.4, 0.99])
def test_the_search_finds_what_the_grid_finds(make_order: Callable[..., Order], threshold: float) -> None:
    order = make_order(STEPS)
    small = loaded(order)
    order = make_order(STEPS, small=small)
    order.generate(0, "np")  # a pipeline keeps some facts of its last call
    before = PipelineSnapshot.of(order.pipe)
    with counted(L=order.pipe.transformer, S=small) as forwards:
        found = search_boundaries(order, SSIM, ARTEFACT, threshold=threshold)
    assert not before.differences(order.pipe)
    grid = search_boundaries(order, SSIM, ARTEFACT, threshold=threshold, on_grid=True)
    assert found.stages == grid.stages
    assert not found.late_is_limited
    assert set(found.trials) < set(grid.trials), "the same measurements, but fewer"
    # Forwards, two guidance branches at every step, for each of two prompts.
    assert (found.cost.num_large_forwards, found.cost.num_small_forwards) == (forwards["L"] / 2, forwards["S"] / 2)
    assert found.cost.large_generations <= 2.0 < grid.cost.large_generations
    large = forwards["L"] / (2 * 2 * STEPS)
    assert large < found.cost.large_generations < large + forwards["S"] / (2 * 2 * STEPS)


def test_every_trial_is_that_of_a_whole_run(make_order: Callable[..., Order]) -> None:
    order = make_order(STEPS)
    found = search_boundaries(order, SSIM, ARTEFACT, threshold=THRESHOLD)
    assert any(trial.late_steps for trial in found.trials)
    references = [order.generate(number, "np").frames[0] for number in range(2)]
    for trial in found.trials:
        schedule = fb.StageSchedule.named("LSL", trial.early_steps / STEPS, trial.late_steps / STEPS)
        with fb.enable(order.pipe, order.small, schedule):
            videos = [order.generate(number, "np").frames[0] for number in range(2)]
        for judge, value in ((SSIM, trial.similarity), (ARTEFACT, trial.artefact)):
            assert value == np.mean([judge(v, r) for v, r in zip(videos, references, strict=True)])


def test_the_budget_ends_the_late_scan(make_order: Callable[..., Order]) -> None:
    order = make_order(STEPS)
    found = search_boundaries(order, SSIM, ARTEFACT, threshold=THRESHOLD, budget=1.0)
    assert found.late_is_limited
    assert found.stages == (3, 0)
    assert found.cost.num_large_forwards == 2 * STEPS


def test_a_small_denoiser_that_is_the_large_one_needs_no_large_stage(make_order: Callable[..., Order]) -> None:
    order = make_order(STEPS)
    same = search_boundaries(make_order(STEPS, small=copy.deepcopy(order.pipe.transformer)), SSIM, ARTEFACT)
    assert same.stages == (0, 0)
    assert same.schedule.describe(STEPS) == f"S 1-{STEPS}"


def test_all_steps_are_large_where_nothing_else_will_do(make_order: Callable[..., Order]) -> None:
    found = search_boundaries(make_order(4), SSIM, ARTEFACT, threshold=1.0)
    assert found.stages == (4, 0)
    assert found.schedule.describe(4) == "L 1-4"


def test_the_proxy_reads_the_curve(make_order: Callable[..., Order]) -> None:
    order = make_order(STEPS)
    small = loaded(order)
    order = make_order(STEPS, small=small)
    with counted(L=order.pipe.transformer, S=small) as forwards:
        proxy = boundaries_by_divergence(order)
    assert forwards == {"L": 2 * 2 * STEPS, "S": 2 * 2 * STEPS}
    assert (proxy.cost.num_large_forwards, proxy.cost.num_small_forwards) == (2 * STEPS, 2 * STEPS)
    curve = measure_divergence(order)
    assert proxy.stages == boundaries_of_divergence([one.mean for one in curve.branches["guided"].relative_l2])
    assert (proxy.method, proxy.judged_by, proxy.trials) == ("divergence", None, ())


def test_what_cannot_be_searched_is_refused(make_order: Callable[..., Order]) -> None:
    with pytest.raises(AdapterError, match="teacache"):
        search_boundaries(make_order(adapters=["teacache(threshold=0.1, coefficients=(1.0, 0.0))"]), SSIM, ARTEFACT)
    nothing = NamedSimilarity("nothing", lambda video, reference: float("nan"))
    with pytest.raises(FlowBlendError, match="cannot be judged: nothing nan"):
        search_boundaries(make_order(4), nothing, ARTEFACT)


def test_on_the_embedded_pair() -> None:
    """Judged by its own classifier: the search finds the grid's boundaries within two large-only generations."""
    pair = load_pair()
    pair.pipeline.set_progress_bar_config(disable=True)
    order = Order(
        pipe=pair.pipeline,
        small=pair.small,
        prompts=[caption.text for caption in evaluation_captions(2)],
        call={**CALL_DEFAULTS, "num_inference_steps": 8},
        pair="reference",
    )
    assert REFERENCE.similarity is not None
    judge: Any = REFERENCE.similarity()
    found = search_boundaries(order, judge, ARTEFACT, threshold=0.8)
    grid = search_boundaries(order, judge, ARTEFACT, threshold=0.8, on_grid=True)
    assert found.stages == grid.stages
    assert found.cost.large_generations <= 2.0
    assert 0 < found.early_steps < 7, "a boundary at an end would say nothing"
    by_early = {trial.early_steps: trial.similarity for trial in grid.trials if trial.late_steps == 0}
    assert by_early[found.early_steps] >= 0.8 > by_early[found.early_steps - 1]


def test_the_command(flowblend: Callable[..., Any], saved_pair: Path, tmp_path: Path) -> None:
    pair = ("--large", saved_pair / "large", "--small", saved_pair / "small", "--prompt", "a red circle")
    size = ("--height", 32, "--width", 32, "--num-frames", 9, "--steps", 6)
    out = tmp_path / "b.json"
    result = flowblend("calibrate", "boundaries", *pair, *size, "--threshold", 0.3, "--out", out)
    assert result.code == 0, result.err
    assert "judged by ssim, threshold 0.3, over 1 prompts" in result.out
    found = Calibration.load(out)
    assert found.to_json() == json.loads(out.read_text())
    video = flowblend("run", *pair, *size, "--schedule", "auto", "--calibration", out, "--out", tmp_path, "--json")
    assert video.code == 0, video.err
    assert json.loads(video.out)["steps"] == found.schedule.describe(6)
    proxy = flowblend("calibrate", "boundaries", *pair, *size, "--proxy", "divergence", "--out", out, "--json")
    assert json.loads(proxy.out)["method"] == "divergence"
    contradiction = flowblend("calibrate", "boundaries", *pair, "--proxy", "divergence", "--grid", "--out", out)
    assert contradiction.code == 2
    assert "makes no trials" in contradiction.error_line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"early_steps": 9, "late_steps": 5}, "do not fit into"),
        ({"early_steps": -1}, "do not fit into"),
        ({"early_steps": "3"}, "incomplete"),
        ({"cost": {}}, "incomplete"),
        ({"unknown": 1}, "incomplete"),
        ({"kind": "velocity_divergence"}, "'stage_boundaries' is needed"),
    ],
)
def test_a_spoilt_file_is_refused(
    make_order: Callable[..., Order], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(boundaries_by_divergence(make_order(4)).to_json() | changes))
    with pytest.raises(ScheduleError, match=said):
        Calibration.load(path)
