"""Test tools for plugin authors: tiny real pipelines, a plugin that records every hook call, an adapter's contract.

Nothing here is a mock: the pipelines are diffusers' own, with random weights of a few kilobytes, and generate in a
fraction of a second on a CPU. Text embeddings are passed directly, so no tokenizer or text encoder is needed.
"""

from .contract import AdapterContract
from .recording import RecordingPlugin
from .snapshot import PipelineSnapshot
from .tiny_pipelines import (
    generate,
    prompts_in_a_batch,
    tiny_ltx_denoiser,
    tiny_ltx_pipeline,
    tiny_wan_denoiser,
    tiny_wan_pipeline,
)

__all__ = [
    "AdapterContract",
    "PipelineSnapshot",
    "RecordingPlugin",
    "generate",
    "prompts_in_a_batch",
    "tiny_ltx_denoiser",
    "tiny_ltx_pipeline",
    "tiny_wan_denoiser",
    "tiny_wan_pipeline",
]
