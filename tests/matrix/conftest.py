"""A complete tiny Wan pair, saved as users keep it, and a bench on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flowblend_compat_matrix.bench import Bench
from flowblend_compat_matrix.prompts import PromptSet
from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline

CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 5.0}


@pytest.fixture(scope="session")
def saved_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``large`` (a whole pipeline) and ``small`` (a denoiser alone)."""
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
def make_bench(saved_pair: Path) -> Callable[..., Bench]:
    """A bench on a freshly loaded tiny pair, with whatever is given in place of its usual arguments."""

    def load() -> tuple[Any, Any]:
        small = WanTransformer3DModel.from_pretrained(saved_pair / "small").eval()
        return WanPipeline.from_pretrained(saved_pair / "large"), small

    def make(**changes: Any) -> Bench:
        prompts = PromptSet(("a red circle", "a circle"), batch_size=2)
        return Bench(**({"load": load, "prompts": prompts, "call": CALL} | changes))

    return make
