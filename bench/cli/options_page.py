"""The page docs/options.md, generated from the definitions of the options.

Write it with `python -m bench.cli.options_page > docs/options.md`; a test compares it with the definitions.
"""

import sys
from collections.abc import Iterable

from typer.main import get_command

from bench.cli.app import app
from bench.cli.option_parameters import default_text, range_text, value_text
from bench.config.options import OPTION_GROUPS, OPTIONS, Option

INTRODUCTION = """# Options of `bench run`

An option has the same name in all interfaces:

- on the command line: `--eval-every 5`;
- in `bench.toml`, in a profile or a campaign: `eval_every = 5`;
- in Python: `bench.run("aminet", eval_every=5)`.

The command line and Python override the campaign, which overrides the profile, which overrides the default.
`bench run ... --dry-run` prints every value with its origin. Several values are separated by commas on the command line
and are a list in `bench.toml` and Python. `bench time` and `bench predict` have some of these options.

This page is generated: `python -m bench.cli.options_page > docs/options.md`.
"""


def options_page() -> str:
    """Return the page as Markdown: a table per group of options, and one for those of the command line only."""
    sections = [INTRODUCTION]
    for group, group_class in OPTION_GROUPS.items():
        options = [option for option in OPTIONS.values() if option.group == group]
        rows = [_row(option) for option in options]
        sections.append(f"## {group_class.TITLE}\n\n" + _table(("option", "values", "default", "meaning"), rows))
    sections.append("## Other options\n\n" + _table(("option", "meaning"), _command_rows()))
    return "\n".join(sections)


def _row(option: Option) -> tuple[str, ...]:
    flag = f"`{option.flag}`" + (f", `-{option.short}`" if option.short else "")
    values = "on, off" if option.type is bool else value_text(option)
    limits = range_text(option)
    return flag, f"{values}; {limits}" if limits else values, default_text(option) or "empty", option.help


def _command_rows() -> Iterable[tuple[str, ...]]:
    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name not in {*OPTIONS, "help"}:
            yield ", ".join(f"`{flag}`" for flag in parameter.opts), parameter.help


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(options_page())
