"""Run implementations alternately in one process, and write the results with hardware and load average."""

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


Timings = dict[str, list[tuple[float, float]]]
"""Wall-clock time and CPU time of each round in seconds, by candidate."""


def run_interleaved(candidates: Mapping[str, Callable[[], Any]], rounds: int, *, warmups: int = 1) -> Timings:
    """Time each candidate in each round (A B C, A B C, ...), so that other load affects all of them equally."""
    timings: Timings = {name: [] for name in candidates}
    for number in range(warmups + rounds):
        for name, call in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if number >= warmups:
                seconds = time.perf_counter() - wall, time.process_time() - cpu
                timings[name].append(seconds)
                print(f"  {name}: {seconds[0]:.3f} s, CPU {seconds[1]:.3f} s", file=sys.stderr, flush=True)
    return timings


def compare(timings: Timings, reference: str) -> dict[str, dict[str, Any]]:
    """Return seconds, medians and the speedup over the reference with its range, by candidate and clock.

    The speedup is the median over the rounds, because other load affects adjacent runs equally. CPU time varies less
    than wall-clock time on a busy machine.
    """
    comparison: dict[str, dict[str, Any]] = {}
    for name, rounds in timings.items():
        comparison[name] = {}
        for index, clock in enumerate(("wall", "cpu")):
            pairs = zip(timings[reference], rounds, strict=True)
            ratios = [reference_seconds[index] / max(seconds[index], 1e-9) for reference_seconds, seconds in pairs]
            comparison[name][clock] = {
                "seconds": [round(seconds[index], 5) for seconds in rounds],
                "median_seconds": statistics.median(seconds[index] for seconds in rounds),
                "speedup": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
    return comparison


def format_comparison(comparison: Mapping[str, dict[str, Any]]) -> str:
    """Return the comparison as a table for a terminal."""
    return "\n".join(
        f"{name:<36}"
        + "".join(
            f"{clock:>7} {values[clock]['median_seconds']:>9.4f} s {values[clock]['speedup']:>6.2f}x "
            f"({values[clock]['range'][0]:.2f} to {values[clock]['range'][1]:.2f})"
            for clock in ("wall", "cpu")
        )
        for name, values in comparison.items()
    )


def write_result(name: str, measurement: Mapping[str, Any], *packages: str, json_path: Path | None = None) -> None:
    """Write a measurement with hardware, versions, threads, load average and date to `results/<name>.json`."""
    path = json_path or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # no private folders
    result = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "threads": torch.get_num_threads(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}},
        **measurement,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """Return the name of the processor, if the system provides it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
