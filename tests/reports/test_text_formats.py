"""Markdown and LaTeX: footnote marks have their notes, text is escaped, and the LaTeX compiles."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.report_format import Figure, Report, Section, Table, TableCell
from bench.reports import latex, markdown

SPECIAL = (
    "<script>alert(1)</script>",
    "a_b%c & $x$ #1 {y} ~z^2 \\input{/etc/passwd} | \"q\" 'r' `s` [t](u)",
    "Schraube ß é Ł ‡ ± – − × ≤ 工业 😀 \x07\x7f",
    "--data -- --- *bold* _italic_ a_b _",
)


def report_of(title: str, *sections: Section) -> Report:
    return Report("report", title, sections, ())


def special_report() -> Report:
    rows = [(text, TableCell.from_text(text, f"note: {text}"), "1.0") for text in SPECIAL]
    table = Table.from_rows(f"title {SPECIAL[1]}", ("h", *SPECIAL[:2]), rows, column_groups=[(SPECIAL[0], 1), ("b", 1)])
    section = Section(SPECIAL[1], (table, SPECIAL[2], SPECIAL, f"`{SPECIAL[1].replace('`', '')}`"))
    return report_of(SPECIAL[0], section)


def test_names_become_no_html_links_or_cells_in_markdown() -> None:
    text = markdown.render(special_report())
    assert "<script" not in text
    assert "[t](u)" not in re.sub(r"`[^`]*`", "", text)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_wide_markdown_tables_are_divided_and_repeat_the_first_column() -> None:
    table = Table.from_rows("", ["row", *(f"column {i}" for i in range(20))], [["x" * 20, *("0" * 12,) * 20]])
    text = markdown.render(report_of("t", Section("", (table,))))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("| row") for line in lines) == 4  # 20 columns of 15 characters next to one of 24
    assert re.findall(r"column (\d+)", text) == [str(i) for i in range(20)]


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=3), min_size=1, max_size=8))
def test_each_note_has_a_unique_mark(notes: list[list[str]]) -> None:
    table = Table.from_rows(
        "", ("row", "value"), [("r", TableCell.from_text("1", *dict.fromkeys(each))) for each in notes]
    )
    assert list(table.note_marks) == list(dict.fromkeys(note for each in notes for note in each))
    assert len(set(table.note_marks.values())) == len(table.note_marks)


def test_the_27th_note_has_two_letters_and_no_q() -> None:
    table = Table.from_rows("", ("row", "v"), [("r", TableCell.from_text("1", f"note {i}")) for i in range(27)])
    assert list(table.note_marks.values())[-3:] == ["z", "aa", "ab"]
    assert "q" not in table.note_marks.values()


@given(st.text(max_size=40))
def test_special_characters_of_latex_are_always_escaped(text: str) -> None:
    escaped = latex.escape(text.replace("`", ""))
    bare = re.sub(
        r"\\(?:[a-z]+\{[^{}]*\}|ensuremath\{\\?[a-z-]+\}|[{}$&#%_])|-\{\}",
        "",
        re.sub(r"\\ensuremath\{\\[a-z]+\}", "", escaped),
    )
    assert not set(bare) & set("\\{}$&#%_^~<>|")
    assert escaped.isprintable()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("many", [False, True])
def test_the_latex_compiles_with_any_name_and_many_figures(tmp_path: Path, *, many: bool) -> None:
    sheets = Section("Sheets", (Figure("s", "examples", "t", "T", "C", {"png": b""}),) * 120)
    (tmp_path / "figures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "figures" / "s.png")
    text = latex.render(report_of("", sheets) if many else special_report())
    (tmp_path / "page.tex").write_text(text, "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout.decode("utf-8", "replace")[-2000:]
    assert (tmp_path / "page.pdf").is_file()
