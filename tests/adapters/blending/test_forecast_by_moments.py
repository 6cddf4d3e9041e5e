"""``forecast(moments=...)``: against least squares on the velocities themselves, and on the embedded pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import flowblend_plugins as fb
from flowblend_adapters.blending.forecast import moments as velocity_moments
from flowblend_adapters.blending.forecast.calibration import calibrate_forecast
from flowblend_adapters.blending.forecast.moments import Place, VelocityMoments
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_pipeline
from tests.adapters.blending.by_hand import BRANCHES, ByHand
from tests.adapters.blending.test_blending import BlendingContract
from tests.conftest import Result
from tests.exactness.pipelines import FAMILIES

WAN, LTX = FAMILIES["wan"], FAMILIES["ltx"]
TIMESTEPS = (900.0, 600.0, 500.0, 100.0)


def call_of(family: Any = WAN, seed: int = 0, steps: int = 10, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    own = {"generator": generator, "output_type": "latent", "guidance_scale": 5.0, "num_inference_steps": steps}
    return {**family.arguments(1), **own, **changes}


def measured(family: Any = WAN, pipe: Any = None, **changes: Any) -> VelocityMoments:
    with torch.no_grad():
        return calibrate_forecast(pipe or family.pipe(), calls=[call_of(family, seed, **changes) for seed in range(2)])


def written(moments: VelocityMoments, path: Path) -> str:
    path.write_text(json.dumps(moments.to_json()))
    return str(path)


def random_velocities(num_values: int = 40) -> tuple[torch.Tensor, VelocityMoments]:
    """Two branches at four timesteps, as rows, and their moments."""
    rows = torch.randn(8, num_values, dtype=torch.float64).cumsum(0)
    return rows, VelocityMoments(
        class_name="WanTransformer3DModel",
        config={},
        guidance_scale=5.0,
        prompts=("a red circle",),
        branches=BRANCHES,
        timesteps=TIMESTEPS,
        moments=(rows @ rows.T / num_values).numpy(),
    )


def in_moments(text: str) -> Any:
    """A solver's answer in the contract: normal equations on the file's moments, over both branches' last two steps."""
    entry = json.loads(Path(text).read_text())
    size = len(entry["branches"]) * len(entry["timesteps"])
    moments = np.zeros((size, size))
    moments[np.tril_indices(size)] = entry["moments"]
    moments += np.tril(moments, -1).T

    def answer(hand: ByHand, index: int, branch: str, kwargs: dict[str, Any]) -> torch.Tensor:
        known = [(name, step, velocity) for name in BRANCHES for step, _, velocity in hand.kept[name][-2:]]
        place = [entry["branches"].index(name) * len(entry["timesteps"]) + step for name, step, _ in known]
        wanted = entry["branches"].index(branch) * len(entry["timesteps"]) + index
        between = moments[np.ix_(place, place)]
        weights = np.linalg.solve(between + 1e-5 * np.diag(np.diag(between)), moments[place, wanted])
        return sum(float(weight) * velocity for weight, (_, _, velocity) in zip(weights, known, strict=True))  # type: ignore[return-value]

    return answer


class TestForecastByMoments(BlendingContract):
    wrong_specs = (
        "forecast(moments='nowhere.json')",
        "forecast(moments='reference', trend=0.5)",
        "forecast(moments=3)",
    )
    path: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _measured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(measured(), tmp_path / "moments.json")
        monkeypatch.setattr(type(self), "path", path, raising=False)
        monkeypatch.setattr(type(self), "spec", f"forecast(recall_every=0, moments={path!r})", raising=False)
        monkeypatch.setattr(type(self), "never_spec", f"forecast(recall_every=1, moments={path!r})", raising=False)
        monkeypatch.setattr(type(self), "answer", staticmethod(in_moments(path)), raising=False)

    def test_options_that_never_reuse_equal_no_adapter(self) -> None:
        """Recalled at every step it is the large denoiser alone, not plain blending."""
        pipe = self.make_pipeline()
        expected = generate(pipe, **self.call)
        with fb.enable(pipe, self.make_small(), "LSL", adapters=[str(self.never_spec)]):
            assert torch.equal(generate(pipe, **self.call), expected)


