"""`bench run --reproduce RECORD`: repeat a record, or all of a folder, and print whether the numbers agree."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bench.cli.console import out, print_json, status
from bench.errors import BenchError
from bench.files import files_below

if TYPE_CHECKING:
    from bench.config.bench_toml import Config
    from bench.evaluation.reproduction import Reproduction
    from bench.record import Record

_log = logging.getLogger(__name__)


def reproduce(
    config: "Config",
    path: Path,
    *,
    options: dict[str, Any],
    paths: dict[str, Path | None],
    command: str,
    force: bool,
    as_json: bool,
) -> bool:
    """Repeat the record in a file, or all in a folder, print the comparisons, and return whether all agree.

    Without a folder of records in `paths`, the new records are written to a temporary one and removed.
    """
    runs = paths["runs"]
    if runs and runs.resolve() in (path / "any").resolve().parents:
        raise BenchError(f"--runs must be another folder than that of {path}. Pass another, or leave it out.")
    records = _read_records(path)
    results: dict[Path, Reproduction] = {}
    errors: list[str] = []
    with _runs_folder(runs) as folder:
        for file, record in records.items():
            try:
                results[file] = _repeat(
                    config, record, options=options, paths=paths | {"runs": folder}, command=command, force=force
                )
            except BenchError as error:  # the other records may still be repeated
                errors.append(f"{file}: {error}" if len(records) > 1 else str(error))
                continue
            if not as_json:
                if len(records) > 1:
                    out.print(f"[bold]{escape(str(file))}[/bold]", soft_wrap=True)
                _print_result(results[file])
    n_agreeing = sum(result.agrees for result in results.values())
    if as_json and results:
        print_json([{"record": str(file)} | _to_dict(result) for file, result in results.items()])
    elif len(records) > 1:
        out.print(f"{n_agreeing} of {len(records)} records are reproduced.")
    if errors:
        raise BenchError("\n".join(errors))
    return n_agreeing == len(records)


def _read_records(path: Path) -> "dict[Path, Record]":
    """Return the record of a file, or all with metrics of a folder, by file; those without are skipped with a warning.

    Raises BenchError if there is none.
    """
    from bench.execution.record_plan import read_record

    if not path.is_dir():
        return {path: read_record(path)}
    records = {}
    for file in files_below(path, ".json"):
        try:
            records[file] = read_record(file)
        except BenchError as error:
            _log.warning("%s", error)
    if not records:
        raise BenchError(
            f"--reproduce needs a record or a folder of records; {path} has none with metrics. Correct the path."
        )
    return records


def _repeat(
    config: "Config",
    record: "Record",
    *,
    options: dict[str, Any],
    paths: dict[str, Path | None],
    command: str,
    force: bool,
) -> "Reproduction":
    """Repeat one record and return the comparison."""
    from bench.cli import progress_display
    from bench.evaluation.reproduction import compare_repetition
    from bench.execution.record_plan import plan_of_record
    from bench.execution.schedule import make_schedule

    plan = plan_of_record(config, record, options=options, paths=paths, command=command)
    schedule = make_schedule(plan, force=force)
    label = f"{record.run.label(record.category)}, {record.selection} epoch"
    status.print(f"Repeating [bold]{escape(label)}[/bold] of {escape(record.run.dataset)}, {record.run.protocol}")
    records = [*schedule.existing, *progress_display.run_with_progress(status, plan, schedule)]
    repeated = next(
        (each for each in records if (each.category, each.selection) == (record.category, record.selection)), None
    )
    if repeated is None or repeated.failure:
        reason = repeated.failure if repeated else next(iter(schedule.skipped.values()), "it has no such category")
        raise BenchError(f"The run could not be repeated: {reason}")
    return compare_repetition(record, repeated)


@contextmanager
def _runs_folder(runs: Path | None) -> Iterator[Path]:
    """Yield the folder of records, or a temporary one that is removed at the end."""
    if runs is not None:
        yield runs
        return
    with tempfile.TemporaryDirectory(prefix="maskbench-") as folder:
        yield Path(folder)


def _print_result(result: "Reproduction") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("metric", "record", "repeated", "difference", "tolerance", "agrees"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for check in result.metrics:
        values = ["–" if value is None else f"{100 * value:.2f}" for value in (check.recorded, check.repeated)]
        difference = "–" if check.difference is None else f"{check.difference:+.2f}"
        verdict = "[green]yes[/green]" if check.agrees else "[red]no[/red]"
        table.add_row(escape(check.name), *values, difference, f"±{check.tolerance:g}", verdict)
    out.print(table)
    out.print("in percent, differences in percentage points")
    for title, differences in (("Input", result.inputs), ("Environment", result.environment)):
        for each in differences:
            text = f"{title} differs in {each.name}: record {_text(each.recorded)}, here {_text(each.other)}"
            out.print(escape(text), soft_wrap=True)
    if result.inputs:
        out.print("[red]This is not a repetition: the inputs differ, so equal metrics would be a coincidence.[/red]")
    elif result.agrees:
        out.print("[green]The record is reproduced: all metrics agree.[/green]")
    else:
        out.print("[red]The record is not reproduced: not all metrics agree.[/red]")


def _text(value: Any) -> str:
    return "none" if value is None else f"{value!s:.60}"


def _to_dict(result: "Reproduction") -> dict[str, Any]:
    return {
        "agrees": result.agrees,
        "metrics": [
            {
                "name": check.name,
                "recorded": check.recorded,
                "repeated": check.repeated,
                "difference": check.difference,
                "tolerance": check.tolerance,
                "agrees": check.agrees,
            }
            for check in result.metrics
        ],
        **{
            name: [{"name": each.name, "recorded": each.recorded, "repeated": each.other} for each in differences]
            for name, differences in (("inputs", result.inputs), ("environment", result.environment))
        },
    }
