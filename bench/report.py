"""The contract of a report: records in, one text out, made from what is stored and without torch.

A `reports/<name>.py` defines three things, and nothing registers it: the file's name is the report's name.

    SUFFIX   of the file that it becomes: "md"
    FIGURES  how it shows figures, a `Use`
    render   (records, store, figures, table) -> str

`figures` are those that `reports/figures.py` drew; none where the report does not show them. `table` is the table or
figure of the paper that is asked for, as "1" or "fig8"; "" is all that was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FigurePlacement = Literal["never", "beside", "inside"]
"""How a report shows figures: not at all, as files beside it where it is written to a folder, or within its text."""

FIGURES_FOLDER = "figures"
"""Of the figures' files, beside the text that shows them."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the records, or why it can't be drawn.

    Attributes:
        name: of its files, without suffix: "speed-mvtec-one-for-one".
        kind: what it shows: "speed", "k", "roc", "sheet", ...
        topic: what its methods can be compared on: "mvtec · one-for-one".
        title: a line. caption: how to read it, and what a reader must know beside it.
        files: contents by suffix, each the whole figure, made when asked for: "png", "svg", "pdf", or "jpg" of
            photographs. Empty where the data for it are missing; the caption then says which command would give them.
    """

    name: str
    kind: str
    topic: str
    title: str
    caption: str
    files: Mapping[str, bytes]
