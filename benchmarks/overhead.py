"""Time that maskbench adds to a method: `python benchmarks/overhead.py`.

First, all that `bench run` does for one category (listing, hashing, fitting, predicting, metrics, pictures, storing; no
latency measurement) relative to fit and predict of the same method on the same images. Second, the time until a command
without computation ends. Synthetic images, profile demo, 4 training images.
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
from interleaved import compare, format_comparison, run_interleaved, write_result

from bench import registry
from bench.config.bench_toml import cache_folder, load_config
from bench.config.plan import Plan, make_plan
from bench.data.images import FileImages
from bench.execution.job import build_method
from bench.execution.schedule import make_schedule, run_schedule


def measure_run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time `bench run` and the method alone, alternately."""
    data = cache_folder(load_config()) / "demo"  # generated once, also for `bench run`

    def plan() -> Plan:
        values = {"method": (options.method,), "category": (options.category,), "time": False}
        paths = {"runs": Path(tempfile.mkdtemp(dir=folder)), "cache": Path(tempfile.mkdtemp(dir=folder)), "data": data}
        return make_plan(load_config(), registry.names("methods"), options=values, paths=paths)

    (job,) = make_schedule(plan()).jobs
    samples, preprocessing = job.task.tests[options.category], job.preprocessing

    def run_bench() -> None:
        new_plan = plan()
        records = list(run_schedule(new_plan, make_schedule(new_plan), lambda *_: None))
        assert not any(record.failure for record in records), records[0].failure

    def run_method() -> None:
        _, method = build_method(replace(job, cache=Path(tempfile.mkdtemp(dir=folder))))
        method.fit(FileImages(job.task.train, preprocessing), lambda *_: None)
        with torch.no_grad():
            for images in FileImages(samples, preprocessing).batches(job.compute.batch_size):
                method.predict(images)

    timings = run_interleaved({"fit and predict only": run_method, "bench run": run_bench}, options.rounds)
    comparison = compare(timings, "bench run")
    overhead = {clock: values["speedup"] - 1 for clock, values in comparison["fit and predict only"].items()}
    return {
        "description": f"{options.method}, {options.category}, demo",
        "comparison": comparison,
        "overhead": overhead,
    }


def measure_startup(options: argparse.Namespace) -> dict[str, Any]:
    """Return wall-clock time and CPU time in seconds of `bench --help` and `bench list methods`."""
    seconds: dict[str, Any] = {}
    for arguments in (["--help"], ["list", "methods"]):
        rounds = []
        for _ in range(max(options.rounds, 5)):
            before, wall = os.times(), time.perf_counter()
            subprocess.run([sys.executable, "-m", "bench", *arguments], check=True, capture_output=True)
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            rounds.append({"wall": round(time.perf_counter() - wall, 3), "cpu": round(cpu, 3)})
        seconds[f"bench {' '.join(arguments)}"] = rounds
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", default="aminet")
    parser.add_argument("--category", default="fabric")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    startup = measure_startup(options)
    for command, rounds in startup.items():
        print(command, rounds)
    with tempfile.TemporaryDirectory() as folder:
        measurement = measure_run(options, Path(folder))
    print(format_comparison(measurement["comparison"]))
    print("overhead", measurement["overhead"])
    write_result("overhead", {**measurement, "startup": startup}, "timm", json_path=options.json)


if __name__ == "__main__":
    main()
