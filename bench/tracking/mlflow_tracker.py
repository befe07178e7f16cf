"""Write runs to MLflow: to a file store, or to the server of MLFLOW_TRACKING_URI."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from bench.errors import MAX_REASON, BenchError, first_line, shortened
from bench.tracking.tracked_run import PROJECT, TrackedRun, file_name

ID_TAG = "maskbench.id"

MAX_PARAM = 6000
"""Largest number of characters of a parameter in MLflow."""

MAX_BATCH = 100
"""Largest number of parameters, and of tags, that MLflow takes at once; of metrics it takes 1000."""

_FORBIDDEN = re.compile(r"[^\w\-. /:]")
"""Characters that names of MLflow must not have."""


class MlflowTracker:
    """The runs of MLflow, one experiment per dataset and protocol."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:  # MLflow rejects its file store without this variable
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            folder.mkdir(parents=True, exist_ok=True)
        with _bench_errors():
            self._client = MlflowClient(tracking_uri=folder.absolute().as_uri() if folder else None)

    def has(self, run: TrackedRun) -> bool:
        """Return whether a finished run has the id."""
        with _bench_errors():
            return any(each.info.status != "RUNNING" for each in self._runs(run))

    def write(self, run: TrackedRun) -> None:
        """Write the run, and end it only when it is complete; remove what an interrupted call wrote of it."""
        files = run.read_files()
        with _bench_errors():
            for incomplete in self._runs(run):
                self._client.delete_run(incomplete.info.run_id)
            self._write(run, files)

    def _write(self, run: TrackedRun, files: Mapping[str, bytes]) -> None:
        started = round(1000 * run.started)
        tags = {ID_TAG: run.id, "maskbench.record": run.path, "maskbench.caveats": "; ".join(run.caveats)}
        tags |= {"maskbench.failure": run.failure[:MAX_PARAM]} if run.failure else {}
        created = self._client.create_run(
            self._experiment(run), start_time=started, run_name=run.name, tags={k: v for k, v in tags.items() if v}
        )
        run_id = created.info.run_id
        params = [Param(_name(name), value[:MAX_PARAM]) for name, value in run.params.items()]
        metrics = [Metric(_name(name), value, started, 0) for name, value in run.metrics.items()]
        metrics += [Metric(_name(point.name), point.value, started, point.epoch) for point in run.curves]
        for start in range(0, len(params), MAX_BATCH):
            self._client.log_batch(run_id, params=params[start : start + MAX_BATCH])
        for start in range(0, len(metrics), MAX_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])
        with tempfile.TemporaryDirectory(prefix="maskbench-") as folder:
            for name, content in files.items():
                file = Path(folder, file_name(name))
                file.write_bytes(content)
                self._client.log_artifact(run_id, str(file))
        status = "FAILED" if run.failure else "FINISHED"
        self._client.set_terminated(run_id, status, end_time=started + round(1000 * run.duration))

    def _runs(self, run: TrackedRun) -> list[Run]:
        """Return the runs that have the id."""
        return list(self._client.search_runs([self._experiment(run)], f"tags.`{ID_TAG}` = '{run.id}'", max_results=100))

    def _experiment(self, run: TrackedRun) -> str:
        name = f"{PROJECT} {run.experiment}"
        existing = self._client.get_experiment_by_name(name)
        return str(existing.experiment_id if existing else self._client.create_experiment(name))


@contextmanager
def _bench_errors() -> Iterator[None]:
    """Raise a BenchError for an error of MLflow, for example if its server cannot be reached."""
    try:
        yield
    except MlflowException as error:
        reason = shortened(first_line(error), MAX_REASON)
        raise BenchError(f"MLflow must accept the runs, but: {reason} Check --out, or MLFLOW_TRACKING_URI.") from error


def _name(name: str) -> str:
    return _FORBIDDEN.sub("_", name)
