"""From `bench.toml` and the options of one call to one frozen plan, with the origin of every value in it.

Values are laid over each other: the profile's, then the campaign's, then the call's options. A `bench.toml` in the
working folder is laid over the one that ships, table by table. Unknown keys are refused with the nearest known one.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bench.errors import BenchError
from bench.settings import known, typed

FILE = "bench.toml"
_TABLES = ("paths", "profile", "campaign", "alias", "category")
_PATHS = ("runs", "cache", "weights", "methods", "data")


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
        threads: of torch on the CPU; 0 leaves torch's own choice.
        preparation: "shared" (the profile's, the same for all methods) or "native" (each method's own).
        batch: images a predict call.
        maps: "float16", "float32" or "none".
        keep_model: whether to store the fitted methods.
        time: whether to measure latency.
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
    threads: int = 0
    preparation: Literal["shared", "native"] = "shared"
    batch: int = 8
    maps: Literal["float16", "float32", "none"] = "float16"
    keep_model: bool = False
    time: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """A method as the user names it: the file that it is, its title, and its settings, still as TOML or text gave them.

    Attributes:
        name: alias or file: "aminet_jitter".
        method: the file in methods/: "aminet".
        title: as tables print it.
        settings: key -> (value, origin), laid over the file's defaults.
        by_category: the same, by category of the plan's data set, laid over those.
        last: the same, from --set, laid over all.
    """

    name: str
    method: str
    title: str
    settings: dict[str, tuple[Any, str]]
    by_category: dict[str, dict[str, tuple[Any, str]]]
    last: dict[str, tuple[Any, str]]

    def raw(self, category: str) -> dict[str, tuple[Any, str]]:
        """The settings for one category, or for "all"."""
        return self.settings | self.by_category.get(category, {}) | self.last


@dataclass(frozen=True, slots=True)
class Plan:
    """One call, resolved: nothing is looked up after this but plug-ins by their names.

    Attributes:
        options: resolved. origin: where each of them, and each path, came from.
        choices: the methods.
        profile: its name. note: what a reader must know of it. shared: its preparation, as keywords.
        root: where the data set lies. runs, cache: folders. weights: folder of backbone weights, or None.
        campaign: its name, or "". command: the command line, told in records.
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


@dataclass(frozen=True, slots=True)
class Config:
    """The merged `bench.toml`: its tables, and the folders of the user's own methods."""

    tables: dict[str, dict[str, Any]]
    found: tuple[Path, ...] = field(default=())

    def names(self, table: Literal["profile", "campaign", "alias"]) -> list[str]:
        """The names that the table holds, sorted."""
        return sorted(self.tables.get(table, {}))

    def title(self, name: str) -> str:
        """The title of a method or alias; the name where nothing gives one."""
        return str(self.tables.get("alias", {}).get(name, {}).get("title", name))

    def path(self, key: str) -> Path | None:
        """A folder of [paths], with ~ resolved; None where it is not given."""
        given = self.tables.get("paths", {}).get(key)
        return Path(given).expanduser() if given else None

    def data(self, dataset: str) -> Path | None:
        """Where [paths.data] says that the data set lies."""
        given = self.tables.get("paths", {}).get("data", {}).get(dataset)
        return Path(given).expanduser() if given else None


def read(folder: Path | None = None) -> Config:
    """The shipped `bench.toml` with the one in `folder` (default: the working folder) laid over it."""
    here = Path(__file__).resolve().parent
    shipped = next(path for path in (here.parent / FILE, here / FILE) if path.is_file())
    own = (folder or Path.cwd()) / FILE
    found = (shipped,) if not own.is_file() or own.samefile(shipped) else (shipped, own)
    tables: dict[str, Any] = {}
    for path in found:
        tables = _over(tables, _parse(path))
    known(tables, _TABLES, f"a table of {FILE}")
    known(tables.get("paths", {}), _PATHS, "a key of [paths]")
    return Config(tables, found)


