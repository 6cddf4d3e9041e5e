"""The words of the world for CLIP: a tokenizer with one token for each, and a small encoder taught to read them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from flowblend_compat_matrix.reference.world import BACKGROUNDS, FIELDS, SHAPES, Caption

from ..text import caption_labels, vocabulary

TEXT_DIM = 64
MAX_LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair encoding, with merges that make one token of every word of the world (spelling out others)."""
    words = [word for word in vocabulary() if word.isalpha()]
    letters = [chr(ord("a") + index) for index in range(26)]
    merges = _merges(words)
    tokens = [START, END, *letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,  # pyright: ignore[reportArgumentType]
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_LENGTH,
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges by frequency, as they are learnt from a text, until every word is one token."""
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in spelt):
        counts = Counter(pair for pieces in spelt for pair in itertools.pairwise(pieces))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for pieces in spelt:
            position = 0
            while position < len(pieces) - 1:
                if (pieces[position], pieces[position + 1]) == best:
                    pieces[position : position + 2] = ["".join(best)]
                position += 1
    return merges


def make_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        projection_dim=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def encode_text(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, texts: list[str]) -> torch.Tensor:
    """Prompt embeddings ``[B, 16, 64]`` as `StableDiffusionPipeline` makes them."""
    tokens = tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return encoder(tokens.input_ids.to(encoder.device)).last_hidden_state


class TextTrainer(nn.Module):
    """The encoder with the reader that teaches it: what a caption says, from the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer()
        self.encoder = make_encoder(self.tokenizer)
        self.sizes = [2, *(len(values) + 1 for name, values in FIELDS.items() if name != "shape")] * len(SHAPES)
        self.sizes.append(len(BACKGROUNDS) + 1)
        self.reader = nn.Sequential(nn.Linear(TEXT_DIM, 256), nn.SiLU(), nn.Linear(256, sum(self.sizes)))

    def loss(self, captions: list[Caption]) -> torch.Tensor:
        """Cross-entropy of everything a caption says or leaves open."""
        hidden = encode_text(self.tokenizer, self.encoder, [item.text for item in captions])
        labels = np.stack([caption_labels(item) for item in captions])
        parts = self.reader(hidden.mean(dim=1)).split(self.sizes, dim=-1)
        losses = [
            functional.cross_entropy(logits, torch.from_numpy(np.ascontiguousarray(column)).to(logits.device))
            for logits, column in zip(parts, labels.T, strict=True)
        ]
        return torch.stack(losses).sum()
