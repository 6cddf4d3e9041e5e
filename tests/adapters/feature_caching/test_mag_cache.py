"""MagCache under FlowBlending against diffusers' own on a plain pipeline, and its calibration against diffusers'."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MagCacheConfig, WanTransformer3DModel

import flowblend_plugins as fb
from flowblend_adapters.feature_caching.diffusers.mag_calibration import calibrate_mag_ratios
from flowblend_adapters.feature_caching.diffusers.mag_ratios import DenoiserRatios, MagRatios
from flowblend_plugins.files.measurement import config_facts
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import NativeCacheContract, OnLTX, OnWan, small_wan
from tests.exactness.pipelines import STABLE_DIFFUSION, VIDEO_TO_VIDEO

RATIOS = (1.0, 1.2, 1.1, 1.05, 1.02, 1.04, 0.98, 0.97, 0.9, 0.8)


def write_ratios(path: Path, ratios: tuple[float, ...] = RATIOS, **denoisers: Any) -> str:
    entries = {
        letter: DenoiserRatios(class_name=type(d).__name__, config=config_facts(d), ratios=ratios)
        for letter, d in denoisers.items()
    }
    ratios_of_all = MagRatios(num_inference_steps=len(ratios), num_generations=1, denoisers=entries)
    path.write_text(json.dumps(ratios_of_all.to_json()))
    return str(path)


class MagCacheContract(NativeCacheContract):
    wrong_specs = (
        "mag_cache",
        "mag_cache(ratios='r.json', threshold=-1.0)",
        "mag_cache(ratios='r.json', max_skip_steps=0)",
        "mag_cache(ratios='r.json', retention_fraction=1.5)",
        "mag_cache(ratios='r.json', mag_ratios=[1.0])",
        "mag_cache(ratios=3)",
    )

    @pytest.fixture(autouse=True)
    def _calibrated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_ratios(tmp_path / "ratios.json", L=self.make_pipeline().transformer, S=self.make_small())
        monkeypatch.setattr(type(self), "spec", f"mag_cache(ratios={path!r}, threshold=0.3)", raising=False)
        monkeypatch.setattr(type(self), "never_spec", f"mag_cache(ratios={path!r}, threshold=0.0)", raising=False)

    def config(self) -> Any:
        return MagCacheConfig(threshold=0.3, num_inference_steps=10, mag_ratios=list(RATIOS))


class TestMagCacheOnWan(OnWan, MagCacheContract):
    pass


class TestMagCacheOnLTX(OnLTX, MagCacheContract):
    pass


def test_ratios_are_read_at_the_true_step(tmp_path: Path) -> None:
    """Ratios that forbid reuse in steps 1 to 6 and allow it later; the large denoiser enters at step 4."""
    ratios = (1.0, *[9.0] * 5, *[1.0] * 4)
    pipe = tiny_wan_pipeline()
    path = write_ratios(tmp_path / "ratios.json", ratios, L=pipe.transformer)
    spec = f"mag_cache(ratios={path!r}, denoisers='L', retention_fraction=0.0)"
    with fb.enable(pipe, small_wan(), "S:4,L:6", adapters=[spec]) as blend:
        generate(pipe, 10)
        assert blend.trace.last is not None
        reused = {call.step.step_index for call in blend.trace.last.calls if call.outcome == "reuse"}
    # At the first step of a stage there is no residual yet; after three reuses in a row one is due.
    assert reused == {6, 7, 8}


def test_a_file_for_another_number_of_steps_is_stretched_as_diffusers_does_and_that_is_said(tmp_path: Path) -> None:
    by_hand = tiny_wan_pipeline()
    by_hand.transformer.enable_cache(MagCacheConfig(threshold=0.3, num_inference_steps=7, mag_ratios=list(RATIOS)))
    expected = generate(by_hand, 7)
    pipe = tiny_wan_pipeline()
    path = write_ratios(tmp_path / "ratios.json", L=pipe.transformer)
    with fb.enable(pipe, schedule="LLL", adapters=[f"mag_cache(ratios={path!r}, threshold=0.3)"]):
        with pytest.warns(UserWarning, match="was calibrated for 10 steps and this generation has 7"):
            assert torch.equal(generate(pipe, 7), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generate(pipe, 10)


# -- calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_calibration_gives_what_diffusers_prints(
    guidance_scale: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call = {"num_inference_steps": 6, "guidance_scale": guidance_scale}
    printed: dict[str, list[list[float]]] = {}
    for letter in "LS":
        pipe = tiny_wan_pipeline()
        if letter == "S":
            pipe.transformer = small_wan()
        pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=6))
        generate(pipe, **call)
        lines = capsys.readouterr().out.splitlines()
        printed[letter] = [ast.literal_eval(line) for line in lines if line.startswith("[1.0")]
        assert len(printed[letter]) == (2 if guidance_scale > 1.0 else 1)
    pipe, small = tiny_wan_pipeline(), small_wan()
    plain = generate(pipe, **call)
    snapshot = PipelineSnapshot.of(pipe)
    ratios = calibrate_mag_ratios(pipe, small, calls=[arguments_of(call)])
    generate(pipe, **call)
    assert capsys.readouterr().out == ""
    assert snapshot.differences(pipe) == []
    assert torch.equal(generate(pipe, **call), plain)
    for letter in "LS":
        expected = [sum(branches) / len(branches) for branches in zip(*printed[letter], strict=True)]
        assert ratios.denoisers[letter].ratios == pytest.approx(expected, rel=1e-6)
    assert ratios.denoisers["L"].ratios != ratios.denoisers["S"].ratios
    (tmp_path / "ratios.json").write_text(json.dumps(ratios.to_json()))
    assert MagRatios.read(tmp_path / "ratios.json") == ratios


def arguments_of(call: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments with which ``generate`` calls a pipeline."""
    seen: dict[str, Any] = {}

    class Pipe:
        transformer = tiny_wan_pipeline().transformer

        def __call__(self, **arguments: Any) -> Any:
            seen.update(arguments)
            return type("Output", (), {"frames": None})

    generate(Pipe(), **call)
    return seen


