"""maskbench from Python: `run` as the command does it, `records` as they stand in the store; both give `Results`.

>>> from bench import run
>>> results = run(method="patchcore", dataset="folder", data="~/parts", protocol="one-for-one")
>>> results.frame()
>>> results.figure("image_auroc").savefig("auroc.png")
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, overload

from bench.cli.console import load_configuration, status
from bench.config.plan import make_plan
from bench.errors import BenchError
from bench.evaluation import summary
from bench.record import Record
from bench.store import Store, to_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Results(Sequence[Record]):
    """Records in a row, with the table and the figure that one wants first. Those that failed are among them."""

    def __init__(self, found: Iterable[Record]) -> None:
        self._records = tuple(found)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Results": ...
    def __getitem__(self, index: int | slice) -> "Record | Results":
        """A record, or several."""
        return Results(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __eq__(self, other: object) -> bool:
        """Whether the records are the same, in the same order."""
        return isinstance(other, Results) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]  # records hold lists

    def __repr__(self) -> str:
        """How many there are of each method."""
        titles = dict.fromkeys(record.run.title for record in self)
        return f"<{summary.count_label(self)} of {', '.join(titles) or 'nothing'}, {len(self.failed)} failed>"

    @property
    def failed(self) -> "Results":
        """Those without metrics; each tells why in its `failure`."""
        return Results(record for record in self if record.failure)

    def frame(self) -> "pd.DataFrame":
        """A row a record: what was asked (`dataset`, `settings.<name>`, ...), `metrics.<name>`, seconds, latency."""
        return to_frame(self)

    def figure(self, metric: str = "image_auroc") -> "Figure":
        """A metric in percent by category, and its mean, a colour a method; bars are standard deviations over seeds.

        metric: as `frame` names it after "metrics.". Raises BenchError where no record has it.
        """
        from matplotlib.figure import Figure

        groups = [group for group in summary.groups(self) if group.records]
        known = sorted({name for record in self for name in record.metrics})
        if metric not in known:
            raise BenchError(f"A figure shows a metric that the records have: {', '.join(known)}; '{metric}' is none.")
        categories = [*dict.fromkeys(name for group in groups for name in group.categories), summary.MEAN]
        figure = Figure(figsize=(7, 1.2 + 0.35 * len(categories) + 0.4 * len(groups)), layout="constrained")
        axes = figure.add_subplot()
        for number, group in enumerate(groups):
            cells = {category: group.cell(category, metric) for category in categories}
            there = {category: cell for category, cell in cells.items() if cell is not None}
            offset = 0.5 * ((number + 0.5) / len(groups) - 0.5)
            axes.errorbar(
                [100 * cell.mean for cell in there.values()],
                [categories.index(category) + offset for category in there],
                xerr=[100 * (cell.std or 0) for cell in there.values()],
                fmt="osD^vPX"[number % 7],
                label=fill("; ".join([summary.heading(group), *summary.table_notes(group)]), 80),
            )
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        axes.set_xlabel(f"{summary.METRICS.get(metric, metric)}, percent")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", fontsize="small")
        return figure


def run(
    method: str | Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    over: Mapping[str, Any] | None = None,
    profile: str | None = None,
    campaign: str | None = None,
    runs: str | Path | None = None,
    weights: str | Path | None = None,
    checkpoint: str | Path | None = None,
    force: bool = False,
    retry_failed: bool = False,
    **options: Any,
) -> Results:
    """Fits, judges and stores as `bench run` does, below a bar that tells the time left; gives all records of the plan.

    What stands in the store is not done again, unless `force`. A run that fails is a record that says why.

    Args:
        method: names of methods or aliases, or "all".
        data: where the data set lies.
        settings: of methods, as {"epochs": 50} or {"aminet.epochs": 50}.
        over: a sweep, as {"clusters": [2, 4, 8]}.
        profile: of bench.toml.
        campaign: of bench.toml, as "table1".
        runs: folder of the records.
        weights: folder of backbone weights.
        checkpoint: released models, judged without training.
        force: do again what is done.
        retry_failed: do only what failed before.
        options: the others of `bench run`, as dataset, protocol, k, seed, category, limit: `bench.config.Options`.

    Raises BenchError for what the command refuses.
    """
    from bench import registry
    from bench.cli import progress_display
    from bench.execution import schedule as walk

    known = load_configuration()
    paths = {"data": data, "weights": weights, "runs": runs, "checkpoint": checkpoint}
    plan = make_plan(
        known,
        registry.names("methods"),
        options={"method": method, **options},
        settings=settings,
        sweep=over,
        profile=profile,
        campaign=campaign,
        paths={key: Path(path) for key, path in paths.items() if path},
        command="bench.run(...)",
    )
    survey = walk.make_schedule(plan, force=force, retry=retry_failed)
    return Results([*survey.existing, *progress_display.run_with_progress(status, plan, survey)])


def records(runs: str | Path | None = None) -> Results:
    """All records in the store: that folder, or the one that bench.toml names."""
    folder = Path(runs).expanduser() if runs else load_configuration().path("runs") or Path("runs")
    return Results(Store(folder).records())
