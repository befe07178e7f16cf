"""Resolve `bench.toml` and the options of one command to a frozen plan that contains the origin of every value.

Options of the command line override those of the campaign, which override those of the dataset, which override those of
the profile. Unknown keys are errors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.config.bench_toml import Config, cache_folder, expand_user
from bench.config.method_specs import MethodSpec, method_specs
from bench.config.options import (
    OPTION_GROUPS,
    OPTIONS,
    ComputeOptions,
    EvaluationOptions,
    ExecutionOptions,
    TaskOptions,
)
from bench.config.settings import parse
from bench.config.sweep import for_method, parse_values
from bench.errors import BenchError, check_known


@dataclass(frozen=True, slots=True)
class Plan:
    """One command with all values resolved.

    Attributes:
        tasks, evaluation, compute, execution: the options.
        origin: origin of each option and path: "default", "profile demo", "--seed", ...
        method_specs: the methods with their settings.
        profile: name of the profile. profile_note: its caveat for readers of the numbers, "" if it has none.
        preprocessing: the profile's shared preprocessing, as keyword arguments.
        data, runs, cache: folder of the dataset, of the records, of cached files.
        weights: folder of backbone weights, or None.
        campaign: name of the campaign, or "". command: the command line, stored in the records.
        checkpoint: a released model, or a folder with one per category, that is evaluated instead of a fit; or None.
    """

    tasks: TaskOptions
    evaluation: EvaluationOptions
    compute: ComputeOptions
    execution: ExecutionOptions
    origin: dict[str, str]
    method_specs: tuple[MethodSpec, ...]
    profile: str
    profile_note: str
    preprocessing: dict[str, Any]
    data: Path
    runs: Path
    cache: Path
    weights: Path | None
    campaign: str = ""
    command: str = ""
    checkpoint: Path | None = None

    def option(self, name: str) -> Any:
        """Return the value of an option by its name."""
        return getattr(getattr(self, OPTIONS[name].group), name)


def make_plan(
    config: Config,
    methods: Iterable[str],
    *,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
    sweep: Mapping[str, Any] | None = None,
    profile: str | None = None,
    campaign: str | None = None,
    paths: Mapping[str, Path | None] | None = None,
    command: str = "",
) -> Plan:
    """Return the plan of a command.

    Args:
        config: the merged bench.toml.
        methods: the names of the method files.
        options: the options by name, as text or with the right type; None is ignored.
        settings: --set, key -> text; "name.key" is for one method only.
        sweep: --sweep, the same with several values in the text.
        profile: name of a profile in bench.toml; default: the campaign's, else "demo".
        campaign: name of a campaign in bench.toml, or None.
        paths: data, runs, cache, weights and checkpoint from the command line.
        command: the command line.

    Raises:
        BenchError: for an unknown name or key and for a value of the wrong type or out of range. The dataset's
            categories and the settings of the methods are checked by `bench.execution.schedule`.
    """
    campaign_table = {} if campaign is None else _table(config, "campaign", campaign)
    profile_origin = "--profile" if profile else f"campaign {campaign}" if "profile" in campaign_table else "default"
    profile = profile or campaign_table.get("profile", "demo")
    profile_table = _table(config, "profile", profile)
    sources = ({key: value for key, value in (options or {}).items() if value is not None}, campaign_table)
    dataset = next((table["dataset"] for table in (*sources, profile_table) if "dataset" in table), "")
    tables = [
        (profile_table, f"profile {profile}"),
        (config.tables.get("dataset", {}).get(str(dataset), {}), f"[dataset.{dataset}]"),
        (campaign_table, f"campaign {campaign}"),
    ]
    values, origin = _resolve_options(tables, options or {})
    groups: dict[str, Any] = {
        group: group_class(**{key: value for key, value in values.items() if OPTIONS[key].group == group})
        for group, group_class in OPTION_GROUPS.items()
    }
    tasks: TaskOptions = groups["tasks"]
    _check_effects(groups, origin, has_sweep=bool(sweep or campaign_table.get("sweep")))
    # A campaign's settings belong to its profile; with another profile they would mix two sources.
    settings_tables = tables if profile == campaign_table.get("profile", profile) else tables[:1]
    sweep_values = {
        key: (parse_values(key, value), f"campaign {campaign}, sweep")
        for key, value in campaign_table.get("sweep", {}).items()
    }
    sweep_values |= {key: (parse_values(key, value), "--sweep") for key, value in (sweep or {}).items()}
    specs = method_specs(
        config.tables,
        tasks.method,
        methods=tuple(methods),
        dataset=tasks.dataset,
        profile=profile,
        config_tables=settings_tables,
        settings=settings or {},
    )
    names = {name for spec in specs for name in (spec.name, spec.method)}
    specs = tuple(
        replace(spec, sweep=for_method(sweep_values, spec.name, spec.method, settings or {}, names)) for spec in specs
    )
    command_paths = {key: expand_user(path) for key, path in (paths or {}).items() if path is not None}
    runs, cache = (command_paths.get(key) or config.path(key) for key in ("runs", "cache"))
    weights = config.weights(command_paths.get("weights"))
    data = command_paths.get("data") or config.data(tasks.dataset)
    for key, path in {"runs": runs, "cache": cache, "weights": weights, "data": data}.items():
        table = "[paths.data]" if key == "data" else "[paths]"
        origin[key] = f"--{key}" if key in command_paths else table if path else "default"
    cache = cache or cache_folder(config)
    return Plan(
        **groups,
        origin=origin
        | {"profile": profile_origin}
        | ({"checkpoint": "--checkpoint"} if "checkpoint" in command_paths else {}),
        method_specs=specs,
        profile=profile,
        profile_note=profile_table.get("note", ""),
        preprocessing=dict(profile_table.get("shared_preprocessing", {})),
        data=data or cache / tasks.dataset,
        runs=runs or Path("runs"),
        cache=cache,
        weights=weights,
        campaign=campaign or "",
        command=command,
        checkpoint=command_paths.get("checkpoint"),
    )


def _resolve_options(
    tables: list[tuple[dict[str, Any], str]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value of each option that a table or the command line sets, and the origin of every option."""
    check_known(options, OPTIONS, "an option")
    from_command = {key: value for key, value in options.items() if value is not None}
    values: dict[str, Any] = {}
    origin = dict.fromkeys(OPTIONS, "default")
    for table, name in (*tables, (from_command, "")):
        for key, option in OPTIONS.items():
            if key in table:
                origin[key] = name or option.flag
                value = parse(f"{key} ({name})" if name else option.flag, table[key], option.type)
                values[key] = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value  # 0,0 is one seed
    for key, value in values.items():
        OPTIONS[key].check(value, origin[key])
    return values, origin


def _check_effects(groups: Mapping[str, Any], origin: Mapping[str, str], *, has_sweep: bool) -> None:
    """Raise BenchError for an option of the command line that has no effect with the others."""
    for option in OPTIONS.values():
        if not option.only_with or origin[option.name] != option.flag:
            continue
        other, *values = option.only_with
        value = getattr(groups[OPTIONS[other].group], other)
        if value not in values:
            raise BenchError(
                f"{option.flag} needs {OPTIONS[other].flag} {' or '.join(values)}; this command has {value} "
                f"({origin[other]}), and would ignore it. Remove {option.flag}, or change {OPTIONS[other].flag}."
            )
    if groups["tasks"].one_at_a_time and origin["one_at_a_time"] == "--one-at-a-time" and not has_sweep:
        raise BenchError("--one-at-a-time needs a sweep; this command has none. Pass --sweep KEY=VALUES, or remove it.")


def _table(config: Config, table_name: Literal["profile", "campaign"], name: str) -> dict[str, Any]:
    check_known([name], config.names(table_name), f"a {table_name}")
    table: dict[str, Any] = config.tables[table_name][name]
    return table
