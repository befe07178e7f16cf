"""`bench.toml`."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bench import registry
from bench.config.method_metadata import check_alias_name
from bench.config.method_specs import Alias, aliases
from bench.config.options import Options
from bench.config.settings import parse, validate
from bench.errors import BenchError

FILE = "bench.toml"


_CHOOSING = {entry.name: object for entry in fields(Options)}
_SETTINGS = {"*": {"*": object}}  # method -> key -> value
_SHAPE: dict[str, Any] = {
    "paths": {"runs": str, "cache": str, "weights": str, "methods": tuple[str, ...], "data": {"*": str}},
    "profile": {"*": {"note": str, "shared_preprocessing": {"*": object}, "set": _SETTINGS, **_CHOOSING}},
    "campaign": {"*": {"about": str, "profile": str, "set": _SETTINGS, "over": {"*": object}, **_CHOOSING}},
    "alias": {"*": {"method": str, "title": str, "set": {"*": object}}},
    "category": {"*": {"*": _SETTINGS}},  # data set -> category -> settings
}
"""What bench.toml holds: "*" is any name, `object` any value: it is typed where it is used."""


@dataclass(frozen=True, slots=True)
class Config:
    """The merged `bench.toml`: its tables, and the files that they came from.

    Raises BenchError where the tables are not what a bench.toml holds.
    """

    tables: Mapping[str, Any]
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        validate(self.tables, _SHAPE, FILE)
        for name in self.tables.get("alias", {}):
            check_alias_name(name)

    def names(self, table: Literal["profile", "campaign"]) -> list[str]:
        """Return the names in the table, sorted."""
        return sorted(self.tables.get(table, {}))

    def aliases(self) -> dict[str, Alias]:
        """Return all methods and aliases by name, from their files and from bench.toml, sorted by name."""
        return aliases(self.tables, registry.names("methods"))

    def path(self, key: Literal["runs", "cache", "weights"]) -> Path | None:
        """A folder of [paths], with ~ resolved; None where it is not given."""
        given = self.tables.get("paths", {}).get(key)
        return expand_user(given) if given else None

    def data(self, dataset: str) -> Path | None:
        """Where [paths.data] says that the data set lies."""
        given = self.tables.get("paths", {}).get("data", {}).get(dataset)
        return expand_user(given) if given else None

    def methods(self) -> tuple[Path, ...]:
        """The user's own folders of methods, for `registry.add`."""
        given = self.tables.get("paths", {}).get("methods", ())
        return tuple(expand_user(folder) for folder in parse("paths.methods", given, tuple[str, ...]))


def load_config(folder: Path | None = None) -> Config:
    """The shipped `bench.toml` with the one in `folder` (default: the working folder) laid over it."""
    here = Path(__file__).resolve().parent.parent
    checkout = (here.parent / "pyproject.toml").is_file()  # elsewhere the wheel has put a copy beside this file
    shipped = (here.parent if checkout else here) / FILE
    own = (folder or Path.cwd()) / FILE
    found = (shipped,) if not own.is_file() or own.samefile(shipped) else (shipped, own)
    tables: dict[str, Any] = {}
    for path in found:
        tables = _over(tables, _parse(path))
    return Config(tables, found)


def cache_folder(config: Config) -> Path:
    """Where drawn data and frozen features go: [paths] cache, or the user's cache folder."""
    return config.path("cache") or expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maskbench"


def expand_user(path: str | Path) -> Path:
    """Return the path with a leading ~ replaced by the home folder. Raises BenchError if there is no home folder."""
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
