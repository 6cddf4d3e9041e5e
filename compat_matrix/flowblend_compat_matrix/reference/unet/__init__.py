"""The second embedded pair: two UNets that predict noise, on stills of the same world, as a `StableDiffusionPipeline`.

Feature caches that work on UNets (DeepCache) have nothing to run on in the first pair. This one has the parts of
Stable Diffusion in small: CLIP text encoder and tokenizer, `AutoencoderKL`, `UNet2DConditionModel`, DDIM.
"""