def plan(
    config: Config,
    methods: Iterable[str],
    *,
    said: Mapping[str, Any],
    settings: Mapping[str, str] | None = None,
    profile: str | None = None,
    campaign: str | None = None,
    paths: Mapping[str, Path | None] | None = None,
    command: str = "",
) -> Plan:
    """Lays profile, campaign and the options that were `said` over each other.

    methods: the files there are. settings: --set, key -> text, "name.key" for one method only. paths: data, runs,
    cache, weights as options gave them. Raises BenchError for any unknown name, key or value.
    """
    wanted = _entry(config, "campaign", campaign) if campaign else {}
    profile_origin = "--profile" if profile else f"campaign {campaign}" if "profile" in wanted else "default"
    profile = profile or str(wanted.get("profile", "demo"))
    chosen = _entry(config, "profile", profile)
    names = tuple(entry.name for entry in fields(Options))
    values: dict[str, Any] = {}
    origin: dict[str, str] = dict.fromkeys(names, "default") | {"profile": profile_origin}
    layers: list[tuple[Mapping[str, Any], str]] = [
        (_options(chosen), f"profile {profile}"),
        (_options(wanted), f"campaign {campaign}"),
        ({key: value for key, value in said.items() if value is not None}, "option"),
    ]
    for layer, where in layers:
        known(layer, names, f"an option ({where})")
        for key, value in layer.items():
            values[key] = typed(key, value, get_type_hints(Options)[key])
            origin[key] = f"--{key.replace('_', '-')}" if where == "option" else where
    options = Options(**values)
    tables = [(chosen, f"profile {profile}"), (wanted, f"campaign {campaign}")]
    choices = _choices(config, options, tuple(methods), tables, settings or {})
    given = {key: path for key, path in (paths or {}).items() if path is not None}
    folders = {key: given.get(key) or config.path(key) for key in ("runs", "cache", "weights")}
    origin |= {key: f"--{key}" if key in given else "[paths]" if folders[key] else "default" for key in folders}
    cache = folders["cache"] or cache_folder(config)
    root = given.get("data") or config.data(options.dataset)
    origin["data"] = "--data" if "data" in given else "[paths.data]" if root else "default"
    if root is None:
        root = cache / options.dataset
    return Plan(
        options=options,
        origin=origin,
        choices=choices,
        profile=profile,
        note=str(chosen.get("note", "")),
        shared=dict(chosen.get("shared", {})),
        root=root,
        runs=folders["runs"] or Path("runs"),
        cache=cache,
        weights=folders["weights"],
        campaign=campaign or "",
        command=command,
    )


def cache_folder(config: Config) -> Path:
    """Where drawn data and frozen features go: [paths] cache, or the user's cache folder."""
    return config.path("cache") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "maskbench"


def _choices(
    config: Config,
    options: Options,
    methods: tuple[str, ...],
    tables: list[tuple[dict[str, Any], str]],
    settings: Mapping[str, str],
) -> tuple[Choice, ...]:
    aliases = config.tables.get("alias", {})
    names = sorted({*methods, *aliases})
    asked = names if options.method == ("all",) else options.method
    categories: dict[str, Any] = config.tables.get("category", {}).get(options.dataset, {})
    _meant_for(settings, asked)
    choices = []
    for name in dict.fromkeys(asked):
        known([name], names, "a method")
        alias = aliases.get(name, {})
        known(alias, ("method", "title", "set"), f"a key of [alias.{name}]")
        method = str(alias.get("method", name))
        raw: dict[str, tuple[Any, str]] = {}
        for table, where in tables:
            raw |= {key: (value, where) for key, value in table.get("set", {}).get(method, {}).items()}
        raw |= {key: (value, f"alias {name}") for key, value in alias.get("set", {}).items()}
        by_category = {
            category: {key: (value, f"[category.{options.dataset}.{category}]") for key, value in own[method].items()}
            for category, own in categories.items()
            if method in own
        }
        last = {
            key.removeprefix(f"{name}."): (value, "--set")
            for key, value in settings.items()
            if "." not in key or key.startswith(f"{name}.")
        }
        choices.append(Choice(name, method, config.title(name), raw, by_category, last))
    return tuple(choices)


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's or campaign's table without its keys that are no options of a call."""
    return {key: value for key, value in table.items() if key not in {"about", "note", "profile", "shared", "set"}}


def _meant_for(settings: Mapping[str, str], asked: Iterable[str]) -> None:
    for key in settings:
        if "." in key and key.split(".", 1)[0] not in asked:
            raise BenchError(f"--set {key} names a method that is not run; these are: {', '.join(asked)}.")


def _entry(config: Config, table: Literal["profile", "campaign"], name: str) -> dict[str, Any]:
    entries = config.tables.get(table, {})
    known([name], config.names(table), f"a {table}")
    found: dict[str, Any] = entries[name]
    return found


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BenchError(f"{path} must be readable TOML; {error}. Mend that line.") from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if both else value
    return merged
