"""The methods of a plan as a user names them: files, aliases and hosted models, with their settings and where from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from bench.config.settings import S, resolve
from bench.config.sweep import Sweep, grid_points
from bench.errors import BenchError, check_known


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method as the user names it: the file that it is, its title, and its settings, still as TOML or text gave them.

    Attributes:
        name: alias or file: "aminet_jitter"; or a hosted model: "anomalib:Padim".
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
    overrides: dict[str, tuple[Any, str]]
    method_overrides: dict[str, tuple[Any, str]]
    sweep: Sweep = field(default_factory=dict)
    sweep_keys: tuple[str, ...] = ()

    def merged(self, category: str) -> dict[str, tuple[Any, str]]:
        """The settings for one category, or for "all", with every plain --set key."""
        return self.settings | self.by_category.get(category, {}) | self.overrides | self.method_overrides

    def resolve(self, kind: type[S], category: str) -> tuple[S, dict[str, str]]:
        """The method's Settings for one category, or for "all", and the origin of each value.

        A plain --set key that `kind` does not have is meant for another method of the call: `meant` has seen to that.
        """
        others = self.overrides.keys() - _fields(kind) - self.method_overrides.keys()
        return resolve(
            kind, {key: value for key, value in self.merged(category).items() if key not in others}, self.name
        )

    def variants(self, kind: type[S], *, one_at_a_time: bool) -> "list[MethodSpec]":
        """A choice for each point of the sweep, with every value typed; only itself where nothing is swept."""
        own = {key.rpartition(".")[2]: found for key, found in self.sweep.items() if "." in key or key in _fields(kind)}
        found: dict[str, MethodSpec] = {}
        for point, swept in grid_points(own, one_at_a_time=one_at_a_time):
            variant = replace(self, method_overrides=self.method_overrides | point, sweep_keys=swept)
            found.setdefault(repr(variant.resolve(kind, "")[0]), variant)  # 2 and 2.0 may be one value
        return list(found.values())


def check_setting_names(method_specs: Iterable[MethodSpec], kinds: Mapping[str, type]) -> None:
    """Raises BenchError for a plain key of --set or of a sweep that is a setting of none of the methods.

    kinds: the Settings by name, of the methods that could be loaded.
    """
    names = sorted({name for kind in kinds.values() for name in _fields(kind)})
    plain = {key for choice in method_specs for key in (*choice.overrides, *choice.sweep) if "." not in key}
    check_known(sorted(plain), names, f"a setting of {' or '.join(kinds)}")


def method_specs(
    tables: Mapping[str, Any],
    asked: Sequence[str],
    *,
    methods: Sequence[str],
    dataset: str,
    layers: Sequence[tuple[Mapping[str, Any], str]],
    settings: Mapping[str, str],
) -> tuple[MethodSpec, ...]:
    """The methods that are asked for by name, "all" being every one of them but the hosts.

    tables: of bench.toml. methods: the files there are. dataset: whose categories may have settings of their own.
    layers: the tables whose `set` is laid over the files' defaults, and where each stands. settings: --set.
    Raises BenchError for a name that is none.
    """
    aliases = tables.get("alias", {}) | _hosted(tables.get("host", {}), asked)
    names = sorted({*methods, *aliases})
    for name in sorted(aliases.keys() & set(methods)):
        if aliases[name].get("method", name) != name:
            raise BenchError(f"'{name}' is an alias of {aliases[name]['method']} and a file of methods. Rename one.")
    # "all" leaves out a file to which an alias only gives another name, so that no run is made twice.
    plainly = {name: alias.get("method", name) for name, alias in aliases.items() if not alias.get("set")}
    renamed = {method for name, method in plainly.items() if method != name}
    every = [name for name in names if name not in renamed and name not in tables.get("host", {})]
    asked = every if "all" in asked else list(asked)
    check_known(asked, names, "a method")
    plain, last = _said(settings, asked)
    sets = [(table.get("set", {}), where) for table, where in layers]
    place = f"category.{dataset}"
    categories = tables.get("category", {}).get(dataset, {})
    for table, where in (*sets, *((table, f"[{place}.{category}]") for category, table in categories.items())):
        check_known(table, methods, f"a file in methods/, which is what {where} sets")
    found = []
    for name in asked:
        alias = aliases.get(name, {})
        method = alias.get("method", name)
        raw: dict[str, tuple[Any, str]] = {}
        for table, where in (*sets, ({method: alias.get("set", {})}, f"alias {name}")):
            raw |= _from(table.get(method, {}), where)
        own = {one: _from(table.get(method, {}), f"[{place}.{one}]") for one, table in categories.items()}
        title = str(alias.get("title", name))
        found.append(MethodSpec(name, method, title, raw, own, plain, last.get(name, {})))
    return tuple(found)


def _hosted(hosts: Mapping[str, str], asked: Iterable[str]) -> dict[str, dict[str, Any]]:
    """An alias for each name like anomalib:Padim: the model Padim of the library that methods/anomalib.py hosts."""
    found = {}
    for name in asked:
        host, colon, model = name.partition(":")
        if colon:
            check_known([host], hosts, "a host of another library's models")
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
