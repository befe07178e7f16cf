"""What benchmarks share: candidates that take turns in one process, and a report that tells of machine and load."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


Turns = dict[str, list[tuple[float, float]]]
"""Of each candidate, for each round, seconds by the clock and seconds of the processor."""


def interleave(candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warmups: int = 1) -> Turns:
    """Each candidate in each round: A B C, A B C, ... so that a busy machine slows them all alike."""
    turns: Turns = {name: [] for name in candidates}
    for number in range(warmups + rounds):
        for name, call in candidates.items():
            wall, worked = time.perf_counter(), time.process_time()
            call()
            if number >= warmups:
                taken = time.perf_counter() - wall, time.process_time() - worked
                turns[name].append(taken)
                print(f"  {name}: {taken[0]:.3f} s, CPU {taken[1]:.3f} s", file=sys.stderr, flush=True)
    return turns


def compared(turns: Turns, reference: str) -> dict[str, dict[str, Any]]:
    """For each candidate its seconds, their medians, and how many times as fast as the reference it is, with the range.

    A ratio is the median of the rounds' ratios, for neighbours in time were slowed alike. That of the processor's own
    seconds is told beside that of the clock's: on a busy machine it moves less.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, taken in turns.items():
        found[name] = {}
        for kind, clock in enumerate(("clock", "cpu")):
            ratios = [other[kind] / max(own[kind], 1e-9) for other, own in zip(turns[reference], taken, strict=True)]
            found[name][clock] = {
                "seconds": [round(value[kind], 5) for value in taken],
                "median_seconds": statistics.median(value[kind] for value in taken),
                "times_as_fast": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
    return found


def told(found: Mapping[str, dict[str, Any]]) -> str:
    """The comparison as a table for a terminal."""
    return "\n".join(
        f"{name:<36}"
        + "".join(
            f"{clock:>7} {one[clock]['median_seconds']:>9.4f} s {one[clock]['times_as_fast']:>6.2f}x "
            f"({one[clock]['range'][0]:.2f} to {one[clock]['range'][1]:.2f})"
            for clock in ("clock", "cpu")
        )
        for name, one in found.items()
    )


def write(name: str, measured: Mapping[str, Any], *packages: str, json_path: Path | None = None) -> None:
    """Writes what was measured, with machine, versions, threads, load and date, to `results/<name>.json`."""
    path = json_path or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # names no folder
    report = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "threads": torch.get_num_threads(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}},
        **measured,
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
