"""Components that the user replaces after ``enable()``: refused where an old one would go on answering, else kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import flowblend_plugins as fb
from flowblend_plugins.testing import generate, tiny_wan_pipeline
from tests.adapters.feature_caching.native_cache_contract import small_wan
from tests.exactness.pipelines import FAMILIES, SCHEDULERS


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_another_small_denoiser_in_its_slot_is_refused(name: str) -> None:
    family = FAMILIES[name]
    pipe, small, other = family.pipe(), family.make_small(), family.make_small()
    with fb.enable(pipe, small, "LSL"):
        blended = family.run(pipe)
        pipe.transformer_2 = other
        with pytest.raises(fb.RoutingError, match=r"transformer_2.*was replaced after enable"):
            family.run(pipe)
        pipe.transformer_2 = small
        assert torch.equal(family.run(pipe), blended)
        pipe.transformer_2 = other
    assert pipe.transformer_2 is other  # what the user set is the user's


def test_a_compile_wrapper_around_the_small_denoiser_is_refused() -> None:
    pipe, small = tiny_wan_pipeline(), small_wan()
    with fb.enable(pipe, small, "LSL"):
        pipe.transformer_2 = torch.compile(small)
        with pytest.raises(fb.RoutingError, match=r"was replaced after enable.*\.compile\(\)"):
            generate(pipe)


@pytest.mark.parametrize("adapter", ["dpmpp_2m", "flow_euler(num_inference_steps=5)"])
def test_another_scheduler_beside_a_solver_is_refused_and_kept(adapter: str) -> None:
    refuses_another_scheduler(adapter)


def refuses_another_scheduler(adapter: str) -> None:
    pipe = tiny_wan_pipeline()
    with fb.enable(pipe, small_wan(), "LSL", adapters=[adapter]):
        solver = pipe.scheduler
        blended = generate(pipe, None)
        mine = pipe.scheduler = SCHEDULERS["euler"]()
        for _ in range(2):
            with pytest.raises(fb.RoutingError, match=r"scheduler was replaced.*disable\(\)"):
                generate(pipe, None)
        pipe.scheduler = solver
        assert torch.equal(generate(pipe, None), blended)
        pipe.scheduler = mine
    assert pipe.scheduler is mine
    assert pipe.config["scheduler"] == ("diffusers", "FlowMatchEulerDiscreteScheduler")
    plain = tiny_wan_pipeline()
    plain.scheduler = SCHEDULERS["euler"]()
    assert torch.equal(generate(pipe, 5), generate(plain, 5))


def test_another_scheduler_beside_distilled_is_refused_and_kept() -> None:
    refuses_another_scheduler('distilled(large="as_loaded", small="as_loaded", num_inference_steps=4)')


def test_another_scheduler_without_a_solver_is_the_one_that_samples() -> None:
    pipe, twin = tiny_wan_pipeline(), tiny_wan_pipeline()
    twin.scheduler = SCHEDULERS["euler"]()
    with fb.enable(twin, small_wan(), "LSL", adapters=["first_block_cache(threshold=0.5)"]):
        expected = generate(twin)
    with fb.enable(pipe, small_wan(), "LSL", adapters=["first_block_cache(threshold=0.5)"]):
        assert not torch.equal(generate(pipe), expected)
        pipe.scheduler = SCHEDULERS["euler"]()
        assert torch.equal(generate(pipe), expected)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)


def test_what_else_changes_beside_a_solver_is_kept() -> None:
    pipe: Any = tiny_wan_pipeline()
    scheduler, other = pipe.scheduler, tiny_wan_pipeline(5).vae
    with fb.enable(pipe, small_wan(), "LSL", adapters=["dpmpp_2m"]):
        pipe.vae = other
        pipe.register_to_config(expand_timesteps=False, boundary_ratio=None)
        assert generate(pipe).isfinite().all()
    assert pipe.vae is other
    assert pipe.scheduler is scheduler
    assert pipe.config["vae"] == ("diffusers", "AutoencoderKLWan")
    assert pipe.config["scheduler"] == ("diffusers", "UniPCMultistepScheduler")
