"""Real small models, saved once with ``save_pretrained``; tests copy a folder before they damage it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowblend_plugins import testing


def text_encoder(d_model: int = 16, vocab_size: int = 32) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocab_size, d_model=d_model, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return UMT5EncoderModel(config)


def wan_pipeline(seed: int = 0) -> Any:
    """A Wan pipeline with a text encoder, and latent statistics that are not all alike."""
    pipe = testing.tiny_wan_pipeline(seed)
    pipe.register_modules(text_encoder=text_encoder())
    pipe.vae.register_to_config(latents_mean=[-0.75, 0.1, 0.3, 1.2], latents_std=[2.8, 1.4, 2.3, 1.9])
    return pipe


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``wan/`` and ``ltx/``: pipelines; ``denoiser/``: a small Wan denoiser alone."""
    root = tmp_path_factory.mktemp("pairs")
    wan = wan_pipeline(seed=3)
    wan.register_modules(transformer=testing.tiny_wan_denoiser(seed=4))
    wan.save_pretrained(root / "wan")
    ltx = testing.tiny_ltx_pipeline(seed=5)
    ltx.vae.latents_mean += torch.arange(8) / 10
    ltx.save_pretrained(root / "ltx")
    testing.tiny_wan_denoiser(seed=4).save_pretrained(root / "denoiser")
    return root


@pytest.fixture
def copy_of(saved: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(saved / name, tmp_path / name))


@pytest.fixture
def pipe() -> Any:
    return wan_pipeline()
