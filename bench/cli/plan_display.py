"""The output of `bench run --dry-run`: the resolved plan with the origin of every value, as a table or a dict."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.cli.progress_display import format_bytes
from bench.config.bench_toml import Config
from bench.config.options import OPTIONS
from bench.config.plan import Plan
from bench.execution.forecast import Forecast, forecast
from bench.execution.schedule import Schedule, target_device_type
from bench.store import Store


def plan_dict(plan: Plan, schedule: Schedule) -> dict[str, Any]:
    """Return the plan for --json: options with origin, fits, skipped methods, and the estimated cost."""
    estimate = _estimate(plan, schedule)
    return {
        "options": {
            name: {"value": value, "origin": plan.origin.get(name, "default")} for name, value in _values(plan).items()
        },
        "fits": [
            {
                "name": job.run.name,
                "task": job.task.name,
                "k": job.run.k,
                "seed": job.run.seed,
                "n_train": len(job.task.train),
                "n_test": sum(len(tests) for tests in job.task.tests.values()),
                "settings": job.run.settings,
            }
            for job in schedule.jobs
        ],
        "n_existing": len(schedule.existing),
        "skipped": schedule.skipped,
        "seconds": estimate.seconds,
        "n_fits_without_estimate": estimate.n_unknown,
        "disk_bytes": schedule.disk,
        "memory_bytes": schedule.memory,
    }


def print_plan(out: Console, config: Config, plan: Plan, schedule: Schedule) -> None:
    """Print the plan: values with their origin, fits, and estimates of time, disk and memory."""
    table = Table(title="Plan", title_justify="left")
    for heading in ("name", "value", "origin"):
        table.add_column(heading)
    for name, value in _values(plan).items():
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        table.add_row(name, escape(text or "–"), escape(plan.origin.get(name, "default")))
    printed = set[str]()
    for job in {job.run.group_hash: job for job in schedule.jobs}.values():
        for name, value in job.run.settings.items():
            if job.run.name in printed and name not in job.run.sweep_keys:
                continue  # further variants of a sweep: only the settings that differ
            table.add_row(f"{job.run.name}.{name}", escape(str(value)), escape(job.origin[f"settings.{name}"]))
        printed.add(job.run.name)
    out.print(table)
    out.print(f"Configuration: {escape(', '.join(map(str, config.files)))}")
    for job in schedule.jobs:
        n_test = sum(len(tests) for tests in job.task.tests.values())
        n_calibration = sum(len(samples) for samples in job.task.calibration.values())
        calibration = f"{n_calibration} calibration images, " if n_calibration else ""
        counts = f"{len(job.task.train)} training images, {calibration}{n_test} test images"
        out.print(f"Fit: {escape(job.label)}: {counts}")
    out.print(f"Fits: {len(schedule.jobs)}; existing records: {len(schedule.existing)}.")
    estimate = _estimate(plan, schedule)
    out.print(f"Time: {_format_time(estimate, len(schedule.jobs))}.")
    out.print(f"Disk: about {format_bytes(schedule.disk)}.")
    for name, needed in schedule.memory.items():
        earlier = estimate.memory.get(name, 0)
        measured = f", {format_bytes(earlier)} measured in earlier runs" if earlier else ""
        expected = f"about {format_bytes(needed)}" if needed else "no estimate"
        out.print(f"Memory of {escape(name)}: {expected}{measured}.")


def _values(plan: Plan) -> dict[str, Any]:
    """Return all options, the profile and the paths of the plan by name."""
    values = {name: getattr(getattr(plan, option.group), name) for name, option in OPTIONS.items()}
    values |= {"profile": plan.profile, "data": plan.data, "runs": plan.runs, "cache": plan.cache}
    return values | {"weights": plan.weights or ""} | ({"checkpoint": plan.checkpoint} if plan.checkpoint else {})


def _estimate(plan: Plan, schedule: Schedule) -> Forecast:
    return forecast(schedule.jobs, Store(plan.runs).records(), gpu=target_device_type(plan) == "cuda")


def _format_time(estimate: Forecast, n_jobs: int) -> str:
    if estimate.n_unknown == n_jobs:
        return "no estimate, because the store has no similar run on such a device" if n_jobs else "none"
    size, unit = next(
        ((size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if estimate.seconds >= size), (1, "seconds")
    )
    rest = f"; no estimate for {estimate.n_unknown} of the fits" if estimate.n_unknown else ""
    return f"about {estimate.seconds / size:.1f} {unit} in sequence, from similar runs in the store{rest}"
