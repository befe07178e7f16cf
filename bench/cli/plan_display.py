"""The output of `bench run --dry-run`: the resolved plan with the origin of every value, as a table or a dict."""

from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.cli.console import SafeConsole, print_unwrapped
from bench.cli.progress_display import format_bytes
from bench.config.bench_toml import Config
from bench.config.options import OPTIONS
from bench.config.plan import Plan
from bench.errors import BenchError
from bench.execution.cost_estimate import CostEstimate, estimate_cost
from bench.execution.schedule import Schedule, target_device_type
from bench.store import Store


def plan_dict(plan: Plan, schedule: Schedule | None, problem: str) -> dict[str, Any]:
    """Return the plan for --json: options and settings with origin, fits, skipped methods, and the estimated cost.

    If `schedule` is None, for example because the data are missing: options, settings and `problem`.
    """
    settings, errors = _settings(plan)
    values = {
        "options": {
            name: {"value": value, "origin": plan.origin.get(name, "default")} for name, value in _values(plan).items()
        },
        "settings": [{"name": name, "value": value, "origin": origin} for name, value, origin in settings],
    }
    if schedule is None:
        return values | {"problem": problem, "skipped": errors}
    estimate = _estimate(plan, schedule)
    return values | {
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


def print_plan(out: SafeConsole, config: Config, plan: Plan, schedule: Schedule | None, problem: str) -> None:
    """Print the plan: values with their origin, fits, and estimates of time, disk and memory.

    If `schedule` is None, for example because the data are missing, print the values and `problem`.
    """
    table = Table(title="Plan", title_justify="left")
    for heading in ("name", "value", "origin"):
        table.add_column(heading)
    for name, value in _values(plan).items():
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        table.add_row(name, escape(text or "–"), escape(plan.origin.get(name, "default")))
    settings, errors = _settings(plan)
    for row in settings:
        table.add_row(*map(escape, row))
    print_unwrapped(out, table)
    out.print(f"Configuration: {escape(', '.join(map(str, config.files)))}")
    if schedule is None:
        for name, error in errors.items():
            out.print(f"[yellow]{escape(name)}: {escape(error)}[/yellow]")
        out.print(f"[yellow]This plan cannot run: {escape(problem)}[/yellow]")
        return
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
        measured_memory = estimate.memory.get(name, 0)
        measured = f", {format_bytes(measured_memory)} measured in earlier runs" if measured_memory else ""
        estimated = f"about {format_bytes(needed)}" if needed else "no estimate"
        out.print(f"Memory of {escape(name)}: {estimated}{measured}.")


def _settings(plan: Plan) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Return name, value and origin of each method's settings, and the errors of methods without settings, by name.

    A sweep has the settings of its first variant, and of the others the swept settings.
    """
    rows: list[tuple[str, str, str]] = []
    errors: dict[str, str] = {}
    for spec in plan.method_specs:
        try:
            settings_class = registry.load("methods", spec.method).Settings
            with registry.plugin_call("methods", spec.method):
                variants = spec.variants(settings_class, one_at_a_time=plan.tasks.one_at_a_time)
                resolved = [(variant, *variant.resolve(settings_class, "")) for variant in variants]
        except BenchError as error:
            errors[spec.name] = str(error)
            continue
        for index, (variant, settings, origin) in enumerate(resolved):
            rows += [
                (f"{spec.name}.{name}", str(value), origin[name])
                for name, value in asdict(settings).items()
                if index == 0 or name in variant.sweep_keys
            ]
    return rows, errors


def _values(plan: Plan) -> dict[str, Any]:
    """Return all options, the profile and the paths of the plan by name."""
    values = {name: getattr(getattr(plan, option.group), name) for name, option in OPTIONS.items()}
    values |= {"profile": plan.profile, "data": plan.data, "runs": plan.runs, "cache": plan.cache}
    return values | {"weights": plan.weights or ""} | ({"checkpoint": plan.checkpoint} if plan.checkpoint else {})


def _estimate(plan: Plan, schedule: Schedule) -> CostEstimate:
    return estimate_cost(schedule.jobs, Store(plan.runs).records(), gpu=target_device_type(plan) == "cuda")


def _format_time(estimate: CostEstimate, n_jobs: int) -> str:
    if estimate.n_unknown == n_jobs:
        return "no estimate, because the store has no similar run on such a device" if n_jobs else "none"
    size, unit = next(
        ((size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if estimate.seconds >= size), (1, "seconds")
    )
    rest = f"; no estimate for {estimate.n_unknown} of the fits" if estimate.n_unknown else ""
    return f"about {estimate.seconds / size:.1f} {unit} in sequence, from similar runs in the store{rest}"
