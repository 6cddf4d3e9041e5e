"""Plan what is run: stacks made up from registered adapters, threads, and turns at timing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from flowblend_plugins.contract.adapter import Adapter
from flowblend_plugins.contract.spec import adapter_from_spec
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import AdapterError, UsageError
from flowblend_plugins.manager import FlowblendPluginManager, adapters_by_name

from ..results.cells import Stack


def suggested_stacks(manager: FlowblendPluginManager, family: Family) -> list[str]:
    """The settings that the adapters of a family suggest.

    Raises:
        UsageError: none does.
    """
    adapters = adapters_by_name(manager).values()
    found = [text for adapter in adapters if adapter.traits.family is family for text in adapter.suggested]
    if not found:
        raise UsageError(
            f"--family {family.value}: no adapter of this family is installed, or none suggests a setting."
        )
    return found


def all_stacks(manager: FlowblendPluginManager) -> list[str]:
    """Every registered adapter at the settings it suggests; one that says nothing of any as it is, if it can be."""
    known = adapters_by_name(manager)
    found: list[str] = []
    for name, adapter in known.items():
        found += adapter.suggested
        if not adapter.suggested and not suggests_none(adapter):
            try:
                adapter_from_spec(name, known)
            except AdapterError:  # it has options without a default, and nobody says what they might be
                continue
            found.append(name)
    return found


def suggests_none(adapter: type[Adapter]) -> bool:
    """Whether an adapter says itself that it is not to be tried unasked: ``suggested = ()``.

    Those are set-ups that are found on a pipeline, and methods whose weights would have to be downloaded first.
    """
    return "suggested" in vars(adapter) and not adapter.suggested


def left_out(manager: FlowblendPluginManager) -> list[str]:
    """Names of registered adapters that :func:`all_stacks` leaves out."""
    tried = {text.partition("(")[0].strip() for text in all_stacks(manager)}
    return [name for name in adapters_by_name(manager) if name not in tried]


def families_of(manager: FlowblendPluginManager, stacks: Iterable[Stack]) -> dict[str, str]:
    """Family of each adapter of the stacks, by its name."""
    known = adapters_by_name(manager)
    names = dict.fromkeys(text.partition("(")[0].strip() for stack in stacks for text in stack)
    return {name: known[name].traits.family.value for name in names}


def combinations(singles: Iterable[Stack], depth: int) -> list[Stack]:
    """Stacks of two and more different adapters, up to ``depth``: each at the first of its settings in ``singles``.

    Larger stacks come after smaller ones.
    """
    first: dict[str, str] = {}
    for stack in singles:
        if len(stack) == 1:
            first.setdefault(stack[0].partition("(")[0].strip(), stack[0])
    sizes = range(2, depth + 1)
    return [stack for size in sizes for stack in itertools.combinations(first.values(), size)]


def num_threads_each(num_workers: int, num_cpus: int | None, is_tiny: bool, asked: str | None) -> int | None:
    """Torch threads of each worker on a CPU; ``None`` leaves them alone.

    Args:
        num_workers: that share the cores.
        num_cpus: cores of the machine.
        is_tiny: the denoisers are so small that a second thread would wait more than it gains.
        asked: what ``OMP_NUM_THREADS`` says, which has the last word.
    """
    if asked:
        return None
    if is_tiny:
        return 1
    return max(1, (num_cpus or 1) // num_workers) if num_workers > 1 else None


def take_turns(num_workers: int, num_threads: int, num_cpus: int | None, share_accelerator: bool) -> bool:
    """Whether workers of one machine time one after the other: where none has cores or an accelerator to itself.

    Args:
        num_workers: of the machine.
        num_threads: of each.
        num_cpus: cores of the machine.
        share_accelerator: all of them compute on one accelerator.
    """
    return num_workers > 1 and (share_accelerator or num_workers * num_threads > (num_cpus or 1))


def shown_prompts(num_cells: int, most: int = 3) -> int:
    """Prompts whose videos are kept: fewer where there are many cells, for the report is one file."""
    return most if num_cells <= 60 else 2 if num_cells <= 200 else 1


def check_depth(depth: int, stacks: Sequence[Stack]) -> None:
    """Raise ``UsageError`` where pairs of adapters are asked for and there are none to pair."""
    if depth > 1 and len({stack[0].partition("(")[0] for stack in stacks if len(stack) == 1}) < 2:
        raise UsageError(
            f"--depth {depth} stacks adapters on each other, and fewer than two are named. Add --all-adapters, "
            "--family, or several --adapter."
        )
