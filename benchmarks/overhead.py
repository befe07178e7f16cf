"""What the bench costs beside the methods: `python benchmarks/overhead.py`.

`run`: all that `bench run` does for one category (listing, hashing, fitting, predicting, judging, pictures, storing; no
timing of latency) beside the same method's fit and predict called by hand on the same images. `start`: how long the
command line takes to answer. Drawn images, profile demo, 4 training images.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from interleaved import compared, interleave, told, write

from bench import registry
from bench.config.bench_toml import cache_folder, load_config
from bench.config.plan import Plan, make_plan
from bench.data.images import FileImages
from bench.execution import schedule
from bench.execution.job import build_method
from bench.method import Preprocessing


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The bench and the bare method in turn."""

    def plan() -> Plan:
        said = {"method": (options.method,), "category": (options.category,), "time": False}
        paths = {"runs": Path(tempfile.mkdtemp(dir=folder)), "cache": Path(tempfile.mkdtemp(dir=folder)), "data": data}
        return make_plan(load_config(), registry.names("methods"), options=said, paths=paths)

    data = cache_folder(load_config()) / "demo"  # drawn once, also for the bench itself
    known = schedule.make_schedule(plan())
    (job,) = known.jobs
    samples, preprocessing = job.task.tests[options.category], Preprocessing(**job.run.preprocessing)

    def benched() -> None:
        asked = plan()
        records = list(schedule.run_schedule(asked, schedule.make_schedule(asked), lambda *_: None))
        assert not any(record.failure for record in records), records[0].failure

    def bare() -> None:
        method = build_method(replace(job, device="cpu", cache=Path(tempfile.mkdtemp(dir=folder))))[2]()
        method.fit(FileImages(job.task.train, preprocessing), lambda *_: None)
        with torch.no_grad():
            for images in FileImages(samples, preprocessing).batches(job.batch):
                method.predict(images)

    turns = interleave({"fit and predict alone": bare, "bench run": benched}, options.rounds)
    comparison = compared(turns, "bench run")
    share = {clock: one["times_as_fast"] - 1 for clock, one in comparison["fit and predict alone"].items()}
    return {"what": f"{options.method}, {options.category}, demo", "comparison": comparison, "overhead": share}


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds by the clock and of the processor, for a command that answers at once and one that lists."""
    found: dict[str, Any] = {}
    for arguments in (["--help"], ["list", "methods"]):
        taken = []
        for _ in range(max(options.rounds, 5)):
            before, wall = os.times(), time.perf_counter()
            subprocess.run([sys.executable, "-m", "bench", *arguments], check=True, capture_output=True)
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            taken.append({"clock": round(time.perf_counter() - wall, 3), "cpu": round(cpu, 3)})
        found[f"bench {' '.join(arguments)}"] = taken
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", default="aminet")
    parser.add_argument("--category", default="fabric")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn (default: 3)")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    started = start(options)
    for command, taken in started.items():
        print(command, taken)
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    print(told(found["comparison"]))
    print("overhead", found["overhead"])
    write("overhead", {**found, "start": started}, "timm", json_path=options.json)


if __name__ == "__main__":
    main()
