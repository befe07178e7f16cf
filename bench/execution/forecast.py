"""How long a plan will take and how much memory, from the records in the store of what the like took before."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.execution.job import Job
from bench.record import Record, Run


@dataclass(frozen=True, slots=True)
class Forecast:
    """What jobs will take, one after the other.

    Attributes:
        seconds: of fits, predictions, metrics and the oracle's looks, for the jobs of which something is known.
        unknown: how many jobs there are of which no record tells a time.
        memory: the largest peak of a like fit, in bytes of the device's or else the host's memory, by method.
    """

    seconds: float = 0.0
    n_unknown: int = 0
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Times:
    """Of like records: seconds of the fit a training image, of the answers a test image, epochs, and peak bytes."""

    fit: list[float] = field(default_factory=list)
    tests: list[float] = field(default_factory=list)
    epochs: int = 0
    memory: int = 0


def forecast(jobs: Sequence[Job], records: Iterable[Record], *, gpu: bool) -> Forecast:
    """The forecast of the jobs on a GPU or a CPU.

    Alike are records of the same method, settings, preprocessing and precision on the same kind of device. Times are
    taken as proportional to the number of images, and their median counts.
    """
    known: dict[str, _Times] = {}
    for record in records:
        if record.selection == "last" and "fit" in record.seconds and ("cuda" in record.environment) == gpu:
            times = known.setdefault(_kind(record.run), _Times())
            times.fit.append(record.seconds["fit"] / max(len(record.train_files), 1))
            times.tests.append((record.seconds["predict"] + record.seconds["judge"]) / max(len(record.test_files), 1))
            times.epochs = max(times.epochs, record.epoch)
            times.memory = max(times.memory, record.memory.get("device", record.memory.get("host", 0)))
    seconds, unknown, memory = 0.0, 0, dict[str, int]()
    for job in jobs:
        found = known.get(_kind(job.run))
        if found is None:
            unknown += 1
            continue
        looks = -(-found.epochs // job.eval_every) if job.selection != "last" else 0
        tested = sum(len(tests) for tests in job.task.tests.values())
        seconds += median(found.fit) * len(job.task.train) + median(found.tests) * tested * (1 + looks)
        memory[job.run.name] = max(memory.get(job.run.name, 0), found.memory)
    return Forecast(seconds, unknown, memory)


def _kind(run: Run) -> str:
    return json.dumps([run.method, run.settings, run.preprocessing, run.precision], sort_keys=True)
