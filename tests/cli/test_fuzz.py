"""450 random command lines from the definitions of the options: an exit code of 0, 1 or 2 and never a traceback."""

import logging
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from bench.cli import app
from bench.config.options import OPTIONS, Option

pytestmark = pytest.mark.slow  # takes a minute

N_LINES = 450
VALUES = (
    "-1", "0", "1", "2", "0.5", "nan", "inf", "1e18", "9" * 30, "a" * 300, "ü", "\udcfc", "../..", "/", ".", "a/b",
    "a,b", ",", "none", "all", "=", "x=1", "smoothing=3", "smoothing=-1", "meanmap.smoothing=1", "[1, 2]",
    "\x1b[31m", "true",
)  # fmt: skip
NAMES = (
    "meanmap", "patchcore", "padim", "folder", "demo", "mvtec", "parts", "bolt", "plate", "check", "code", "table1",
    "markdown", "csv", "1", "fig8", "methods", "runs", "folder-parts/one-for-one/meanmap", "runs/nothing.json",
)  # fmt: skip
BASE = ["--dataset", "folder", "--data", "parts", "--profile", "check", "--threads", "1", "--no-time", "--dry-run"]


def option_arguments(option: Option, generator: random.Random) -> list[str]:
    """Return an option with a valid value, a value of another option, or nonsense."""
    if option.type is bool:
        return [generator.choice([option.flag, f"--no-{option.flag[2:]}"])]
    valid = [str(choice) for choice in option.choices if choice != "ray"] or ["1", "meanmap"]
    return [option.flag, generator.choice([*valid, *valid, *VALUES, *NAMES])]


def command_lines() -> Iterator[list[str]]:
    generator = random.Random(20)
    commands = get_command(app.app).commands  # type: ignore[attr-defined]
    # run and time would fit, merge would read all files below "/"
    others = sorted(name for name in commands if name not in {"run", "time", "merge"})
    for number in range(N_LINES):
        if number % 2:
            options = generator.sample([*OPTIONS.values()], generator.randint(1, 4))
            extra = [word for option in options for word in option_arguments(option, generator)]
            yield ["run", *BASE, *extra]
            continue
        name = generator.choice(others)
        line = [name]
        for parameter in generator.sample(commands[name].params, min(3, len(commands[name].params))):
            value = generator.choice([*VALUES, *NAMES, *NAMES])
            flag = parameter.opts[0] if parameter.param_type_name == "option" else ""
            line += [flag] if flag and getattr(parameter, "is_flag", False) else [flag, value] if flag else [value]
        yield line


def test_no_command_line_gives_a_traceback(parts: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(parts.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(parts.parent / "cache"))
    monkeypatch.setattr(logging.getLogger("bench"), "propagate", False)  # pytest-xdist cannot send surrogates
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    codes: dict[int, int] = {}
    for line in command_lines():
        monkeypatch.setattr(sys, "argv", ["bench", *line])
        try:
            app.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        except Exception as error:  # noqa: BLE001  any of them would be a traceback
            pytest.fail(f"bench {line!a}: {type(error).__name__}: {str(error)!a}")
        else:
            code = 0
        codes[code] = codes.get(code, 0) + 1
        assert code in {0, 1, 2}, ascii(line)
        capfd.readouterr()
    assert sum(codes.values()) == N_LINES
    assert codes[0] > 20
