"""From drawn canvas to `Figure`, and the words for what can't be drawn."""

import re
import shlex
from collections.abc import Sequence

from matplotlib.figure import Figure as Canvas

from bench.evaluation.summary import Group
from bench.record import Record
from bench.report import Figure

from .style import files, notes


def made(
    kind: str, topic: str, title: str, caption: str, canvas: Canvas, *, groups: Sequence[Group], of: str = ""
) -> Figure:
    """The figure, with what a reader must know of these groups written into it; call it within `themed`.

    of: the method that it is of, where a topic has several of the kind.
    """
    told = files(canvas, f"{title}: {topic}", notes(groups))
    return Figure(named(f"{kind} {topic} {of}"), kind, topic, title, caption.strip(), told)


def absent(kind: str, topic: str, title: str, why: str) -> Figure:
    """A figure that can't be drawn; `why` ends with the command that would give what it needs."""
    return Figure(named(f"{kind} {topic}"), kind, topic, title, why, {})


def named(text: str) -> str:
    """A file's name: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def again(record: Record, *words: str) -> str:
    """The command that made a record with options laid over it, marked as a command: `again(r, "--k", "2,4,8")`."""
    run = record.run
    try:
        given = shlex.split(record.command)
    except ValueError:  # a quote that nobody closed
        given = []
    given = given or ["bench", "run", "--method", run.name, "--dataset", run.dataset]
    flags = {word: place + 1 < len(words) and not words[place + 1].startswith("--") for place, word in enumerate(words)}
    kept: list[str] = []
    left = iter(given)
    for word in left:
        option, equals, _ = word.partition("=")
        if option not in flags or not option.startswith("--"):
            kept.append(word)
        elif flags[option] and not equals:
            next(left, None)  # its value
    return f"`{shlex.join([*kept, *words])}`"
