"""What a person sees of a run: the plan, a bar that tells the time left, a line a record, and tables at the end."""

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.config.bench_toml import Config
from bench.config.options import OPTIONS
from bench.config.plan import Plan
from bench.evaluation import summary
from bench.evaluation.summary import Group
from bench.execution import schedule
from bench.execution.forecast import Forecast, forecast
from bench.execution.schedule import Schedule
from bench.record import Record
from bench.store import Store

FIT_SHARE = 0.8
"""How much of a job's bar the fit takes; predict, timing and metrics share the rest."""


def print_header(out: Console, plan: Plan, survey: Schedule) -> None:
    """What will run, and what a reader must know of it."""
    options = plan.tasks
    memory = [f"{name} about {_gigabytes(needed)}" for name, needed in survey.memory.items() if needed]
    titles = ", ".join(choice.title for choice in plan.method_specs if choice.name not in survey.skipped)
    draw = f" k = {', '.join(map(str, options.k))}" if options.protocol == "kshot" else ""
    out.print(f"[bold]{escape(titles)}[/bold] on {options.dataset}, {options.protocol}{draw}, profile {plan.profile}")
    if plan.profile_note:
        out.print(f"[yellow]{escape(plan.profile_note)}[/yellow]")
    if any(run.synthetic for run in (*(job.run for job in survey.jobs), *(record.run for record in survey.existing))):
        out.print("[yellow]synthetic data: the images are drawn, and the numbers say nothing of real parts[/yellow]")
    if survey.existing:
        stand = "stands in the store and is" if len(survey.existing) == 1 else "stand in the store and are"
        out.print(f"{summary.count_label(survey.existing)} {stand} not made again (--force would).")
    if memory:
        out.print(f"Peak memory of a fit, estimated: {escape(', '.join(memory))}")


def run_with_progress(out: Console, plan: Plan, survey: Schedule) -> Iterator[Record]:
    """Does the jobs below a bar that tells the time left; prints a line a record and yields it."""
    if not survey.jobs:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    times = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
    # The estimate looks back far enough for slow fits, whose epochs may take minutes.
    with Progress(*columns, *times, console=out, transient=True, speed_estimate_period=3600) as bar:
        whole = bar.add_task("starting", total=len(survey.jobs))
        shares: dict[str, float] = {}  # how much is done of each job at work: there may be many at once
        finished = 0

        def watch(what: str, phase: str, done: int, total: int, loss: float | None) -> None:
            nonlocal finished
            shares[what] = FIT_SHARE * done / max(total, 1) if phase == "fit" else FIT_SHARE
            if phase == "done":
                finished += 1
                del shares[what]
            told = f", loss {loss:.4g}" if loss is not None else ""
            text = f"{what}: {phase} {done}/{total}{told}"
            bar.update(whole, completed=finished + sum(shares.values()), description=escape(text))

        for record in schedule.run_schedule(plan, survey, watch):
            bar.console.print(_line(record))
            yield record


def print_results(out: Console, records: Iterable[Record]) -> None:
    """A table a method and setting: a row a category and the mean; mean ± std where there are several seeds.

    Of a sweep a table a method, with a row of means a variant.
    """
    swept: dict[str, list[Group]] = {}
    for group in (group for group in summary.groups(records) if group.records):
        if group.first.run.sweep_keys:
            swept.setdefault(summary.heading(group), []).append(group)
        else:
            _tables(out, "category", [(category, group, category) for category in (*group.categories, summary.MEAN)])
    for variants in swept.values():
        _tables(out, "over", [(group.first.run.sweep_label, group, summary.MEAN) for group in variants])


