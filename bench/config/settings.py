"""Values from TOML or from text, as the types that a dataclass declares; unknown keys refused with the nearest one."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.errors import BenchError, check_known, suggestion

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

_YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KINDS = {int: "an integer", float: "a finite number", str: "text", bool: "yes or no", type(None): "none"}


def resolve(kind: type[S], raw: Mapping[str, tuple[Any, str]], owner: str) -> tuple[S, dict[str, str]]:
    """The dataclass `kind` with raw values (key -> (value, origin)) typed and laid over its defaults, and each origin.

    Raises BenchError for an unknown key, a value of another type, and whatever `kind` itself refuses.
    """
    if not is_dataclass(kind):
        raise BenchError(f"The Settings of {owner} are a dataclass; {kind!r} is none. Write @dataclass(frozen=True).")
    hints, names = get_type_hints(kind), [entry.name for entry in fields(kind)]
    check_known(raw, names, f"a setting of {owner}")
    values = {
        key: parse(f"{key} ({where})" if where else key, value, hints[key]) for key, (value, where) in raw.items()
    }
    try:
        made = kind(**values)
    except (TypeError, ValueError) as error:  # a field without a default, or a refusal in __post_init__
        raise BenchError(f"The settings of {owner} are refused by its Settings: {error}.") from error
    return made, {key: raw[key][1] if key in raw else "default" for key in names}


def parse(key: str, value: Any, wanted: Any) -> Any:
    """`value`, from TOML or as text, as the type that `key` is declared with. Raises BenchError where it can't be."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return _one(key, value, inner)
    if origin in {Union, types.UnionType}:
        return _any_of(key, value, inner)
    if origin is tuple:
        return _several(key, value, inner)
    return _scalar(key, value, wanted)


def validate(value: Any, shape: Any, what: str, place: str = "") -> None:
    """Raises BenchError where nested tables are not what `shape` says, with the place of what is not.

    shape: a table of keys and their shapes, where "*" is any key; or a type; or `object`, which any value has.
    what: the whole, for the error. place: of `value` in it, as "profile.demo".
    """
    if not isinstance(shape, dict):
        if shape is not object:
            parse(place, value, shape)
        return
    if not isinstance(value, Mapping):
        raise BenchError(f"[{place}] is a table of {what}; {value!r} is none. Write its keys below a line [{place}].")
    if "*" not in shape:
        check_known(value, shape, f"a key of [{place}]" if place else f"a table of {what}")
    for key, part in value.items():
        validate(part, shape.get(key, shape.get("*")), what, f"{place}.{key}" if place else key)


def _scalar(key: str, value: Any, wanted: Any) -> Any:
    if wanted not in _KINDS:
        raise BenchError(
            f"{key} is declared as {wanted}; a setting is an int, float, str, bool, Literal or None, "
            f"or a tuple or union of these. Declare it so."
        )
    if wanted is bool or wanted is type(None):
        found = (_YES_NO if wanted is bool else {"none": None}).get(str(value).strip().lower(), value)
        if isinstance(found, wanted):
            return found
    elif wanted is str:
        if isinstance(value, str):
            return value
    elif not isinstance(value, bool) and not (wanted is int and isinstance(value, float)):  # 2.5 epochs are none
        try:
            number = wanted(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if (wanted is int and isinstance(number, int)) or math.isfinite(number):
            return number
    raise BenchError(f"{key} is {_KINDS[wanted]}; {value!r} is not.")


def _one(key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    texts = {str(choice): choice for choice in choices}
    given = str(value).strip()
    if given not in texts:
        raise BenchError(f"{key} is one of {', '.join(texts)}; '{value}' is not.{suggestion(given, texts)}")
    return texts[given]


def _any_of(key: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """The first kind that takes the value: its own type before others, and text, which takes any text, last."""
    refusals = []
    for kind in sorted(kinds, key=lambda kind: (kind is str, kind is not type(value))):
        try:
            return parse(key, value, kind)
        except BenchError as refusal:
            refusals.append(str(refusal))
    raise BenchError(" Or: ".join(refusals))


def _several(key: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        parts: list[Any] = [part.strip() for part in value.split(",")] if value.strip() else []
    else:
        parts = list(value) if isinstance(value, list | tuple) else [value]
    each = kinds[:1] * len(parts) if Ellipsis in kinds else kinds
    if len(each) != len(parts):
        raise BenchError(f"{key} takes {len(each)} values separated by commas; {value!r} has {len(parts)}.")
    return tuple(parse(key, part, kind) for part, kind in zip(parts, each, strict=True))
