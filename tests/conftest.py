"""One thread, no network, fixed seeds: what a test sees depends on nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else here
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flowblend_compat_matrix.running.executors.batch_in_progress import BatchInProgress
from flowblend_plugins.cli import run
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline
from tests.slow import mark_slow

torch.set_num_threads(1)
diffusers_logging.get_logger()  # its handler keeps the stderr of this moment, which is to be no single test's
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job's, which its children would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile(
    "flowblend", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("flowblend")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mark_slow(items, is_whole_suite=config.args == config.getini("testpaths"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line that a user reads."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("flowblend: ")
        return lines[0]


@pytest.fixture(scope="session")
def saved_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny Wan pair as users keep it: ``large`` (a whole pipeline) and ``small`` (a denoiser alone)."""
    root = tmp_path_factory.mktemp("pair")
    pipe = tiny_wan_pipeline()
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "circle": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=5, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipe.register_modules(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"),
        text_encoder=UMT5EncoderModel(config).eval(),
    )
    pipe.save_pretrained(root / "large")
    tiny_wan_denoiser().save_pretrained(root / "small")
    return root


@pytest.fixture
def only_cells_made_to_hang_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the time limit of cells for those that hang on purpose, so that a busy machine makes no other one hang."""
    is_over = BatchInProgress.is_over

    def is_over_if_made_to_hang(hand: BatchInProgress, limit_s: float | None) -> bool:
        return "hangs" in (hand.now.cell or "") and is_over(hand, limit_s)

    monkeypatch.setattr(BatchInProgress, "is_over", is_over_if_made_to_hang)


@pytest.fixture
def flowblend(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process."""

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def small_run(saved_pair: Path, tmp_path: Path) -> list[str]:
    """Arguments of a run that takes a fraction of a second."""
    return [
        *("run", "--large", str(saved_pair / "large"), "--small", str(saved_pair / "small")),
        *("--prompt", "a red circle", "--height", "32", "--width", "32", "--num-frames", "9", "--steps", "5"),
        *("--out", str(tmp_path / "out")),
    ]
