"""Metadata of a method: literal constants of its file, read without importing it, and so without torch.

    TITLE = "RIAD"                        # in tables; default: the name of the file
    FAMILY = "mask-based"                 # one of FAMILIES
    PAPER = "Zavrtanik, Kristan, Skočaj: Reconstruction by inpainting ..."
    YEAR = 2021
    NEEDS = ("the extra maskbench[anomalib]",)
    PROFILES = {"demo": {"width": 8, "epochs": 100}, "check": {"width": 2, "epochs": 2}}  # settings by profile
    ALIASES = {"riad_gray": {"title": "RIAD (gray)", "settings": {"grayscale": True}}}

All of them are optional. PROFILES replace the defaults of Settings: "demo" takes minutes on a laptop, "check" seconds
(for `bench check` and the tests), "paper" has the values of the paper if the defaults are those of the authors' code. A
method of the family "external" runs the models of another library: `--method anomalib:Padim` sets its setting `model`,
and its TITLE contains "{model}".
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from bench import registry
from bench.config.settings import validate
from bench.errors import BenchError

Family = Literal[
    "",
    "mask-based",
    "reconstruction",
    "memory bank",
    "distillation",
    "flow",
    "one-class",
    "few-shot",
    "external",
    "baseline",
]
FAMILIES = get_args(Family)[1:]

_SCHEMA: dict[str, Any] = {
    "TITLE": str,
    "FAMILY": Family,
    "PAPER": str,
    "YEAR": int,
    "NEEDS": tuple[str, ...],
    "PROFILES": {"*": {"*": object}},
    "ALIASES": {"*": {"title": str, "settings": {"*": object}}},
}
_ALIAS_NAME = re.compile(r"[\w+-]+")


@dataclass(frozen=True, slots=True)
class MethodMetadata:
    """The constants of a method's file.

    Attributes:
        path: path of the file, as "methods/riad.py".
        title, family, paper, year, needs: TITLE, FAMILY, PAPER, YEAR, NEEDS.
        profiles: PROFILES, settings by name of the profile.
        aliases: ALIASES, title and settings by name of the alias.
        has_checkpoints: whether the file calls `self.epochs`, so that an interrupted fit continues.
    """

    path: str = ""
    title: str = ""
    family: str = ""
    paper: str = ""
    year: int = 0
    needs: tuple[str, ...] = ()
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    has_checkpoints: bool = False

    @property
    def is_external(self) -> bool:
        """True if the method runs the models of another library."""
        return self.family == "external"


def method_metadata(method: str) -> MethodMetadata:
    """Return the metadata of a method by name; that of a file that does not exist is empty.

    Raises:
        BenchError: if a constant is not a literal or has a wrong type.
    """
    path = registry.source_file("methods", method)
    return _read(path, path.stat().st_mtime_ns) if path else MethodMetadata()


def check_alias_name(name: str) -> None:
    """Raise BenchError if the name of an alias cannot be the name of a folder."""
    if not _ALIAS_NAME.fullmatch(name):
        raise BenchError(f"The name of an alias must consist of letters, digits, _, + and -, got '{name}'. Rename it.")


@lru_cache(maxsize=256)
def _read(path: Path, modified: int) -> MethodMetadata:  # noqa: ARG001 - a modified file is read again
    short_path = f"{path.parent.name}/{path.name}"
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):  # the error is reported when the file is imported
        return MethodMetadata(short_path)
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in {target.id for target in targets if isinstance(target, ast.Name)} & _SCHEMA.keys():
                constants[name] = _literal(node.value, f"{short_path}, line {node.lineno}: {name}")
    for name, value in constants.items():
        validate(value, _SCHEMA[name], short_path, name)
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    has_checkpoints = any(isinstance(call, ast.Attribute) and call.attr == "epochs" for call in calls)
    fields = {name.lower(): value for name, value in constants.items()}
    metadata = MethodMetadata(short_path, **fields, has_checkpoints=has_checkpoints)
    for alias in metadata.aliases:
        check_alias_name(alias)
    if metadata.is_external != ("{model}" in metadata.title):
        raise BenchError(
            f'{short_path}: TITLE must contain "{{model}}" if and only if FAMILY is "external". Change one of them.'
        )
    return metadata


def _literal(node: ast.expr, location: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise BenchError(
            f"{location} must be a literal, because it is read without importing the file. Write the value itself."
        ) from error
