"""Figures as sections: each with its caption, and what is not drawn in words."""

from collections.abc import Sequence

from bench.report import Figure

from .tables import Section


def gallery(figures: Sequence[Figure], level: int = 2) -> list[Section]:
    """Each figure under a heading of that level; sheets of pictures under one."""
    shown = [figure for figure in figures if figure.files and figure.kind != "sheet"]
    sheets = [figure for figure in figures if figure.files and figure.kind == "sheet"]
    absent = tuple(f"{figure.title}: {figure.caption}" for figure in figures if not figure.files)
    sections = [Section(figure.title, (figure,), level) for figure in shown]
    sections += [Section("Pictures of cases", tuple(sheets), level)] if sheets else []
    return [*sections, *([Section("Figures not drawn", (absent,), level)] if absent else [])]
