"""What all commands share: output streams, --json, --quiet and --verbose, progress bars, and reading bench.toml."""

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
"""Results: tables and texts."""

status = Console(highlight=False)
"""Status messages: on stdout, on stderr with --json, nowhere with --quiet."""

err = Console(highlight=False, stderr=True)
"""Errors and warnings."""

OUTPUT_PANEL = "Output"

_warnings = RichHandler(console=err, show_time=False, show_path=False)


def reset() -> None:
    """Restore the defaults of all streams and send warnings to stderr."""
    status.stderr, status.quiet = False, False
    _warnings.setLevel(logging.WARNING)
    logging.getLogger("bench").setLevel(logging.NOTSET)
    logging.basicConfig(format="%(message)s", handlers=[_warnings])


def _set_json(value: bool) -> bool:
    status.stderr |= value
    return value


def _set_quiet(value: bool) -> bool:
    status.quiet |= value
    if value:
        silence_warnings()
    return value


def _set_verbose(value: bool) -> bool:
    if value:
        _warnings.setLevel(logging.INFO)
        logging.getLogger("bench").setLevel(logging.INFO)
    return value


Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON on stdout; everything else goes to stderr.",
        callback=_set_json,
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print results and errors only.", callback=_set_quiet, rich_help_panel=OUTPUT_PANEL
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Print each step with its duration in seconds.",
        callback=_set_verbose,
        rich_help_panel=OUTPUT_PANEL,
    ),
]


def silence_warnings() -> None:
    """Print no warnings, only errors."""
    _warnings.setLevel(logging.ERROR)


def completer(kind: str) -> Callable[[str], list[str]]:
    """Return a shell completion for a comma-separated list of names; `kind` is a kind of `bench list`."""

    def complete(text: str) -> list[str]:
        before, comma, prefix = text.rpartition(",")
        return [f"{before}{comma}{name}" for name in sorted(_names(kind)) if name.startswith(prefix)]

    return complete


def _names(kind: str) -> Iterable[str]:
    config = load_configuration()
    if kind == "methods":
        return config.aliases()
    if kind == "datasets":
        return registry.names("datasets")
    return config.names("profile" if kind == "profiles" else "campaign")


def spinner(text: str) -> AbstractContextManager[Any]:
    """Show a spinner on stderr inside the block, if stderr is a terminal."""
    return nullcontext() if status.quiet else err.status(text)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr inside the block; it is updated by calls of `progress(done, total)`."""
    from rich.progress import Progress  # imported late, because other commands do not need it

    with Progress(console=err, transient=True, disable=status.quiet or not err.is_terminal) as bar:
        task = bar.add_task(escape(text), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=str))


def load_configuration() -> Config:
    """Return the merged bench.toml, after its plug-in folders are added to the registry."""
    config = load_config()
    for kind in registry.KINDS:
        for folder in config.plugin_folders(kind):
            registry.add_folder(kind, folder)
    return config


def parse_key_values(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the key=value texts of a repeatable option as a dict. Raises BenchError for another text."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise BenchError(f"{flag} must be key=value, got '{text}'. Write for example {flag} epochs=50.")
        values[key.strip()] = value.strip()
    return values
