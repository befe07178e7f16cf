"""What all commands share: output streams, --json, --quiet and --verbose, progress bars, and reading bench.toml."""

import codecs
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.text import Text

from bench import registry
from bench.config import trust
from bench.config.bench_toml import Config, load_config
from bench.errors import BenchError

_SUBSTITUTES = {
    "±": "+/-",
    "‡": "++",
    "†": "+",
    "×": "x",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
}
"""ASCII texts for the characters of our own titles and tables that old code pages lack."""

PIPED_WIDTH = 1000
"""Width in characters of a table that must be complete if the output is not a terminal."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tab and newline, and the surrogates that represent bytes that are not UTF-8."""


def printable(text: str) -> str:
    r"""Return the text with control characters and undecodable bytes as escapes: "\x1b", "\udcfc"."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Return what replaces the characters that the encoding of a stream lacks: an error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(each) or ascii(each)[1:-1] for each in characters), error.end


codecs.register_error("bench.substitute", _substitute)


class SafeConsole(Console):
    """A console that prints any text, and that continues without output if the stream fails.

    Attributes:
        failure: why the stream failed; None if it did not, or if the process that reads it ended, as `| head -1` does.
    """

    failure: OSError | None = None

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text for printing, without control characters."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        try:
            super().print(*objects, **options)
        except OSError as error:  # a full disk, for example
            self.failure = error
            self._discard()

    def write(self, text: str) -> None:
        """Write the text as it is."""
        try:
            self.file.write(f"{text}\n")
            self.file.flush()
        except BrokenPipeError:
            self.on_broken_pipe()
        except OSError as error:
            self.failure = error
            self._discard()

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich would end the process before the remaining runs."""
        self._discard()

    def _discard(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError):  # else the interpreter would fail to flush the stream when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


out = SafeConsole(highlight=False)
"""Results: tables and text."""

status = SafeConsole(highlight=False)
"""Status messages: on stdout, on stderr with --json, nowhere with --quiet."""

err = SafeConsole(highlight=False, stderr=True)
"""Errors and warnings."""

OUTPUT_PANEL = "Output"

_trusts_plugins = False
_json_stream: TextIO | None = None


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


warning_handler = RichHandler(console=err, show_time=False, show_path=False)
warning_handler.setFormatter(_PrintableFormatter("%(message)s"))


def reset() -> None:
    """Restore the defaults of all streams and send warnings to stderr."""
    replace_unencodable()
    set_trust(False)
    status.stderr, status.quiet, out.quiet, err.quiet = False, False, False, False
    out.failure = status.failure = err.failure = None
    warning_handler.setLevel(logging.WARNING)
    logging.getLogger("bench").setLevel(logging.NOTSET)
    warnings.simplefilter("ignore", FutureWarning)  # of other libraries, about their own code
    logging.basicConfig(format="%(message)s", handlers=[warning_handler])


def replace_unencodable() -> None:
    """Let stdout and stderr replace the characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="bench.substitute")


def _set_json(value: bool) -> bool:
    """Let everything but the JSON go to stderr, whatever a plug-in prints."""
    global _json_stream  # noqa: PLW0603  it holds for the whole command
    status.stderr |= value
    _json_stream = sys.stdout if value else None
    if value:
        sys.stdout = sys.stderr
    return value


def _set_quiet(value: bool) -> bool:
    status.quiet |= value
    if value:
        silence_warnings()
    return value


def _set_verbose(value: bool) -> bool:
    if value:
        warning_handler.setLevel(logging.INFO)
        logging.getLogger("bench").setLevel(logging.INFO)
    return value


def set_trust(value: bool) -> None:
    """Let this command import the plug-ins that bench.toml names, and store this decision."""
    global _trusts_plugins  # noqa: PLW0603  as --json and --quiet, it applies to the whole command
    _trusts_plugins = value


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
    warning_handler.setLevel(logging.ERROR)


def completer(kind: str) -> Callable[[str], list[str]]:
    """Return a shell completion for a comma-separated list of names; `kind` is a kind of `bench list`."""

    def complete(text: str) -> list[str]:
        before, comma, prefix = text.rpartition(",")
        return [f"{before}{comma}{name}" for name in sorted(_names(kind)) if name.startswith(prefix)]

    return complete


def complete_runs(text: str) -> list[str]:
    """Return the shell completion of a run of the store: "demo/kshot-4/patchcore", and below it the categories."""
    return _stored_runs(text, with_categories=False)


def complete_models(text: str) -> list[str]:
    """Return the shell completion of a saved model: "demo/kshot-4/patchcore/gear"."""
    return _stored_runs(text, with_categories=True)


def _stored_runs(text: str, *, with_categories: bool) -> list[str]:
    """Return the runs, or their saved models by category, that begin with a text; from paths, without reading files."""
    try:
        folder = runs_folder(None, load_configuration(can_prompt=False))
    except BenchError:
        return []
    pattern = "*/*/*/*/seed*/*.safetensors" if with_categories else "*/*/*"
    paths = (path.relative_to(folder) for path in folder.glob(pattern) if with_categories or path.is_dir())
    names = {"/".join([*path.parts[:3], *([path.stem] if with_categories else [])]) for path in paths}
    return sorted(name for name in names if name.startswith(text))


def _names(kind: str) -> Iterable[str]:
    try:
        config = load_configuration(can_prompt=False)
    except BenchError:  # a completion can neither prompt nor print messages
        return ()
    if kind == "methods":
        return config.aliases()
    if kind == "datasets":
        return registry.names("datasets")
    return config.names("profile" if kind == "profiles" else "campaign")


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr inside the block, if stderr is a terminal; the yielded function changes its text."""
    if status.quiet:
        yield lambda _: None
        return
    with err.status(text) as spinner_status:
        yield spinner_status.update


def print_unwrapped(console: SafeConsole, *objects: Any) -> None:
    """Print with unbroken lines if the output is a file or a pipe, for which rich assumes 80 columns."""
    wide = console if console.is_terminal else SafeConsole(highlight=False, width=PIPED_WIDTH)
    wide.print(*objects)
    console.failure = console.failure or wide.failure


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr inside the block; it is updated by calls to `progress(done, total)`."""
    from rich.progress import Progress  # imported late, because other commands do not need it

    with Progress(console=err, transient=True, disable=status.quiet or not err.is_terminal) as bar:
        task = bar.add_task(escape(printable(text)), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; characters that stdout cannot encode are escaped, so the value stays exact."""
    dump = partial(json.dumps, value, indent=1, allow_nan=False, default=str)
    text = dump(ensure_ascii=False)
    with redirect_stdout(_json_stream or sys.stdout):
        try:
            text.encode(out.encoding)
        except UnicodeEncodeError:
            text = dump(ensure_ascii=True)
        out.write(text)


def load_configuration(*, can_prompt: bool = True) -> Config:
    """Return the merged bench.toml, after its plug-in folders are added to the registry.

    Args:
        can_prompt: whether to prompt at a terminal if plug-in folders are not trusted yet.

    Raises:
        BenchError: the user does not trust these folders, whose code would run, or a table names an unknown dataset.
    """
    config = load_config()
    _check_trust(config, can_prompt=can_prompt and has_terminal())
    for kind in registry.PLUGIN_KINDS:
        for folder in config.plugin_folders(kind):
            registry.add_folder(kind, folder)
    config.check_datasets()
    return config


def has_terminal() -> bool:
    """Return whether a question can be printed and answered: stdin is not closed, and both are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and err.is_terminal


def _check_trust(config: Config, *, can_prompt: bool) -> None:
    """Raise BenchError if bench.toml names plug-in folders that the user neither has trusted nor trusts now."""
    folders = trust.untrusted(folder for kind in registry.PLUGIN_KINDS for folder in config.plugin_folders(kind))
    if not folders:
        return
    names = ", ".join(map(str, folders))
    question = f"{config.files[-1]} makes bench run the Python code in {names}. Do you trust it?"
    if not _trusts_plugins and not (can_prompt and typer.confirm(printable(question), err=True)):
        raise BenchError(
            f"Plug-ins must be trusted: {config.files[-1]} makes bench run the code in {names}. If you trust it, run "
            f"`bench --trust list methods` here once."
        )
    trust.trust(folders)


def runs_folder(runs: Path | None, config: Config) -> Path:
    """Return the existing folder of records that --runs or bench.toml names. Raises BenchError if there is none."""
    folder = runs or config.path("runs") or Path("runs")
    if not folder.is_dir():
        raise BenchError(f"{folder} must be a folder of records; it does not exist. `bench run` creates it.")
    return folder


def parse_key_values(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the key=value texts of a repeatable option as a dict. Raises BenchError if a text has another form."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise BenchError(f"{flag} must be key=value, got '{text}'. Write for example {flag} epochs=50.")
        if key.strip() in values:
            raise BenchError(f"{flag} {key.strip()} must be given once; it is given twice. Remove one of them.")
        values[key.strip()] = value.strip()
    return values
