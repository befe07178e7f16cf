"""The methods of a plan by their names: files, aliases and external models, with settings and their origins."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from bench.config.method_metadata import MethodMetadata, method_metadata
from bench.config.settings import S, resolve
from bench.config.sweep import Sweep, grid_points
from bench.errors import BenchError, check_known

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method as named on the command line: its file, its title, and its settings, not yet parsed.

    Attributes:
        name: name of an alias or a file, "aminet_jitter", or of an external model: "anomalib:Padim".
        method: the file in methods/: "aminet".
        title: title in tables.
        settings: key -> (value, origin), values that override the defaults of Settings.
        by_category: the same by category of the plan's dataset; they override equal keys of `settings`.
        overrides: the same, from --set key=value; they override both. Keys that the method lacks are ignored.
        method_overrides: the same, from --set name.key=value; they override all others. With the name of a file they
            apply to all of its aliases that the command runs, with the name of an alias only to this one.
        sweep: values of a sweep, key -> (values, origin); the key for one method is "name.key".
        sweep_keys: settings in which this variant of a sweep differs from the others.
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
        """Return the settings for one category, with every key of --set; "" is those that all categories share."""
        return self.settings | self.by_category.get(category, {}) | self.overrides | self.method_overrides

    def resolve(self, settings_class: type[S], category: str) -> tuple[S, dict[str, str]]:
        """Return the method's Settings for one category, or "" for all, and the origin of each value.

        A key of --set that the class does not have is for another method of the command; `check_setting_names` checks
        that.
        """
        others = self.overrides.keys() - _fields(settings_class) - self.method_overrides.keys()
        return resolve(
            settings_class, {key: value for key, value in self.merged(category).items() if key not in others}, self.name
        )

    def variants(self, settings_class: type[S], *, one_at_a_time: bool) -> "list[MethodSpec]":
        """Return a spec for each point of the sweep, with parsed values; only this one if there is no sweep."""
        sweep = {
            key.rpartition(".")[2]: values
            for key, values in self.sweep.items()
            if "." in key or key in _fields(settings_class)
        }
        variants: dict[str, MethodSpec] = {}
        for point, sweep_keys in grid_points(sweep, one_at_a_time=one_at_a_time):
            variant = replace(self, method_overrides=self.method_overrides | point, sweep_keys=sweep_keys)
            variants.setdefault(
                repr(variant.resolve(settings_class, "")[0]), variant
            )  # 2 and 2.0 may be the same value
        return list(variants.values())


def check_setting_names(method_specs: Iterable[MethodSpec], settings_classes: Mapping[str, type]) -> None:
    """Raise BenchError for a key of --set or of a sweep that is a setting of none of the methods.

    Args:
        method_specs: the methods of the command.
        settings_classes: Settings by name, of the methods that could be loaded.
    """
    names = sorted({name for settings_class in settings_classes.values() for name in _fields(settings_class)})
    keys = {key for spec in method_specs for key in (*spec.overrides, *spec.sweep) if "." not in key}
    check_known(sorted(keys), names, f"a setting of {' or '.join(settings_classes)}")


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of a method: that of its file, or an alias with another title and other settings.

    Attributes:
        method: the file in methods/: "aminet".
        title: title in tables; with "{model}" for an external method.
        settings: key -> (value, origin).
    """

    method: str
    title: str
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)

    @property
    def is_external(self) -> bool:
        """True if the method runs the models of another library."""
        return "{model}" in self.title


def aliases(tables: Mapping[str, Any], methods: Iterable[str]) -> dict[str, Alias]:
    """Return all names of methods: the files, the ALIASES in them, and the [alias] tables of bench.toml, sorted.

    A table [alias.NAME] replaces the title and single settings of an alias in a file. The constants of a file with
    errors are skipped with a warning.

    Raises:
        BenchError: if two methods have an alias of one name, or an alias has the name of another method.
    """
    methods = tuple(methods)
    metadata = {method: _metadata_or_warning(method) for method in methods}
    names = {method: Alias(method, metadata[method].title or method) for method in methods}
    for method in methods:
        for name, entry in metadata[method].aliases.items():
            if name in names and names[name].method != method:
                other = names[name].method
                raise BenchError(f"An alias must be unique, '{name}' is a name of {other} and {method}. Rename it.")
            settings = _with_origin(entry.get("settings", {}), f"alias {name} in {metadata[method].path}")
            names[name] = Alias(method, entry.get("title", name), settings)
    for name, table in tables.get("alias", {}).items():
        alias = names.get(name, Alias(name, name))
        if table.get("method", alias.method) != alias.method:
            alias = Alias(table["method"], name)
        settings = alias.settings | _with_origin(table.get("set", {}), f"alias {name}")
        names[name] = Alias(alias.method, table.get("title", alias.title), settings)
    for name in methods:
        if names[name].method != name:
            raise BenchError(f"'{name}' is an alias of {names[name].method} and a file of methods. Rename one.")
    return dict(sorted(names.items()))