def test_weights_are_least_squares_on_the_velocities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(velocity_moments, "RIDGE", 0.0)
    rows, moments = random_velocities()
    known, wanted = [0, 1, 4, 5], 6
    expected = torch.linalg.lstsq(rows[known].T, rows[wanted][:, None]).solution[:, 0]
    places = [Place(BRANCHES[one // 4], TIMESTEPS[one % 4]) for one in (*known, wanted)]
    assert moments.weights(places[-1], places[:-1]) == pytest.approx(expected.numpy(), rel=1e-6)


def test_between_two_timesteps_is_the_line_between_and_beyond_them_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(velocity_moments, "RIDGE", 0.0)
    rows, moments = random_velocities()
    between = 0.25 * rows[0] + 0.75 * rows[1]  # at 675, from 900 to 600
    for timestep, wanted in ((675.0, between), (950.0, rows[0]), (7.0, rows[3]), (600.0, rows[1])):
        expected = torch.linalg.lstsq(rows[[2, 6]].T, wanted[:, None]).solution[:, 0]
        known = [Place("cond", 500.0), Place("uncond", 500.0)]
        assert moments.weights(Place("cond", timestep), known) == pytest.approx(expected.numpy(), rel=1e-6)


def test_what_is_known_already_is_its_own_best_guess() -> None:
    _, moments = random_velocities()
    known = [Place("cond", 600.0), Place("uncond", 600.0), Place("cond", 500.0)]
    assert moments.weights(known[1], known) == pytest.approx([0.0, 1.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("family", [WAN, LTX], ids=["wan", "ltx"])
def test_what_is_measured_is_what_the_denoiser_says(family: Any, tmp_path: Path) -> None:
    pipe = family.pipe()
    before = family.run(pipe, 4)
    snapshot = PipelineSnapshot.of(pipe)
    seen: list[torch.Tensor] = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: seen.append(output[0].flatten()))
    moments = measured(family, pipe, steps=5)
    handle.remove()
    power = [float(one.double().square().mean()) for one in seen]
    runs = len(power) // 2
    expected = [(first + second) / 2 for first, second in zip(power[:runs], power[runs:], strict=True)]
    in_order = [expected[n :: len(moments.branches)] for n in range(len(moments.branches))]
    assert np.diag(moments.moments) == pytest.approx([one for branch in in_order for one in branch], rel=1e-6)
    assert len(moments.timesteps) == 5
    family.run(pipe, 4)
    assert not snapshot.differences(pipe)
    assert torch.equal(family.run(pipe, 4), before)

    path = written(moments, tmp_path / "moments.json")
    read = VelocityMoments.read(path)
    assert (read.branches, read.timesteps, read.guidance_scale) == (moments.branches, moments.timesteps, 5.0)
    assert read.moments == pytest.approx(moments.moments, rel=1e-6)
    with fb.enable(family.pipe(), family.make_small(), "LSL", adapters=[f"forecast(moments={path!r})"]) as blend:
        assert torch.isfinite(family.run(blend.pipeline, 10)).all()
        assert blend.trace.last is not None
        assert "predict" in {call.outcome for call in blend.trace.last.calls}


def test_generations_that_differ_are_refused() -> None:
    with torch.no_grad(), pytest.raises(fb.StackError, match="differ in their timesteps"):
        calibrate_forecast(WAN.pipe(), calls=[call_of(steps=4), call_of(steps=5)])
    with pytest.raises(fb.StackError, match="calls is empty"):
        calibrate_forecast(WAN.pipe(), calls=[])


def test_another_denoiser_and_another_guidance_are_refused(tmp_path: Path) -> None:
    with pytest.raises(fb.StackError, match="were measured on another denoiser") as refused:
        fb.enable(tiny_wan_pipeline(), WAN.make_small(), "LSL", adapters=["forecast(moments='reference')"])
    assert "flowblend calibrate forecast" in str(refused.value)
    pipe = WAN.pipe()
    before = generate(pipe)
    path = written(measured(guidance_scale=1.0), tmp_path / "moments.json")
    with fb.enable(pipe, WAN.make_small(), "LSL", adapters=[f"forecast(moments={path!r})"]):
        with pytest.raises(fb.StackError, match="guidance branches cond, and this call is of uncond"):
            generate(pipe, guidance_scale=5.0)
        generate(pipe, guidance_scale=1.0)
    assert torch.equal(generate(pipe), before)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"technique": "timesteps"}, "it is of timesteps"),
        ({"timesteps": [500.0, 900.0]}, "two timesteps or more that fall"),
        ({"moments": [1.0]}, "it has 1 moments, and 8 velocities have 36"),
        ({"moments": [0.0] * 36}, "power is not above 0"),
        ({"denoiser": None}, "holds no moments"),
    ],
)
def test_a_file_that_holds_none_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "moments.json"
    path.write_text(json.dumps(random_velocities()[1].to_json() | changes))
    with pytest.raises(fb.AdapterError, match="flowblend calibrate forecast") as refused:
        fb.enable(tiny_wan_pipeline(), adapters=[f"forecast(moments={str(path)!r})"])
    assert told in str(refused.value)


def test_on_the_embedded_pair_it_errs_less_than_the_line() -> None:
    """By more than a decibel, where docs/blending.md has 3.2 dB over 24 prompts."""
    from flowblend_compat_matrix.measuring.metrics import psnr_db
    from flowblend_compat_matrix.reference import load_pair
    from flowblend_compat_matrix.reference.pair import evaluation_captions
    from flowblend_research.training.wan.behaviour import generate as generate_reference

    pair, captions = load_pair(), evaluation_captions(4)

    def videos(schedule: str, *adapters: str) -> Any:
        with fb.enable(pair.pipeline, pair.small, schedule, adapters=list(adapters)):
            return generate_reference(pair, captions, seed=0)

    large = videos("LLL")
    line = psnr_db(videos("L:8,S:12", "forecast(recall_every=3)"), large)
    fitted = psnr_db(videos("L:8,S:12", "forecast(recall_every=3, moments='reference')"), large)
    assert fitted > line + 1.0


def test_the_command(flowblend: Callable[..., Result], saved_pair: Path, tmp_path: Path) -> None:
    out, pair = tmp_path / "forecast.json", ("--large", saved_pair / "large")
    size = ("--height", "32", "--width", "32", "--num-frames", "9")
    missing = flowblend("calibrate", "forecast", *pair, *size, "--out", out)
    assert missing.code == 2
    assert "--prompt" in missing.error_line
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na circle\n")
    result = flowblend("calibrate", "forecast", *pair, *size, "--prompts-file", prompts, "--steps", "6", "--out", out)
    assert result.code == 0, result.err
    assert "2 prompts, 6 timesteps, guidance branches: cond, uncond" in result.out
    assert VelocityMoments.read(out).prompts == ("a red circle", "a circle")
    small = ("--small", saved_pair / "small")
    adapter = f"forecast(moments={str(out)!r})"
    ran = flowblend(
        "run", *pair, *small, *size, "--prompt", "a circle", "--steps", "6", "--schedule", "L:3,S:3",
        "--adapter", adapter, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