def _tables(out: Console, first: str, rows: list[tuple[str, Group, str]]) -> None:
    """A row for each (name, group, category) below the heading and above the marks of the first group.

    What would be too wide for a terminal is told in several tables: spreads widen the cells.
    """
    group = rows[0][1]
    marks = [mark for mark in summary.table_notes(group) if not (first == "over" and mark.startswith("over: "))]
    percent = "percent" if first == "category" else "percent, means over categories"
    parts = [summary.METRICS]
    seeds = sorted({seed for _, each, _ in rows for _, seed in each.records})
    told = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    if len(seeds) > 1:
        image = {name: shown for name, shown in summary.METRICS.items() if name.startswith("image")}
        parts = [image, {name: shown for name, shown in summary.METRICS.items() if name not in image}]
    parts += [summary.CALIBRATED] if group.first.run.calibrate else []
    for number, metrics in enumerate(parts):
        shown = metrics if number else metrics | {summary.LATENCY: summary.LATENCY}
        title = "" if number else summary.heading(group)
        out.print(_table("at the threshold" if metrics is summary.CALIBRATED else title, first, rows, shown))
    out.print(f"[dim italic]{escape('; '.join([percent, told, *marks, summary.latency_device(group)]))}[/]")


def _table(title: str, first: str, rows: list[tuple[str, Group, str]], shown: dict[str, str]) -> Table:
    table = Table(
        title=escape(title) or None,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(first, vertical="bottom")
    for heading in shown.values():
        folded = heading.replace(" ", "\n").replace("@", "\n@")
        table.add_column(folded, justify="right", no_wrap=True, vertical="bottom")
    for name, group, category in rows:
        cells = [summary.percent(group.cell(category, metric)) for metric in shown if metric != summary.LATENCY]
        cells += [summary.milliseconds(group.cell(category, summary.LATENCY))] if summary.LATENCY in shown else []
        table.add_row(escape(name), *cells, style="bold" if name == summary.MEAN else "")
    return table


def print_summary(out: Console, plan: Plan, survey: Schedule, records: list[Record]) -> bool:
    """Where the records lie and what to do next. Whether all went well."""
    failed = [record for record in records if record.failure]
    out.print(f"Records: {len(records) - len(failed)} of this print_plan lie below {escape(str(plan.runs))}")
    if failed or survey.skipped:
        left_out = f" Left out: {', '.join(survey.skipped)}." if survey.skipped else ""
        out.print(f"[red]{len(failed)} failed.{escape(left_out)}[/red] The same command tries these again.")
        if failed:
            out.print("With [bold]--retry-failed[/bold] it does nothing else.")
        return False
    names = {choice.name for choice in plan.method_specs}
    other = next((name for name in ("patchcore", "meanmap", "aminet") if name not in names), None)
    first = f"[bold]{escape(_with_method(plan.command, other))}[/bold] to compare, then " if other else ""
    runs = f" --runs {shlex.quote(str(plan.runs))}" if plan.origin["runs"] == "--runs" else ""
    out.print(f"Next: {first}[bold]bench report{escape(runs)}[/bold]")
    return True


def print_failures(err: Console, records: Iterable[Record]) -> None:
    """A line for each run that failed, for those who asked to hear of nothing else."""
    for record in records:
        if record.failure:
            err.print(_line(record))


def plan_dict(asked: Plan, survey: Schedule) -> dict[str, Any]:
    """The resolved plan for a script."""
    values = {name: asked.option(name) for name in OPTIONS}
    values |= {"profile": asked.profile, "data": asked.data, "runs": asked.runs, "cache": asked.cache}
    expected = _expected(asked, survey)
    return {
        "options": {key: {"value": value, "from": asked.origin.get(key, "default")} for key, value in values.items()},
        "fits": [
            {
                "name": job.run.name,
                "task": job.task.name,
                "k": job.run.k,
                "seed": job.run.seed,
                "train": len(job.task.train),
                "test": sum(len(tests) for tests in job.task.tests.values()),
                "settings": job.run.settings,
            }
            for job in survey.jobs
        ],
        "found": len(survey.existing),
        "refused": survey.skipped,
        "seconds": expected.seconds,
        "fits_of_unknown_seconds": expected.n_unknown,
        "disk_bytes": survey.disk,
        "memory_bytes": survey.memory,
    }


def print_plan(out: Console, known: Config, asked: Plan, survey: Schedule) -> None:
    """The resolved plan, where each value came from, the tasks, and estimates of disk and memory."""
    table = Table(title="The plan", title_justify="left")
    for heading in ("what", "value", "from"):
        table.add_column(heading)
    values = {name: asked.option(name) for name in OPTIONS}
    values |= {"profile": asked.profile, "data": asked.data, "runs": asked.runs, "cache": asked.cache}
    values |= {"weights": asked.weights or "–"} | ({"checkpoint": asked.checkpoint} if asked.checkpoint else {})
    for name, value in values.items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        table.add_row(name, escape(shown or "–"), escape(asked.origin.get(name, "default")))
    told = set[str]()
    for job in {job.run.group_hash: job for job in survey.jobs}.values():
        for name, value in job.run.settings.items():
            if job.run.name in told and name not in job.run.sweep_keys:
                continue  # of a sweep's further variants, what differs
            table.add_row(f"{job.run.name}.{name}", escape(str(value)), escape(job.origin[f"settings.{name}"]))
        told.add(job.run.name)
    out.print(table)
    out.print(f"bench.toml: {escape(', '.join(map(str, known.files)))}")
    for job in survey.jobs:
        tested = sum(len(tests) for tests in job.task.tests.values())
        held = sum(len(samples) for samples in job.task.calibration.values())
        counted = f"{len(job.task.train)} training images, {f'{held} held out, ' if held else ''}{tested} test images"
        out.print(f"to do: {escape(job.label)}: {counted}")
    out.print(f"{len(survey.jobs)} fits to do; {len(survey.existing)} records stand already.")
    expected = _expected(asked, survey)
    out.print(f"Time: {_duration(expected, len(survey.jobs))}.")
    out.print(f"Disk: about {survey.disk / 1e6:.0f} MB.")
    for name, needed in survey.memory.items():
        before = expected.memory.get(name, 0)
        measured = f", {_gigabytes(before)} measured before" if before else ""
        out.print(f"Memory of {escape(name)}: {f'about {_gigabytes(needed)}' if needed else 'no estimate'}{measured}.")


def _expected(asked: Plan, survey: Schedule) -> Forecast:
    return forecast(survey.jobs, Store(asked.runs).records(), gpu=schedule.target_device_type(asked) == "cuda")


def _with_method(command: str, method: str) -> str:
    """The same command for another method, on the same data; settings belong to the method and go with it."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        if word in {"--method", "--set", "--over", "--checkpoint"}:
            next(words, None)
        elif not word.startswith(("--method=", "--set=", "--over=", "--checkpoint=", "--one-at-a-time", "--force")):
            kept.append(word)
    return shlex.join([*kept, "--method", method])


def _duration(told: Forecast, jobs: int) -> str:
    """Hours, minutes or seconds of all fits that like ones in the store tell of, and how many they don't."""
    if told.n_unknown == jobs:
        return "no estimate, for the store holds no run with these settings on such a device" if jobs else "none"
    size, unit = next(((s, u) for s, u in ((3600, "hours"), (60, "minutes")) if told.seconds >= s), (1, "seconds"))
    rest = f", and {told.n_unknown} fits that no run in the store tells of" if told.n_unknown else ""
    return f"about {told.seconds / size:.1f} {unit} of work, by the runs in the store{rest}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _line(record: Record) -> str:
    over = f", {record.run.sweep_label}" if record.run.sweep_label else ""
    place = f"{record.run.title} {record.category}, seed {record.run.seed}{over}"
    if record.failure:
        return f"[red]{escape(place)} failed:[/red] {escape(record.failure)}"
    told = [
        f"{summary.METRICS[name]} {100 * record.metrics[name]:.1f}"
        for name in ("image_auroc", "pixel_auroc", "aupro_30")
        if name in record.metrics
    ]
    oracle = " (oracle)" if record.selection == "oracle" else ""
    fitted = f"; fitted in {record.seconds['fit']:.1f} s" if "fit" in record.seconds else "; released checkpoint"
    return f"{escape(place)}{oracle}: {', '.join(told)}{fitted}"
