"""What methods refuse alike: settings that break a rule, images of another size, and a state of other settings."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bench.errors import BenchError


def refuse_below(least: float, name: str, settings: object, *fields: str) -> None:
    """Raises BenchError for the first of these fields of a method's settings that lies below `least`."""
    for field in fields:
        came = getattr(settings, field)
        if came < least:
            raise BenchError(f"{name}'s {field} is {least} or more; {came} came.")


def refuse_unless(holds: bool, rule: str, came: object) -> None:
    """Raises BenchError with the rule, in words, and what came, where the rule doesn't hold."""
    if not holds:
        raise BenchError(f"{rule}; {came} came.")


def refuse_another_size(images: Tensor, size: tuple[int, int], name: str) -> None:
    """Raises BenchError where images (b, 3, h, w) aren't of the height and width that a method was made for."""
    came = tuple(images.shape[2:])
    if came != size:
        raise BenchError(f"This {name} answers for images of {size} pixels; {came} came. Resize them.")


@contextmanager
def refuse_another_state(name: str) -> Iterator[None]:
    """Raises BenchError where what a network is to take over in this block doesn't fit the method's settings."""
    try:
        yield
    except (KeyError, RuntimeError) as error:
        said = str(error).split("\n\t")
        why = said[min(1, len(said) - 1)]  # torch heads its list of what doesn't fit by a line
        raise BenchError(f"A fitted {name} needs the settings that it was fitted with. {why}") from error
