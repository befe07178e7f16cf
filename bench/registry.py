"""Plug-ins by name: methods, datasets and reports.

A plug-in is a file in one of the folders `methods/`, `datasets/` and `reports/`, a file in a folder that `[paths]` of
bench.toml names, or a module that an installed package declares as an entry point in its pyproject.toml:

    [project.entry-points."maskbench.methods"]
    mymethod = "mypackage.mymethod"

The name of a file, or of an entry point, is the name of the plug-in. A trailing underscore, which keeps a file from
having the name of a module of the standard library, is not part of the name: `csv_.py` is the plug-in csv. No plug-in
is imported before it is used.
"""

import ast
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from bench.errors import MAX_REASON, BenchError, error_text, shortened, suggestion
from bench.process_state import restored_state

if TYPE_CHECKING:
    from bench.report_format import ReportContent

_log = logging.getLogger(__name__)

PluginKind = Literal["methods", "datasets", "reports"]
PLUGIN_KINDS: tuple[PluginKind, ...] = get_args(PluginKind)

_DEFINITIONS: dict[PluginKind, dict[str, Any]] = {
    "methods": {"Settings": type, "METHOD": type},
    "datasets": {"TITLE": str, "SYNTHETIC": bool, "ABOUT": str, "samples": Callable},
    "reports": {"SUFFIX": str, "FIGURES": str, "render": Callable},
}
"""What a plug-in of each kind must define, with the types."""

_TYPE_NAMES: dict[object, str] = {type: "a class", str: "text", bool: "True or False", Callable: "a function"}

_EXTRAS = ("anomalib",)
"""Packages that the extra of the same name installs."""


def names(kind: PluginKind) -> list[str]:
    """Return the names of the plug-ins of a kind, sorted. Subfolders and files with a leading "_" are not plug-ins."""
    files = {_plugin_name(file) for folder in plugin_folders(kind) for file in folder.glob("[!_.]*.py")}
    return sorted(files | installed(kind).keys())


@cache
def installed(kind: PluginKind) -> dict[str, EntryPoint]:
    """Return the plug-ins of installed packages: the entry points of the group "maskbench.<kind>" by name."""
    return {entry.name: entry for entry in entry_points(group=f"maskbench.{kind}")}


def source_file(kind: PluginKind, name: str) -> Path | None:
    """Return the source file of a plug-in without importing it, or None if there is none."""
    if name not in names(kind):
        return None
    file, entry = _file(kind, name), installed(kind).get(name)
    if file:
        return file
    try:
        spec = find_spec(entry.module) if entry else None
    except ImportError:
        return None  # `load` raises the error
    return Path(spec.origin) if spec and spec.origin else None


def read_constant(kind: PluginKind, name: str, constant: str) -> str:
    """Return a text constant of a plug-in without importing it; "" if the file does not define it as a literal."""
    file = source_file(kind, name)
    try:
        statements = ast.parse(file.read_bytes()).body if file else []
    except (OSError, SyntaxError, ValueError):
        return ""
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            targets = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if constant in targets:
                return str(statement.value.value)
    return ""


