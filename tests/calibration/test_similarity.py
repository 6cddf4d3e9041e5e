"""Image models as judges of similarity, through transformers: real model classes with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitImageProcessorPil, CLIPConfig, CLIPImageProcessorPil, CLIPModel, Dinov2Config, Dinov2Model

from flowblend_compat_matrix.reference import load_classifier
from flowblend_compat_matrix.reference.similarity import ClassifierSimilarity
from flowblend_plugins.calibration.similarity import FeatureSimilarity
from flowblend_plugins.errors import PairError

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PROCESSED = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}


def save_dino(folder: Path) -> Dinov2Model:
    model = Dinov2Model(Dinov2Config(**TINY, image_size=28, patch_size=14)).eval()
    model.save_pretrained(folder)
    BitImageProcessorPil(**PROCESSED).save_pretrained(folder)
    return model


def save_clip(folder: Path) -> CLIPModel:
    text = TINY | {"intermediate_size": 16, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    vision = TINY | {"intermediate_size": 16, "image_size": 28, "patch_size": 14}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(folder)
    CLIPImageProcessorPil(**PROCESSED).save_pretrained(folder)
    return model


@pytest.fixture
def videos() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((3, 40, 48, 3), dtype=np.float32), rng.random((3, 40, 48, 3), dtype=np.float32)


@pytest.mark.parametrize(("save", "kind"), [(save_dino, "Dinov2Model"), (save_clip, "CLIPModel")])
def test_it_is_the_cosine_of_the_models_own_features(
    tmp_path: Path, videos: tuple[np.ndarray, np.ndarray], save: object, kind: str
) -> None:
    model = save(tmp_path / "judge")  # type: ignore[operator]
    judge = FeatureSimilarity(tmp_path / "judge")
    one, other = videos
    assert judge(one, one) == pytest.approx(1.0, abs=1e-6)
    assert judge.name == f"{kind} features (judge)"
    processor = (BitImageProcessorPil if kind.startswith("Dino") else CLIPImageProcessorPil)(**PROCESSED)
    with torch.no_grad():
        pixels = [
            processor(images=[(frame * 255).round().astype(np.uint8) for frame in video], return_tensors="pt")
            for video in videos
        ]
        if kind == "CLIPModel":
            found = [model.visual_projection(model.vision_model(**p).pooler_output) for p in pixels]
        else:
            found = [model(**p).last_hidden_state[:, 0] for p in pixels]  # DINO's class token
    expected = torch.nn.functional.cosine_similarity(*found).mean()
    assert judge(one, other) == pytest.approx(float(expected), abs=1e-5)
    assert judge(one, other) < 0.9999


def test_what_is_no_image_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(PairError, match="cannot be loaded as an image model"):
            FeatureSimilarity(source)


def test_the_embedded_pairs_own_judge(videos: tuple[np.ndarray, np.ndarray]) -> None:
    judge = ClassifierSimilarity()
    one, other = (np.repeat(np.repeat(v[:, :32, :32], 2, axis=1), 2, axis=2) for v in videos)
    one, other = (np.repeat(v, 3, axis=0) for v in (one, other))  # 9 frames of 64x64
    features = load_classifier().features(np.stack([one, other]))
    expected = features[0] @ features[1] / np.linalg.norm(features[0]) / np.linalg.norm(features[1])
    assert judge(one, one) == pytest.approx(1.0, abs=1e-6)
    assert judge(one, other) == pytest.approx(expected, abs=1e-6)
    still = judge(one[:1], other[:1])
    assert still == pytest.approx(judge(np.repeat(one[:1], 9, axis=0), np.repeat(other[:1], 9, axis=0)), abs=1e-6)
