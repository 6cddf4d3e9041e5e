"""A large denoiser in a single file, in a pipeline whose other parts come from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowblend_plugins.errors import PairError
from flowblend_plugins.pairs.open import open_pair
from flowblend_plugins.testing import tiny_ltx_denoiser, tiny_ltx_pipeline
from tests.ltx.files import authors_tensors, vae_tensors, write
from tests.ltx.published_names import COMMIT, lay_out


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    lay_out(folder)
    return folder


def snapshot(hub: Path, repository: str) -> Path:
    return hub / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT


def test_all_but_the_denoiser_comes_from_the_folder(hub: Path) -> None:
    base = snapshot(hub, "Lightricks/LTX-Video-0.9.7-dev")
    file = snapshot(hub, "Lightricks/LTX-Video") / "ltxv-13b-0.9.8-dev.safetensors"
    opened = open_pair(None, str(file), None, str(base))
    expected = tiny_ltx_denoiser(1, 2, 2).to(torch.bfloat16).state_dict()
    found = opened.pipeline.transformer.state_dict()
    assert all(torch.equal(found[name].bfloat16(), tensor) for name, tensor in expected.items())
    assert type(opened.pipeline).__name__ == "LTXConditionPipeline"
    assert opened.pipeline.text_encoder is not None


def test_without_the_folder_the_option_is_named(hub: Path) -> None:
    file = snapshot(hub, "Lightricks/LTX-Video") / "ltxv-13b-0.9.8-dev.safetensors"
    with pytest.raises(PairError, match=r"Say with --text-encoder \(base=\) which pipeline lends"):
        open_pair(None, str(file))


def test_a_file_of_another_latent_space_is_refused(hub: Path, tmp_path: Path) -> None:
    denoiser = tiny_ltx_denoiser(1, 2, 2)
    other = vae_tensors(tiny_ltx_pipeline().vae)
    other["vae.per_channel_statistics.mean-of-means"] += 0.3
    file = write(tmp_path / "other.safetensors", authors_tensors(denoiser) | other, denoiser)
    with pytest.raises(PairError, match=r"does not belong to the pipeline .*latents_mean"):
        open_pair(None, str(file), None, str(snapshot(hub, "Lightricks/LTX-Video-0.9.7-dev")))
