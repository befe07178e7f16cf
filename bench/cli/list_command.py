"""The commands that look: `bench list` and `bench check`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.cli.console import (
    Json,
    Quiet,
    Verbose,
    load_configuration,
    out,
    print_json,
    progress_bar,
    silence_warnings,
    spinner,
)

if TYPE_CHECKING:
    from bench.errors import CheckResult

commands = typer.Typer()


class Plugins(StrEnum):
    """What `bench list` lists."""

    methods = "methods"
    datasets = "datasets"
    protocols = "protocols"
    profiles = "profiles"
    campaigns = "campaigns"
    runs = "runs"


@commands.command("list", epilog="Example:\n\n    bench list methods")
def list_(
    kind: Annotated[Plugins, typer.Argument(help="What to list.")],
    runs: Annotated[Path | None, typer.Option(help="Folder of the records.")] = None,
    as_json: Json = False,
) -> None:
    """List what there is, without loading it."""
    known = load_configuration()
    rows: list[tuple[str, str]]
    if kind is Plugins.methods:
        rows = [
            (f"{name}:MODEL" if alias.is_hosted else name, f"{alias.title} (methods/{alias.method}.py)")
            for name, alias in known.aliases().items()
        ]
    elif kind is Plugins.datasets:
        rows = [(name, registry.load("datasets", name).TITLE) for name in registry.names("datasets")]
    elif kind is Plugins.protocols:
        from bench.data.protocol import PROTOCOLS

        rows = [(name, (draw.__doc__ or "").splitlines()[0]) for name, draw in PROTOCOLS.items()]
    elif kind is Plugins.profiles:
        rows = [(name, known.tables["profile"][name].get("note", "")) for name in known.names("profile")]
    elif kind is Plugins.campaigns:
        rows = [(name, known.tables["campaign"][name].get("about", "")) for name in known.names("campaign")]
    else:
        rows = _runs(runs or known.path("runs") or Path("runs"))
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
        return
    if not rows:
        rows = [("none", "bench run makes some")]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, about in rows:
        table.add_row(escape(name), escape(about))
    out.print(table)


CHECK_EXAMPLES = """
Examples:

    bench check

    bench check patchcore

    bench check mvtec --data ~/mvtec

    bench check ~/parts
"""


@commands.command(epilog=CHECK_EXAMPLES)
def check(
    name: Annotated[
        str | None, typer.Argument(help="A method's name or file, else a data set's name, else a folder of images.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,  # noqa: ARG001  its callback acts
) -> None:
    """Check this machine; or whether a method keeps its promises; or whether a data set is sound."""
    with spinner("Checking ..."):
        from bench.execution import diagnostics as checks

    known = load_configuration()
    if name is None:
        with spinner("Checking ..."):
            findings = checks.check_environment(known)
    else:
        silence_warnings()  # what is warned of is a finding here
        with progress_bar(f"Checking {name}") as watch:
            findings = checks.check_target(known, name, data, watch)
    if as_json:
        print_json(
            [{"promise": found.requirement, "broken": found.problem, "needed": found.required} for found in findings]
        )
    else:
        _tell(findings, weak="absent" if name is None else "beware", quiet=quiet)
    if name is not None and any(finding.problem and finding.required for finding in findings):
        raise typer.Exit(2)


def _tell(findings: "list[CheckResult]", *, weak: str, quiet: bool) -> None:
    for finding in findings:
        if quiet and not finding.problem:
            continue
        broken = "[red]broken[/red]" if finding.required else f"[yellow]{weak}[/yellow]"
        mark = broken if finding.problem else "[green]works [/green]"
        out.print(f"{mark} {escape(finding.requirement)}", soft_wrap=True)
        if finding.problem:
            out.print(f"       {escape(finding.problem)}", soft_wrap=True)


def _runs(folder: Path) -> list[tuple[str, str]]:
    from bench.evaluation.summary import MEAN, count_label, groups, percent
    from bench.store import Store

    rows = []
    for group in groups(Store(folder).records()):
        run = group.first.run
        k = f"-{run.k}" if run.k else ""
        told = f"{run.title}, {group.selection}, {count_label(group.records)}, {len(group.failed)} failed, image AUROC "
        rows.append((f"{run.dataset}/{run.protocol}{k}/{run.name}", told + percent(group.cell(MEAN, "image_auroc"))))
    return rows
