"""What `bench run` and `bench time` print: a header, a progress bar, a line per record, tables and a summary."""

import shlex
import time
from collections.abc import Iterable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bench.cli.console import printable
from bench.config.plan import Plan
from bench.evaluation import group_names, summary
from bench.evaluation.reproduction import without_options
from bench.evaluation.summary import Group
from bench.execution.cost_estimate import RemainingTime
from bench.execution.schedule import Schedule, run_schedule, target_device_type
from bench.record import Record
from bench.store import Store

FIT_SHARE = 0.8
"""Fraction of the progress of a job that belongs to the fit; prediction, timing and metrics share the rest."""

REFRESH_SECONDS = 0.1
"""Shortest time between two changes of the progress bar in one phase of a job."""

_METHOD_OPTIONS = {
    "--method": True, "-m": True, "--set": True, "--sweep": True, "--checkpoint": True, "--one-at-a-time": False,
    "--force": False,
}  # fmt: skip
"""Options that belong to one method, or that a second command must not repeat, and whether they have a value."""


def print_header(out: Console, plan: Plan, schedule: Schedule) -> None:
    """Print what will run, and the caveats of its numbers."""
    tasks = plan.tasks
    titles = ", ".join(spec.title for spec in plan.method_specs if spec.name not in schedule.skipped)
    k = f" k = {', '.join(map(str, tasks.k))}" if tasks.protocol == "kshot" else ""
    out.print(f"[bold]{escape(titles)}[/bold] on {tasks.dataset}, {tasks.protocol}{k}, profile {plan.profile}")
    if plan.profile_note:
        out.print(f"[yellow]{escape(plan.profile_note)}[/yellow]")
    runs = [*(job.run for job in schedule.jobs), *(record.run for record in schedule.existing)]
    if any(run.synthetic for run in runs):
        out.print("[yellow]synthetic data: the results do not apply to real parts[/yellow]")
    if schedule.existing:
        out.print(f"{summary.count_label(schedule.existing)} exist in the store; --force computes them again.")
    if plan.execution.checkpoint_minutes and not schedule.force:
        store = Store(plan.runs)
        paths = (store.checkpoint_path(job.run, job.data_hash, job.task.name, 0) for job in schedule.jobs)
        n_interrupted = sum(path.is_file() for path in paths)
        if n_interrupted:
            out.print(f"Fits with a checkpoint, from which they continue: {n_interrupted}")
    memory = [f"{name} about {format_bytes(needed)}" for name, needed in schedule.memory.items() if needed]
    if memory:
        out.print(f"Estimated peak memory of a fit: {escape(', '.join(memory))}")


class _JobProgress(Progress):
    """A progress bar below a line about the job; both fit into 60 columns."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the line about the job that reported last, cut at the width, and the bar."""
        for task in self.tasks:
            yield Text(task.description, no_wrap=True, overflow="ellipsis")
        yield self.make_tasks_table(self.tasks)


