"""Sweeps: several values of settings of a method, all combined or one setting at a time."""

from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any

from bench.errors import BenchError

OPTION = "--sweep"
"""The origin of a sweep from the command line, in contrast to one of a campaign."""

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
        values = [item.strip() for item in values.split(";" if ";" in values else ",")]
    grid_values = tuple(values) if isinstance(values, list | tuple) else (values,)
    if not key or not grid_values or "" in grid_values:
        raise BenchError(
            f"A sweep must have values for a setting, for example --sweep clusters=2,4,8; got '{key}'={values!r}."
        )
    return grid_values


def for_method(sweep: Sweep, name: str, method: str, settings: Mapping[str, str], names: Collection[str]) -> Sweep:
    """Return the part of a sweep that applies to a method; "name.key" is for it only.

    Args:
        sweep: the whole sweep.
        name: name of the method: an alias or a file.
        method: name of the method's file; "method.key" is for all of its aliases.
        settings: --set, key -> text; it replaces a campaign's sweep of the same key.
        names: names and files of all methods of the command.

    Raises:
        BenchError: --set and --sweep name the same key, or a key of --sweep names a method that is not run.
    """
    selected: Sweep = {}
    precedence = {"": 0, method: 1, name: 2}  # "name.key" overrides "method.key", which overrides "key"
    for key, (values, origin) in sorted(sweep.items(), key=lambda item: precedence.get(item[0].rpartition(".")[0], 0)):
        owner, dot, setting = key.rpartition(".")
        if dot and owner not in names and origin == OPTION:
            raise BenchError(f"--sweep {key} names a method that is not part of the run: {', '.join(sorted(names))}.")
        if key in settings and origin == OPTION:
            raise BenchError(f"--set and --sweep must name different settings; both name {key}. Remove one of them.")
        if owner in precedence and not {key, f"{method}.{setting}", f"{name}.{setting}"} & settings.keys():
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
