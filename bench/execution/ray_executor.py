"""Does jobs on a Ray cluster, a task a fit: on one that runs, or on this machine's own, started for the call.

A node needs maskbench, the weights and, unless they are shipped, the images at the caller's paths. Outcomes come back
to the caller, who alone writes the store.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench import environment, registry
from bench.dataset import Sample
from bench.errors import BenchError
from bench.execution.job import Job, JobResult, Outcome, ProgressCallback, failure_outcomes, run_job

MAX_ATTEMPTS = 3
"""How often a fit is begun whose worker dies; each time on another node where there is one."""

POLL_SECONDS = 0.5
"""Seconds between two looks at how far the tasks are."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Task:
    """A job on its way: the node that does it, when it began there (0: it waits), and how often it was begun."""

    job: Job
    number: int
    node: str = ""
    begun: float = 0.0
    tries: int = 1
    stopped: bool = False


def run_on_ray(
    jobs: Sequence[Job],
    watch: ProgressCallback,
    *,
    address: str = "",
    gpus: float = 1.0,
    timeout: float = 0,
    ship: bool = False,
) -> Iterator[JobResult]:
    """The outcomes of each job as it finishes, in any order.

    address: "auto" or "ray://host:10001" of a cluster that runs; "" starts one on this machine. gpus: that a task on
    CUDA asks for; below 1 several share one. timeout: seconds a task may take once it runs, 0 is no limit. ship: send
    the images along instead of reading them at the caller's paths. Raises BenchError where Ray, the cluster or a node
    for the tasks is not to be had.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        yield from _Walk(ray, [resolve_resources(job) for job in jobs], watch, gpus, timeout, ship=ship).outcomes()
    finally:
        if ours:
            ray.shutdown()


def resolve_resources(job: Job) -> Job:
    """The job as a task does it: on the device that Ray gives it, on as many threads as it asks for, one by default."""
    cuda = environment.device("auto").type == "cuda" if job.device == "auto" else job.device.startswith("cuda")
    return replace(job, device="cuda" if cuda else "cpu", threads=job.threads or 1)


class _Walk:
    """All tasks of one call, from their submission to their outcomes."""

    def __init__(
        self, ray: Any, jobs: Sequence[Job], watch: ProgressCallback, gpus: float, timeout: float, *, ship: bool
    ) -> None:
        self._ray, self._watch, self._gpus, self._timeout = ray, watch, gpus, timeout
        self._folders = registry.plugin_folders("methods")[
            1:
        ]  # those that were added; a node has the shipped one itself
        self._shipped = _shipped(ray, jobs) if ship else {}
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # The board stays on the caller's node, so that it outlives any other.
        self._board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self._running: dict[Any, _Task] = {}
        for job in jobs:
            self._demanded(job)
        for number, job in enumerate(jobs):
            self._submit(_Task(job, number), "SPREAD")

    def outcomes(self) -> Iterator[JobResult]:
        ray = self._ray
        try:
            while self._running:
                ready, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
                self._look()
                for ref in ready:
                    task = self._running.pop(ref)
                    outcomes = self._outcome(ref, task)
                    if outcomes is not None:
                        yield task.job, outcomes
        finally:
            for ref in self._running:
                ray.cancel(ref, force=True)

    def _demanded(self, job: Job) -> dict[str, float]:
        """What a task asks of its node. Raises BenchError where no node has it."""
        asked = {"CPU": float(job.threads)} | ({"GPU": self._gpus} if job.device == "cuda" else {})
        if not self._nodes(asked):
            told = " and ".join(f"{count:g} {kind}" for kind, count in asked.items())
            raise BenchError(f"A task asks for {told} of one node; no node of the cluster has that. Lower --threads "
                             f"or --gpus-per-task, or choose another --device.")  # fmt: skip
        return asked

    def _nodes(self, asked: dict[str, float], but: str = "") -> list[str]:
        return [
            node["NodeID"]
            for node in self._ray.nodes()
            if node["Alive"]
            and node["NodeID"] != but
            and all(node["Resources"].get(kind, 0) >= count for kind, count in asked.items())
        ]

    def _submit(self, task: _Task, strategy: Any) -> None:
        asked = self._demanded(task.job)
        remote = self._ray.remote(_task).options(
            num_cpus=asked["CPU"], num_gpus=asked.get("GPU", 0), max_retries=0, scheduling_strategy=strategy
        )
        files = self._shipped.get(task.job.data_digest)
        ref = remote.remote(task.job, self._board, task.number, self._folders, files)
        self._running[ref] = task

    def _look(self) -> None:
        """Tells how far each task is, and stops those that take too long."""
        with suppress(self._ray.exceptions.RayError):
            told = self._ray.get(self._board.taken.remote())
            for ref, task in self._running.items():
                node, last = told.get(task.number, ("", None))
                if node:
                    task.node, task.begun = node, task.begun or time.monotonic()
                if last:
                    self._watch(*last)
                if self._timeout and task.begun and time.monotonic() > task.begun + self._timeout and not task.stopped:
                    task.stopped = True
                    self._ray.cancel(ref, force=True)

    def _outcome(self, ref: Any, task: _Task) -> Sequence[Outcome] | None:
        """What became of a finished task; None where its worker died and it begins once more."""
        ray = self._ray
        try:
            found: Sequence[Outcome] = ray.get(ref)
        except ray.exceptions.RayError as error:
            if task.stopped:
                return failure_outcomes(task.job, f"Stopped after --timeout {self._timeout:g} seconds. Raise it.")
            reason = " ".join(str(error).split())[:500]
            if isinstance(error, ray.exceptions.RayTaskError) or task.tries == MAX_ATTEMPTS:
                return failure_outcomes(task.job, f"Its worker failed, {task.tries} times in all: {reason}")
            _log.warning("%s: its worker died and it begins again: %s", task.job.label, reason)
            others = self._nodes(self._demanded(task.job), but=task.node)
            strategies = ray.util.scheduling_strategies
            elsewhere = strategies.NodeAffinitySchedulingStrategy(others[0], soft=True) if others else "SPREAD"
            self._submit(_Task(task.job, task.number, tries=task.tries + 1), elsewhere)
            return None
        return found


class _Board:
    """An actor to which tasks tell how far they are, and from which the caller takes it."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[str, tuple[Any, ...] | None]] = {}

    def tell(self, task: int, node: str, last: tuple[Any, ...] | None) -> None:
        self._told[task] = (node, last)

    def taken(self) -> dict[int, tuple[str, tuple[Any, ...] | None]]:
        told, self._told = self._told, {}
        return told


