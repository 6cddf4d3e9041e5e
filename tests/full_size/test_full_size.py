"""``make full-size`` on a CPU: everything it measures, on tiny denoisers, and what it writes when something fails."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from flowblend_plugins.published_pairs.ltx import LTX_0_9_7
from flowblend_plugins.published_pairs.wan import WAN_2_1_T2V
from flowblend_research.full_size import __main__ as command
from flowblend_research.full_size.measure import MEASUREMENTS, Measurement
from flowblend_research.full_size.page import to_markdown
from flowblend_research.full_size.pairs import LTX, WAN, tiny

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "full_size_measured.json").read_text())


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    assert command.main(["--tiny", "--out", str(folder), *arguments]) == 0
    return record_in(folder)


@pytest.fixture(scope="module", params=["wan", "ltx"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("full_size")
    record = run(folder, "--only", request.param, "--minutes", "60")
    assert (folder / "full_size_measured.md").read_text() == to_markdown(record)
    (own,) = record["pairs"].values()
    return own


def test_everything_is_measured(measured: dict[str, Any]) -> None:
    assert measured["not_measured"] == {}
    assert list(measured["measured"]) == [one.name for one in MEASUREMENTS]
    found = measured["measured"]
    assert found["caches"]["first_block_cache(threshold=0.1)"]["num_saved"] > 0
    assert "unet" in found["caches"]["deepcache(interval=2)"]["refused"]
    assert (found["forecast"]["num_computed"], found["forecast"]["num_saved"]) == (2, 2)
    assert [letter for letter, _ in found["placements"]["enable_model_cpu_offload()"]["calls"]] == ["L", "S"]
    assert len(found["720p"]["L"]["times_s"]) == len(found["720p"]["S"]["times_s"]) == 3
    assert found["flops"]["720p"]["L"]["full"] > found["flops"]["480p"]["L"]["full"]


def test_the_summary_is_what_the_rounds_say(measured: dict[str, Any]) -> None:
    rounds = [measured["measured"][f"round {number}"] for number in (1, 2, 3)]
    summary = measured["summary"]
    blend = summary["schedules"]["LSL"]
    letters = [letter for letter, _ in rounds[0]["LSL"]["calls"]]
    assert letters.count("L") + letters.count("S") == 6
    assert blend["speedup"] == statistics.median(one["LLL"]["time_s"] / one["LSL"]["time_s"] for one in rounds)
    large, small = (statistics.median(one[letter] for one in rounds) for letter in "LS")
    predicted = 6 * large / (letters.count("L") * large + letters.count("S") * small)
    assert blend["predicted_speedup"] == pytest.approx(predicted)
    assert blend["fraction_of_predicted"] == pytest.approx(blend["speedup"] / predicted)
    assert summary["schedules"]["LLL"]["speedup"] == summary["schedules"]["LLL"]["predicted_speedup"] == 1.0
    of = measured["measured"]["flops"]["480p"]
    by_flops = 6 * of["L"]["full"] / sum(of[letter]["full"] for letter in letters)
    assert blend["speedup_by_full_flops"] == pytest.approx(by_flops)
    assert len(summary["switch_ms"]) == 2 * len(rounds)


def test_a_measurement_that_fails_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(session: object) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    chosen = [next(one for one in MEASUREMENTS if one.name == name) for name in ("weights", "forecast")]
    broken = Measurement("broken", lambda session: 0.0, fails)
    monkeypatch.setattr(command, "MEASUREMENTS", (chosen[0], broken, chosen[1]))
    own = run(tmp_path, "--only", "ltx")["pairs"]["ltx"]
    assert list(own["measured"]) == ["weights", "forecast"]
    assert own["not_measured"] == {"broken": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"}
    page = (tmp_path / "full_size_measured.md").read_text()
    assert "- **broken**: OutOfMemoryError" in page
    assert "**A forecast step** takes" in page
    assert "**Incomplete**: the run ended before flops, round 1" in page


def test_no_measurement_begins_after_the_deadline_and_the_other_pair_is_kept(tmp_path: Path) -> None:
    first = run(tmp_path, "--only", "wan", "--minutes", "0")["pairs"]["wan"]
    assert first["measured"] == {}
    assert set(first["not_measured"]) == {one.name for one in MEASUREMENTS}
    both = run(tmp_path, "--only", "ltx", "--minutes", "0")["pairs"]
    assert both["wan"] == first
    assert set(both) == {"wan", "ltx"}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert command.main([]) == 1
    assert "no CUDA GPU is here" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [WAN, LTX], ids=lambda pair: pair.name)
def test_the_denoisers_are_those_that_diffusers_would_load(pair: Any, tmp_path: Path) -> None:
    made = tiny(pair).make_denoiser("L", CPU)
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {n: t.dtype for n, t in made.state_dict().items()} == {n: t.dtype for n, t in loaded.state_dict().items()}
    assert {n: t.dtype for n, t in made.named_buffers()} == {n: t.dtype for n, t in loaded.named_buffers()}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("pair", "preset"), [(WAN, WAN_2_1_T2V), (LTX, LTX_0_9_7)], ids=["wan", "ltx"])
@pytest.mark.parametrize("letter", ["L", "S"])
def test_the_sizes_are_the_published_ones(pair: Any, preset: Any, letter: str) -> None:
    denoiser = pair.make_denoiser(letter, torch.device("meta"))
    assert sum(weight.numel() for weight in denoiser.parameters()) == preset.published[letter].num_parameters


def test_the_committed_page_is_made_from_the_committed_data() -> None:
    record = record_in(ROOT / "docs")
    page = (ROOT / "docs" / "full_size_measured.md").read_text()
    assert page == to_markdown(record)
    assert ("**Not run**" in page) == (not record["pairs"])
