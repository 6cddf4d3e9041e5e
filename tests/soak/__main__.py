"""Run random pipelines, stacks and faults for as long as asked, and see that every promise of ``disable()`` holds.

``python -m tests.soak --seconds 1800 --seed 1`` from the repository's root. A failure names the world that it happened
in; ``--seed 1 --world 37`` runs that world alone.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
import traceback

import torch

from tests.soak.stacks import know_tiny_denoisers
from tests.soak.world import World

ACTIONS = 25
SETTLED = 10
"""Worlds after which memory must have stopped growing."""


def run_world(seed: int, number: int) -> tuple[int, str | None]:
    """How many things were done in one world, and the report of what failed, if anything did."""
    choose = random.Random(f"{seed}:{number}")
    torch.manual_seed(number)
    world = None
    try:
        world = World(choose)
        for _ in range(ACTIONS):
            world.act()
        world.close()
    except Exception:
        log = "\n  ".join(world.log) if world is not None else "(while it was made)"
        name = world.family.name if world is not None else ""
        return 0, f"world {number} ({name}):\n  {log}\n{traceback.format_exc()}"
    return len(world.log), None


def num_tensors() -> int:
    """Tensors that something still holds."""
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def resident_mib() -> float:
    with open("/proc/self/statm") as statistics:
        return int(statistics.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=int, help="run this one alone")
    parser.add_argument("--max-tensors", type=int, default=200, help="more tensors than after the first worlds")
    parser.add_argument("--max-mib", type=float, default=300.0, help="more memory than after the first worlds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    know_tiny_denoisers()
    if options.world is not None:
        done, failure = run_world(options.seed, options.world)
        print(failure or f"world {options.world}: {done} actions, nothing found")
        return int(failure is not None)
    started, number, done, failures, settled = time.monotonic(), 0, 0, 0, (0, 0.0)
    while time.monotonic() - started < options.seconds:
        actions, failure = run_world(options.seed, number)
        done += actions
        number += 1
        if failure is not None:
            failures += 1
            print(failure, flush=True)
        if number == SETTLED:
            settled = num_tensors(), resident_mib()
        elif number > SETTLED and number % SETTLED == 0:
            tensors, mib = num_tensors() - settled[0], resident_mib() - settled[1]
            seconds = time.monotonic() - started
            told = f"{number} worlds, {done} actions, {failures} failures, {tensors:+} tensors, {mib:+.0f} MiB"
            print(f"{seconds:.0f} s: {told}", flush=True)
            if tensors > options.max_tensors or mib > options.max_mib:
                print("memory grows from world to world", flush=True)
                return 1
    print(f"{number} worlds, {done} actions, {failures} failures", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
