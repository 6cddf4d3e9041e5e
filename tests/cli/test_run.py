"""``flowblend run`` on a pair that was really saved: the video, the record, the plan, interruption."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

import flowblend_plugins as fb
from flowblend_compat_matrix.plugin import REFERENCE, REFERENCE_UNET
from flowblend_plugins import PairPreset
from flowblend_plugins.cli import run
from flowblend_plugins.cli.options import read_schedule
from flowblend_plugins.errors import OutputError
from flowblend_plugins.files.video import write_mp4, write_png
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline
from tests.processes import bounded_by_progress, output_of, seconds_worked, wait_until


def test_run_writes_a_video_that_plays(flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path) -> None:
    result = flowblend(*small_run)
    assert result.code == 0, result.err
    assert "L 1-2, S 3-4, L 5" in result.out
    with av.open(str(tmp_path / "out" / "video.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(256, 256, 3)] * 9
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.json", "video.mp4"]


def test_json_says_what_ran(flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path) -> None:
    result = flowblend(*small_run, "--schedule", "L:2,S:2,L:1", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["steps"] == "L 1-2, S 3-4, L 5"
    assert record == json.loads((tmp_path / "out" / "run.json").read_text())


def test_the_same_seed_gives_the_same_video(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path
) -> None:
    files = []
    for seed in ("3", "3", "4"):
        assert flowblend(*small_run, "--seed", seed).code == 0
        files.append((tmp_path / "out" / "video.mp4").read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_run_says_what_it_gained_over_large_only(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path
) -> None:
    result = flowblend(*small_run)  # at 5 steps, where the pipeline's own number is 50
    [first, second] = re.findall(r"Against (.+?) \((\d+) steps\): about [\d.]+ times as fast, (.+?)% of", result.out)
    assert first[:2] == ("the same call without FlowBlending", "5")
    assert second[:2] == ("large-only at the pair's own number of steps", "50")
    assert float(first[2]) / 10 == pytest.approx(float(second[2]), abs=0.06)
    whole = flowblend(*small_run, "--schedule", "LLL", "--compare")
    assert "100.0% of the FLOPs" in whole.out
    assert "every pixel is the same" in whole.out
    assert (tmp_path / "out" / "compare.mp4").stat().st_size > 0
    halved = json.loads(flowblend(*small_run, "--compare", "--json").out)
    assert 0 < halved["psnr_db"] < 60
    assert [gain["is_measured"] for gain in halved["gain"]] == [True, False]


def test_words_that_an_embedded_pair_does_not_know(flowblend: Callable[..., Any], tmp_path: Path) -> None:
    result = flowblend(
        *("run", "--pair", "reference-unet", "--steps", "2", "--prompt", "a red cat", "--out", tmp_path / "out")
    )
    assert "does not know 'cat'" in result.error_line
    words = {*PreTrainedTokenizerFast.from_pretrained(REFERENCE.large / "tokenizer").get_vocab()}
    assert words - {"<pad>", "</s>", "<unk>"} == REFERENCE.vocabulary > REFERENCE_UNET.vocabulary


def test_device_dtype_offload_and_image(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = flowblend(*small_run, "--device", "cpu", "--dtype", "float32", "--offload", "model")
    assert placed.code == 0, placed.err
    assert "cuda:77" in flowblend(*small_run, "--device", "cuda:77").error_line
    image = tmp_path / "image.png"
    write_png(np.zeros((8, 8, 3)), image)
    assert "WanPipeline does not take --image" in flowblend(*small_run, "--image", image).error_line
    image.write_text("no image")
    assert "cannot be read as an image" in flowblend(*small_run, "--image", image).error_line


def test_a_missing_folder_is_found_before_torch_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from flowblend_plugins.cli import run; "
        f"code = run(['run', '--large', {str(tmp_path / 'absent')!r}, '--small', 'some/repository', '--prompt', 'x']); "
        "print(code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.strip() == "1 False", result.stderr
    assert "absent" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_sets_the_steps(flowblend: Callable[..., Any], small_run: list[str]) -> None:
    without_steps = [a for a in small_run if a not in ("--steps", "5")]
    result = flowblend(*without_steps, "--adapter", "flow_euler(num_inference_steps=10)", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["steps"] == "L 1-4, S 5-8, L 9-10"


def test_plan_says_who_would_answer_and_makes_nothing(
    flowblend: Callable[..., Any], small_run: list[str], tmp_path: Path
) -> None:
    absent = ("--large", str(tmp_path / "absent"))  # which nothing looks for: a plan is free
    result = flowblend(*small_run, *absent, "--steps", "50", "--dry-run")
    assert result.code == 0
    assert result.out.strip() == "LSL: L 1-20, S 21-40, L 41-50"
    result = flowblend(*small_run, *absent, "--schedule", "L:3,S:2", "--dry-run", "--json")
    assert json.loads(result.out) == {"schedule": "L:3,S:2", "num_inference_steps": 5, "steps": "L 1-3, S 4-5"}
    assert not (tmp_path / "out").exists()


def test_the_old_names_of_a_dry_run_still_work(flowblend: Callable[..., Any], small_run: list[str]) -> None:
    result = flowblend(*small_run, "--plan")
    assert result.code == 0
    assert result.out.strip() == "LSL: L 1-2, S 3-4, L 5"
    assert "--plan is now --dry-run" in result.err
    with fb.enable(tiny_wan_pipeline(), tiny_wan_denoiser(), "LSL") as blend:
        with pytest.warns(DeprecationWarning, match=r"Blend\.preview"):
            old = blend.plan(5)
        assert old == blend.preview(5)


def test_boundaries_not_given_are_the_pairs() -> None:
    pair = PairPreset(name="p", large="a/l", small="a/s", source="here", early=0.2, late=0.1)
    assert read_schedule("LSL", None, None, pair).describe(10) == "L 1-2, S 3-9, L 10"
    assert read_schedule("LSL", None, 0.7, pair).describe(10) == "L 1-2, S 3, L 4-10"
    assert read_schedule("L:5,S:5", None, None, pair).describe(10) == "L 1-5, S 6-10"


def test_without_steps_the_pipelines_own_number_is_told(flowblend: Callable[..., Any], small_run: list[str]) -> None:
    without_steps = [a for a in small_run if a not in ("--steps", "5")]
    assert flowblend(*without_steps, "--dry-run").code == 2  # it is not known before the pipeline is loaded
    record = json.loads(flowblend(*without_steps, "--json").out)
    assert (
        len({call["step_index"] for call in record["trace"]["generations"][0]["calls"]}) == 50
    )  # as WanPipeline has it
    assert record["steps"] == "L 1-20, S 21-40, L 41-50"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("schedule", "last"), [("LSL", "late +L"), ("LSS", "late +S"), ("L:5", "intermediate +L")])
def test_the_bar_says_which_denoiser_is_at_work(
    flowblend: Callable[..., Any],
    small_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    last: str,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        assert run([*small_run, "--schedule", schedule]) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(rf"{last} .* 5/5", shown), shown
    result = flowblend(*small_run, "--schedule", schedule)  # standard error is no terminal here
    assert (result.code, result.err) == (0, "")


@bounded_by_progress
def test_interruption_leaves_nothing_half_written(small_run: list[str], tmp_path: Path) -> None:
    plan = tmp_path / "plan"  # a pipe that nobody reads would stop it in the midst of so many sigmas
    with plan.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowblend_plugins.cli", *small_run, "--steps", "100000", "--schedule", "L>=0.9,L"],
            stderr=subprocess.PIPE,
            stdout=file,
            text=True,
        )
    wait_until(process, lambda: "L>=0.9,L: L 1" in plan.read_text())  # printed just before the first step
    worked = seconds_worked(process)
    wait_until(process, lambda: seconds_worked(process) > worked + 0.5)  # in the midst of its steps
    process.send_signal(signal.SIGINT)
    _, err = output_of(process)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("flowblend: interrupted")
    assert "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "moment", ["flowblend_plugins.trace.Trace.to_dict", "av.VideoFrame.from_ndarray", "os.replace"]
)
def test_interruption_while_results_are_written(
    flowblend: Callable[..., Any],
    small_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, interrupt)
        result = flowblend(*small_run)
    assert result.code == 130
    assert "interrupted" in result.error_line
    assert list((tmp_path / "out").iterdir()) == []


def test_small_videos_are_enlarged_without_smoothing(tmp_path: Path) -> None:
    video = np.zeros((3, 10, 14, 3), np.float32)
    video[:, :, 7:] = 1.0
    write_mp4(video, tmp_path / "v.mp4", fps=4)
    with av.open(str(tmp_path / "v.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(260, 364, 3)] * 3
    assert frames[1][:, :178].max() < 40
    assert frames[1][:, 186:].min() > 215


def test_without_h264_there_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = np.random.default_rng(0).random((5, 16, 16, 3))
    monkeypatch.setattr("av.codecs_available", {"mpeg4"})
    write_mp4(video, tmp_path / "v.mp4")
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 5
    monkeypatch.setattr("av.codecs_available", set())
    with pytest.raises(OutputError, match="pip install av"):
        write_mp4(video, tmp_path / "w.mp4")


def test_what_is_no_video_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"shape \(3, 10, 14\)"):
        write_mp4(np.zeros((3, 10, 14)), tmp_path / "v.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_still_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((40, 64, 3))
    write_png(image, tmp_path / "i.png")
    shown = np.asarray(Image.open(tmp_path / "i.png"))
    assert shown.shape == (280, 448, 3)  # seven times, to 256 pixels and more
    np.testing.assert_array_equal(shown[::7, ::7], np.round(image * 255))
    with pytest.raises(OutputError, match=r"a still of shape \(40, 64\) cannot be written"):
        write_png(image[..., 0], tmp_path / "j.png")
    assert [path.name for path in tmp_path.iterdir()] == ["i.png"]


def test_a_pair_that_makes_stills_gives_a_still(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["run", "--pair", "reference-unet", "--steps", "4", "--out", str(out), "--prompt", "a red circle"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["image.png", "run.json"]
    assert json.loads((out / "run.json").read_text())["image"] == str(out / "image.png")
    assert "torchvision" not in capfd.readouterr().err