def _metadata_or_warning(method: str) -> MethodMetadata:
    try:
        return method_metadata(method)
    except BenchError as error:
        _log.warning("%s", error)
        return MethodMetadata()


def method_specs(
    tables: Mapping[str, Any],
    requested: Sequence[str],
    *,
    methods: Sequence[str],
    dataset: str,
    profile: str,
    config_tables: Sequence[tuple[Mapping[str, Any], str]],
    settings: Mapping[str, str],
) -> tuple[MethodSpec, ...]:
    """Return the methods of a command.

    Settings have this precedence, from the lowest: PROFILES of the method's file, `config_tables`, the alias,
    `config_tables` that name the alias, the category. As with --set, the name of a file applies to all of its aliases.

    Args:
        tables: the tables of bench.toml.
        requested: names of methods or aliases; "all" is every one except external methods.
        methods: names of the files.
        dataset: name of the dataset, whose categories may have settings in bench.toml.
        profile: name of the profile.
        config_tables: (table, origin) in increasing precedence; only the key `set` of each table is used.
        settings: settings of --set.

    Raises:
        BenchError: for an unknown name.
    """
    names = aliases(tables, methods)
    libraries = [name for name in methods if names[name].is_external]
    names |= _external_models(names, libraries, requested)
    # "all" leaves out a file to which an alias only gives another name, so that no run is made twice.
    renamed = {alias.method for name, alias in names.items() if not alias.settings and alias.method != name}
    check_known((name for name in requested if name != "all"), names, "a method")
    if "all" in requested:
        requested = [name for name in names if name not in renamed and name not in libraries and ":" not in name]
    overrides, method_overrides = _split_overrides(settings, {*requested, *(names[name].method for name in requested)})
    sets = [(table.get("set", {}), origin) for table, origin in config_tables]
    table_prefix = f"category.{dataset}"
    categories = tables.get("category", {}).get(dataset, {})
    for table, origin in (*sets, *((table, f"[{table_prefix}.{category}]") for category, table in categories.items())):
        check_known(table, [*methods, *names], f"a method, which is what {origin} sets")
    specs = []
    for name in requested:
        alias = names[name]
        metadata = method_metadata(alias.method)
        values = _with_origin(metadata.profiles.get(profile, {}), f"profile {profile} in {metadata.path}")
        for table, origin in sets:
            values |= _with_origin(table.get(alias.method, {}), origin)
        values |= alias.settings
        for table, origin in sets if name != alias.method else ():
            values |= _with_origin(table.get(name, {}), origin)
        by_category = {
            category: _with_origin(table.get(alias.method, {}) | table.get(name, {}), f"[{table_prefix}.{category}]")
            for category, table in categories.items()
        }
        overrides_of_method = method_overrides.get(alias.method, {}) | method_overrides.get(name, {})
        specs.append(MethodSpec(name, alias.method, alias.title, values, by_category, overrides, overrides_of_method))
    return tuple(specs)


def _external_models(
    names: Mapping[str, Alias], libraries: Sequence[str], requested: Iterable[str]
) -> dict[str, Alias]:
    """Return an alias for each name like anomalib:Padim: the model Padim of the library in methods/anomalib.py."""
    models = {}
    for name in requested:
        library, colon, model = name.partition(":")
        if colon:
            check_known([library], libraries, "a method that runs the models of a library")
            settings = names[library].settings | {"model": (model, f"--method {name}")}
            models[name] = Alias(library, names[library].title.replace("{model}", model), settings)
    return models


def _split_overrides(
    settings: Mapping[str, str], names: Collection[str]
) -> tuple[dict[str, tuple[Any, str]], dict[str, dict[str, tuple[Any, str]]]]:
    """Return the keys of --set for all methods, and those for one method by its name."""
    overrides: dict[str, tuple[Any, str]] = {}
    method_overrides: dict[str, dict[str, tuple[Any, str]]] = {}
    for key, value in settings.items():
        name, dot, setting = key.rpartition(".")
        if dot and name not in names:
            raise BenchError(f"--set {key} names a method that is not run; these are: {', '.join(sorted(names))}.")
        (method_overrides.setdefault(name, {}) if dot else overrides)[setting] = (value, "--set")
    return overrides, method_overrides


def _fields(settings_class: type) -> set[str]:
    return {entry.name for entry in fields(settings_class)} if is_dataclass(settings_class) else set()


def _with_origin(table: Mapping[str, Any], origin: str) -> dict[str, tuple[Any, str]]:
    return {key: (value, origin) for key, value in table.items()}
