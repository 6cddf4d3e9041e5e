"""Published pairs that share a latent space, by the name that ``--pair`` takes. None is downloaded before it is used.

Every figure carries its source. What is not here, and why, is in ``docs/pairs.md``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..contract.markers import hookimpl
from ..pairs.preset import PairPreset
from .ltx import LTX_0_9_7, LTX_0_9_8, LTX_0_9_8_DISTILLED
from .transformers import COSMOS_PREDICT2_T2I, KANDINSKY_5_T2V, SD_3_5
from .unets import SD_1_5_BK_SDM, SDXL_SSD_1B, SDXL_VEGA
from .wan import SKYREELS_V2_I2V, WAN_2_1_T2V, WAN_2_1_VACE, WAN_2_2_T2V

PUBLISHED_PAIRS = (
    WAN_2_1_T2V,
    WAN_2_1_VACE,
    WAN_2_2_T2V,
    SKYREELS_V2_I2V,
    LTX_0_9_7,
    LTX_0_9_8,
    LTX_0_9_8_DISTILLED,
    KANDINSKY_5_T2V,
    COSMOS_PREDICT2_T2I,
    SD_3_5,
    SDXL_SSD_1B,
    SDXL_VEGA,
    SD_1_5_BK_SDM,
)


@hookimpl
def flowblend_register_pairs() -> Iterable[PairPreset]:
    """Wan 2.1 and 2.2, SkyReels-V2, LTX-Video, Kandinsky 5, Cosmos-Predict2, Stable Diffusion 3.5, SDXL and 1.5."""
    return PUBLISHED_PAIRS
