"""Values from TOML or from text, as the types that a dataclass declares; unknown keys refused with the nearest one."""

import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.errors import BenchError

S = TypeVar("S")

_YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KINDS = {int: "an integer", float: "a number", str: "text", bool: "yes or no", type(None): "none"}


def resolve(kind: type[S], raw: Mapping[str, tuple[Any, str]], owner: str) -> tuple[S, dict[str, str]]:
    """The method's Settings with raw values typed and laid over its defaults, and the origin of each."""
    hints = get_type_hints(kind)
    known(raw, tuple(hints), f"a setting of {owner}")
    values = {key: typed(key, value, hints[key]) for key, (value, _) in raw.items()}
    origin = {key: raw[key][1] if key in raw else "default" for key in hints}
    return kind(**values), origin


def typed(key: str, value: Any, wanted: Any) -> Any:
    """`value`, from TOML or as text, as the type that `key` is declared with. Raises BenchError where it can't be."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        if value in inner:
            return value
        texts = {str(choice): choice for choice in inner}
        if str(value) not in texts:
            raise BenchError(f"{key} is one of {', '.join(texts)}; '{value}' is not.{nearest(str(value), texts)}")
        return texts[str(value)]
    if origin in {Union, types.UnionType}:
        return _one_of(key, value, inner)
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        each = inner[:1] * len(parts) if inner[-1] is Ellipsis else inner
        if len(each) != len(parts):
            raise BenchError(f"{key} takes {len(each)} values separated by commas; {value!r} has {len(parts)}.")
        return tuple(typed(key, part, kind) for part, kind in zip(parts, each, strict=True))
    return _scalar(key, value, wanted)


def _scalar(key: str, value: Any, wanted: type) -> Any:
    if wanted is bool:
        if str(value).lower() in _YES_NO:
            return _YES_NO[str(value).lower()]
    elif wanted is type(None):
        if str(value).lower() == "none":
            return None
    elif isinstance(value, bool) or (wanted is int and isinstance(value, float)):
        pass  # True is no number here, and 2.5 epochs are none
    else:
        try:
            return wanted(value.strip() if isinstance(value, str) else value)
        except (TypeError, ValueError):
            pass
    raise BenchError(f"{key} is {_KINDS.get(wanted, wanted.__name__)}; {value!r} is not.")


def _one_of(key: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    refusals = []
    for kind in sorted(kinds, key=lambda kind: kind is str):  # text takes anything, so it is asked last
        try:
            return typed(key, value, kind)
        except BenchError as refusal:
            refusals.append(str(refusal))
    raise BenchError(" Or: ".join(refusals))


def known(given: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raises BenchError for the first given key that is none of the names."""
    names = tuple(names)
    for key in given:
        if key not in names:
            raise BenchError(f"'{key}' is not {what}.{nearest(key, names)} There are: {', '.join(names)}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """" Did you mean 'x'?" with the closest of the names, or "" where none is close."""
    close = get_close_matches(name, list(names), 1, 0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
