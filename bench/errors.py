"""The error that a user can fix, the check of names, and the result of a check."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class BenchError(Exception):
    """An error that a user can fix: what must hold, what was given, how to fix it.

    The command line prints it in red and exits with code 2. Ctrl-C exits with code 130; other exceptions print a
    traceback.
    """


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check of a method, a data set or a machine.

    Attributes:
        requirement: a sentence that must be true.
        problem: why it is not true and how to fix that; "" if it is true.
        required: False if the requirement is optional: a problem is then a hint, and no failure.
    """

    requirement: str
    problem: str = ""
    required: bool = True


def check_known(keys: Iterable[str], names: Iterable[str], kind: str) -> None:
    """Raise BenchError for the first key that is not one of the names.

    Args:
        keys: to check.
        names: valid keys.
        kind: what a key must be, for the message: "a method".
    """
    names = tuple(names)
    for key in keys:
        if key not in names:
            raise BenchError(f"'{key}' is not {kind}.{suggestion(key, names)} Known: {', '.join(names) or 'none'}.")


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return the text "Did you mean 'x'?" with a leading space for the closest of the names, "" if none is close."""
    close = get_close_matches(name, list(names), 1, 0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
