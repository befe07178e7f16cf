"""From `bench.toml` and the options of one call to one frozen plan, with the origin of every value in it.

Values are laid over each other: the profile's, then the campaign's, then the call's options. A `bench.toml` in the
working folder is laid over the one that ships, table by table. Unknown keys are refused with the nearest known one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bench.config.bench_toml import Config, cache_folder, expand_user
from bench.config.method_specs import MethodSpec, method_specs
from bench.config.options import Options
from bench.config.settings import parse
from bench.config.sweep import for_method, parse_values
from bench.errors import BenchError, check_known

_LEAST = {"limit": 0, "every": 1, "threads": 0, "batch": 1, "timeout": 0}


@dataclass(frozen=True, slots=True)
class Plan:
    """One call, resolved: nothing is looked up after this but plug-ins by their names.

    Attributes:
        options: resolved. origin: where each of them, and each path, came from.
        choices: the methods.
        profile: its name. note: what a reader must know of it. shared: its preprocessing, as keywords.
        root: where the data set lies. runs, cache: folders. weights: folder of backbone weights, or None.
        campaign: its name, or "". command: the command line, told in records.
        checkpoint: a released model, or a folder with one for each category, evaluated instead of a fit; or None.
    """

    options: Options
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


def make_plan(
    config: Config,
    methods: Iterable[str],
    *,
    said: Mapping[str, Any],
    settings: Mapping[str, str] | None = None,
    over: Mapping[str, Any] | None = None,
    profile: str | None = None,
    campaign: str | None = None,
    paths: Mapping[str, Path | None] | None = None,
    command: str = "",
) -> Plan:
    """Lays profile, campaign and the options that were `said` over each other.

    methods: the files there are. settings: --set, key -> text, "name.key" for one method only. over: --over, the same
    with several values in the text. paths: data, runs, cache, weights, checkpoint as options gave them. Raises
    BenchError for a name, key or value that bench.toml can't know; data set, protocol and the settings themselves are
    looked up by the campaign.
    """
    wanted = _entry(config, "campaign", campaign) if campaign else {}
    profile_origin = "--profile" if profile else f"campaign {campaign}" if "profile" in wanted else "default"
    profile = profile or wanted.get("profile", "demo")
    chosen = _entry(config, "profile", profile)
    tables = [(chosen, f"profile {profile}"), (wanted, f"campaign {campaign}")]
    options, origin = _options(tables, said)
    # A campaign's settings go with the profile that it was written for; under another they would mix two sources.
    sets = tables if profile == wanted.get("profile", profile) else tables[:1]
    swept = {
        key: (parse_values(key, given), f"campaign {campaign}, over") for key, given in wanted.get("over", {}).items()
    }
    swept |= {key: (parse_values(key, given), "--over") for key, given in (over or {}).items()}
    named = method_specs(
        config.tables,
        options.method,
        methods=tuple(methods),
        dataset=options.dataset,
        profile=profile,
        layers=sets,
        settings=settings or {},
    )
    asked = [choice.name for choice in named]
    named = tuple(replace(choice, sweep=for_method(swept, choice.name, settings or {}, asked)) for choice in named)
    given = {key: expand_user(path) for key, path in (paths or {}).items() if path is not None}
    runs, cache, weights = (given.get(key) or config.path(key) for key in ("runs", "cache", "weights"))
    data = given.get("data") or config.data(options.dataset)
    for key, path in {"runs": runs, "cache": cache, "weights": weights, "data": data}.items():
        table = "[paths.data]" if key == "data" else "[paths]"
        origin[key] = f"--{key}" if key in given else table if path else "default"
    cache = cache or cache_folder(config)
    return Plan(
        options=options,
        origin=origin | {"profile": profile_origin} | ({"checkpoint": "--checkpoint"} if "checkpoint" in given else {}),
        method_specs=named,
        profile=profile,
        profile_note=chosen.get("note", ""),
        preprocessing=dict(chosen.get("shared_preprocessing", {})),
        data=data or cache / options.dataset,
        runs=runs or Path("runs"),
        cache=cache,
        weights=weights,
        campaign=campaign or "",
        command=command,
        checkpoint=given.get("checkpoint"),
    )


def _options(tables: list[tuple[dict[str, Any], str]], said: Mapping[str, Any]) -> tuple[Options, dict[str, str]]:
    """The options of the tables, then those of the call, laid over each other, and the origin of each."""
    hints = get_type_hints(Options)
    parse_values: dict[str, Any] = {}
    origin = dict.fromkeys(hints, "default")
    for table, where in tables:
        for key in (key for key in hints if key in table):
            parse_values[key] = parse(f"{key} ({where})", table[key], hints[key])
            origin[key] = where
    check_known(said, hints, "an option")
    for key, value in said.items():
        if value is not None:
            origin[key] = f"--{key.replace('_', '-')}"
            parse_values[key] = parse(origin[key], value, hints[key])
    for key, value in parse_values.items():
        if isinstance(value, tuple):
            parse_values[key] = tuple(dict.fromkeys(value))  # 0,0 is one seed
        _in_range(key, value, origin[key])
    return Options(**parse_values), origin


def _in_range(key: str, value: Any, where: str) -> None:
    if key in {"method", "k", "seed"} and not value:
        raise BenchError(f"A run needs at least one {key}; {where} gives none. Name one.")
    if key in _LEAST and value < _LEAST[key]:
        raise BenchError(f"{key} is {_LEAST[key]} or more; {where} gives {value}. Raise it.")
    if key == "calibrate" and not 0 <= value < 1:
        raise BenchError(f"A false positive rate is 0 or more and below 1; {where} gives {value}. Give 0.1.")
    if key == "gpus_per_task" and (value <= 0 or (value > 1 and value % 1)):
        raise BenchError(f"A fit asks for a part of one GPU or for whole ones; {where} gives {value:g}. Give 0.5 or 2.")


def _entry(config: Config, table: Literal["profile", "campaign"], name: str) -> dict[str, Any]:
    check_known([name], config.names(table), f"a {table}")
    found: dict[str, Any] = config.tables[table][name]
    return found
