"""Plug-ins by file name: a file in methods/, datasets/ or reports/ is a plug-in, and nobody registers it."""

import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal

from bench.errors import BenchError

Kind = Literal["methods", "datasets", "reports"]


def names(kind: Kind) -> list[str]:
    """The plug-ins of a kind, sorted. None of them is imported; sub-folders are not plug-ins."""
    folders = import_module(f"bench.{kind}").__path__
    return sorted({file.stem for folder in folders for file in Path(folder).glob("[!_.]*.py")})


def load(kind: Kind, name: str) -> ModuleType:
    """The plug-in's module, imported only now, so that one broken file breaks one name.

    Raises BenchError where there is no such file, or where importing it fails, with the last lines of its traceback.
    """
    if name not in names(kind):
        raise BenchError(f"{kind}/ has no '{name}'. There are: {', '.join(names(kind))}.")
    try:
        return import_module(f"bench.{kind}.{name}")
    except Exception as error:
        last = traceback.format_exc(limit=-2).strip().splitlines()[-6:]
        raise BenchError(f"{kind}/{name}.py can't be imported; mend the file. It says:\n" + "\n".join(last)) from error


def add(kind: Kind, folder: Path) -> None:
    """Plug-ins in that folder are found as well, after the shipped ones. Raises BenchError where there is none."""
    if not folder.is_dir():
        raise BenchError(f"[paths] {kind} names folders of plug-ins; {folder} is none. Make it, or mend the path.")
    paths = import_module(f"bench.{kind}").__path__
    if str(folder) not in paths:
        paths.append(str(folder))
