"""Exact wherever weights lie in memory, as long as those that are compared lie alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

import flowblend_plugins as fb
from tests.exactness.alignment import place
from tests.exactness.oracles import swapped
from tests.exactness.pipelines import FAMILIES, SKYREELS, STABLE_DIFFUSION, Family, plain_latents

SEEN_TO_DEPEND = [FAMILIES["wan"], FAMILIES["wan-i2v"], SKYREELS, FAMILIES["ltx2"]]  # on AMD's EPYC
EACH = [*SEEN_TO_DEPEND, STABLE_DIFFUSION]
LSL = "LLSSSL"


@pytest.fixture
def misaligned() -> Callable[[Any], Any]:
    """Puts the weights of a module or pipeline at addresses 8 modulo 16, as files of weights often do."""
    return lambda owner: place(owner, 8)


def addresses(module: torch.nn.Module) -> set[int]:
    return {tensor.data_ptr() % 16 for tensor in module.parameters()}


@pytest.mark.parametrize("family", EACH, ids=lambda family: family.name)
def test_a_blend_of_misaligned_weights_is_exact(family: Family, misaligned: Callable[[Any], Any]) -> None:
    pipe, small = misaligned(family.pipe()), misaligned(family.make_small())
    plain = family.run(pipe)
    with fb.enable(pipe, small, "LLL"):
        assert torch.equal(family.run(pipe), plain)
    with fb.enable(pipe, small, "LSL"):
        blended = family.run(pipe)
        assert addresses(getattr(pipe, family.slot)) == addresses(small) == {8}
    assert torch.equal(family.run(pipe), plain)
    twin = misaligned(family.pipe())
    by_hand = {"L": getattr(twin, family.slot), "S": misaligned(family.make_small())}
    assert torch.equal(blended, swapped(family, twin, by_hand, LSL))


@pytest.mark.parametrize("family", SEEN_TO_DEPEND, ids=lambda family: family.name)
def test_what_misalignment_changes_on_this_processor(family: Family, misaligned: Callable[[Any], Any]) -> None:
    """Another alignment is another rounding and no more; where it is not even that, the test says so."""
    aligned = plain_latents(family)
    moved = family.run(misaligned(family.pipe()))
    assert torch.equal(family.run(place(misaligned(family.pipe()))), aligned), "back where torch allocates"
    if torch.equal(moved, aligned):
        pytest.skip(f"on this processor {family.name} computes the same bits from weights at 8 modulo 16")
    torch.testing.assert_close(moved, aligned, rtol=1e-4, atol=1e-4)


def test_weights_from_a_file_equal_others_once_they_lie_alike(tmp_path: Path) -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    pipe.transformer.save_pretrained(tmp_path)
    outputs = []
    for transformer in (
        WanTransformer3DModel.from_pretrained(tmp_path),
        WanTransformer3DModel.from_pretrained(tmp_path),
    ):
        pipe.transformer = transformer
        outputs.append(family.run(pipe))
    assert torch.equal(*outputs), "read twice, they lie alike"
    place(pipe.transformer)
    assert torch.equal(family.run(pipe), plain_latents(family))
