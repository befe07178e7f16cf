"""The error that a user can fix, the check of names, and the result of a check."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

MAX_TEXT = 8000
"""Largest number of characters of a failure or a warning in a record."""

MAX_REASON = 500
"""Largest number of characters of an error that is quoted in another one."""


class BenchError(Exception):
    """An error that a user can fix: what must hold, what was given, how to fix it.

    The command line prints it in red and exits with code 2. Ctrl-C exits with code 130; other exceptions print a
    traceback.
    """


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check of a method, a dataset or a machine.

    Attributes:
        requirement: a sentence that must be true.
        problem: why it is not true and how to fix that; "" if it is true.
        required: False if the requirement is optional: a problem is then a hint, not a failure.
    """

    requirement: str
    problem: str = ""
    required: bool = True


def error_text(error: BaseException) -> str:
    """Return the text of an error; that of a plug-in may raise another one."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001
        return "its text cannot be read"


def first_line(error: BaseException) -> str:
    """Return the first line of the text of an error, or the name of its type if it has no text, as EOFError."""
    lines = error_text(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shortened(text: str, length: int = MAX_TEXT) -> str:
    """Return the text with at most `length` characters: without its middle if it is longer."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters left out ...] {text[-half:]}"


def check_known(keys: Iterable[str], names: Iterable[str], description: str) -> None:
    """Raise BenchError for the first key that is not one of the names.

    Args:
        keys: names to check.
        names: the valid names.
        description: what each of the keys must be, for the error message: "a method".
    """
    names = tuple(names)
    for key in keys:
        if key not in names:
            raise BenchError(
                f"'{key}' is not {description}.{suggestion(key, names)} Known: {', '.join(names) or 'none'}."
            )


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return the text "Did you mean 'x'?" with a leading space for the closest of the names, "" if none is close."""
    close = get_close_matches(name, list(names), 1, 0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
