"""Estimate how long a plan takes and how much memory it needs, from similar records in the store."""

import time
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.execution.job import Job
from bench.identity import cost_key
from bench.record import Record
from bench.store import Store


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The estimated cost of jobs that run one after the other.

    Attributes:
        seconds: time of fits, predictions, metrics and the oracle's evaluations, for the jobs with similar records.
        n_unknown: number of jobs without similar records.
        memory: the largest peak of a similar fit in bytes, of the device or else of the host, by method.
    """

    seconds: float = 0.0
    n_unknown: int = 0
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Costs:
    """Costs of similar fits.

    Attributes:
        fit: seconds of each fit per training image, sorted. test: the same of what follows per test image.
        epochs: number of epochs, after which the oracle's evaluations are not part of `fit`; 0 if they are.
        memory: the largest peak in bytes.
    """

    fit: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    epochs: int = 0
    memory: int = 0

    def seconds(self, job: Job) -> tuple[float, float]:
        """Return the estimated seconds of a job's fit, with the oracle's evaluations, and of what follows."""
        test = _median(self.test) * _n_test(job)
        evaluation = job.evaluation
        evaluations = -(-self.epochs // evaluation.eval_every) if evaluation.selection != "last" else 0
        return _median(self.fit) * len(job.task.train) + test * evaluations, test


def estimate_cost(jobs: Sequence[Job], records: Iterable[Record], *, gpu: bool) -> CostEstimate:
    """Return the estimated cost of the jobs on a GPU or a CPU.

    Records are similar if `bench.identity.cost_key` is equal and the type of device is the same. Times are assumed
    proportional to the number of images; the median is used.
    """
    costs_by_key = _costs_by_key(records, gpu=gpu)
    seconds, n_unknown, memory = 0.0, 0, dict[str, int]()
    for job in jobs:
        similar = costs_by_key.get(cost_key(job.run))
        if similar is None:
            n_unknown += 1
            continue
        seconds += sum(similar.seconds(job))
        memory[job.run.name] = max(memory.get(job.run.name, 0), similar.memory)
    return CostEstimate(seconds, n_unknown, memory)


class RemainingTime:
    """The time that jobs still take, from the progress of those that run and the times of those that are finished.

    A job without any progress is estimated from the finished jobs with an equal `cost_key`, else from similar records,
    else from the running jobs with an equal key.
    """

    def __init__(self, jobs: Iterable[Job], records: Iterable[Record], *, gpu: bool) -> None:
        self._waiting: dict[str, list[_JobTimes]] = {}
        for job in jobs:
            self._waiting.setdefault(job.label, []).append(_JobTimes(job, cost_key(job.run), _has_checkpoint(job)))
        self._running: dict[str, _JobTimes] = {}
        self._stored, self._measured = _costs_by_key(records, gpu=gpu), dict[str, _Costs]()
        self._changed_at = time.monotonic()  # the last start or end of a job

    def update(self, label: str, phase: str, done: int, total: int) -> None:
        """Take the arguments of a call of progress; the phase "done" ends the job."""
        now = time.monotonic()
        if label not in self._running:
            self._running[label] = self._waiting[label].pop(0)
            self._running[label].started = now if len(self._running) > 1 else self._changed_at
            self._changed_at = now
        running = self._running[label]
        if phase == "fit":
            if running.first is None or done < running.first[1]:  # Ray may start a fit again
                running.first = (now, done)
            running.last, running.total = (now, done), total
        elif phase not in {"pretrain", "done"} and not running.fit_ended_at:
            running.fit_ended_at = now
        if phase == "done":
            del self._running[label]
            self._changed_at = now
            fit = running.fit_seconds()
            if not running.fit_ended_at or fit is None:  # it failed
                return
            costs = self._measured.setdefault(running.key, _Costs())
            insort(costs.fit, fit / max(len(running.job.task.train), 1))
            insort(costs.test, (now - running.fit_ended_at) / max(_n_test(running.job), 1))

    def seconds(self) -> tuple[float, int]:
        """Return the estimated seconds until all jobs are done, and the number of jobs without an estimate."""
        now, seconds, n_unknown = time.monotonic(), 0.0, 0
        fit_of_running: dict[str, float] = {}  # seconds per training image
        for running in self._running.values():
            costs = self._measured.get(running.key) or self._stored.get(running.key)
            estimated_fit, test = costs.seconds(running.job) if costs else (None, 0.0)
            fit = running.fit_seconds() or estimated_fit
            if fit is None:
                n_unknown += 1
                continue
            fit_of_running[running.key] = fit / max(len(running.job.task.train), 1)
            if running.fit_ended_at:
                remaining = running.fit_ended_at + test - now
            else:
                remaining = running.started + fit - running.restored_seconds() + test - now
            seconds += max(remaining, 0.0)
        for waiting in (waiting for jobs in self._waiting.values() for waiting in jobs):
            costs = self._measured.get(waiting.key) or self._stored.get(waiting.key)
            if costs:
                seconds += sum(costs.seconds(waiting.job))
            elif waiting.key in fit_of_running:
                seconds += fit_of_running[waiting.key] * len(waiting.job.task.train)
            else:
                n_unknown += 1
        return seconds / max(len(self._running), 1), n_unknown


@dataclass(slots=True)
class _JobTimes:
    """A job and its times, which are monotonic.

    Attributes:
        job, key: the job and its `cost_key`.
        has_checkpoint: whether its fit may continue from a checkpoint.
        started: when it started.
        first, last: time and number of the first and the last epoch in calls of progress.
        total: number of epochs.
        fit_ended_at: when the fit ended; 0 before.
    """

    job: Job
    key: str
    has_checkpoint: bool
    started: float = 0.0
    first: tuple[float, int] | None = None
    last: tuple[float, int] | None = None
    total: int = 0
    fit_ended_at: float = 0.0

    def fit_seconds(self) -> float | None:
        """Return the estimated seconds of the whole fit from its epochs so far; None if none is completed.

        The epochs of a checkpoint, whose restoration takes almost no time, are part of it.
        """
        if self.fit_ended_at:
            return self.fit_ended_at - self.started + self.restored_seconds()
        if self.last is None or not self.last[1] or self.last[0] <= self.started:
            return None  # of jobs that run at the same time, all but one start with their first call of progress
        remaining = self._seconds_per_epoch() * (self.total - self.last[1])
        return self.last[0] - self.started + self.restored_seconds() + remaining

    def restored_seconds(self) -> float:
        """Return the estimated seconds of the epochs that were not computed here, but restored from a checkpoint."""
        return self._seconds_per_epoch() * self._n_restored()

    def _n_restored(self) -> int:
        return self.first[1] - 1 if self.has_checkpoint and self.first and self.first[1] else 0

    def _seconds_per_epoch(self) -> float:
        if self.first is None or self.last is None or not self.last[1]:
            return 0.0
        if self.last[1] > self.first[1]:  # without what precedes the first epoch, for example the features
            return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])
        return (self.last[0] - self.started) / (self.last[1] - self._n_restored())


def _has_checkpoint(job: Job) -> bool:
    return Store(job.runs).checkpoint_path(job.run, job.data_hash, job.task.name, 0).is_file()


def _n_test(job: Job) -> int:
    return sum(len(tests) for tests in job.task.tests.values())


def _median(values: Sequence[float]) -> float:
    """Return the median of sorted values."""
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def _costs_by_key(records: Iterable[Record], *, gpu: bool) -> dict[str, _Costs]:
    """Return the costs of the records on a GPU or a CPU by `cost_key`."""
    costs_by_key: dict[str, _Costs] = {}
    for record in records:
        if record.selection == "last" and "fit" in record.seconds and ("cuda" in record.environment) == gpu:
            costs = costs_by_key.setdefault(cost_key(record.run), _Costs())
            insort(costs.fit, record.seconds["fit"] / max(len(record.train_files), 1))
            seconds = record.seconds["predict"] + record.seconds["evaluate"]
            insort(costs.test, seconds / max(len(record.test_files), 1))
            costs.epochs = max(costs.epochs, record.epoch)
            costs.memory = max(costs.memory, record.memory.get("device", record.memory.get("host", 0)))
    return costs_by_key
