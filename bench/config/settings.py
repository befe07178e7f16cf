"""Convert values of TOML or text to the types that a dataclass declares."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bench.errors import BenchError, check_known, suggestion

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_TYPE_NAMES = {int: "an integer", float: "a finite number", str: "text", bool: "yes or no", type(None): "none"}


def resolve(kind: type[S], raw: Mapping[str, tuple[Any, str]], owner: str) -> tuple[S, dict[str, str]]:
    """Return an instance of the dataclass `kind` and the origin of each of its values.

    `raw` maps keys to (value, origin); other fields keep their default. Raises BenchError for an unknown key, a value
    of the wrong type, and a value for which the dataclass raises an error.
    """
    if not is_dataclass(kind):
        raise BenchError(f"Settings of {owner} must be a dataclass, got {kind!r}. Write @dataclass(frozen=True).")
    hints, names = get_type_hints(kind), [entry.name for entry in fields(kind)]
    check_known(raw, names, f"a setting of {owner}")
    values = {
        key: parse(f"{key} ({origin})" if origin else key, value, hints[key]) for key, (value, origin) in raw.items()
    }
    try:
        instance = kind(**values)
    except (TypeError, ValueError) as error:  # a field without a default, or a check in __post_init__
        raise BenchError(f"The settings of {owner} are not valid: {error}. Change them.") from error
    return instance, {key: raw[key][1] if key in raw else "default" for key in names}


def parse(key: str, value: Any, hint: Any) -> Any:
    """Return `value`, from TOML or text, as the declared type of `key`. Raises BenchError if that is impossible."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _parse_literal(key, value, arguments)
    if origin in {Union, types.UnionType}:
        return _parse_union(key, value, arguments)
    if origin is tuple:
        return _parse_tuple(key, value, arguments)
    return _parse_scalar(key, value, hint)


def validate(value: Any, shape: Any, document: str, table: str = "") -> None:
    """Raise BenchError if nested tables do not have a shape.

    Args:
        value: the tables.
        shape: a table of keys and their shapes, "*" for any key; or a type; or `object` for any value.
        document: name of the whole, for the message.
        table: name of `value` inside it: "profile.demo".
    """
    if not isinstance(shape, dict):
        if shape is not object:
            parse(table, value, shape)
        return
    if not isinstance(value, Mapping):
        raise BenchError(
            f"[{table}] must be a table of {document}, got {value!r}. Write its keys below a line [{table}]."
        )
    if "*" not in shape:
        check_known(value, shape, f"a key of [{table}]" if table else f"a table of {document}")
    for key, part in value.items():
        validate(part, shape.get(key, shape.get("*")), document, f"{table}.{key}" if table else key)


def _parse_scalar(key: str, value: Any, hint: Any) -> Any:
    if hint not in _TYPE_NAMES:
        raise BenchError(
            f"{key} must be declared as int, float, str, bool, Literal, None, or a tuple or union of these; "
            f"got {hint}. Change the declaration."
        )
    if hint is bool or hint is type(None):
        parsed = (_BOOLEANS if hint is bool else {"none": None}).get(str(value).strip().lower(), value)
        if isinstance(parsed, hint):
            return parsed
    elif hint is str:
        if isinstance(value, str):
            return value
    elif not isinstance(value, bool) and not (
        hint is int and isinstance(value, float)
    ):  # an integer setting must not be 2.5
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if (hint is int and isinstance(number, int)) or math.isfinite(number):
            return number
    raise BenchError(f"{key} must be {_TYPE_NAMES[hint]}, got {value!r}.")


def _parse_literal(key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    texts = {str(choice): choice for choice in choices}
    text = str(value).strip()
    if text not in texts:
        raise BenchError(f"{key} must be one of {', '.join(texts)}; got '{value}'.{suggestion(text, texts)}")
    return texts[text]


def _parse_union(key: str, value: Any, hints: tuple[Any, ...]) -> Any:
    """Return the value parsed by the first hint that is valid for it: its type first, text last."""
    errors = []
    for hint in sorted(hints, key=lambda hint: (hint is str, hint is not type(value))):
        try:
            return parse(key, value, hint)
        except BenchError as error:
            errors.append(str(error))
    raise BenchError(" Or: ".join(errors))


def _parse_tuple(key: str, value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        parts: list[Any] = [part.strip() for part in value.split(",")] if value.strip() else []
    else:
        parts = list(value) if isinstance(value, list | tuple) else [value]
    hints = hints[:1] * len(parts) if Ellipsis in hints else hints
    if len(hints) != len(parts):
        raise BenchError(f"{key} must have {len(hints)} values separated by commas; {value!r} has {len(parts)}.")
    return tuple(parse(key, part, hint) for part, hint in zip(parts, hints, strict=True))