def run_with_progress(out: Console, plan: Plan, schedule: Schedule) -> Iterator[Record]:
    """Run the jobs below a progress bar with the time left; print and yield each record."""
    if not schedule.jobs:
        return
    gpu = target_device_type(plan) == "cuda"
    # A file or a pipe shows no bar, so no time is estimated.
    jobs, records = (schedule.jobs, Store(plan.runs).records()) if out.is_terminal else ((), ())
    remaining = RemainingTime(jobs, records, gpu=gpu)
    columns = (TextColumn("{task.percentage:>3.0f}%"), BarColumn(bar_width=max(6, min(40, out.width - 54))))
    texts = (TextColumn("{task.fields[fits]},"), TimeElapsedColumn(), TextColumn("elapsed{task.fields[left]}"))
    with _JobProgress(*columns, *texts, console=out, transient=True) as bar:
        n_jobs = len(schedule.jobs)
        task = bar.add_task("starting", total=n_jobs, fits=f"0/{n_jobs} fits", left="")
        shares: dict[str, float] = {}  # completed fraction of each running job; there may be several
        n_finished = 0
        shown, shown_at = ("", ""), 0.0  # label and phase, and the time

        def progress(label: str, phase: str, done: int, total: int, loss: float | None) -> None:
            nonlocal n_finished, shown, shown_at
            if not out.is_terminal:
                return
            remaining.update(label, phase, done, total)
            shares[label] = FIT_SHARE * done / max(total, 1) if phase == "fit" else FIT_SHARE
            if phase == "done":
                n_finished += 1
                del shares[label]
            now = time.monotonic()
            if (label, phase) == shown and now < shown_at + REFRESH_SECONDS:  # a method may report each step
                return
            shown, shown_at = (label, phase), now
            loss_text = f", loss {loss:.4g}" if loss is not None else ""
            count = f" {done}/{total}" if total > 1 else ""
            bar.update(
                task,
                completed=n_finished + sum(shares.values()),
                description=printable(f"{label}: {phase}{count}{loss_text}"),
                fits=f"{n_finished}/{n_jobs} fits",
                left=time_left(*remaining.seconds()),
            )

        for record in run_schedule(plan, schedule, progress):
            bar.console.print(_record_line(record), soft_wrap=not out.is_terminal)  # one line of a file per record
            yield record


def time_left(seconds: float, n_unknown: int) -> str:
    """Return the estimated time as text, ", about 4 min left"; a lower bound if some fits have no estimate."""
    if not seconds:
        return "" if n_unknown else ", almost done"
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    text = f"{hours:.1f} h" if seconds >= 5400 else f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
    return f", {'over' if n_unknown else 'about'} {text} left"


def print_results(out: Console, records: Iterable[Record]) -> None:
    """Print a table per method and settings, with a row per category and the mean, ± std over several seeds.

    For a sweep, print one table per method with a row of means per variant.
    """
    sweeps: dict[str, list[Group]] = {}
    for group in (group for group in summary.groups(records) if group.records):
        if group.first.run.sweep_keys:
            sweeps.setdefault(group_names.heading(group), []).append(group)
        else:
            _print_tables(out, "category", [(name, group, name) for name in (*group.categories, summary.MEAN)])
    for variants in sweeps.values():
        _print_tables(out, "settings", [(group.first.run.sweep_label, group, summary.MEAN) for group in variants])


def _print_tables(out: Console, first_column: str, rows: list[tuple[str, Group, str]]) -> None:
    """Print the tables of one method, with the heading and the notes of the first group.

    With several seeds the cells are wider, so image and pixel metrics are in two tables.

    Args:
        out: console to print to.
        first_column: heading of the first column, "category" or "settings".
        rows: (label, group, category) of each row.
    """
    group = rows[0][1]
    is_sweep = first_column == "settings"
    notes = [note for note in summary.table_notes(group) if not (is_sweep and note.startswith(summary.SWEEP_NOTE))]
    unit = "in percent, means over categories" if is_sweep else "in percent"
    column_groups = [summary.METRICS]
    seeds = sorted({seed for _, each, _ in rows for _, seed in each.records})
    seed_text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    if len(seeds) > 1:
        image = {name: text for name, text in summary.METRICS.items() if name.startswith("image")}
        column_groups = [image, {name: text for name, text in summary.METRICS.items() if name not in image}]
    column_groups += [loco] if (loco := summary.loco_metrics(group)) else []
    has_threshold_metrics = any(
        name in record.metrics for record in group.records.values() for name in summary.THRESHOLD_METRICS
    )
    column_groups += [summary.THRESHOLD_METRICS] if has_threshold_metrics else []
    for number, metrics in enumerate(column_groups):
        columns = metrics if number else metrics | {summary.LATENCY: summary.LATENCY}
        title = (
            "at the threshold" if metrics is summary.THRESHOLD_METRICS else "" if number else group_names.heading(group)
        )
        out.print(_build_table(title, first_column, rows, columns))
    out.print(f"[dim italic]{escape('; '.join([unit, seed_text, *notes, summary.latency_note(group)]))}[/]")


