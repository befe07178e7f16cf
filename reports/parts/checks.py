"""Ours against the published value of the same method: how far apart, and whether that is within what is known."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.summary import Group

from .columns import Column, Row, paper_rows
from .papers import LEVELS, Paper, Tolerance, tolerance, values


@dataclass(frozen=True, slots=True)
class Check:
    """An expected value in percent beside the one found.

    Attributes:
        what: the table or run. method, category, metric: of the value.
        found: None where there is none. tolerance: in points, None where no one can tell. why: it is not verified.
    """

    what: str
    method: str
    category: str
    metric: str
    expected: float
    found: float | None
    tolerance: float | None
    why: str = ""

    @property
    def difference(self) -> float | None:
        """In points, of the values as they are printed."""
        return None if self.found is None else round(self.found - self.expected, 6)

    @property
    def agrees(self) -> bool | None:
        """Whether it lies within the tolerance; None where it can't be verified."""
        if self.difference is None or self.tolerance is None or self.why:
            return None
        return abs(self.difference) <= self.tolerance + 1e-9


def published_checks(paper: Paper, own: Iterable[Column]) -> Iterator[Check]:
    """Every published value of a method that ran here, and of which nothing is known but that it did not."""
    for column in own:
        if column.published:
            for row in paper_rows(paper):
                for level in LEVELS:
                    yield from _check(paper, column, row, level)


def _check(paper: Paper, column: Column, row: Row, level: str) -> Iterator[Check]:
    printed = values(paper.file).get((column.published, row.k, row.category), {}).get(level)
    if not printed:
        return
    cell, group = column.mean(row, level), column.groups.get(row.k)
    known = tolerance(column.published, paper.name, column.selection)
    yield Check(
        what=paper.number,
        method=column.title,
        category=row.title,
        metric=LEVELS[level],
        expected=float(printed),
        found=round(100 * cell.mean, 1) if cell else None,
        tolerance=round(known.of(len(row.of)), 2) if known else None,
        why=_why(paper, column, known, group, level) if cell else "missing",
    )


def _why(paper: Paper, column: Column, known: Tolerance | None, group: Group | None, level: str) -> str:
    """Why a value can't be verified; "" where it can."""
    run = group.first.run if group else None
    if run and (run.synthetic or run.limit or run.note or "random" in run.inputs.values()):
        return "reduced settings, limited images or random weights are no reproduction"
    if (paper.number, column.published, level) == ("Table I", "AE-SSIM", "image"):
        return "the published value is no AUROC"
    if known:
        return ""
    if column.published.startswith("AMI-Net") and column.selection == "last":
        return "the paper chooses the epoch on the test set; of the last one nobody knows how near it comes"
    if paper.ks != (0,):
        return "the paper draws the images once, and how far another draw moves it is not known"
    return f"nobody knows how near a reproduction of {column.published} should come"


def verified(checks: Sequence[Check]) -> bool | None:
    """Whether all that could be verified agrees; None where nothing could be."""
    told = [check.agrees for check in checks if check.agrees is not None]
    return all(told) if told else None
