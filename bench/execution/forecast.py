"""Estimate how long a plan takes and how much memory it needs, from similar records in the store."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.execution.job import Job
from bench.identity import cost_key
from bench.record import Record


@dataclass(frozen=True, slots=True)
class Forecast:
    """The estimated cost of jobs that run one after the other.

    Attributes:
        seconds: of fits, predictions, metrics and the oracle's evaluations, of the jobs with similar records.
        n_unknown: number of jobs without similar records.
        memory: the largest peak of a similar fit in bytes, of the device or else of the host, by method.
    """

    seconds: float = 0.0
    n_unknown: int = 0
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Costs:
    """Costs of similar records: seconds of the fit per training image and of the test per image, epochs, peak bytes."""

    fit: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    epochs: int = 0
    memory: int = 0


def forecast(jobs: Sequence[Job], records: Iterable[Record], *, gpu: bool) -> Forecast:
    """Return the estimated cost of the jobs on a GPU or a CPU.

    Records are similar if `bench.identity.cost_key` is equal and the type of device is the same. Times are assumed
    proportional to the number of images; the median is used.
    """
    costs_by_key: dict[str, _Costs] = {}
    for record in records:
        if record.selection == "last" and "fit" in record.seconds and ("cuda" in record.environment) == gpu:
            costs = costs_by_key.setdefault(cost_key(record.run), _Costs())
            costs.fit.append(record.seconds["fit"] / max(len(record.train_files), 1))
            seconds = record.seconds["predict"] + record.seconds["evaluate"]
            costs.test.append(seconds / max(len(record.test_files), 1))
            costs.epochs = max(costs.epochs, record.epoch)
            costs.memory = max(costs.memory, record.memory.get("device", record.memory.get("host", 0)))
    seconds, n_unknown, memory = 0.0, 0, dict[str, int]()
    for job in jobs:
        similar = costs_by_key.get(cost_key(job.run))
        if similar is None:
            n_unknown += 1
            continue
        evaluation = job.evaluation
        evaluations = -(-similar.epochs // evaluation.eval_every) if evaluation.selection != "last" else 0
        n_test = sum(len(tests) for tests in job.task.tests.values())
        seconds += median(similar.fit) * len(job.task.train) + median(similar.test) * n_test * (1 + evaluations)
        memory[job.run.name] = max(memory.get(job.run.name, 0), similar.memory)
    return Forecast(seconds, n_unknown, memory)
