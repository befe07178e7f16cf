"""`bench list`: print the names that other commands take."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from bench import registry
from bench.cli.console import Json, Quiet, Verbose, load_configuration, out, print_json, print_unwrapped, runs_folder
from bench.cli.option_parameters import Runs
from bench.config.method_metadata import FAMILIES, method_metadata
from bench.config.method_specs import Alias
from bench.config.options import OPTIONS

if TYPE_CHECKING:
    from bench.evaluation.summary import Group

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
    quiet: Quiet = False,  # noqa: ARG001  handled by its callback
    verbose: Verbose = False,  # noqa: ARG001  handled by its callback
) -> None:
    """List methods, datasets, protocols, profiles, campaigns or stored runs."""
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
        _list_runs(runs_folder(runs, config), as_json=as_json)
        return
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
        return
    if not rows:
        out.print("None.")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, about in rows:
        table.add_row(escape(name), escape(about))
    print_unwrapped(out, table)


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
                "has_checkpoints": metadata.has_checkpoints,
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
            argument = f"{name}:MODEL" if alias.is_external and name == alias.method else name
            about = alias.title.replace("{model}", "MODEL")
            about += f"; alias of {alias.method}" if name != alias.method else ""
            needs = f"needs {', '.join(metadata.needs)}" if metadata.needs else ""
            table.add_row(f"  {escape(argument)}", escape(about), str(metadata.year or ""), escape(needs))
    print_unwrapped(out, table)
    others = [name for name, alias, metadata in methods if not metadata.has_checkpoints]
    print_unwrapped(out, escape(f"An interrupted fit continues from a checkpoint, except with {', '.join(others)}."))


def _list_runs(folder: Path, *, as_json: bool) -> None:
    """Print the stored runs: name, group hash, date, limit, saved models, records and mean image AUROC."""
    from bench.evaluation.summary import groups
    from bench.store import Store

    rows = [_run_values(group) for group in groups(Store(folder).records())]
    if as_json:
        print_json(rows)
        return
    if not rows:
        out.print("None. `bench run` creates runs.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "group\nhash", "date"):
        table.add_column(heading)
    for heading in ("limit", "models", "records", "image\nAUROC"):
        table.add_column(heading, justify="right")
    table.columns[0].overflow = "fold"
    for row in rows:
        selection = " (oracle)" if row["selection"] == "oracle" else ""
        failed = f", {row['n_failed']} failed" if row["n_failed"] else ""
        auroc = "–" if row["image_auroc"] is None else f"{100 * row['image_auroc']:.1f}"
        counts = (str(row["limit"] or "–"), str(row["n_models"] or "–"), f"{row['n_records']}{failed}", auroc)
        table.add_row(escape(row["name"] + selection), row["group_hash"], row["last_started"][:10], *counts)
    print_unwrapped(out, table)


def _run_values(group: "Group") -> dict[str, Any]:
    """Return the fields of a run for --json; metrics are fractions."""
    from bench.evaluation.summary import MEAN

    run, records = group.first.run, [*group.records.values(), *group.failed]
    auroc = group.mean_std(MEAN, "image_auroc")
    return {
        "name": run.store_name,
        "group_hash": run.group_hash,
        "title": run.title,
        "dataset": group.dataset,
        "protocol": run.protocol,
        "k": run.k,
        "selection": group.selection,
        "profile": run.profile,
        "seeds": group.seeds,
        "categories": group.categories,
        "limit": run.limit,
        "calibrate": run.calibrate,
        "last_started": max(record.started for record in records),
        "n_records": len(group.records),
        "n_failed": len(group.failed),
        "n_models": sum(bool(record.artifacts.get("model")) for record in group.records.values()),
        "image_auroc": auroc.mean if auroc else None,
    }
