"""The text encoder of the LTX pair: a small T5 that has learnt what captions say."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ..text import MAX_SEQUENCE_LENGTH, TEXT_DIM, TextTrainer, vocabulary


def make_encoder() -> T5EncoderModel:
    """An untrained encoder of two layers."""
    config = T5Config(
        vocab_size=len(vocabulary()),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def encode_text(
    tokenizer: PreTrainedTokenizerFast, encoder: T5EncoderModel, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt embeddings ``[B, 32, 64]`` and their mask ``[B, 32]``, as `LTXPipeline` makes them."""
    tokens = tokenizer(
        texts, padding="max_length", max_length=MAX_SEQUENCE_LENGTH, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    return encoder(tokens.input_ids)[0], tokens.attention_mask.bool()


class LTXTextTrainer(TextTrainer):
    """A T5 encoder with the readers that teach it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_encoder()

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Embeddings ``[B, 32, 64]`` of what is text; the rest is zero."""
        hidden, mask = encode_text(self.tokenizer, self.encoder, texts)
        return hidden * mask[..., None]
