"""Plug-ins by file name: a file in methods/, datasets/ or reports/ is a plug-in, and nobody registers it."""

import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal

from bench.errors import BenchError, suggestion

Kind = Literal["methods", "datasets", "reports"]

_DEFINES = {
    "methods": ("Settings", "METHOD"),
    "datasets": ("TITLE", "SYNTHETIC", "ABOUT", "samples"),
    "reports": ("SUFFIX", "FIGURES", "render"),
}

_EXTRAS = ("anomalib",)  # packages that an extra of the same name brings


def names(kind: Kind) -> list[str]:
    """The plug-ins of a kind, sorted. None of them is imported; sub-folders are not plug-ins."""
    return sorted({file.stem for folder in plugin_folders(kind) for file in folder.glob("[!_.]*.py")})


def source_file(kind: Kind, name: str) -> Path | None:
    """Return the file of a plug-in, or None if there is none; it is not imported."""
    paths = (folder / f"{name}.py" for folder in plugin_folders(kind)) if name in names(kind) else ()
    return next((path for path in paths if path.is_file()), None)


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in's module, imported only now, so that one broken file breaks one name.

    Raises BenchError where there is no such file, where importing it fails, with the last lines of its traceback, or
    where it lacks what every plug-in of its kind defines.
    """
    if name not in names(kind):
        there = names(kind)
        raise BenchError(f"{kind}/ has no '{name}'.{suggestion(name, there)} There are: {', '.join(there)}.")
    try:
        module = import_module(f"bench.{kind}.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "bench", *sys.stdlib_module_names}:
            raise _broken(kind, name) from error
        extra = f"'maskbench[{package}]'" if package in _EXTRAS else package
        raise BenchError(
            f"{kind}/{name}.py needs the package {package}, which is not installed: pip install {extra}"
        ) from error
    except (Exception, SystemExit) as error:
        raise _broken(kind, name) from error
    lacking = [defined for defined in _DEFINES[kind] if defined not in vars(module)]
    if lacking:
        raise BenchError(
            f"A file in {kind}/ defines {', '.join(_DEFINES[kind])}; {name}.py lacks {', '.join(lacking)}. Write it."
        )
    return module


def _broken(kind: Kind, name: str) -> BenchError:
    """What to say of a file that can't be imported, while that error is handled."""
    last = traceback.format_exc(limit=-2).strip().splitlines()[-6:]
    return BenchError(f"{kind}/{name}.py can't be imported; mend the file. It says:\n" + "\n".join(last))


def add_folder(kind: Kind, folder: Path) -> None:
    """Plug-ins in that folder are found as well, after the shipped ones.

    Raises BenchError where there is no such folder, or where a file in it has the name of a plug-in from elsewhere.
    """
    if not folder.is_dir():
        raise BenchError(f"[paths] {kind} names folders of plug-ins; {folder} is none. Make it, or mend the path.")
    folder, found = folder.resolve(), plugin_folders(kind)
    if folder in found:
        return
    twice = sorted({file.stem for file in folder.glob("[!_.]*.py")} & set(names(kind)))
    if twice:
        raise BenchError(f"A plug-in's name is its file's; {folder} has {twice[0]}.py as {kind}/ has. Rename it.")
    # a plain list, because a namespace package's own path forgets what was appended whenever it is computed again
    import_module(f"bench.{kind}").__path__ = [*map(str, found), str(folder)]


def plugin_folders(kind: Kind) -> list[Path]:
    """Where plug-ins of a kind are looked for: a process that begins anew is told those that were added."""
    return [Path(folder).resolve() for folder in import_module(f"bench.{kind}").__path__]
