"""Sweeps: the values that a call gives to settings of a method, all combined or one setting at a time."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from bench.errors import BenchError

OPTION = "--sweep"
"""The origin of a sweep that the call gives, in contrast to one of a campaign."""

Sweep = dict[str, tuple[tuple[Any, ...], str]]
"""Key of a setting -> (values, origin); the values as TOML or text, not yet parsed."""

Point = dict[str, tuple[Any, str]]
"""Key -> (value, origin): the settings of one variant of a sweep."""


def parse_values(key: str, values: Any) -> tuple[Any, ...]:
    """Return the values of one key: a list of TOML, or text.

    Text is split at commas, or at semicolons if it has any, so that a value may contain commas: "1,2;1,2,3" is two
    tuples. Raises BenchError if there is no value.
    """
    if isinstance(values, str):
        values = [part.strip() for part in values.split(";" if ";" in values else ",")]
    parts = tuple(values) if isinstance(values, list | tuple) else (values,)
    if not key or not parts or "" in parts:
        raise BenchError(f"A sweep must give values to a setting, as --sweep clusters=2,4,8; got '{key}'={values!r}.")
    return parts


def for_method(sweep: Sweep, name: str, settings: Mapping[str, str], names: Sequence[str]) -> Sweep:
    """Return the part of a sweep that applies to the method `name`, one of `names`; "name.key" is for it only.

    `settings` is --set, key -> text; it replaces a campaign's sweep of the same key. Raises BenchError if --set and
    --sweep name the same key, or if a key of --sweep names a method that is not run.
    """
    selected: Sweep = {}
    for key, (values, origin) in sorted(sweep.items(), key=lambda item: "." in item[0]):  # "name.key" overrides "key"
        owner, dot, setting = key.rpartition(".")
        if dot and owner not in names and origin == OPTION:
            raise BenchError(f"--sweep {key} names a method that is not part of the run: {', '.join(names)}.")
        if key in settings and origin == OPTION:
            raise BenchError(f"--set and --sweep must name different settings; both name {key}. Remove one of them.")
        if owner in {"", name} and not {key, f"{name}.{setting}"} & settings.keys():
            selected[key] = values, origin
    return selected


def grid_points(sweep: Sweep, *, one_at_a_time: bool) -> Iterator[tuple[Point, tuple[str, ...]]]:
    """Yield the points of a sweep, each with the settings that distinguish it from the others.

    Either the product of all values, the last key changing fastest; or the defaults once, then each key alone. A sweep
    without keys has one point, which sets nothing.
    """
    if one_at_a_time and sweep:
        yield {}, tuple(sweep)
        for key, (values, origin) in sweep.items():
            yield from (({key: (value, origin)}, (key,)) for value in values)
        return
    axes = [[(key, (value, origin)) for value in values] for key, (values, origin) in sweep.items()]
    yield from ((dict(point), tuple(sweep)) for point in product(*axes))
