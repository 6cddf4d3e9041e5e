"""``python -m flowblend_research.full_size``: measure at the published sizes, and write the data and the page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from flowblend_plugins.errors import FlowBlendError
from flowblend_plugins.files.writing import prepare_output_folder, write_json_atomically, write_text_atomically
from flowblend_plugins.types import JsonObject

from .machine import Machine
from .measure import MEASUREMENTS
from .page import to_markdown
from .pairs import PAIRS, FullSizePair, tiny
from .session import Session
from .summary import summarize

DOCS = Path(__file__).resolve().parents[3] / "docs"
NAME = "full_size_measured"


def measure_pair(pair: FullSizePair, machine: Machine, record: JsonObject, out: Path) -> None:
    """Measure one pair; what was measured is written after each measurement, whatever becomes of the next.

    Args:
        pair: the pair, at full size or tiny.
        machine: where, and until when.
        record: of the whole run; the pair's part is set in it.
        out: folder for the data and the page.
    """
    own: JsonObject = {"command": record["command"], "environment": describe_device(machine.device)}
    own |= {"title": pair.title, "calls": {name: dict(call) for name, call in pair.calls.items()}}
    own |= {"measured": {}, "took_s": {}, "not_measured": {}}
    record["pairs"][pair.name] = own
    session: Session | None = None
    for measurement in MEASUREMENTS:
        name = measurement.name
        started = time.monotonic()
        try:
            session = session or Session.open(pair, machine)
            expected = measurement.expected_s(session)
            if expected > machine.left_s():
                own["not_measured"][name] = (
                    f"it takes about {expected:.0f} s, and {max(machine.left_s(), 0):.0f} s were left"
                )
            else:
                own["measured"][name] = measurement.run(session)
        except Exception as error:  # one that fails, or runs out of memory, costs itself alone
            own["not_measured"][name] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        own["took_s"][name] = time.monotonic() - started
        own["summary"] = summarize(pair, own["measured"])
        machine.collect()
        write(record, out)
        print(f"{pair.name}: {name}, {own['took_s'][name]:.1f} s {own['not_measured'].get(name, '')}", flush=True)
        if session is None:  # the denoisers do not fit, or are not there
            break


def write(record: JsonObject, out: Path) -> None:
    """Write the data and the page."""
    write_json_atomically(out / f"{NAME}.json", record)
    write_text_atomically(out / f"{NAME}.md", to_markdown(record))


def _others(out: Path, only: str | None) -> JsonObject:
    """The other pair's results in the folder, which `--only` leaves as they are."""
    file = out / f"{NAME}.json"
    if only is None or not file.is_file():
        return {}
    return {name: own for name, own in json.loads(file.read_text(encoding="utf-8"))["pairs"].items() if name != only}


def describe_device(device: torch.device) -> JsonObject:
    """Device and software, as a reader of the figures needs them."""
    from flowblend_compat_matrix.results.environment import describe_environment

    environment = describe_environment()
    kept = ("date", "python", "torch", "diffusers", "transformers", "flowblend-plugins", "device", "num_threads")
    found: JsonObject = {name: environment[name] for name in kept}
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        found |= {"cuda": torch.version.cuda, "memory_bytes": memory}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m flowblend_research.full_size", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--only", choices=[pair.name for pair in PAIRS], help="one pair (default: one after the other)")
    parser.add_argument("--tiny", action="store_true", help="denoisers of some thousand weights, on a CPU: a trial")
    parser.add_argument("--minutes", type=float, default=6.0, help="for each pair (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder for {NAME}.json and .md (default: docs; out with --tiny)")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        print("full size: no CUDA GPU is here. `--tiny` tries everything on a CPU.", file=sys.stderr)
        return 1
    device = torch.device("cpu" if asked.tiny else "cuda")
    command = " ".join(
        ["python -m flowblend_research.full_size", *(arguments if arguments is not None else sys.argv[1:])]
    )
    try:
        out = prepare_output_folder(asked.out or (Path("out") if asked.tiny else DOCS))
        record: JsonObject = {"api_version": 1, "command": command, "pairs": _others(out, asked.only)}
        for pair in PAIRS:
            if asked.only in (None, pair.name):
                machine = Machine(device, started + 60.0 * asked.minutes)
                measure_pair(tiny(pair) if asked.tiny else pair, machine, record, out)
                machine.collect()
                started = time.monotonic()
    except FlowBlendError as error:
        print(f"full size: {error}", file=sys.stderr)
        return 1
    print(out / f"{NAME}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
