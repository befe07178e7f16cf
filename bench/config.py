"""From `bench.toml` and the options of one call to one frozen plan, with the origin of every value in it.

Values are laid over each other: the profile's, then the campaign's, then the call's options. A `bench.toml` in the
working folder is laid over the one that ships, table by table. Unknown keys are refused with the nearest known one.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from bench.errors import BenchError
from bench.settings import S, known, resolve, shaped, typed
from bench.sweep import Over, laid, of, values

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
        threads: of torch on the CPU; 0 leaves torch's own choice.
        preparation: "shared" (the profile's, the same for all methods) or "native" (each method's own).
        batch: images a predict call.
        maps: "float16", "float32" or "none".
        calibrate: hold good images out of training and set a threshold by them at this false positive rate; 0: don't.
        resolution: judge the pixels of the prepared images ("input"), or of each image's own file ("original").
        keep_model: whether to store the fitted methods.
        time: whether to measure latency.
        one_at_a_time: whether a sweep varies one setting from the defaults at a time, or lays out the product.
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
    calibrate: float = 0.0
    resolution: Literal["input", "original"] = "input"
    keep_model: bool = False
    time: bool = True
    one_at_a_time: bool = False


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

_LEAST = {"limit": 0, "every": 1, "threads": 0, "batch": 1}
_NAME = re.compile(r"[\w+-]+")


@dataclass(frozen=True, slots=True)
class Choice:
    """A method as the user names it: the file that it is, its title, and its settings, still as TOML or text gave them.

    Attributes:
        name: alias or file: "aminet_jitter"; "anomalib-Padim" for anomalib:Padim.
        method: the file in methods/: "aminet".
        title: as tables print it.
        settings: key -> (value, origin), laid over the file's defaults.
        by_category: the same, by category of the plan's data set, laid over those.
        plain: the same, from --set key=value, laid over those where this method has such a setting.
        last: the same, from --set name.key=value, laid over all.
        over: what a sweep varies, key -> (values, origin); a key for this method alone is "name.key".
        swept: the settings that tell this variant of a sweep from the others.
    """

    name: str
    method: str
    title: str
    settings: dict[str, tuple[Any, str]]
    by_category: dict[str, dict[str, tuple[Any, str]]]
    plain: dict[str, tuple[Any, str]]
    last: dict[str, tuple[Any, str]]
    over: Over = field(default_factory=dict)
    swept: tuple[str, ...] = ()

    def raw(self, category: str) -> dict[str, tuple[Any, str]]:
        """The settings for one category, or for "all", with every plain --set key."""
        return self.settings | self.by_category.get(category, {}) | self.plain | self.last

    def resolved(self, kind: type[S], category: str) -> tuple[S, dict[str, str]]:
        """The method's Settings for one category, or for "all", and the origin of each value.

        A plain --set key that `kind` does not have is meant for another method of the call: `meant` has seen to that.
        """
        others = self.plain.keys() - _fields(kind) - self.last.keys()
        return resolve(kind, {key: value for key, value in self.raw(category).items() if key not in others}, self.name)

    def variants(self, kind: type[S], *, one_at_a_time: bool) -> "list[Choice]":
        """A choice for each point of the sweep, with every value typed; only itself where nothing is swept."""
        own = {key.rpartition(".")[2]: found for key, found in self.over.items() if "." in key or key in _fields(kind)}
        found: dict[str, Choice] = {}
        for point, swept in laid(own, one_at_a_time=one_at_a_time):
            variant = replace(self, last=self.last | point, swept=swept)
            found.setdefault(repr(variant.resolved(kind, "")[0]), variant)  # 2 and 2.0 may be one value
        return list(found.values())


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
    over: Mapping[str, str] | None = None,
    profile: str | None = None,
    campaign: str | None = None,
    paths: Mapping[str, Path | None] | None = None,
    command: str = "",
) -> Plan:
    """Lays profile, campaign and the options that were `said` over each other.

    methods: the files there are. settings: --set, key -> text, "name.key" for one method only. over: --over, the same
    with several values in the text. paths: data, runs, cache, weights as options gave them. Raises BenchError for a
    name, key or value that bench.toml can't know; data set, protocol and the settings themselves are looked up by the
    campaign.
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
    choices = _choices(config, options, tuple(methods), sets, settings or {})
    asked = [choice.name for choice in choices]
    choices = tuple(replace(choice, over=of(swept, choice.name, settings or {}, asked)) for choice in choices)
    given = {key: _home(path) for key, path in (paths or {}).items() if path is not None}
    runs, cache, weights = (given.get(key) or config.path(key) for key in ("runs", "cache", "weights"))
    data = given.get("data") or config.data(options.dataset)
    for key, path in {"runs": runs, "cache": cache, "weights": weights, "data": data}.items():
        table = "[paths.data]" if key == "data" else "[paths]"
        origin[key] = f"--{key}" if key in given else table if path else "default"
    cache = cache or cache_folder(config)
    return Plan(
        options=options,
        origin=origin | {"profile": profile_origin},
        choices=choices,
        profile=profile,
        note=chosen.get("note", ""),
        shared=dict(chosen.get("shared", {})),
        root=data or cache / options.dataset,
        runs=runs or Path("runs"),
        cache=cache,
        weights=weights,
        campaign=campaign or "",
        command=command,
    )