def _task(job: Job, board: Any, number: int, folders: Sequence[Path], files: dict[str, bytes] | None) -> list[Outcome]:
    """One fit on the node to which Ray brought it."""
    import ray

    node, last = ray.get_runtime_context().get_node_id(), 0.0
    board.tell.remote(number, node, None)

    def watch(*told: Any) -> None:
        nonlocal last
        if time.monotonic() - last > POLL_SECONDS:
            last = time.monotonic()
            board.tell.remote(number, node, told)

    try:
        for folder in folders:
            registry.add_folder("methods", folder)
        return run_job(_unpacked(job, files) if files is not None else _at_hand(job), watch)
    except BenchError as error:
        return failure_outcomes(job, str(error))


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BenchError(
            f"--executor ray needs Ray, which is not here ({error}). pip install 'maskbench[ray]'."
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        # "local" starts one even where RAY_ADDRESS names another
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except Exception as error:  # Ray raises all kinds of them, and a bare one where a start takes too long
        reason = " ".join(str(error).split())[:200]
        raise BenchError(
            f"--address names a Ray cluster that runs; '{address or 'local'}' does not answer ({reason}). "
            f"Start one (ray start --head), or leave --address out."
        ) from error


def _files(job: Job) -> set[Path]:
    others = (*job.task.tests.values(), *job.task.calibration.values())
    samples = (*job.task.train, *(sample for samples in others for sample in samples))
    return {path for sample in samples for path in (sample.image, *sample.masks)}


def _shipped(ray: Any, jobs: Sequence[Job]) -> dict[str, Any]:
    """The contents of the jobs' files in the cluster's object store, once for all jobs on the same data."""
    paths: dict[str, set[Path]] = {}
    for job in jobs:
        paths.setdefault(job.data_digest, set()).update(_files(job))
    return {data: ray.put({str(path): path.read_bytes() for path in some}) for data, some in paths.items()}


def _unpacked(job: Job, files: dict[str, bytes]) -> Job:
    """The job on files of this node, written there from what was shipped, once for all jobs on the same data."""
    root = job.cache / "shipped" / job.data_digest

    def here(path: Path) -> Path:
        parent = sha256(str(path.parent).encode(errors="surrogateescape")).hexdigest()[:12]
        place = root / parent / path.parent.name / path.name  # a record tells the last two
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            beside = place.with_name(f".{place.name}.{os.getpid()}")
            beside.write_bytes(files[str(path)])
            beside.replace(place)
        return place

    def moved(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(
            replace(sample, image=here(sample.image), masks=tuple(map(here, sample.masks))) for sample in samples
        )

    tests, held = (
        {category: moved(samples) for category, samples in by_category.items()}
        for by_category in (job.task.tests, job.task.calibration)
    )
    return replace(job, task=replace(job.task, train=moved(job.task.train), tests=tests, calibration=held))


def _at_hand(job: Job) -> Job:
    """The job, whose files are here. Raises BenchError where they are not."""
    for path in sorted(_files(job)):
        if not path.is_file():
            raise BenchError(
                f"Each node reads the images at the caller's path; this one has no {path}. "
                f"Put the data there, or give --ship-data."
            )
    return job
