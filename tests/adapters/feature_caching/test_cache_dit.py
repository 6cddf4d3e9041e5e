"""cache-dit under FlowBlending against cache-dit's own ``enable_cache`` on a plain pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("cache_dit", reason='needs the extra: pip install "flowblend-plugins[cache-dit]"')

import cache_dit
from cache_dit import DBCacheConfig
from diffusers import FirstBlockCacheConfig

import flowblend_plugins as fb
from flowblend_plugins.testing import (
    PipelineSnapshot,
    generate,
    tiny_ltx_pipeline,
    tiny_wan_pipeline,
)
from tests.adapters.feature_caching.native_cache_contract import (
    NativeCacheContract,
    OnLTX,
    OnWan,
    recorded,
)
from tests.exactness.pipelines import VIDEO_TO_VIDEO

THRESHOLD = 0.5


def config(**options: Any) -> DBCacheConfig:
    settings: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": THRESHOLD}
    return DBCacheConfig(**(settings | options))


@pytest.fixture(autouse=True)
def _pipeline_classes_as_before() -> Iterator[None]:
    """cache-dit patches classes, so what a test does by hand is taken off for the next."""
    classes = [type(make()) for make in (tiny_wan_pipeline, tiny_ltx_pipeline)] + [type(VIDEO_TO_VIDEO.pipe())]
    before = [dict(vars(cls)) for cls in classes]
    yield
    for cls, attributes in zip(classes, before, strict=True):
        for name in vars(cls).keys() - attributes.keys():
            delattr(cls, name)
        cls.__call__ = attributes["__call__"]


class CacheDitContract(NativeCacheContract):
    spec = f"cache_dit(threshold={THRESHOLD})"
    never_spec = "cache_dit(threshold=0.0)"
    wrong_specs = (
        "cache_dit(threshold=-0.1)",
        "cache_dit(threshold='a')",
        "cache_dit(limit=1)",
        "cache_dit(fn_blocks=0)",
        "cache_dit(bn_blocks=-1)",
        "cache_dit(max_cached_steps=-1)",
        "cache_dit(max_continuous_cached_steps=-1)",
        "cache_dit(denoisers='l')",
        "cache_dit(warmup_steps=-1)",
    )

    def put_on_by_hand(self, pipe: Any) -> None:
        cache_dit.enable_cache(pipe, cache_config=config())

    def test_a_branch_answers_as_if_the_other_were_not_there(self) -> None:
        """Each branch's calls are replayed alone on a twin with cache-dit's own cache: mixed state would show."""
        pipe = self.make_pipeline()
        with self.blended(pipe, "LLL") as blend, recorded(pipe.transformer) as calls:
            generate(pipe, **self.call)
            steps = [call.step for call in blend.trace.generations[-1].calls]
            outcomes = [call.outcome for call in blend.trace.generations[-1].calls]
        assert self.skipped_outcome in outcomes
        for branch in {step.branch for step in steps}:
            twin = self.make_pipeline().transformer
            cache_dit.enable_cache(twin, cache_config=config(enable_separate_cfg=False))
            for step, (kwargs, output) in zip(steps, calls, strict=True):
                if step.branch == branch:
                    with torch.no_grad():
                        assert torch.equal(twin(**kwargs)[0], output)

    def test_a_denoiser_that_has_a_cache_is_refused(self) -> None:
        pipe, small = self.make_pipeline(), self.make_small()
        before = PipelineSnapshot.of(pipe)
        small.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(fb.StackError, match=r"denoiser S: it has a cache of diffusers' .* Call disable_cache\(\)"):
            fb.enable(pipe, small, "LSL", adapters=[self.spec])
        small.disable_cache()
        cache_dit.enable_cache(small, cache_config=config())
        with pytest.raises(fb.StackError, match=r"denoiser S: cache-dit is enabled on it .* cache_dit\.disable_cache"):
            fb.enable(pipe, small, "LSL", adapters=[self.spec])
        assert before.differences(pipe) == []

    def test_nothing_is_patched_that_other_pipelines_share(self) -> None:
        pipe, other = self.make_pipeline(), self.make_pipeline()
        before = dict(vars(type(pipe))), list(pipe.transformer.state_dict()), generate(other, **self.call)
        pipeline_class = type(pipe)
        with self.blended(pipe):
            assert dict(vars(pipeline_class)) == before[0]
            generate(pipe, **self.call)
            assert torch.equal(generate(other, **self.call), before[2])
            assert list(pipe.transformer.state_dict()) == before[1]
        assert dict(vars(pipeline_class)) == before[0]
        assert list(pipe.transformer.state_dict()) == before[1]

    def test_the_trace_sums_up_what_cache_dit_says_of_itself(self) -> None:
        plain = self.make_pipeline()
        self.by_hand(plain)
        stats = cache_dit.summary(plain, logging=False)[-1]
        diffs = [stats.residual_diffs[str(step)] for step in stats.cached_steps]
        diffs += [stats.cfg_residual_diffs[str(step)] for step in stats.cfg_cached_steps]
        assert diffs
        pipe = self.make_pipeline()
        with self.blended(pipe, "LLL") as blend:
            generate(pipe, **self.call)
            last = blend.trace.generations[-1]
            num_reused = len(diffs)
            (note,) = last.notes
            assert note.startswith("cache_dit on L: DBCache_F1B0_W0I1M0MC0_R0.5")
            assert f", {num_reused} of {len(last.calls)} calls not computed, at residual differences " in note
            assert f"{min(diffs):.3g} to {max(diffs):.3g} (median " in note
            assert note in blend.trace.summary()
            assert blend.trace.to_dict()["generations"][-1]["notes"] == [note]


class TestCacheDitOnWan(OnWan, CacheDitContract):
    pass


class TestCacheDitOnLTX(OnLTX, CacheDitContract):
    pass
