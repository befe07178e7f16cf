"""Figures in Markdown: pictures with their captions, sheets as links, and what is not drawn in words."""

from collections.abc import Sequence

from bench.report import FOLDER, Figure

from .tables import bullets, escape


def gallery(figures: Sequence[Figure], level: str = "###") -> str:
    """Each figure under a heading of that level; "" where there are none."""
    parts = [_shown(figure, level) for figure in figures if figure.files and figure.kind != "sheet"]
    sheets = [f"- [{escape(figure.title)}]({_place(figure)})" for figure in figures if figure.kind == "sheet"]
    absent = [f"{figure.title}: {figure.caption}" for figure in figures if not figure.files]
    parts += [f"{level} Pictures of cases", "\n".join(sheets)] if sheets else []
    parts += [f"{level} Figures not drawn", bullets(absent)] if absent else []
    return "\n\n".join(parts)


def _shown(figure: Figure, level: str) -> str:
    title = escape(figure.title)
    return f"{level} {title}\n\n![{title}]({_place(figure)})\n\n{escape(figure.caption)}"


def _place(figure: Figure) -> str:
    suffix = next(suffix for suffix in ("png", *figure.files) if suffix in figure.files)
    return f"{FOLDER}/{figure.name}.{suffix}"