def load(kind: PluginKind, name: str) -> ModuleType:
    """Import a plug-in and return its module.

    Raises:
        BenchError: the name is unknown or ambiguous, the import fails (with the end of the traceback), or the module
            lacks a required definition.
    """
    available = names(kind)
    if name not in available:
        raise BenchError(
            f"'{name}' must be one of the {kind}.{suggestion(name, available)} Known: {', '.join(available)}."
        )
    entry, file = installed(kind).get(name), _file(kind, name)
    if entry and file:
        raise BenchError(
            f"The name of a plug-in must be unique; '{name}' is {file} and an entry point of {_package(entry)}. "
            f"Rename the file or uninstall the package."
        )
    module_name = entry.module if entry else f"bench.{kind}.{file.stem if file else name}"
    try:
        module = _import(kind, name, module_name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "bench", module_name.partition(".")[0], *sys.stdlib_module_names}:
            raise _import_error(kind, name) from error
        extra = f"'maskbench[{package}]'" if package in _EXTRAS else package
        raise BenchError(
            f"{kind}/{name} needs the package {package}, which is not installed: pip install {extra}"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _import_error(kind, name) from error
    missing = [definition for definition in _DEFINITIONS[kind] if definition not in vars(module)]
    if missing:
        raise BenchError(
            f"A plug-in in {kind}/ must define {', '.join(_DEFINITIONS[kind])}; {name} lacks {', '.join(missing)}. "
            f"Add it."
        )
    for definition, expected in _DEFINITIONS[kind].items():
        value = vars(module)[definition]
        if not isinstance(value, expected):
            raise BenchError(
                f"{definition} of {kind}/{name} must be {_TYPE_NAMES[expected]}, got {type(value).__name__}. "
                f"Fix the file."
            )
    return module


@contextmanager
def plugin_call(kind: PluginKind, name: str) -> Iterator[None]:
    """Guard a call of code that a plug-in defines, so that the other plug-ins continue.

    What it changes of the state of the process is restored, with a warning. Every exception except `KeyboardInterrupt`
    becomes a BenchError that names the plug-in.
    """
    try:
        with restored_state(f"{kind}/{name}"):
            yield
    except (BenchError, KeyboardInterrupt):
        raise
    except OSError as error:
        reason = error.strerror or error_text(error)
        raise BenchError(f"{kind}/{name} failed: {reason}: {error.filename}. Make it readable.") from error
    except BaseException as error:
        text = shortened(" ".join(error_text(error).split()), MAX_REASON)
        raise BenchError(f"{kind}/{name} must not raise {type(error).__name__}: {text}. Fix the file.") from error


def report_content() -> "ReportContent":
    """Return the functions that build reports; they are in reports/parts/, because they are content, not formats."""
    return cast("ReportContent", import_module("bench.reports.parts.contents"))


def add_folder(kind: PluginKind, folder: Path) -> None:
    """Add a folder of plug-ins, which is searched after the existing ones.

    Raises:
        BenchError: the folder does not exist, or a file has the name of an existing plug-in.
    """
    if not folder.is_dir():
        raise BenchError(f"[paths] {kind} must name folders; {folder} is not one. Create it or correct the path.")
    folder, folders = folder.resolve(), plugin_folders(kind)
    if folder in folders:
        return
    duplicates = sorted({_plugin_name(file) for file in folder.glob("[!_.]*.py")} & set(names(kind)))
    if duplicates:
        raise BenchError(
            f"The name of a plug-in must be unique; {folder} has {duplicates[0]}.py and {kind}/ has it as well. "
            f"Rename the file."
        )
    # A plain list: the path of a namespace package would lose the folder when Python computes it again.
    import_module(f"bench.{kind}").__path__ = [*map(str, folders), str(folder)]


def plugin_folders(kind: PluginKind) -> list[Path]:
    """Return the folders of plug-ins of a kind; a new process must add those that `add_folder` added here."""
    return [Path(folder).resolve() for folder in import_module(f"bench.{kind}").__path__]


def _import(kind: PluginKind, name: str, module_name: str) -> ModuleType:
    """Import a module; what it changes of the state of the process is restored."""
    if module_name in sys.modules:
        return sys.modules[module_name]
    if kind == "methods":
        import_module("bench.method")  # imports torch, whose state is restored as well
    with restored_state(f"{kind}/{name}"):
        return import_module(module_name)


def _file(kind: PluginKind, name: str) -> Path | None:
    paths = [folder / f"{stem}.py" for folder in plugin_folders(kind) for stem in (name, f"{name}_")]
    return next((path for path in paths if path.is_file()), None)


def _plugin_name(file: Path) -> str:
    return file.stem.rstrip("_")


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module


def _import_error(kind: PluginKind, name: str) -> BenchError:
    """Return the error for a plug-in whose import has just failed."""
    last = traceback.format_exc(limit=-2).strip().splitlines()[-6:]
    return BenchError(f"{kind}/{name} cannot be imported; fix the file:\n" + "\n".join(last))
