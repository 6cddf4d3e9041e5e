"""Stale results, which no longer speak for what is installed."""

from __future__ import annotations

from collections.abc import Iterator

from flowblend_plugins.types import JsonObject

from ..results.matrix_results import CellResult, Matrix

SOFTWARE = ("flowblend-plugins", "torch", "diffusers", "transformers", "python")
MACHINE = ("platform", "device", "num_cpus", "num_threads")


def changes_for_all(before: JsonObject, now: JsonObject, with_machine: bool = False) -> list[str]:
    """Changes in the environment that every cell depends on."""
    names = (*SOFTWARE, *MACHINE) if with_machine else SOFTWARE
    return [_change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def changes_for(cell: CellResult, before: JsonObject, now: JsonObject) -> list[str]:
    """Further changes that this cell depends on: the distributions of its adapters, and what those use."""
    if not cell.adapters:
        return []
    adapters = [text.partition("(")[0].strip() for text in cell.adapters]
    found = list(_changes(before.get("adapters", {}), now.get("adapters", {}), adapters))
    packages = {**before.get("packages", {}), **now.get("packages", {})}
    return found + list(_changes(before.get("packages", {}), now.get("packages", {}), sorted(packages)))


def stale_cells(matrix: Matrix, environment: JsonObject) -> dict[tuple[str, str], list[str]]:
    """Cells, by pair and id, whose software has changed since they were measured, with what has."""
    common = changes_for_all(matrix.environment, environment)
    found = {
        (cell.pair, cell.id): [*common, *changes_for(cell, matrix.environment, environment)] for cell in matrix.cells
    }
    return {key: changes for key, changes in found.items() if changes}


def _changes(before: JsonObject, now: JsonObject, names: list[str]) -> Iterator[str]:
    for name in names:
        if before.get(name) != now.get(name):
            yield _change(name, before.get(name), now.get(name))


def _change(name: str, before: object, now: object) -> str:
    return f"{name} was {before or 'not there'} and is now {now or 'not there'}"
