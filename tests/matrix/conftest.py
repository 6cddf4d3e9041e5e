"""A complete tiny Wan pair that understands five words, on a bench that generates in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flowblend_compat_matrix.bench import Bench
from flowblend_compat_matrix.metrics import psnr_db, ssim
from flowblend_compat_matrix.prompts import PromptSet
from flowblend_compat_matrix.runner import MatrixRunner
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline

CALL = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": 5,
    "guidance_scale": 5.0,
    "max_sequence_length": 8,
}
PROMPTS = ("a red circle", "a circle")


def tiny_pair() -> tuple[Any, Any]:
    """A pipeline with text encoder and tokenizer, and its small denoiser."""
    pipe = tiny_wan_pipeline()
    words = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "circle": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = UMT5Config(vocab_size=5, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = UMT5EncoderModel(config).eval()
    pipe.register_modules(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"),
        text_encoder=encoder,
    )
    return pipe, tiny_wan_denoiser()


def peak_difference(video: Any, wanted: Any) -> float:
    return float(np.abs(video - wanted).max())


@pytest.fixture
def make_runner() -> Callable[..., MatrixRunner]:
    """A runner on the tiny pair; keyword arguments go to the bench."""

    def make(num_repeats: int = 1, metrics: dict[str, Any] | None = None, **bench: Any) -> MatrixRunner:
        arguments = {"load": tiny_pair, "prompts": PromptSet(PROMPTS, batch_size=2), "call": CALL} | bench
        known = {"psnr_db": psnr_db, "ssim": ssim, "peak_difference": peak_difference}
        return MatrixRunner(Bench(**arguments), "tiny", metrics if metrics is not None else known, num_repeats)

    return make