def meant(choices: Iterable[Choice], kinds: Mapping[str, type]) -> None:
    """Raises BenchError for a plain key of --set or of a sweep that is a setting of none of the methods.

    kinds: the Settings by name, of the methods that could be loaded.
    """
    names = sorted({name for kind in kinds.values() for name in _fields(kind)})
    plain = {key for choice in choices for key in (*choice.plain, *choice.over) if "." not in key}
    known(sorted(plain), names, f"a setting of {' or '.join(kinds)}")


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
        if key in {"method", "k", "seed"} and not value:
            raise BenchError(f"A run needs at least one {key}; {origin[key]} gives none. Name one.")
        if key in _LEAST and value < _LEAST[key]:
            raise BenchError(f"{key} is {_LEAST[key]} or more; {origin[key]} gives {value}. Raise it.")
        if key == "calibrate" and not 0 <= value < 1:
            raise BenchError(f"A false positive rate is 0 or more and below 1; {origin[key]} gives {value}. Give 0.1.")
    return Options(**values), origin


def _choices(
    config: Config,
    options: Options,
    methods: tuple[str, ...],
    tables: list[tuple[dict[str, Any], str]],
    settings: Mapping[str, str],
) -> tuple[Choice, ...]:
    aliases = config.tables.get("alias", {}) | _hosted(config, options.method)
    names = sorted({*methods, *aliases})
    for name in sorted(aliases.keys() & set(methods)):
        if aliases[name].get("method", name) != name:
            raise BenchError(f"'{name}' is an alias of {aliases[name]['method']} and a file of methods. Rename one.")
    # "all" leaves out a file to which an alias only gives another name, so that no run is made twice.
    plainly = {name: alias.get("method", name) for name, alias in aliases.items() if not alias.get("set")}
    renamed = {method for name, method in plainly.items() if method != name}
    every = [name for name in names if name not in renamed and name not in config.tables.get("host", {})]
    asked = every if "all" in options.method else list(options.method)
    known(asked, names, "a method")
    plain, last = _said(settings, asked)
    sets = [(table.get("set", {}), where) for table, where in tables]
    place = f"category.{options.dataset}"
    categories = config.tables.get("category", {}).get(options.dataset, {})
    for table, where in (*sets, *((table, f"[{place}.{category}]") for category, table in categories.items())):
        known(table, methods, f"a file in methods/, which is what {where} sets")
    choices = []
    for name in asked:
        alias = aliases.get(name, {})
        method = alias.get("method", name)
        raw: dict[str, tuple[Any, str]] = {}
        for table, where in (*sets, ({method: alias.get("set", {})}, f"alias {name}")):
            raw |= _from(table.get(method, {}), where)
        own = {one: _from(table.get(method, {}), f"[{place}.{one}]") for one, table in categories.items()}
        title = alias.get("title") or config.title(name)
        choices.append(Choice(name.replace(":", "-"), method, title, raw, own, plain, last.get(name, {})))
    return tuple(choices)


def _hosted(config: Config, asked: Iterable[str]) -> dict[str, dict[str, Any]]:
    """An alias for each name like anomalib:Padim: the model Padim of the library that methods/anomalib.py hosts."""
    hosts = config.tables.get("host", {})
    found = {}
    for name in asked:
        host, colon, model = name.partition(":")
        if colon:
            known([host], hosts, "a host of another library's models")
            title = hosts[host].replace("{model}", model)
            found[name] = {"method": host, "title": title, "set": {"model": model}}
    return found


def _said(
    settings: Mapping[str, str], asked: list[str]
) -> tuple[dict[str, tuple[Any, str]], dict[str, dict[str, tuple[Any, str]]]]:
    """The plain keys of --set, and those for one method, by its name."""
    plain: dict[str, tuple[Any, str]] = {}
    last: dict[str, dict[str, tuple[Any, str]]] = {}
    for key, value in settings.items():
        name, dot, rest = key.rpartition(".")
        if dot and name not in asked:
            raise BenchError(f"--set {key} names a method that is not run; these are: {', '.join(asked)}.")
        (last.setdefault(name, {}) if dot else plain)[rest] = (value, "--set")
    return plain, last


def _fields(kind: type) -> set[str]:
    return {entry.name for entry in fields(kind)} if is_dataclass(kind) else set()


def _from(table: Mapping[str, Any], where: str) -> dict[str, tuple[Any, str]]:
    return {key: (value, where) for key, value in table.items()}


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
