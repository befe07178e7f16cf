"""Read `bench.toml`: the file that ships with maskbench, merged with the one in the working folder.

The files are merged table by table; a value of the working folder's file replaces the shipped one.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import registry
from bench.config.method_metadata import check_alias_name
from bench.config.method_specs import Alias, aliases
from bench.config.options import OPTIONS
from bench.config.settings import parse, validate
from bench.errors import BenchError, check_known

FILE = "bench.toml"

AUTO_WEIGHTS = Path("auto")
"""Value of --weights that uses no folder: only packages and timm's repositories on the Hugging Face hub."""

_OPTIONS: dict[str, Any] = dict.fromkeys(OPTIONS, object)
_SETTINGS = {"*": {"*": object}}  # method -> key -> value
_SCHEMA: dict[str, Any] = {
    "paths": {
        **dict.fromkeys(("runs", "cache", "weights"), str),
        **dict.fromkeys(("methods", "datasets", "reports"), tuple[str, ...]),
        "data": {"*": str},
    },
    "profile": {"*": {"note": str, "shared_preprocessing": {"*": object}, "set": _SETTINGS, **_OPTIONS}},
    "campaign": {"*": {"about": str, "profile": str, "set": _SETTINGS, "sweep": {"*": object}, **_OPTIONS}},
    "dataset": {"*": {"layout": str, "depth": int, "page": int, "allow_large": bool}},
    "alias": {"*": {"method": str, "title": str, "set": {"*": object}}},
    "category": {"*": {"*": _SETTINGS}},  # dataset -> category -> settings
}
"""The tables and keys of bench.toml. "*" is any name, `object` any value: its type is checked when it is used."""


@dataclass(frozen=True, slots=True)
class Config:
    """The merged `bench.toml`.

    Attributes:
        tables: the merged tables.
        files: the files that they were read from.

    Raises BenchError if a table or key is unknown, or if an alias is not a valid folder name.
    """

    tables: Mapping[str, Any]
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        validate(self.tables, _SCHEMA, FILE)
        for name in self.tables.get("alias", {}):
            check_alias_name(name)

    def check_datasets(self) -> None:
        """Raise BenchError if a table names a dataset that does not exist, once the plug-in folders are added."""
        named = {table: self.tables.get(table, {}) for table in ("dataset", "category")}
        named["paths.data"] = self.tables.get("paths", {}).get("data", {})
        for table, datasets in named.items():
            check_known(datasets, registry.names("datasets"), f"a dataset, in [{table}] of {FILE}")

    def names(self, table: Literal["profile", "campaign"]) -> list[str]:
        """Return the names in the table, sorted."""
        return sorted(self.tables.get(table, {}))

    def aliases(self) -> dict[str, Alias]:
        """Return all methods and aliases by name, from their files and from bench.toml, sorted by name."""
        return aliases(self.tables, registry.names("methods"))

    def path(self, key: Literal["runs", "cache", "weights"]) -> Path | None:
        """Return a folder of [paths] with ~ expanded, or None if the table does not name it."""
        text = self.tables.get("paths", {}).get(key)
        return expand_user(text) if text else None

    def weights(self, requested: Path | None) -> Path | None:
        """Return the folder of --weights, or that of [paths]; None without one, and for AUTO_WEIGHTS."""
        return None if requested == AUTO_WEIGHTS else requested or self.path("weights")

    def data(self, dataset: str) -> Path | None:
        """Return the folder of a dataset as [paths.data] names it, or None."""
        text = self.tables.get("paths", {}).get("data", {}).get(dataset)
        return expand_user(text) if text else None

    def plugin_folders(self, kind: Literal["methods", "datasets", "reports"]) -> tuple[Path, ...]:
        """Return the user's plug-in folders of [paths], for `registry.add_folder`."""
        folders = self.tables.get("paths", {}).get(kind, ())
        return tuple(expand_user(folder) for folder in parse(f"paths.{kind}", folders, tuple[str, ...]))


def load_config(folder: Path | None = None) -> Config:
    """Return the shipped `bench.toml` merged with the one in `folder` (default: the working folder)."""
    package = Path(__file__).resolve().parent.parent
    is_checkout = (package.parent / "pyproject.toml").is_file()  # a wheel contains a copy in the package
    shipped = (package.parent if is_checkout else package) / FILE
    local = (folder or Path.cwd()) / FILE
    if local.exists() and not local.is_file():
        raise BenchError(f"{local} must be a file; it is a folder. Rename it, or run bench in another folder.")
    files = (shipped,) if not local.is_file() or local.samefile(shipped) else (shipped, local)
    tables: dict[str, Any] = {}
    for path in files:
        tables = _merge(tables, _read_toml(path))
    return Config(tables, files)


def cache_folder(config: Config) -> Path:
    """Return the folder for generated data and backbone features: [paths] cache, or the user's cache folder."""
    return config.path("cache") or expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maskbench"


def expand_user(path: str | Path) -> Path:
    """Return the path with a leading ~ replaced by the home folder.

    Raises:
        BenchError: there is no home folder, or the path has a NUL character, which no system permits.
    """
    if "\0" in str(path):
        raise BenchError(f"A path must have no NUL character, got {str(path)!r}. Correct it.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BenchError(f"~ in a path needs a home folder, and there is none for {path} ({error}).") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BenchError(f"{path} must be readable TOML: {error}. Fix that line.") from error


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of `base`, recursively updated with those of `overrides`."""
    merged = dict(base)
    for key, value in overrides.items():
        are_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if are_tables else value
    return merged
