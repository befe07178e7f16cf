"""A table of the paper with ours beside it, the difference of each method, and how to fill what is missing."""

from collections.abc import Callable, Iterable, Sequence

from bench.evaluation.summary import Group

from .checks import Check, published_checks, released_checks, tabled
from .columns import Column, columns, form, paper_rows
from .papers import LEVELS, Paper, members, tolerance
from .tables import NONE, Block, Entry, Piece, Section, Table

WITHIN = {True: "yes", False: "no", None: NONE}


def beside(paper: Paper, groups: Iterable[Group]) -> Section:
    """The paper's table as a section. groups: of any data set and protocol; those that belong into it are taken."""
    own = [group for group in groups if paper.holds(group.first.run)]
    found = columns(own)
    blocks: list[Block] = [form(paper.about, paper_rows(paper), found, paper)]
    blocks += [table for column in found if (table := _differences(paper, column))]
    blocks += tabled(list(released_checks(own))) if paper.name == "1" else []
    commands = missing(paper, own)
    if commands:
        blocks.append("Missing here. These commands fill it, with the `--data` and `--runs` of your other calls:")
        blocks.append(tuple(f"`{command}`" for command in commands))
    return Section(paper.title, tuple(blocks))


def _differences(paper: Paper, column: Column) -> Table | None:
    """A method beside its own published values, in the rows where both are; None where there is no such row."""
    checks: dict[str, dict[str, Check]] = {}
    for check in published_checks(paper, [column]):
        if check.found is not None:
            checks.setdefault(check.category, {})[check.metric] = check
    lines = []
    for row in paper_rows(paper):
        own = checks.get(row.title, {})
        if own:
            published, apart, verdicts = (_side_by_side(own, told) for told in (_expected, _apart, _verdict))
            lines.append((row.title, published, column.entry(row), apart, verdicts))
    if not lines:
        return None
    every = [check for own in checks.values() for check in own.values()]
    why = dict.fromkeys(check.why for check in every if check.why)
    head = ("", "published", "measured", "difference", Entry.of("within", *_stated(paper, column), *why))
    return Table.of(f"{column.title}: ours less the published {column.published}, in points", head, lines)


def _side_by_side(own: dict[str, Check], told: Callable[[Check], Piece]) -> Entry:
    return Entry(tuple(told(own[metric]) if metric in own else Piece(NONE) for metric in LEVELS.values()))


def _expected(check: Check) -> Piece:
    return Piece(f"{check.expected:.1f}")


def _apart(check: Check) -> Piece:
    return Piece(f"{check.difference:+.1f}" if check.difference else "0.0")


def _verdict(check: Check) -> Piece:
    return Piece(WITHIN[check.agrees], bold=check.agrees is False)


def _stated(paper: Paper, column: Column) -> list[str]:
    known = tolerance(column.published, paper.name, column.selection)
    if known is None:
        return []
    told = (
        f"Within {known.category:g} points in a category and {known.mean:g} in the mean over 15, in the mean over n "
        f"{known.mean:g} times the root of 15/n. Our choice, since the paper states none: {known.source}"
    )
    return [told]


def missing(paper: Paper, groups: Sequence[Group]) -> list[str]:
    """The commands that fill what the paper's table lacks of its own campaign."""
    every = members("average_all", paper.file_of_rows)
    lacking: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
    for name in paper.methods:
        by_rest: dict[tuple[str, ...], list[int]] = {}
        for k in paper.ks:
            own = [group for group in groups if (group.first.run.name, group.first.run.k) == (name, k)]
            done = {category for group in own for category, _ in group.records}
            rest = tuple(category for category in every if category not in done)
            if rest:
                by_rest.setdefault(rest, []).append(k)
        for rest, of in by_rest.items():
            lacking.setdefault((rest, tuple(of)), []).append(name)
    commands = []
    for (rest, ks), names in lacking.items():
        words = ["bench", "run", paper.campaign]
        words += ["--method", ",".join(names)] if tuple(names) != paper.methods else []
        words += ["--k", ",".join(map(str, ks))] if ks != paper.ks else []
        words += ["--category", ",".join(rest)] if rest != every else []
        commands.append(" ".join(words))
    looked = {group.first.run.name for group in groups if group.selection == "oracle"}
    blind = [name for name in paper.methods if name not in looked and _iterative(name, groups)]
    return commands + ([f"bench run {paper.campaign} --method {','.join(blind)} --selection both"] if blind else [])


def _iterative(name: str, groups: Sequence[Group]) -> bool:
    """Whether it has epochs of which the best could have been chosen."""
    return any(record.epoch for group in groups if group.first.run.name == name for record in group.records.values())