def test_several_generations_are_averaged() -> None:
    calls = [
        {**arguments_of({"num_inference_steps": 4}), "generator": torch.Generator().manual_seed(s)} for s in (0, 1)
    ]
    pipe = tiny_wan_pipeline()
    apart = []
    for number, call in enumerate(calls):
        one = {**call, "generator": torch.Generator().manual_seed(number)}
        apart.append(calibrate_mag_ratios(pipe, calls=[one]).denoisers["L"].ratios)
    together = calibrate_mag_ratios(pipe, calls=calls)
    assert together.num_generations == 2
    assert together.denoisers["L"].ratios == pytest.approx([(a + b) / 2 for a, b in zip(*apart, strict=True)])
    assert apart[0] != apart[1]


def test_each_expert_of_wan_2_2_has_ratios_of_its_own() -> None:
    plain: Any = tiny_wan_pipeline()
    experts = type(plain)(**{**plain.components, "transformer_2": small_wan()}, boundary_ratio=0.8)
    experts.set_progress_bar_config(disable=True)
    calls = [arguments_of({"num_inference_steps": 4})]
    ratios = calibrate_mag_ratios(experts, calls=calls, denoisers={"M": experts.transformer_2}).denoisers
    alone = type(plain)(**{**plain.components, "transformer": experts.transformer_2})
    alone.set_progress_bar_config(disable=True)
    assert ratios.keys() == {"L", "M"}
    assert ratios["L"].ratios == calibrate_mag_ratios(plain, calls=calls).denoisers["L"].ratios
    assert ratios["M"].ratios == calibrate_mag_ratios(alone, calls=calls).denoisers["L"].ratios


def test_generations_of_different_lengths_are_refused() -> None:
    calls = [arguments_of({"num_inference_steps": n}) for n in (3, 4)]
    with pytest.raises(fb.StackError, match="have 3 and 4 steps"):
        calibrate_mag_ratios(tiny_wan_pipeline(), calls=calls)


def test_what_cannot_be_calibrated_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    with pytest.raises(fb.StackError, match="at least one generation"):
        calibrate_mag_ratios(pipe, calls=[])
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4))
    with pytest.raises(fb.StackError, match="it has a cache enabled"):
        calibrate_mag_ratios(pipe, calls=[{}])
    with pytest.raises(fb.StackError, match="opens no cache context"):
        calibrate_mag_ratios(VIDEO_TO_VIDEO.pipe(), calls=[{}])
    with pytest.raises(fb.StackError, match="has no enable_cache"):
        calibrate_mag_ratios(STABLE_DIFFUSION.pipe(), calls=[{}])


