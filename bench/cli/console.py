"""What all commands share: where they print, what --json, --quiet and --verbose change, how they begin."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from bench import registry
from bench.config.bench_toml import Config, load_config
from bench.errors import BenchError

out = Console(highlight=False)
"""For what was asked for: tables."""

status = Console(highlight=False)
"""For what happens meanwhile: on stderr with --json, nowhere with --quiet."""

err = Console(highlight=False, stderr=True)
"""For what goes wrong."""

_warnings = RichHandler(console=err, show_time=False, show_path=False)


def reset() -> None:
    """As if no option had been given; warnings are told on stderr."""
    status.stderr, status.quiet = False, False
    _warnings.setLevel(logging.WARNING)
    logging.getLogger("bench").setLevel(logging.NOTSET)
    logging.basicConfig(format="%(message)s", handlers=[_warnings])


def _as_json(asked: bool) -> bool:
    status.stderr |= asked
    return asked


def _hush(asked: bool) -> bool:
    status.quiet |= asked
    if asked:
        silence_warnings()
    return asked


def _chat(asked: bool) -> bool:
    if asked:
        _warnings.setLevel(logging.INFO)
        logging.getLogger("bench").setLevel(logging.INFO)
    return asked


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts; all else on stderr.", callback=_as_json)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only what was asked for, and errors.", callback=_hush)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also each step and its seconds.", callback=_chat)]


def silence_warnings() -> None:
    """No warnings on stderr: nobody wants them, or they are told elsewhere."""
    _warnings.setLevel(logging.ERROR)


def completer(kind: str) -> Callable[[str], list[str]]:
    """For the shell: the names of that kind, one of what `bench list` lists, that begin as the last of a list does."""

    def ask(begun: str) -> list[str]:
        before, comma, last = begun.rpartition(",")
        return [f"{before}{comma}{name}" for name in sorted(_names(kind)) if name.startswith(last)]

    return ask


def _names(kind: str) -> Iterable[str]:
    known = load_configuration()
    if kind == "methods":
        return set(known.aliases())
    if kind == "datasets":
        return registry.names("datasets")
    if kind == "protocols":
        from bench.data.protocol import PROTOCOLS

        return PROTOCOLS
    return known.names("profile" if kind == "profiles" else "campaign")


def spinner(text: str) -> AbstractContextManager[Any]:
    """A sign of life on stderr while something takes a moment; nothing where that is no terminal."""
    return nullcontext() if status.quiet else err.status(text)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while many things are done; what it gives is told how many are done and how many there are."""
    from rich.progress import Progress  # a command that shows none answers sooner

    with Progress(console=err, transient=True, disable=status.quiet or not err.is_terminal) as bar:
        task = bar.add_task(escape(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str))


def load_configuration() -> Config:
    """bench.toml, with the user's own folders of methods found."""
    known = load_config()
    for folder in known.plugin_folders("methods"):
        registry.add_folder("methods", folder)
    return known


def parse_key_values(option: str, texts: Iterable[str]) -> dict[str, str]:
    """The key=value texts of an option that may be repeated. Raises BenchError for a text that is none."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise BenchError(f"{option} takes key=value; '{text}' is not. Write for example {option} epochs=50.")
        found[key.strip()] = value.strip()
    return found
