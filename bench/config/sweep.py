"""Sweeps: the values that a call lays a method's settings out over, all combined or one setting at a time."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from bench.errors import BenchError

OPTION = "--over"
"""The origin of what a call sweeps."""

Sweep = dict[str, tuple[tuple[Any, ...], str]]
"""Key of a setting -> (values, origin), still as TOML or text gave them."""

Point = dict[str, tuple[Any, str]]
"""Key -> (value, origin): what one variant of a sweep sets."""


def parse_values(key: str, given: Any) -> tuple[Any, ...]:
    """The values of one key: a list of TOML, or text that separates them.

    Commas separate, or semicolons where there are some, so that a value may hold commas: "1,2;1,2,3" is two tuples.
    Raises BenchError where there are none.
    """
    if isinstance(given, str):
        given = [part.strip() for part in given.split(";" if ";" in given else ",")]
    found = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not key or not found or "" in found:
        raise BenchError(f"A sweep gives a setting its values, as --over clusters=2,4,8; '{key}' has {given!r}.")
    return found


def for_method(over: Sweep, name: str, settings: Mapping[str, str], names: Sequence[str]) -> Sweep:
    """What of a sweep is meant for the method `name`, one of `names`; "name.key" is for it alone.

    settings: --set, key -> text; it ends a campaign's sweep of that key. Raises BenchError where it contradicts the
    --over of the same call, or where --over names none of the methods.
    """
    found: Sweep = {}
    for key, (several, where) in sorted(over.items(), key=lambda item: "." in item[0]):  # what is for one alone beats
        owner, dot, rest = key.rpartition(".")
        if dot and owner not in names and where == OPTION:
            raise BenchError(f"--over {key} names a method that is not run; these are: {', '.join(names)}.")
        if key in settings and where == OPTION:
            raise BenchError(f"--set fixes what --over varies; both name {key}. Leave one of them out.")
        if owner in {"", name} and not {key, f"{name}.{rest}"} & settings.keys():
            found[key] = several, where
    return found


def grid_points(over: Sweep, *, one_at_a_time: bool) -> Iterator[tuple[Point, tuple[str, ...]]]:
    """The points of a sweep, each with the settings that tell it from the others.

    The product of all values, the last key fastest; or the defaults once, then each key alone. Without keys there is
    one point, which sets nothing.
    """
    if one_at_a_time and over:
        yield {}, tuple(over)
        for key, (several, where) in over.items():
            yield from (({key: (value, where)}, (key,)) for value in several)
        return
    each = [[(key, (value, where)) for value in several] for key, (several, where) in over.items()]
    yield from ((dict(point), tuple(over)) for point in product(*each))
