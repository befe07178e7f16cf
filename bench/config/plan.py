"""Resolve `bench.toml` and the options of one call to a frozen plan that contains the origin of every value.

Options of the call override those of the campaign, which override those of the profile. Unknown keys are errors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.config.bench_toml import Config, cache_folder, expand_user
from bench.config.method_specs import MethodSpec, method_specs
from bench.config.options import GROUPS, OPTIONS, ComputeOptions, EvaluationOptions, ExecutionOptions, TaskOptions
from bench.config.settings import parse
from bench.config.sweep import for_method, parse_values
from bench.errors import check_known


@dataclass(frozen=True, slots=True)
class Plan:
    """One call with all values resolved.

    Attributes:
        tasks, evaluation, compute, execution: the options.
        origin: where each option and path was set: "default", "profile demo", "--seed", ...
        method_specs: the methods with their settings.
        profile: name of the profile. profile_note: its caveat for readers of the numbers, "" if it has none.
        preprocessing: the profile's shared preprocessing, as keyword arguments.
        data, runs, cache: folder of the data set, of the records, of cached files.
        weights: folder of backbone weights, or None.
        campaign: its name, or "". command: the command line, stored in the records.
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
    """Return the plan of a call.

    Args:
        config: the merged bench.toml.
        methods: the names of the method files.
        options: the options of the call by name, as text or with the right type; None is ignored.
        settings: --set, key -> text; "name.key" is for one method only.
        sweep: --sweep, the same with several values in the text.
        profile: name of a profile in bench.toml; default: the campaign's, else "demo".
        campaign: name of a campaign in bench.toml, or None.
        paths: data, runs, cache, weights and checkpoint as the call gives them.
        command: the command line.

    Raises:
        BenchError: for an unknown name or key and for a value of the wrong type or out of range. The data set's
            categories and the settings of the methods are checked by `bench.execution.schedule`.
    """
    campaign_table = _table(config, "campaign", campaign) if campaign else {}
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
        group: kind(**{key: value for key, value in values.items() if OPTIONS[key].group == group})
        for group, kind in GROUPS.items()
    }
    tasks: TaskOptions = groups["tasks"]
    # A campaign's settings belong to its profile; with another profile they would mix two sources.
    settings_tables = tables if profile == campaign_table.get("profile", profile) else tables[:1]
    swept = {
        key: (parse_values(key, value), f"campaign {campaign}, sweep")
        for key, value in campaign_table.get("sweep", {}).items()
    }
    swept |= {key: (parse_values(key, value), "--sweep") for key, value in (sweep or {}).items()}
    specs = method_specs(
        config.tables,
        tasks.method,
        methods=tuple(methods),
        dataset=tasks.dataset,
        profile=profile,
        layers=settings_tables,
        settings=settings or {},
    )
    names = [spec.name for spec in specs]
    specs = tuple(replace(spec, sweep=for_method(swept, spec.name, settings or {}, names)) for spec in specs)
    call_paths = {key: expand_user(path) for key, path in (paths or {}).items() if path is not None}
    runs, cache, weights = (call_paths.get(key) or config.path(key) for key in ("runs", "cache", "weights"))
    data = call_paths.get("data") or config.data(tasks.dataset)
    for key, path in {"runs": runs, "cache": cache, "weights": weights, "data": data}.items():
        table = "[paths.data]" if key == "data" else "[paths]"
        origin[key] = f"--{key}" if key in call_paths else table if path else "default"
    cache = cache or cache_folder(config)
    return Plan(
        **groups,
        origin=origin
        | {"profile": profile_origin}
        | ({"checkpoint": "--checkpoint"} if "checkpoint" in call_paths else {}),
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
        checkpoint=call_paths.get("checkpoint"),
    )


def _resolve_options(
    tables: list[tuple[dict[str, Any], str]], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value of each option that a table or the call sets, and the origin of every option."""
    check_known(options, OPTIONS, "an option")
    call = {key: value for key, value in options.items() if value is not None}
    values: dict[str, Any] = {}
    origin = dict.fromkeys(OPTIONS, "default")
    for table, name in (*tables, (call, "")):
        for key, option in OPTIONS.items():
            if key in table:
                origin[key] = name or option.flag
                value = parse(f"{key} ({name})" if name else option.flag, table[key], option.type)
                values[key] = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else value  # 0,0 is one seed
    for key, value in values.items():
        OPTIONS[key].check(value, origin[key])
    return values, origin


def _table(config: Config, kind: Literal["profile", "campaign"], name: str) -> dict[str, Any]:
    check_known([name], config.names(kind), f"a {kind}")
    table: dict[str, Any] = config.tables[kind][name]
    return table
