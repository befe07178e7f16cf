"""Ours against the published value of the same method: how far apart, and whether that is within what is known."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.evaluation.summary import METRICS, Group

from .columns import Column, Row, paper_rows
from .papers import (
    AVERAGES,
    LEVELS,
    RELEASED,
    SAME_WEIGHTS,
    TABLES,
    Paper,
    Tolerance,
    members,
    rows,
    tolerance,
    values,
)
from .tables import NONE, Entry, Piece, Table

VERDICTS: dict[bool | None, str] = {True: "agrees", False: "differs", None: "not verified"}


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


def released_checks(groups: Iterable[Group]) -> Iterator[Check]:
    """What the authors' README tells of their weights, against the same weights judged here."""
    paper = TABLES["1"]
    for group in groups:
        if (
            group.first.run.is_released_checkpoint
            and paper.holds(group.first.run)
            and group.first.run.method == "aminet"
        ):
            for row in rows(RELEASED):
                of = members(row["category"], paper.file)
                for metric in ("image_auroc", "pixel_auroc", "image_ap", "pixel_ap"):
                    cell = group.mean(metric, of)
                    yield Check(
                        what="Released weights, as their README tells",
                        method=group.first.run.title,
                        category=AVERAGES.get(row["category"], row["category"].replace("_", " ")),
                        metric=metric,
                        expected=float(row[metric]),
                        found=round(100 * cell.mean, 1) if cell else None,
                        tolerance=round(SAME_WEIGHTS.of(len(of)), 2),
                        why="" if cell else "missing",
                    )


def _why(paper: Paper, column: Column, known: Tolerance | None, group: Group | None, level: str) -> str:
    """Why a value can't be verified; "" where it can."""
    run = group.first.run if group else None
    reduced = run and (run.synthetic or run.limit or run.profile_note or "random" in run.file_hashes.values())
    last = column.published.startswith("AMI-Net") and column.selection == "last"
    reasons = (
        (reduced, "reduced settings, limited images or random weights are no reproduction"),
        (
            (paper.number, column.published, level) == ("Table I", "AE-SSIM", "image"),
            "the published value is no AUROC",
        ),
        (
            run and run.is_released_checkpoint,
            "the released weights are another run than the table's, and have a table of their own",
        ),
        (known, ""),
        (last, "the paper chooses the epoch on the test set; of the last one nobody knows how near it comes"),
        (paper.ks != (0,), "the paper draws the images once, and how far another draw moves it is not known"),
        (True, f"nobody knows how near a reproduction of {column.published} should come"),
    )
    return next(why for holds, why in reasons if holds)


def verified(checks: Sequence[Check]) -> bool | None:
    """Whether all that could be verified agrees; None where nothing could be."""
    told = [check.agrees for check in checks if check.agrees is not None]
    return all(told) if told else None


def tabled(checks: Sequence[Check]) -> Iterator[Table]:
    """A table for each method of each of the papers' tables, or of each data set and protocol."""
    by_method: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        by_method.setdefault((check.what, check.method), []).append(check)
    head = ("row", "metric", "expected", "found", "difference", "tolerance", "verdict")
    for (what, method), own in by_method.items():
        yield Table.of(f"{what}: {method}", head, [_row(check) for check in own])


def _row(check: Check) -> list[str | Entry]:
    verdict = Piece(VERDICTS[check.agrees], bold=check.agrees is False)
    return [
        check.category,
        METRICS[check.metric],
        _digits(check.expected),
        NONE if check.found is None else _digits(check.found),
        NONE if check.difference is None else "+" * (check.difference > 0) + _digits(check.difference),
        NONE if check.tolerance is None else f"±{check.tolerance:g}",
        Entry((verdict,), (check.why,) if check.why else ()),
    ]


def _digits(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"
