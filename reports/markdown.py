"""The report as Markdown."""

from collections.abc import Sequence

from bench.record import Record
from bench.report import Figure, FigurePlacement
from bench.store import Store

from .parts.document import TITLE, document
from .parts.markup import markdown

SUFFIX = "md"
FIGURES: FigurePlacement = "beside"


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = (), table: str = "") -> str:
    """A page; `store` holds the raw answers of the records, of which the statistics are made."""
    return markdown(TITLE, document(records, store, figures, table))
