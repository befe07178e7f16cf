"""From `bench.toml` and the options of one call to one frozen plan, with the origin of every value in it.

Values are laid over each other: the profile's, then the campaign's, then the call's options. A `bench.toml` in the
working folder is laid over the one that ships, table by table. Unknown keys are refused with the nearest known one.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bench.choices import Choice, choices
from bench.errors import BenchError
from bench.settings import known, shaped, typed
from bench.sweep import of, values

FILE = "bench.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a profile, a campaign or a call may say. None and empty mean "not said".

    Attributes:
        method: names of methods or aliases; "all" is every one of them.
        dataset: name of a data set.
        protocol: name of a protocol.
        k: training images a category; several are several runs. Only for kshot.
        category: only these; none means all.
        seed: several are several fits, and several draws under kshot.
        limit: at most so many training, good and defect images a category; 0 is all.
        selection: "last", "oracle" (best on the test set) or "both".
        every: the oracle looks every so many epochs.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "float32", "bfloat16" or "float16".
        compile: predict with networks as torch.compile makes them; on a GPU one CUDA graph.
        threads: of torch on the CPU; 0 leaves torch's own choice.
        preparation: "shared" (the profile's, the same for all methods) or "native" (each method's own).
        batch: images a predict call.
        maps: "float16", "float32" or "none".
        calibrate: hold good images out of training and set a threshold by them at this false positive rate; 0: don't.
        resolution: judge the pixels of the prepared images ("input"), or of each image's own file ("original").
        keep_model: whether to store the fitted methods.
        time: whether to measure latency.
        one_at_a_time: whether a sweep varies one setting from the defaults at a time, or lays out the product.
        executor: "local" (this process), "process" (a child process) or "ray" (a cluster).
        timeout: seconds a fit may take, 0 is no limit; with one, a local fit is done in a child process.
        address: of a Ray cluster that runs, as "auto" or "ray://head:10001"; "" starts one on this machine.
        gpus_per_task: GPUs that a fit on Ray asks for; below 1 several fits share one, and no latency is measured.
        ship_data: whether images are sent to the nodes of a cluster, which else read them at the caller's paths.
    """

    method: tuple[str, ...] = ("aminet",)
    dataset: str = "demo"
    protocol: str = "one-for-one"
    k: tuple[int, ...] = (4,)
    category: tuple[str, ...] = ()
    seed: tuple[int, ...] = (0,)
    limit: int = 0
    selection: Literal["last", "oracle", "both"] = "last"
    every: int = 10
    device: str = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    threads: int = 0
    preparation: Literal["shared", "native"] = "shared"
    batch: int = 8
    maps: Literal["float16", "float32", "none"] = "float16"
    calibrate: float = 0.0
    resolution: Literal["input", "original"] = "input"
    keep_model: bool = False
    time: bool = True
    one_at_a_time: bool = False
    executor: Literal["local", "process", "ray"] = "local"
    timeout: float = 0.0
    address: str = ""
    gpus_per_task: float = 1.0
    ship_data: bool = False


_CHOOSING = {entry.name: object for entry in fields(Options)}
_SETTINGS = {"*": {"*": object}}  # method -> key -> value
_SHAPE: dict[str, Any] = {
    "paths": {"runs": str, "cache": str, "weights": str, "methods": tuple[str, ...], "data": {"*": str}},
    "profile": {"*": {"note": str, "shared": {"*": object}, "set": _SETTINGS, **_CHOOSING}},
    "campaign": {"*": {"about": str, "profile": str, "set": _SETTINGS, "over": {"*": object}, **_CHOOSING}},
    "alias": {"*": {"method": str, "title": str, "set": {"*": object}}},
    "host": {"*": str},  # a file of methods that hosts another library's models -> their titles
    "category": {"*": {"*": _SETTINGS}},  # data set -> category -> settings
}
"""What bench.toml holds: "*" is any name, `object` any value: it is typed where it is used."""

_LEAST = {"limit": 0, "every": 1, "threads": 0, "batch": 1, "timeout": 0}
_NAME = re.compile(r"[\w+-]+")


