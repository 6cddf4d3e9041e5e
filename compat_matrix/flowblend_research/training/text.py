"""The words of the world: a word-level tokenizer and a small UMT5 encoder that has learnt what captions say."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from flowblend_compat_matrix.reference.world import (
    BACKGROUNDS,
    COLOURS,
    FIELDS,
    MOTIONS,
    SHAPES,
    TEXTURES,
    Caption,
    caption,
    sample_scene,
)

TEXT_DIM = 64
MAX_SEQUENCE_LENGTH = 32
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


def vocabulary() -> list[str]:
    """Every token, the special ones first; the order is part of the trained weights."""
    words = ["a", "and", "over", "moving", "standing"]
    for group in (SHAPES, COLOURS, TEXTURES, MOTIONS, BACKGROUNDS):
        words += [word for word in group if word not in words]
    return [PAD, EOS, UNKNOWN, *words]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cased words and punctuation; ends every text with ``</s>``, so that ``""`` is one token."""
    tokens = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, tokens[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=MAX_SEQUENCE_LENGTH,
    )


def make_encoder() -> UMT5EncoderModel:
    """An untrained encoder of two layers."""
    config = UMT5Config(
        vocab_size=len(vocabulary()),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def encode_text(tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, texts: list[str]) -> torch.Tensor:
    """Prompt embeddings ``[B, 32, 64]`` as `WanPipeline` makes them: what follows the last token is zero."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[..., None]


def token_labels(item: Caption) -> np.ndarray:
    """Labels of every token by its phrase: ``[32, 4]``, columns as in `FIELDS`; -100 outside objects' phrases."""
    labels = np.full((MAX_SEQUENCE_LENGTH, len(FIELDS)), -100, dtype=np.int64)
    objects, _, _ = item.text.partition(" over ")
    position = 0
    for phrase in objects.split(" and "):
        words = phrase.split()
        for column, values in enumerate(FIELDS.values()):
            said = [index + 1 for index, value in enumerate(values) if value in words]
            labels[position : position + len(words), column] = said[0] if said else 0
        position += len(words) + 1
    return labels


def caption_labels(item: Caption) -> np.ndarray:
    """Labels of a caption: whether each shape is named, what is said of it, and the background: ``[5 * 4 + 1]``."""
    labels = np.zeros((len(SHAPES), len(FIELDS)), dtype=np.int64)
    background = 0
    for attribute in item.attributes:
        if attribute.subject == "background":
            background = BACKGROUNDS.index(attribute.value) + 1
        elif attribute.name == "present":
            labels[SHAPES.index(attribute.subject), 0] = 1
        else:
            column = list(FIELDS).index(attribute.name)
            labels[SHAPES.index(attribute.subject), column] = FIELDS[attribute.name].index(attribute.value) + 1
    return np.append(labels.reshape(-1), background)


class TextTrainer(nn.Module):
    """The encoder with the two readers that teach it: one for a whole caption, one for each token's phrase."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_encoder()
        self.tokenizer = make_tokenizer()
        self.token_sizes = [len(values) + 1 for values in FIELDS.values()]
        self.caption_sizes = [2, *self.token_sizes[1:]] * len(SHAPES) + [len(BACKGROUNDS) + 1]
        self.token_reader = nn.Linear(TEXT_DIM, sum(self.token_sizes))
        self.caption_reader = nn.Sequential(
            nn.Linear(TEXT_DIM, 256), nn.SiLU(), nn.Linear(256, sum(self.caption_sizes))
        )

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Embeddings ``[B, 32, 64]`` of what is text; the rest is zero."""
        return encode_text(self.tokenizer, self.encoder, texts)

    def loss(self, captions: list[Caption]) -> tuple[torch.Tensor, float]:
        """Cross-entropy, and the share of labels that both readers get right."""
        device = self.encoder.device
        hidden = self.encode([item.text for item in captions])
        pooled = hidden.sum(dim=1) / 8.0
        heads = [
            (self.token_reader(hidden), self.token_sizes, np.stack([token_labels(item) for item in captions])),
            (self.caption_reader(pooled), self.caption_sizes, np.stack([caption_labels(item) for item in captions])),
        ]
        loss, right, counted = torch.zeros((), device=device), 0, 0
        for output, sizes, labels in heads:
            for logits, column in zip(output.split(sizes, dim=-1), np.moveaxis(labels, -1, 0), strict=True):
                target = torch.from_numpy(np.ascontiguousarray(column)).to(device).reshape(-1)
                logits = logits.reshape(target.numel(), -1)
                loss = loss + functional.cross_entropy(logits, target, ignore_index=-100)
                valid = target != -100
                right += int((logits.argmax(-1)[valid] == target[valid]).sum())
                counted += int(valid.sum())
        return loss, right / counted


def caption_batch(seed: tuple[int, ...], size: int) -> list[Caption]:
    """Draw captions of fresh scenes."""
    rng = np.random.default_rng(seed)
    return [caption(sample_scene(rng), rng) for _ in range(size)]
