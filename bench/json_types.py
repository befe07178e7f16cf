"""Types of values from JSON: numbers within limits, and the comparison with a declared type."""

import math
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin

_MAX_INTEGER = 2**63
"""Integers must be smaller in magnitude: of larger ones Python raises errors when it formats or divides them."""


def parse_integer(text: str) -> int:
    """Return the integer of a text in JSON. Raises ValueError if it is too large."""
    value = int(text)
    if abs(value) >= _MAX_INTEGER:
        raise ValueError(f"{text:.20} is too large")
    return value


def parse_finite(text: str) -> float:
    """Return the number of a text in JSON. Raises ValueError if it is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def type_name(hint: Any) -> str:
    """Return the text of a declared type."""
    return str(hint) if get_args(hint) else str(hint.__name__)


def matches_type(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON has the declared type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(matches_type(value, argument) for argument in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(matches_type(item, arguments[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(matches_type(item, arguments[0]) for item in value)
    types = (dict,) if is_dataclass(hint) else {float: (int, float)}.get(hint, (hint,))
    return isinstance(value, types) and (hint is bool or not isinstance(value, bool))
