"""maskbench from Python: `run` does what `bench run` does, `records` reads the store. Both return `Results`.

>>> from bench import run
>>> results = run("patchcore", dataset="folder", data="~/parts", protocol="one-for-one")
>>> results.to_frame()
>>> results.figure("image_auroc").savefig("auroc.png")
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, overload

from bench.cli.console import load_configuration, status
from bench.config.options import OPTIONS
from bench.config.plan import make_plan
from bench.errors import BenchError
from bench.evaluation import summary
from bench.record import Record
from bench.store import Store, to_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
        from matplotlib.figure import Figure

        groups = [group for group in summary.groups(self) if group.records]
        known = sorted({name for record in self for name in record.metrics})
        if metric not in known:
            raise BenchError(f"metric must be one of {', '.join(known)}, got '{metric}'.")
        categories = [*dict.fromkeys(name for group in groups for name in group.categories), summary.MEAN]
        figure = Figure(figsize=(7, 1.2 + 0.35 * len(categories) + 0.4 * len(groups)), layout="constrained")
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
                label=fill("; ".join([summary.heading(group), *summary.table_notes(group)]), 80),
            )
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.set_xlabel(f"{summary.METRICS.get(metric, metric)}, percent")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", fontsize="small")
        return figure


def _with_option_arguments(function: Callable[..., Results]) -> Callable[..., Results]:
    """Replace `**options` in the signature by one typed keyword argument per option, and add them to the docstring."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Results:
        return function(*args, **kwargs)

    declared = signature(function)
    explicit = [each for each in declared.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    options = [option for option in OPTIONS.values() if option.name not in declared.parameters]
    added = [
        Parameter(option.name, Parameter.KEYWORD_ONLY, default=None, annotation=option.type | None)
        for option in options
    ]
    call.__signature__ = declared.replace(parameters=[*explicit, *added])  # type: ignore[attr-defined]
    call.__annotations__ = function.__annotations__ | {each.name: each.annotation for each in added}
    lines = [f"        {option.name}: {option.help}" for option in options]
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
    **options: Any,
) -> Results:
    """Fit methods, evaluate them, and store a record per category; return all records of the plan.

    Records that exist are not computed again, unless `force` is set. A failed run is a record with `failure`. An
    argument that is None has the value of the campaign, of the profile, or its default.

    Args:
        method: names of methods or aliases, or "all".
        data: folder of the data set.
        settings: settings of methods: {"epochs": 50}, or {"aminet.epochs": 50} for one method.
        sweep: values of settings, one run each: {"clusters": [2, 4, 8]}.
        profile: profile of bench.toml; "demo" by default.
        campaign: campaign of bench.toml, for example "table1".
        runs: folder of the records.
        weights: folder of backbone weights.
        checkpoint: checkpoint of the authors to evaluate without a fit: a file, or a folder with one per category.
        force: whether to compute existing records again.
        retry_failed: whether to run only what failed before.
        options: see below.

    Raises:
        BenchError: for the same errors as the command.
    """
    from bench import registry
    from bench.cli.progress_display import run_with_progress
    from bench.execution.schedule import make_schedule

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
    folder = Path(runs).expanduser() if runs else load_configuration().path("runs") or Path("runs")
    return Results(Store(folder).records())