# -- files that cannot be used ---------------------------------------------------------------------------------------


def refusal(path: str | Path, small: Any = None) -> str:
    pipe = tiny_wan_pipeline()
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.FlowBlendError) as refused:
        fb.enable(pipe, small, "LSL" if small is not None else "LLL", adapters=[f"mag_cache(ratios={str(path)!r})"])
    assert before.differences(pipe) == []
    return str(refused.value)


def test_a_file_of_another_denoiser_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = write_ratios(tmp_path / "r.json", L=tiny_wan_pipeline().transformer, S=small_wan())
    message = refusal(path, tiny_wan_denoiser(layers=3))
    assert "denoiser S" in message
    assert "num_layers=2, not 3" in message
    assert "calibrate mag-cache" in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(technique="teacache"), "it is of teacache"),
        (lambda data: data.pop("num_inference_steps"), "'num_inference_steps' is missing"),
        (lambda data: data["denoisers"]["L"]["ratios"].pop(), "denoiser L has not 10 ratios"),
        (lambda data: data["denoisers"]["L"].update(ratios=["a"] * 10), "could not convert"),
        (lambda data: data.update(denoisers=[]), "holds no ratios of MagCache"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    path = Path(write_ratios(tmp_path / "r.json", L=tiny_wan_pipeline().transformer))
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    message = refusal(path)
    assert told in message
    assert "\n" not in message


def test_a_missing_file_and_one_that_is_no_json_are_refused(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("ratios")
    assert "cannot be read as JSON" in refusal(tmp_path / "text.json")


def test_the_ratios_of_the_embedded_pair_fit_it() -> None:
    from flowblend_compat_matrix.plugin import REFERENCE

    ratios = MagRatios.read("reference")
    assert ratios.num_inference_steps == REFERENCE.call_defaults["num_inference_steps"]
    for letter, folder in (("L", Path(REFERENCE.large) / "transformer"), ("S", Path(REFERENCE.small))):
        denoiser = WanTransformer3DModel.from_pretrained(folder)
        assert ratios.of(letter, denoiser) == ratios.denoisers[letter].ratios


# -- the command -----------------------------------------------------------------------------------------------------


SIZE = ("--height", "32", "--width", "32", "--num-frames", "9")


def test_the_command_writes_a_file_that_the_adapter_takes(
    flowblend: Callable[..., Any], saved_pair: Path, tmp_path: Path
) -> None:
    pair = ("--large", saved_pair / "large", "--small", saved_pair / "small", "--steps", "4", *SIZE)
    file = tmp_path / "made" / "ratios.json"
    result = flowblend("calibrate", "mag-cache", *pair, "--prompt", "a circle", "--prompt", "red", "--out", file)
    assert result.code == 0, result.err
    assert f"mag_cache(ratios='{file}')" in result.out
    ratios = MagRatios.read(file)
    assert (ratios.num_inference_steps, ratios.num_generations) == (4, 2)
    assert ratios.denoisers.keys() == {"L", "S"}
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, tiny_wan_denoiser(), "LLL", adapters=[f"mag_cache(ratios={str(file)!r}, threshold=9.0)"]) as b:
        generate(pipe, 4)
        assert b.trace.last is not None
        assert b.trace.last.num_forwards("L", "reuse") > 0


def test_the_command_says_its_result_as_json(flowblend: Callable[..., Any], saved_pair: Path, tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    pair = ("--large", saved_pair / "large", "--steps", "3", *SIZE, "--prompt", "a circle")
    result = flowblend("calibrate", "mag-cache", *pair, "--out", file, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads(file.read_text())


def test_the_command_asks_for_a_prompt_before_it_loads_anything(flowblend: Callable[..., Any], tmp_path: Path) -> None:
    result = flowblend("calibrate", "mag-cache", "--large", tmp_path / "none", "--out", tmp_path / "r.json")
    assert result.code == 2
    assert "--prompt" in result.error_line
