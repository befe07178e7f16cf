"""Sections as Markdown and LaTeX: marks have their notes, text stays text, and the LaTeX compiles."""

import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.report import Figure

markup, tables = (import_module(f"bench.reports.parts.{name}") for name in ("markup", "tables"))

NASTY = (
    "<script>alert(1)</script>",
    "a_b%c & $x$ #1 {y} ~z^2 \\input{/etc/passwd} | \"q\" 'r' `s` [t](u)",
    "Schraube ß é Ł ‡ ± – − × ≤ 工业 😀 \x07\x7f",
    "--data -- --- *bold* _italic_ a_b _",
)


def page(render: object) -> str:
    rows = [(text, tables.Entry.of(text, f"note: {text}"), "1.0") for text in NASTY]
    table = tables.Table.of(f"title {NASTY[1]}", ("h", *NASTY[:2]), rows, spans=[(NASTY[0], 1), ("b", 1)])
    section = tables.Section(NASTY[1], (table, NASTY[2], NASTY, f"`{NASTY[1].replace('`', '')}`"))
    return render(NASTY[0], [section])


def test_markdown_holds_no_html_link_or_cell_of_a_name() -> None:
    text = page(markup.markdown)
    assert "<script" not in text
    assert "[t](u)" not in re.sub(r"`[^`]*`", "", text)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_markdown_fits_a_terminal_and_repeats_the_first_column() -> None:
    table = tables.Table.of("", ["row", *(f"column {i}" for i in range(20))], [["x" * 20, *("0" * 12,) * 20]])
    text = markup.markdown("t", [tables.Section("", (table,))])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("| row") for line in lines) == 4  # 20 columns of 15 characters beside 24
    assert re.findall(r"column (\d+)", text) == [str(i) for i in range(20)]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=3), min_size=1, max_size=8))
def test_each_mark_has_its_note_and_each_note_its_mark(notes: list[list[str]]) -> None:
    table = tables.Table.of("", ("row", "value"), [("r", tables.Entry.of("1", *dict.fromkeys(own))) for own in notes])
    assert list(table.marks) == list(dict.fromkeys(note for own in notes for note in own))
    assert len(set(table.marks.values())) == len(table.marks)


def test_the_27th_note_has_two_letters_and_no_q() -> None:
    table = tables.Table.of("", ("row", "v"), [("r", tables.Entry.of("1", f"note {i}")) for i in range(27)])
    assert list(table.marks.values())[-3:] == ["z", "aa", "ab"]
    assert "q" not in table.marks.values()


@given(st.text(max_size=40))
def test_no_sign_of_latex_survives_in_any_text(text: str) -> None:
    told = markup.tex(text.replace("`", ""))
    bare = re.sub(
        r"\\(?:[a-z]+\{[^{}]*\}|ensuremath\{\\?[a-z-]+\}|[{}$&#%_])|-\{\}",
        "",
        re.sub(r"\\ensuremath\{\\[a-z]+\}", "", told),
    )
    assert not set(bare) & set("\\{}$&#%_^~<>|")
    assert told.isprintable()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("many", [False, True])
def test_the_latex_compiles_whatever_a_name_holds_and_however_many_figures(tmp_path: Path, *, many: bool) -> None:
    sheets = tables.Section("Sheets", (Figure("s", "sheet", "t", "T", "C", {"png": b""}),) * 120)
    (tmp_path / "figures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "figures" / "s.png")
    (tmp_path / "page.tex").write_text(markup.latex("", [sheets]) if many else page(markup.latex), "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]
    assert (tmp_path / "page.pdf").is_file()
