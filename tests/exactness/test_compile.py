"""The routing decision stays outside compiled graphs: blended, there are as many as for the two denoisers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.testing.snapshot import snapshot
from tests.exactness.pipelines import FAMILIES, Family

BOTH = [FAMILIES["wan"], FAMILIES["ltx"]]
both = pytest.mark.parametrize("family", BOTH, ids=lambda family: family.name)


class CountingBackend:
    """Runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compile_all(denoiser: Any, backend: CountingBackend) -> None:
    denoiser.compile(backend=backend, fullgraph=True, dynamic=False)


def compile_blocks(denoiser: Any, backend: CountingBackend) -> None:
    denoiser.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=False)


def num_graphs_alone(family: Family, compile_it: Callable[[Any, CountingBackend], None]) -> int:
    """Graphs of a pipeline on the large denoiser and of one on the small."""
    backend = CountingBackend()
    for denoiser in (family.make_pipe().transformer, family.make_small()):
        pipe = family.pipe()
        pipe.transformer = denoiser
        compile_it(denoiser, backend)
        family.run(pipe, 4)
    return backend.num_graphs


@both
@pytest.mark.parametrize("compile_it", [compile_all, compile_blocks])
@pytest.mark.parametrize("when", ["before", "after"])
def test_as_many_graphs_as_alone(family: Family, compile_it: Callable[[Any, CountingBackend], None], when: str) -> None:
    expected_graphs = num_graphs_alone(family, compile_it)
    assert expected_graphs >= 2
    torch.compiler.reset()
    with fb.enable(uncompiled := family.pipe(), family.make_small(), "L:1,S:2,L:1"):
        expected = family.run(uncompiled, 4)
    backend = CountingBackend()
    pipe, small = family.pipe(), family.make_small()
    if when == "before":
        compile_it(pipe.transformer, backend)
        compile_it(small, backend)
    before = snapshot(pipe, small)
    with fb.enable(pipe, small, "L:1,S:2,L:1") as blend:
        if when == "after":
            compile_it(pipe.transformer, backend)
            compile_it(small, backend)
        assert torch.equal(family.run(pipe, 4), expected)
        assert torch.equal(family.run(pipe, 4), expected)
        assert backend.num_graphs == expected_graphs
        assert blend.trace.last is not None
        assert "".join(sorted({call.step.denoiser for call in blend.trace.last.calls})) == "LS"
    if when == "before":
        after = snapshot(pipe, small)
        changed = {key for key in before if before[key] != after[key]}
        assert changed <= {"attributes", "transformer.: attributes", "transformer.: diffusers hooks"}  # of a first run
    assert torch.equal(family.run(pipe, 4), family.run(family.pipe(), 4))


def test_a_warm_compiled_denoiser_is_traced_once_more_and_its_old_graphs_serve_again_afterwards() -> None:
    family, backend = FAMILIES["wan"], CountingBackend()
    pipe = family.pipe()
    compile_all(pipe.transformer, backend)
    plain = family.run(pipe, 4)
    num_plain = backend.num_graphs
    with fb.enable(pipe, family.make_small(), "LLL"):
        assert torch.equal(family.run(pipe, 4), plain)
        num_enabled = backend.num_graphs
        assert num_enabled <= 2 * num_plain
        assert torch.equal(family.run(pipe, 4), plain)
    assert torch.equal(family.run(pipe, 4), plain)
    assert backend.num_graphs == num_enabled


@pytest.mark.parametrize("wrapped", ["L", "S"])
def test_a_compile_wrapper_is_refused_with_the_remedy(wrapped: str) -> None:
    family = FAMILIES["wan"]
    pipe, small = family.pipe(), family.make_small()
    large = pipe.transformer
    if wrapped == "L":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        small = torch.compile(small, backend="eager")
    before = snapshot(pipe)
    with pytest.raises(fb.RoutingError, match=r"in place instead: denoiser.compile\(\)"):
        fb.enable(pipe, small)
    assert snapshot(pipe) == before
    pipe.transformer = large
    with fb.enable(pipe, family.make_small()):
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
        with pytest.raises(fb.RoutingError, match=r"use pipe.transformer.compile\(\)"):
            family.run(pipe)
