"""The commands that look: `bench list` and `bench check`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.console import configured, err, out

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
) -> None:
    """List what there is, without loading it."""
    known = configured()
    rows: list[tuple[str, str]]
    if kind is Plugins.methods:
        names = sorted({*registry.names("methods"), *known.names("alias")})
        aliases = known.tables.get("alias", {})
        files = {name: aliases.get(name, {}).get("method", name) for name in names}
        rows = [(name, f"{known.title(name)} (methods/{files[name]}.py)") for name in names]
    elif kind is Plugins.datasets:
        rows = [(name, registry.load("datasets", name).TITLE) for name in registry.names("datasets")]
    elif kind is Plugins.protocols:
        from bench.protocol import PROTOCOLS

        rows = [(name, (draw.__doc__ or "").splitlines()[0]) for name, draw in PROTOCOLS.items()]
    elif kind is Plugins.profiles:
        rows = [(name, known.tables["profile"][name].get("note", "")) for name in known.names("profile")]
    elif kind is Plugins.campaigns:
        rows = [(name, known.tables["campaign"][name].get("about", "")) for name in known.names("campaign")]
    else:
        rows = _runs(runs or known.path("runs") or Path("runs"))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, about in rows:
        table.add_row(escape(name), escape(about))
    out.print(table)


@commands.command(epilog="Examples:\n\n    bench check\n\n    bench check patchcore")
def check(
    name: Annotated[str | None, typer.Argument(help="A method's name or file; none: this machine.")] = None,
) -> None:
    """Check this machine, or whether a method keeps what every method promises."""
    from bench import check as checks

    known = configured()
    with err.status("Checking ..."):
        findings = checks.machine(known) if name is None else checks.method(known, name)
    for finding in findings:
        broken = "[red]broken[/red]" if finding.needed else "[yellow]absent[/yellow]"
        mark = broken if finding.broken else "[green]works [/green]"
        out.print(f"{mark} {escape(finding.promise)}")
        if finding.broken:
            out.print(f"       {escape(finding.broken)}")
    if name is not None and any(finding.broken for finding in findings):
        raise typer.Exit(2)


def _runs(folder: Path) -> list[tuple[str, str]]:
    from bench.store import Store
    from bench.summary import MEAN, groups, percent

    rows = []
    for group in groups(Store(folder).walk()):
        run = group.first.run
        k = f"-{run.k}" if run.k else ""
        told = f"{run.title}, {group.selection}, {len(group.records)} records, {len(group.failed)} failed, image AUROC "
        rows.append((f"{run.dataset}/{run.protocol}{k}/{run.name}", told + percent(group.cell(MEAN, "image_auroc"))))
    return rows or [("none", f"no records in {folder}; bench run makes some")]
