"""One small denoiser in two blends, and two threads that enable: right in any order, or refused with what to do."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, STABLE_DIFFUSION, Family
from tests.sharing.caches import CACHES, Cache

ORDERS = pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in first out", "last in first out"])
FAMILIES_HERE = [FAMILIES["wan"], FAMILIES["ltx"], STABLE_DIFFUSION]


@ORDERS
@pytest.mark.parametrize("family", FAMILIES_HERE, ids=lambda family: family.name)
def test_two_blends_on_one_small_denoiser_leave_no_trace_in_any_order(family: Family, order: tuple[int, int]) -> None:
    pipes, small = [family.pipe(), family.pipe()], family.make_small()
    plain = [family.run(pipe) for pipe in pipes]
    before = [snapshot(pipe, small) for pipe in pipes]
    blends, results = [], []
    for pipe, schedule in zip(pipes, ("LSL", "SSL"), strict=True):
        blends.append(fb.enable(pipe, small, schedule))
        results.append(family.run(pipe))
        family.run(pipes[0])
    for number in order:
        blends[number].disable()
        assert torch.equal(family.run(pipes[number]), plain[number])
        if number == order[0]:
            assert torch.equal(family.run(pipes[order[1]]), results[order[1]])
    assert [snapshot(pipe, small) for pipe in pipes] == before


@ORDERS
def test_caches_of_two_blends_on_one_small_denoiser_are_refused(cache: Cache, order: tuple[int, int]) -> None:
    run, small = cache.run, cache.family.make_small()
    first, second = cache.family.pipe(), cache.family.pipe()
    before = snapshot(second, small)
    blend = fb.enable(first, small, "L:3,S:3,L:2", adapters=[cache.spec])
    blended, enabled = run(first), snapshot(second, small)
    with pytest.raises(
        fb.StackError, match=r"a cache of another blend is on it already.*Call disable\(\) on the other"
    ):
        fb.enable(second, small, adapters=[cache.spec])
    assert snapshot(second, small) == enabled
    assert torch.equal(run(first), blended)
    of_large = f"{cache.spec[:-1]}, denoisers='L')"
    blends = blend, fb.enable(second, small, "L:3,S:3,L:2", adapters=[of_large])
    cached_large = run(second)
    assert torch.equal(run(first), blended)
    blends[order[0]].disable()
    assert torch.equal(run((first, second)[order[1]]), (blended, cached_large)[order[1]])
    blends[order[1]].disable()
    family = cache.family
    with fb.enable(second, family.make_small(), "L:3,S:3,L:2", adapters=[of_large]):
        assert torch.equal(run(second), cached_large)
    assert snapshot(second, small).keys() == before.keys()


@pytest.mark.parametrize("other", [name for name in CACHES if CACHES[name].family.name == "wan" and "mag" not in name])
@pytest.mark.parametrize("cache", ["cache_dit", "teacache", "first_block_cache"], indirect=True)
def test_caches_of_different_kinds_do_not_meet_on_one_denoiser(cache: Cache, other: str) -> None:
    small = cache.family.make_small()
    with fb.enable(cache.family.pipe(), small, adapters=[cache.spec]):
        before = snapshot(cache.family.pipe(), small)
        with pytest.raises(fb.StackError, match="a cache of another blend"):
            fb.enable(cache.family.pipe(), small, adapters=[CACHES[other].spec])
        now = snapshot(cache.family.pipe(), small)
        assert {k: v for k, v in now.items() if k.startswith("further")} == {
            k: v for k, v in before.items() if k.startswith("further")
        }


def test_a_small_denoiser_with_a_cache_on_it_is_not_copied(cache: Cache) -> None:
    pipe, small = cache.family.pipe(), cache.family.make_small()
    own = cache.sharing(small)
    plain = cache.run(own)
    with fb.enable(pipe, small, adapters=[cache.spec]):
        cache.run(pipe)
        for whole in (small, own):
            with pytest.raises(fb.RoutingError, match=r"cannot be pickled or deep-copied.*Call disable\(\)"):
                copy.deepcopy(whole)
    assert torch.equal(cache.run(copy.deepcopy(own)), plain)


@pytest.mark.parametrize(
    "adapters", [(), ("first_block_cache(threshold=10.0, denoisers='L')",)], ids=["bare", "cached"]
)
def test_of_two_threads_that_enable_one_wins(adapters: tuple[str, ...]) -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    plain = family.run(pipe)
    before = snapshot(pipe)
    for _ in range(10):
        start, blends, errors = threading.Barrier(2), [], []

        def enable(start: Any = start, blends: Any = blends, errors: Any = errors) -> None:
            small = family.make_small()
            start.wait()
            try:
                blends.append(fb.enable(pipe, small, "LSL", adapters=adapters))
            except fb.RoutingError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=enable) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(blends) == len(errors) == 1
        assert "already enabled on this WanPipeline. Call disable()" in errors[0]
        blends[0].disable()
        assert snapshot(pipe) == before
    assert torch.equal(family.run(pipe), plain)


def test_of_two_threads_that_enable_on_a_shared_large_denoiser_one_wins() -> None:
    family = FAMILIES["wan"]
    pipes = [family.pipe(), family.pipe()]
    pipes[1].transformer = pipes[0].transformer
    plain = family.run(pipes[0])
    for _ in range(10):
        start, blends, errors = threading.Barrier(2), [], []

        def enable(pipe: Any, start: Any = start, blends: Any = blends, errors: Any = errors) -> None:
            small = family.make_small()
            start.wait()
            try:
                blends.append(fb.enable(pipe, small))
            except fb.RoutingError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=enable, args=(pipe,)) for pipe in pipes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(blends) == len(errors) == 1
        assert "shared with another pipeline on which FlowBlending is enabled" in errors[0]
        blends[0].disable()
    assert torch.equal(family.run(pipes[0]), plain)


def test_of_two_threads_that_generate_one_gets_the_clear_error() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    start, results, errors = threading.Barrier(2), [], []

    def generate() -> None:
        start.wait()
        try:
            results.append(family.run(pipe, 12))
        except fb.RoutingError as error:
            errors.append(str(error))

    with fb.enable(pipe, family.make_small(), "LSL"):
        expected = family.run(pipe, 12)
        threads = [threading.Thread(target=generate) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) + len(errors) == 2
    assert all(torch.equal(result, expected) for result in results)
    assert all("already generating" in error for error in errors)


def test_disable_in_two_threads_takes_off_once() -> None:
    family = FAMILIES["wan"]
    pipe = family.pipe()
    plain = family.run(pipe)
    before = snapshot(pipe)
    for _ in range(10):
        blend = fb.enable(pipe, family.make_small(), adapters=["first_block_cache(denoisers='L')"])
        threads = [threading.Thread(target=blend.disable) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert snapshot(pipe) == before
    assert torch.equal(family.run(pipe), plain)