def _build_table(title: str, first_column: str, rows: list[tuple[str, Group, str]], columns: dict[str, str]) -> Table:
    table = Table(
        title=escape(title) or None,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(first_column, vertical="bottom")
    for heading in columns.values():
        wrapped = heading.replace(" ", "\n").replace("@", "\n@")
        table.add_column(wrapped, justify="right", no_wrap=True, vertical="bottom")
    for label, group, category in rows:
        values = {metric: group.mean_std(category, metric) for metric in columns}
        cells = [summary.format_percent(value) for metric, value in values.items() if metric != summary.LATENCY]
        if summary.LATENCY in columns:
            cells.append(summary.format_latency(values[summary.LATENCY]))
        table.add_row(escape(label), *cells, style="bold" if label == summary.MEAN else "")
    return table


def print_summary(out: Console, plan: Plan, schedule: Schedule, records: list[Record]) -> bool:
    """Print where the records are and a command to continue with. Return whether nothing failed or was skipped."""
    failed = [record for record in records if record.failure]
    out.print(f"Records: {len(records) - len(failed)}, in {escape(str(plan.runs))}")
    if failed or schedule.skipped:
        skipped = f" Skipped: {', '.join(schedule.skipped)}." if schedule.skipped else ""
        out.print(f"[red]{len(failed)} failed.{escape(skipped)}[/red] The same command runs these again;")
        out.print("with [bold]--retry-failed[/bold] it runs only what failed.")
        return False
    names = {spec.name for spec in plan.method_specs}
    other = next((name for name in ("patchcore", "meanmap", "aminet") if name not in names), None)
    comparison = f"[bold]{escape(_with_method(plan.command, other))}[/bold] to compare, then " if other else ""
    runs = f" --runs {shlex.quote(str(plan.runs))}" if plan.origin["runs"] == "--runs" else ""
    out.print(f"Next: {comparison}[bold]bench report{escape(runs)}[/bold]", soft_wrap=True)  # commands stay whole
    return True


def print_failures(err: Console, records: Iterable[Record]) -> None:
    """Print a line per failed record."""
    for record in records:
        if record.failure:
            err.print(_record_line(record), soft_wrap=not err.is_terminal)


def format_bytes(count: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _with_method(command: str, method: str) -> str:
    """Return the command for another method on the same data; settings of the first method are removed."""
    return shlex.join([*without_options(shlex.split(command), _METHOD_OPTIONS), "--method", method])


def _record_line(record: Record) -> str:
    label = record.run.label(record.category)
    if record.failure:
        return f"[red]{escape(label)} failed:[/red] {escape(record.failure)}"
    metrics = [
        f"{summary.HEADINGS[name]} {100 * record.metrics[name]:.1f}"
        for name in ("image_auroc", "pixel_auroc", "aupro_30", *summary.LOCO_METRICS)
        if name in record.metrics
    ]
    scores = record.data_report.get("good_scores", {})
    if "image_fpr" in record.metrics and "image_auroc" not in record.metrics:
        metrics.append(f"false positive rate {100 * record.metrics['image_fpr']:.1f}")
    if "image_auroc" not in record.metrics and scores.get("images"):
        metrics.append(f"scores of {scores['images']} good images {scores['min']:.4g} to {scores['max']:.4g}")
    if "image_auroc" not in record.metrics and record.threshold is not None:
        metrics.append(f"threshold {record.threshold:.4g}")
    fit = f"fit {record.seconds['fit']:.1f} s" if "fit" in record.seconds else "released checkpoint"
    if record.resumed_after:
        fit += f", continued after {record.resumed_after[-1]:.1f} s"
    return f"{escape(group_names.title_with_selection(label, record.selection))}: {', '.join(metrics)}; {fit}"
