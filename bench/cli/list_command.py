"""`bench list`: print the names that other commands take."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.cli.console import Json, load_configuration, out, print_json
from bench.cli.option_parameters import Runs
from bench.config.method_metadata import FAMILIES, method_metadata
from bench.config.method_specs import Alias
from bench.config.options import OPTIONS

commands = typer.Typer()

EXAMPLES = """
Examples:

    bench list methods

    bench list runs --runs ~/runs
"""


class ListKind(StrEnum):
    """What `bench list` can list."""

    methods = "methods"
    datasets = "datasets"
    protocols = "protocols"
    profiles = "profiles"
    campaigns = "campaigns"
    runs = "runs"


@commands.command("list", epilog=EXAMPLES)
def list_(
    kind: Annotated[ListKind, typer.Argument(help="What to list.")],
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """List methods, data sets, protocols, profiles, campaigns or stored runs."""
    config = load_configuration()
    rows: list[tuple[str, str]]
    if kind is ListKind.methods:
        _list_methods(config.aliases(), as_json=as_json)
        return
    if kind is ListKind.datasets:
        rows = [(name, registry.read_constant("datasets", name, "TITLE")) for name in registry.names("datasets")]
    elif kind is ListKind.protocols:
        from bench.data.protocol import PROTOCOLS

        rows = [(name, (PROTOCOLS[name].__doc__ or "").splitlines()[0]) for name in OPTIONS["protocol"].choices]
    elif kind is ListKind.profiles:
        rows = [(name, config.tables["profile"][name].get("note", "")) for name in config.names("profile")]
    elif kind is ListKind.campaigns:
        rows = [(name, config.tables["campaign"][name].get("about", "")) for name in config.names("campaign")]
    else:
        rows = _stored_runs(runs or config.path("runs") or Path("runs"))
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
        return
    if not rows:
        out.print("None. `bench run` creates runs." if kind is ListKind.runs else "None.")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, about in rows:
        table.add_row(escape(name), escape(about))
    out.print(table)


def _list_methods(aliases: Mapping[str, Alias], *, as_json: bool) -> None:
    """Print the methods and their aliases by family, with year, paper and what they need."""
    methods = [(name, alias, method_metadata(alias.method)) for name, alias in aliases.items()]
    if as_json:
        rows = [
            {
                "name": name,
                "title": alias.title,
                "method": alias.method,
                "family": metadata.family,
                "year": metadata.year or None,
                "paper": metadata.paper,
                "needs": list(metadata.needs),
            }
            for name, alias, metadata in methods
        ]
        print_json(rows)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for family in (*FAMILIES, ""):
        members = [entry for entry in methods if entry[2].family == family]
        if members:
            table.add_row(f"[bold]{family or 'other'}[/bold]")
        for name, alias, metadata in members:
            argument = f"{name}:MODEL" if alias.is_hosted and name == alias.method else name
            about = alias.title.replace("{model}", "MODEL")
            about += f"; alias of {alias.method}" if name != alias.method else ""
            needs = f"needs {', '.join(metadata.needs)}" if metadata.needs else ""
            table.add_row(f"  {escape(argument)}", escape(about), str(metadata.year or ""), escape(needs))
    out.print(table)


def _stored_runs(folder: Path) -> list[tuple[str, str]]:
    from bench.evaluation.summary import MEAN, count_label, format_percent, groups
    from bench.store import Store

    rows = []
    for group in groups(Store(folder).records()):
        run = group.first.run
        k = f"-{run.k}" if run.k else ""
        counts = f"{count_label(group.records)}, {len(group.failed)} failed"
        auroc = format_percent(group.mean_std(MEAN, "image_auroc"))
        about = f"{run.title}, {group.selection}, {counts}, image AUROC {auroc}"
        rows.append((f"{run.dataset}/{run.protocol}{k}/{run.name}", about))
    return rows
