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
_MAX_INTEGER = 2**63
"""Integers must be smaller in magnitude, as those of records must be."""

_TYPE_NAMES = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false", type(None): "none"}


def resolve(settings_class: type[S], raw: Mapping[str, tuple[Any, str]], method_name: str) -> tuple[S, dict[str, str]]:
    """Return an instance of a dataclass of settings and the origin of each of its values.

    Args:
        settings_class: the dataclass.
        raw: key -> (value, origin); other fields keep their default.
        method_name: name of the method that the settings belong to, for messages.

    Raises:
        BenchError: for an unknown key, a value of the wrong type, and a value for which the dataclass raises an error.
    """
    if not is_dataclass(settings_class):
        raise BenchError(
            f"Settings of {method_name} must be a dataclass, got {settings_class!r}. Write @dataclass(frozen=True)."
        )
    hints, names = get_type_hints(settings_class), [entry.name for entry in fields(settings_class)]
    check_known(raw, names, f"a setting of {method_name}")
    values = {
        key: parse(f"{key} ({origin})" if origin else key, value, hints[key]) for key, (value, origin) in raw.items()
    }
    try:
        instance = settings_class(**values)
    except (TypeError, ValueError) as error:  # a field without a default, or a check in __post_init__
        raise BenchError(f"The settings of {method_name} are invalid: {error}. Change them.") from error
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


def validate(value: Any, schema: Any, source: str, table: str = "") -> None:
    """Raise BenchError if nested tables do not match a schema.

    Args:
        value: the tables.
        schema: a table of keys and their schemas, "*" for any key; or a type; or `object` for any value.
        source: what the tables come from, for the message: bench.toml.
        table: name of `value` inside it: "profile.demo".
    """
    if not isinstance(schema, dict):
        if schema is not object:
            parse(table, value, schema)
        return
    if not isinstance(value, Mapping):
        raise BenchError(
            f"[{table}] must be a table of {source}, got {value!r}. Write its keys below a line [{table}]."
        )
    if "*" not in schema:
        check_known(value, schema, f"a key of [{table}]" if table else f"a table of {source}")
    for key, entry in value.items():
        validate(entry, schema.get(key, schema.get("*")), source, f"{table}.{key}" if table else key)


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
        if hint is int and isinstance(number, int) and abs(number) >= _MAX_INTEGER:
            raise BenchError(f"{key} must be an integer of 64 bits, got one of {number.bit_length()} bits. Change it.")
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
    """Return the value parsed by the first valid hint. The type of the value is tried first, str last."""
    errors = []
    for hint in sorted(hints, key=lambda hint: (hint is str, hint is not type(value))):
        try:
            return parse(key, value, hint)
        except BenchError as error:
            errors.append(str(error))
    raise BenchError(" Or: ".join(errors))


def _parse_tuple(key: str, value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        items: list[Any] = [item.strip() for item in value.split(",")] if value.strip() else []
    else:
        items = list(value) if isinstance(value, list | tuple) else [value]
    hints = hints[:1] * len(items) if Ellipsis in hints else hints
    if len(hints) != len(items):
        raise BenchError(f"{key} must have {len(hints)} values separated by commas; {value!r} has {len(items)}.")
    return tuple(parse(key, item, hint) for item, hint in zip(items, hints, strict=True))