@dataclass(frozen=True, slots=True)
class Plan:
    """One call, resolved: nothing is looked up after this but plug-ins by their names.

    Attributes:
        options: resolved. origin: where each of them, and each path, came from.
        choices: the methods.
        profile: its name. note: what a reader must know of it. shared: its preparation, as keywords.
        root: where the data set lies. runs, cache: folders. weights: folder of backbone weights, or None.
        campaign: its name, or "". command: the command line, told in records.
        checkpoint: a released model, or a folder with one for each category, evaluated instead of a fit; or None.
    """

    options: Options
    origin: dict[str, str]
    choices: tuple[Choice, ...]
    profile: str
    note: str
    shared: dict[str, Any]
    root: Path
    runs: Path
    cache: Path
    weights: Path | None
    campaign: str = ""
    command: str = ""
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The merged `bench.toml`: its tables, and the files that they came from.

    Raises BenchError where the tables are not what a bench.toml holds.
    """

    tables: Mapping[str, Any]
    found: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        shaped(self.tables, _SHAPE, FILE)
        for name in self.names("alias"):
            if not _NAME.fullmatch(name):
                raise BenchError(f"An alias is a folder in the store: letters, digits, _, + and -; '{name}' is not.")

    def names(self, table: Literal["profile", "campaign", "alias"]) -> list[str]:
        """The names that the table holds, sorted."""
        return sorted(self.tables.get(table, {}))

    def title(self, name: str) -> str:
        """The title of a method or alias; the name where nothing gives one."""
        return str(self.tables.get("alias", {}).get(name, {}).get("title", name))

    def path(self, key: Literal["runs", "cache", "weights"]) -> Path | None:
        """A folder of [paths], with ~ resolved; None where it is not given."""
        given = self.tables.get("paths", {}).get(key)
        return _home(given) if given else None

    def data(self, dataset: str) -> Path | None:
        """Where [paths.data] says that the data set lies."""
        given = self.tables.get("paths", {}).get("data", {}).get(dataset)
        return _home(given) if given else None

    def methods(self) -> tuple[Path, ...]:
        """The user's own folders of methods, for `registry.add`."""
        given = self.tables.get("paths", {}).get("methods", ())
        return tuple(_home(folder) for folder in typed("paths.methods", given, tuple[str, ...]))


def read(folder: Path | None = None) -> Config:
    """The shipped `bench.toml` with the one in `folder` (default: the working folder) laid over it."""
    here = Path(__file__).resolve().parent
    checkout = (here.parent / "pyproject.toml").is_file()  # elsewhere the wheel has put a copy beside this file
    shipped = (here.parent if checkout else here) / FILE
    own = (folder or Path.cwd()) / FILE
    found = (shipped,) if not own.is_file() or own.samefile(shipped) else (shipped, own)
    tables: dict[str, Any] = {}
    for path in found:
        tables = _over(tables, _parse(path))
    return Config(tables, found)


def plan(
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
    swept = {key: (values(key, given), f"campaign {campaign}, over") for key, given in wanted.get("over", {}).items()}
    swept |= {key: (values(key, given), "--over") for key, given in (over or {}).items()}
    named = choices(
        config.tables,
        options.method,
        methods=tuple(methods),
        dataset=options.dataset,
        layers=sets,
        settings=settings or {},
    )
    asked = [choice.name for choice in named]
    named = tuple(replace(choice, over=of(swept, choice.name, settings or {}, asked)) for choice in named)
    given = {key: _home(path) for key, path in (paths or {}).items() if path is not None}
    runs, cache, weights = (given.get(key) or config.path(key) for key in ("runs", "cache", "weights"))
    data = given.get("data") or config.data(options.dataset)
    for key, path in {"runs": runs, "cache": cache, "weights": weights, "data": data}.items():
        table = "[paths.data]" if key == "data" else "[paths]"
        origin[key] = f"--{key}" if key in given else table if path else "default"
    cache = cache or cache_folder(config)
    return Plan(
        options=options,
        origin=origin | {"profile": profile_origin} | ({"checkpoint": "--checkpoint"} if "checkpoint" in given else {}),
        choices=named,
        profile=profile,
        note=chosen.get("note", ""),
        shared=dict(chosen.get("shared", {})),
        root=data or cache / options.dataset,
        runs=runs or Path("runs"),
        cache=cache,
        weights=weights,
        campaign=campaign or "",
        command=command,
        checkpoint=given.get("checkpoint"),
    )


def cache_folder(config: Config) -> Path:
    """Where drawn data and frozen features go: [paths] cache, or the user's cache folder."""
    return config.path("cache") or _home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maskbench"


def _options(tables: list[tuple[dict[str, Any], str]], said: Mapping[str, Any]) -> tuple[Options, dict[str, str]]:
    """The options of the tables, then those of the call, laid over each other, and the origin of each."""
    hints = get_type_hints(Options)
    values: dict[str, Any] = {}
    origin = dict.fromkeys(hints, "default")
    for table, where in tables:
        for key in (key for key in hints if key in table):
            values[key] = typed(f"{key} ({where})", table[key], hints[key])
            origin[key] = where
    known(said, hints, "an option")
    for key, value in said.items():
        if value is not None:
            origin[key] = f"--{key.replace('_', '-')}"
            values[key] = typed(origin[key], value, hints[key])
    for key, value in values.items():
        if isinstance(value, tuple):
            values[key] = tuple(dict.fromkeys(value))  # 0,0 is one seed
        _in_range(key, value, origin[key])
    return Options(**values), origin


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
    known([name], config.names(table), f"a {table}")
    found: dict[str, Any] = config.tables[table][name]
    return found


def _home(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BenchError(f"A path may begin with ~ where there is a home folder; {path} has none ({error}).") from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BenchError(f"{path} must be readable TOML; {error}. Mend that line.") from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged
