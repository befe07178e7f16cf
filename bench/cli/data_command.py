"""`bench data get`: download a public dataset, unpack it, and check it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench import registry
from bench.cli.check_command import print_results
from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    completer,
    err,
    has_terminal,
    load_configuration,
    out,
    print_json,
    progress_bar,
    silence_warnings,
    spinner,
    status,
)
from bench.cli.option_parameters import FILES_PANEL
from bench.config.bench_toml import Config, cache_folder
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.dataset import Download
    from bench.errors import CheckResult

_data = typer.Typer(no_args_is_help=True, help="Download public datasets.")
commands = typer.Typer()
commands.add_typer(_data, name="data")

EXAMPLES = """
Examples:

    bench data get visa

    bench data get mvtec --data /data/mvtec --yes

    bench data get mpdd --archive ~/Downloads/MPDD.zip
"""


@_data.callback()
def _group() -> None:
    """Download public datasets."""


@_data.command(epilog=EXAMPLES)
def get(
    name: Annotated[
        str, typer.Argument(help="Dataset; see `bench list datasets`.", autocompletion=completer("datasets"))
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the dataset to; it must not exist.",
            metavar="DIR",
            show_default="where bench run reads it",
            rich_help_panel=FILES_PANEL,
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="Archive that was downloaded by hand.", metavar="FILE", rich_help_panel=FILES_PANEL),
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            help="Address of the archive, for example of a mirror.",
            metavar="URL",
            show_default="the owner's",
            rich_help_panel=FILES_PANEL,
        ),
    ] = "",
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the downloaded archive.", rich_help_panel=FILES_PANEL)
    ] = False,
    is_confirmed: Annotated[bool, typer.Option("--yes", "-y", help="Accept the license without a question.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """Download a public dataset, verify and unpack it, and check its files. An interrupted download continues.

    Exit code 2 if the download, the archive or a check fails.
    """
    config = load_configuration()
    module = registry.load("datasets", name)
    details: Download | None = getattr(module, "DOWNLOAD", None)
    if details is None:
        raise BenchError(f"'{name}' has no download: datasets/{name} must define DOWNLOAD. About it: {module.ABOUT}.")
    folder = data or config.data(name) or cache_folder(config) / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BenchError(f"{folder} exists already. Check it with `bench check {name} --data {folder}`, or remove it.")
    _confirm_license(module.TITLE, details, is_confirmed=is_confirmed)
    silence_warnings()  # those about the dataset are among the results of the check
    with _archive_file(config, details, archive, url, keep=keep_archive) as (file, digest):
        _install(file, module, name, folder)
    results = _check(config, name, folder)
    if as_json:
        print_json(
            {
                "name": name,
                "title": module.TITLE,
                "folder": str(folder),
                "license": details.license,
                "sha256": digest,
                "is_verified": bool(details.sha256),
                "checks": [asdict(result) for result in results],
            }
        )
    else:
        out.print(f"{escape(module.TITLE)} is in {escape(str(folder))}", soft_wrap=True)
        print_results(results, optional_label="warning", only_problems=quiet)
    if any(result.problem and result.required for result in results):
        raise typer.Exit(2)


def _confirm_license(title: str, details: "Download", *, is_confirmed: bool) -> None:
    """Print the license; raise BenchError if the user does not accept it."""
    console = status if is_confirmed else err  # --quiet does not hide what the user accepts
    console.print(f"{escape(title)} has the license {escape(details.license)}: {escape(details.license_url)}")
    if "NC" in details.license:
        console.print("It does not permit commercial use.")
    console.print(f"Owner: {escape(details.page)}", soft_wrap=True)
    if not is_confirmed and not (has_terminal() and typer.confirm("Do you accept the license?", err=True)):
        raise BenchError("The license must be accepted. Nothing was downloaded. Pass --yes to accept it.")


@contextmanager
def _archive_file(
    config: Config, details: "Download", archive: Path | None, url: str, *, keep: bool
) -> Iterator[tuple[Path, str]]:
    """Yield the verified archive and its sha256.

    A downloaded one is removed after the block, unless it is to be kept, or if the block fails with an archive whose
    checksum is right: the next call uses it.
    """
    from bench.data.download import download
    from bench.files import file_sha256

    if archive is not None:
        if not archive.is_file():
            raise BenchError(f"--archive must be a file; {archive} is not. Download it from {details.page}.")
        with spinner("Computing the sha256 ..."):
            digest = file_sha256(archive)
        if details.sha256 and digest != details.sha256:
            raise BenchError(f"The sha256 of {archive} must be {details.sha256}, got {digest}. Download it again.")
        _print_checksum(details, digest)
        yield archive, digest
        return
    address, by_hand = url or details.url, f"download {details.file} from {details.page} and pass --archive FILE"
    if not address:
        raise BenchError(f"There is no direct address ({details.source}). Please {by_hand}.")
    file = cache_folder(config) / "downloads" / details.file
    if details.sha256 and file.is_file() and file_sha256(file) == details.sha256:
        digest = details.sha256
        status.print(f"Using {escape(str(file))} of an earlier call", soft_wrap=True)
    else:
        status.print(f"Downloading {escape(address)}", soft_wrap=True)
        status.print(f"Source of address and checksum: {escape(details.source)}", soft_wrap=True)
        with progress_bar(f"Downloading {details.file}") as progress:
            try:
                digest = download(address, file, sha256=details.sha256, max_bytes=details.max_bytes, progress=progress)
            except BenchError as error:
                raise BenchError(f"{error} Or {by_hand}.") from error
    _print_checksum(details, digest)
    try:
        yield file, digest
    except BenchError as error:
        if details.sha256:
            raise BenchError(f"{error} The archive is kept in {file}, and the same command uses it.") from error
        file.unlink()
        raise BenchError(f"{error} The archive was removed, and the same command downloads it again.") from error
    if keep:
        status.print(f"The archive is kept in {escape(str(file))}", soft_wrap=True)
    else:
        file.unlink()


def _print_checksum(details: "Download", digest: str) -> None:
    if details.sha256:
        status.print(f"sha256 as expected: {digest}", soft_wrap=True)
    else:
        status.print(f"The checksum of {escape(details.file)} is unknown; computed sha256: {digest}", soft_wrap=True)


def _install(file: Path, module: ModuleType, name: str, folder: Path) -> None:
    from bench.data.installation import install

    with registry.plugin_call("datasets", name), progress_bar(f"Unpacking {file.name}") as progress:
        install(file, module, folder, progress)


def _check(config: Config, name: str, folder: Path) -> "list[CheckResult]":
    """Return the results of `bench check`."""
    from bench.execution import diagnostics

    with progress_bar(f"Checking {name}") as progress:
        return diagnostics.check_target(config, name, folder, progress)
