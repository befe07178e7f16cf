"""All figures of the records with their captions, and which commands would give the others."""

from collections.abc import Sequence

from bench.record import Record
from bench.report import Figure, Use
from bench.store import Store

from .parts.gallery import gallery
from .parts.markup import markdown
from .parts.tables import Section

SUFFIX = "md"
FIGURES: Use = "beside"


def render(records: Sequence[Record], store: Store, figures: Sequence[Figure] = ()) -> str:  # noqa: ARG001  the contract
    """A gallery."""
    none = [] if figures else [Section("", ("`bench report --out DIR` draws figures.",))]
    return markdown("maskbench: figures", [*gallery(figures, 1), *none])


def draw(records: Sequence[Record], store: Store) -> list[Figure]:  # noqa: ARG001
    """Every figure that the records allow, and a word for every other."""
    return []
