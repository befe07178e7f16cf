"""maskbench from Python: `run` does what `bench run` does, `records` reads the store. Both return `Results`.

>>> from bench import run
>>> results = run("patchcore", dataset="folder", data="~/parts", protocol="one-for-one")
>>> results.to_frame()
>>> results.figure("image_auroc").savefig("auroc.png")
"""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, ParamSpec, Unpack, get_type_hints, overload

from bench import registry
from bench.cli.console import load_configuration, replace_unencodable, runs_folder, status
from bench.config.bench_toml import expand_user
from bench.config.options import OPTIONS
from bench.config.plan import make_plan
from bench.config.run_options import RunOptions
from bench.errors import BenchError, CheckResult
from bench.evaluation import group_names, summary
from bench.record import Record
from bench.store import Store, to_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from bench.deploy.loaded_model import LoadedModel

P = ParamSpec("P")


class Results(Sequence[Record]):
    """A sequence of records, failed ones included, with a table and a figure."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Results": ...
    def __getitem__(self, index: int | slice) -> "Record | Results":
        """Return a record, or the results of a slice."""
        return Results(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same records in the same order."""
        return isinstance(other, Results) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]  # records contain lists

    def __repr__(self) -> str:
        """Return the number of records and the methods."""
        titles = dict.fromkeys(record.run.title for record in self)
        return f"<{summary.count_label(self)} of {', '.join(titles) or 'no method'}, {len(self.failed)} failed>"

    def _repr_html_(self) -> str:
        """Return a table of the records for a notebook: metrics in percent, or why a fit failed."""
        names = [name for name in summary.METRICS if any(name in record.metrics for record in self)]
        header = ["method", "dataset", "category", "seed", *(summary.METRICS[name] for name in names)]
        rows = []
        for record in self:
            run = record.run
            title = group_names.title_with_selection(run.title, record.selection)
            k = f" k={run.k}" if run.k else ""
            values = [f"{100 * record.metrics[name]:.1f}" if name in record.metrics else "" for name in names]
            if record.failure:
                values = [f"failed: {record.failure.splitlines()[-1]}", *values[1:]]
            rows.append([title, f"{run.dataset} {run.protocol}{k}", record.category, str(run.seed), *values])
        return f"<p>{html.escape(repr(self))}</p>{_html_table(header, rows)}"

    @property
    def failed(self) -> "Results":
        """The records without metrics; their `failure` gives the reason."""
        return Results(record for record in self if record.failure)

    def to_frame(self) -> "pd.DataFrame":
        """Return a row per record: `dataset`, `settings.<name>`, ..., `metrics.<name>`, seconds and latency."""
        return to_frame(self)

    def figure(self, metric: str = "image_auroc") -> "Figure":
        """Plot a metric in percent per category and its mean, one color per method, with standard deviations.

        Args:
            metric: name of a metric, as in `to_frame` after "metrics.".

        Raises:
            BenchError: no record has the metric.
        """
        from bench.notebook_figure import NotebookFigure

        groups = [group for group in summary.groups(self) if group.records]
        metric_names = sorted({name for record in self for name in record.metrics})
        if metric not in metric_names:
            raise BenchError(f"metric must be one of {', '.join(metric_names)}, got '{metric}'.")
        categories = [*dict.fromkeys(name for group in groups for name in group.categories), summary.MEAN]
        figure = NotebookFigure(figsize=(7, 1.2 + 0.35 * len(categories) + 0.4 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for number, group in enumerate(groups):
            cells = {category: group.mean_std(category, metric) for category in categories}
            values = {category: cell for category, cell in cells.items() if cell is not None}
            offset = 0.5 * ((number + 0.5) / len(groups) - 0.5)
            axes.errorbar(
                [100 * cell.mean for cell in values.values()],
                [categories.index(category) + offset for category in values],
                xerr=[100 * (cell.std or 0) for cell in values.values()],
                fmt="osD^vPX"[number % 7],
                label=fill("; ".join([group_names.heading(group), *summary.table_notes(group)]), 80),
            )
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.set_xlabel(f"{summary.METRICS.get(metric, metric)}, percent")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", fontsize="small")
        return figure


def _with_option_arguments(function: Callable[P, Results]) -> Callable[P, Results]:
    """Replace `**options` in the signature by one typed keyword argument per option, and add them to the docstring."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Results:
        return function(*args, **kwargs)

    declared = signature(function)
    explicit = [each for each in declared.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    hints = get_type_hints(RunOptions)
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
    call.__signature__ = declared.replace(parameters=[*explicit, *added])  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in (*explicit, *added)} | {"return": Results}
    lines = [f"        {name}: {OPTIONS[name].help}" for name in hints]
    call.__doc__ = f"{function.__doc__}".replace("        options: see below.", "\n".join(lines))
    return call


@_with_option_arguments
def run(
    method: str | Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    profile: str | None = None,
    campaign: str | None = None,
    runs: str | Path | None = None,
    weights: str | Path | None = None,
    checkpoint: str | Path | None = None,
    force: bool = False,
    retry_failed: bool = False,
    **options: Unpack[RunOptions],
) -> Results:
    """Fit methods, evaluate them, and store a record per category; return all records of the plan.

    Records that exist are not computed again, unless `force` is set. A failed run is a record with `failure`. An
    argument that is None has the value of the campaign, of the profile, or its default.

    Args:
        method: names of methods or aliases, or "all".
        data: folder of the dataset.
        settings: settings of methods: {"epochs": 50}, or {"aminet.epochs": 50} for one method.
        sweep: values of settings, one run each: {"clusters": [2, 4, 8]}.
        profile: profile of bench.toml; "demo" by default.
        campaign: campaign of bench.toml, for example "table1".
        runs: folder of the records.
        weights: folder of backbone weights; "auto" for packages and timm's hub only.
        checkpoint: checkpoint of the authors to evaluate without a fit: a file, or a folder with one per category.
        force: whether to compute existing records again.
        retry_failed: whether to run only what failed before.
        options: see below.

    Raises:
        BenchError: for the same errors as the command.
    """
    from bench.cli.progress_display import run_with_progress
    from bench.execution.schedule import make_schedule

    replace_unencodable()
    config = load_configuration()
    paths = {"data": data, "weights": weights, "runs": runs, "checkpoint": checkpoint}
    plan = make_plan(
        config,
        registry.names("methods"),
        options={"method": method, **options},
        settings=settings,
        sweep=sweep,
        profile=profile,
        campaign=campaign,
        paths={key: Path(path) for key, path in paths.items() if path},
        command="bench.run(...)",
    )
    schedule = make_schedule(plan, force=force, retry=retry_failed)
    return Results([*schedule.existing, *run_with_progress(status, plan, schedule)])


def records(runs: str | Path | None = None) -> Results:
    """Return all records of a store: of the folder `runs`, or of the one that bench.toml names."""
    folder = expand_user(runs) if runs else load_configuration().path("runs") or Path("runs")
    return Results(Store(folder).records())


class Text(str):
    """A report as Markdown, which a notebook renders."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


def report(
    *,
    table: str = "",
    full: bool = True,
    runs: str | Path | None = None,
    criteria: Mapping[str, Sequence[str]] | None = None,
) -> Text:
    """Return the report of the stored records as Markdown, without figures.

    Args:
        table: one table of the AMI-Net paper: "1", ..., "fig9"; all results by default.
        full: False for one table per dataset and protocol.
        runs: folder of the records.
        criteria: values of the records to report: {"method": ["aminet"], "category": ["gear", "steel"]}.

    Raises:
        BenchError: the folder does not exist, or a value matches no record.
    """
    store, content = _store(runs), registry.report_content()
    selected = summary.select_records(list(store.records()), criteria or {})
    document = content.results(selected, store, [], table) if full or table else content.overview(selected)
    return Text(registry.load("reports", "markdown").render(document))


class CheckResults(Sequence[CheckResult]):
    """The results of `check`; `problems` are those that do not hold."""

    def __init__(self, results: Iterable[CheckResult]) -> None:
        self._results = tuple(results)

    def __len__(self) -> int:
        """Return the number of requirements."""
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> CheckResult: ...
    @overload
    def __getitem__(self, index: slice) -> "CheckResults": ...
    def __getitem__(self, index: int | slice) -> "CheckResult | CheckResults":
        """Return a result, or those of a slice."""
        return CheckResults(self._results[index]) if isinstance(index, slice) else self._results[index]

    def __repr__(self) -> str:
        """Return a line per requirement."""
        return "\n".join(f"{_state(result)}  {result.requirement} {result.problem}".rstrip() for result in self)

    def _repr_html_(self) -> str:
        rows = [[_state(result), result.requirement, result.problem] for result in self]
        return _html_table(["", "requirement", "problem"], rows)

    @property
    def problems(self) -> "CheckResults":
        """The requirements that do not hold."""
        return CheckResults(result for result in self if result.problem)


def check(name: str | Path | None = None, *, data: str | Path | None = None) -> CheckResults:
    """Check the installation, a method against its contract, or a dataset; as `bench check`.

    Args:
        name: name or file of a method, name of a dataset, or folder of images; None for the installation.
        data: folder of the dataset, if `name` is one.

    Raises:
        BenchError: the name is unknown, or `data` is given with a method or a folder.
    """
    from bench.execution import diagnostics

    config = load_configuration()
    if name is None:
        return CheckResults(diagnostics.check_environment(config))
    folder = expand_user(data) if data else None
    return CheckResults(diagnostics.check_target(config, str(name), folder, lambda _done, _total: None))


def compare(first: str, second: str, *, runs: str | Path | None = None) -> Text:
    """Return the comparison of two runs, named as `bench list runs` prints them, as Markdown.

    Raises:
        BenchError: a name is not that of exactly one run of the store.
    """
    store = _store(runs)
    document = registry.report_content().comparison(list(store.records()), store, first, second)
    return Text(registry.load("reports", "markdown").render(document))


def load(
    run: str | Path,
    *,
    category: str | None = None,
    runs: str | Path | None = None,
    device: str = "auto",
    weights: str | Path | None = None,
) -> "LoadedModel":
    """Return a saved model: `bench.load("demo/kshot-4/patchcore", category="gear").predict(images)`.

    Args:
        run: as `bench predict` takes it: a record, its folder, or the end of such a path below the folder of runs.
        category: the category, if `run` does not name it.
        runs: folder of the records.
        device: "auto", "cpu", "cuda" or "cuda:1".
        weights: folder of backbone weights; "auto" for packages and timm's hub only.

    Raises:
        BenchError: no saved model or several of them match, or a file is not that of its record.
    """
    from bench.config.bench_toml import cache_folder
    from bench.deploy import saved_model
    from bench.deploy.loaded_model import LoadedModel

    config = load_configuration()
    path = saved_model.find(str(run), _store(runs).root, category)
    folder = config.weights(expand_user(weights) if weights else None)
    return LoadedModel(saved_model.load(path, device=device, weights=folder, cache=cache_folder(config)))


def _state(result: CheckResult) -> str:
    return "ok" if not result.problem else "failed" if result.required else "warning"


def _html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table of plain text."""
    lines = [("th", header), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) for tag, line in lines)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def _store(runs: str | Path | None) -> Store:
    return Store(runs_folder(expand_user(runs) if runs else None, load_configuration()))
