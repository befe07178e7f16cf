"""The plan that repeats a record, also of another person: its values are data, and its command is never executed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import registry
from bench.config.bench_toml import Config
from bench.config.options import OPTIONS
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError, check_known
from bench.files import read_regular_file
from bench.record import MAX_BYTES, Record

ORIGIN = "the record"

_DETERMINED = {
    "method", "dataset", "protocol", "k", "category", "seed", "one_at_a_time", "selection", "eval_every",
    "map_precision", "preprocessing", "depth", "page", "allow_large",
    *(option.name for option in OPTIONS.values() if option.affects_metrics),
}  # fmt: skip
"""The options that a record determines."""


def read_record(file: Path) -> Record:
    """Return the record in a file, of any name. Raises BenchError if it is not a complete record with metrics."""
    try:
        record = Record.from_json(read_regular_file(file, MAX_BYTES).decode("utf-8"))
    except (OSError, UnicodeDecodeError, BenchError) as error:
        reason = f"{error.strerror}. Correct the path." if isinstance(error, OSError) else error
        raise BenchError(f"--reproduce needs the JSON file of a record; {file} cannot be read: {reason}") from error
    if record.failure or not record.metrics:
        reason = "failed" if record.failure else "has none"
        raise BenchError(f"--reproduce needs a record with metrics; the run of {file} {reason}. Name another record.")
    return record


def plan_of_record(
    config: Config,
    record: Record,
    *,
    options: Mapping[str, Any],
    paths: Mapping[str, Path | None],
    command: str,
) -> Plan:
    """Return the plan with the settings, preprocessing, options, seed and images of a record.

    Args:
        config: the merged bench.toml; its profiles and campaigns have no effect.
        record: the record to repeat.
        options: options of the command line: those of devices, executors and files; None is ignored.
        paths: data, runs, weights and checkpoint.
        command: the command line, stored in the new record.

    Raises:
        BenchError: an option is determined by the record, or this installation lacks the method, the dataset, a setting
            or an option.
    """
    conflicting = [OPTIONS[name].flag for name, value in options.items() if value is not None and name in _DETERMINED]
    if conflicting:
        raise BenchError(f"--reproduce takes {conflicting[0]} from the record. Remove {', '.join(conflicting)}.")
    run = record.run
    if run.is_released_checkpoint and paths.get("checkpoint") is None:
        raise BenchError("The record evaluates a released checkpoint. Pass that file with --checkpoint PATH.")
    files = registry.names("methods")
    check_known([run.method], files, "a method of this installation; the record needs it")
    is_external = ":" in run.name and run.name.partition(":")[0] == run.method
    alias = config.aliases().get(run.name)
    name = run.name if is_external or (alias and alias.method == run.method) else run.method
    plan = make_plan(
        config,
        files,
        options={key: value for key, value in options.items() if value is not None} | _options(record, name),
        paths=paths,
        command=command,
    )
    (spec,) = plan.method_specs
    settings = {key: (value, ORIGIN) for key, value in run.settings.items()}
    spec = replace(
        spec, settings={}, by_category={}, overrides={}, method_overrides=settings, sweep_keys=tuple(run.sweep_keys)
    )
    determined = dict.fromkeys((*_DETERMINED, "profile"), ORIGIN)
    return replace(
        plan,
        method_specs=(spec,),
        preprocessing=run.preprocessing,
        profile=run.profile,
        profile_note=run.profile_note,
        origin={name: determined.get(name, origin) for name, origin in plan.origin.items()} | {"preprocessing": ORIGIN},
    )


def _options(record: Record, name: str) -> dict[str, Any]:
    """Return the options that the record determines, by name."""
    run = record.run
    recorded = {key: value for group in run.options.values() for key, value in group.items()}
    determined = [option.name for option in OPTIONS.values() if option.affects_metrics]
    check_known(recorded, determined, "an option that affects metrics; the record has it")
    if record.origin.get("calibrate") == "default":  # a run without defective images sets another rate
        del recorded["calibrate"]
    categories = {file.partition("/")[0] for file in record.train_files} if run.protocol == "unified" else set()
    return recorded | {
        "method": [name],
        "dataset": "folder" if run.dataset.startswith("folder-") else run.dataset,
        "protocol": run.protocol,
        **({"k": [run.k]} if run.protocol == "kshot" else {}),
        "category": sorted(categories | {record.category}),
        "seed": [run.seed],
        "selection": record.selection,
        **({"eval_every": record.eval_every} if record.selection == "oracle" else {}),
        "map_precision": record.artifacts.get("map_precision", OPTIONS["map_precision"].default),
        "preprocessing": "shared",
        "depth": 0,
        "page": 0,
        "allow_large": False,
    }
