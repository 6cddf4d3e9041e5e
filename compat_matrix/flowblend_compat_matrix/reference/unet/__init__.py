"""The second embedded pair: two UNets that predict noise, on stills of the same world, as a `StableDiffusionPipeline`.

Feature caches that work on UNets (DeepCache) have nothing to run on in the first pair. This one has the parts of
Stable Diffusion in small: CLIP text encoder and tokenizer, `AutoencoderKL`, `UNet2DConditionModel`, DDIM.
"""

from __future__ import annotations

from .pair import CALL_DEFAULTS, WEIGHTS, UNetPair, load_unet_pair

__all__ = ["CALL_DEFAULTS", "WEIGHTS", "UNetPair", "load_unet_pair"]
