"""LoRAs for the tiny Wan pair."""

from __future__ import annotations

import pytest
from diffusers import WanPipeline

from flowblend_plugins.testing import tiny_wan_denoiser, tiny_wan_pipeline
from tests.adapters.distilled_samplers.lora_files import EVERYTHING, write_lora


@pytest.fixture(scope="package")
def wan_loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of LoRAs: few-step ones for both denoisers, and one of the user's own for the large."""
    root = tmp_path_factory.mktemp("loras")
    return {
        "large": write_lora(root / "large", WanPipeline, tiny_wan_pipeline().transformer, 1, EVERYTHING),
        "small": write_lora(root / "small", WanPipeline, tiny_wan_denoiser(), 2, EVERYTHING),
        "large style": write_lora(
            root / "style", WanPipeline, tiny_wan_pipeline().transformer, 3, ("to_q", "proj_out")
        ),
    }
