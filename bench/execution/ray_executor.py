"""Run jobs on a Ray cluster, one task per fit: on a running cluster, or on one started on this machine for this call.

A node needs maskbench, the weights and, unless they are shipped, the images at the caller's paths. Outcomes come back
to the caller, and only the caller writes to the store.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import environment, registry
from bench.config.options import ExecutionOptions
from bench.errors import BenchError
from bench.execution.image_shipping import check_local_files, job_files, write_images
from bench.execution.job import Job, JobResult, Outcome, ProgressCallback, failure_outcomes, run_job

MAX_ATTEMPTS = 3
"""Maximum number of attempts of a fit whose worker dies; each on another node if there is one."""

POLL_SECONDS = 0.5
"""Seconds between two queries of the tasks' progress."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Task:
    """A submitted job: the node that runs it, when it started there (0: it waits), and the number of attempts."""

    job: Job
    number: int
    node: str = ""
    started_at: float = 0.0
    attempts: int = 1
    is_stopped: bool = False


def run_on_ray(jobs: Sequence[Job], progress: ProgressCallback, execution: ExecutionOptions) -> Iterator[JobResult]:
    """Yield the outcomes of each job as it finishes, in any order.

    Raises BenchError if Ray, the cluster or a node for the tasks is not available.
    """
    ray = _import_ray()
    is_started_here = not ray.is_initialized()
    if is_started_here:
        _connect(ray, execution.address)
    try:
        yield from _RayRun(ray, [resolve_resources(job) for job in jobs], progress, execution).outcomes()
    finally:
        if is_started_here:
            ray.shutdown()


def resolve_resources(job: Job) -> Job:
    """Return the job as a task runs it: on the device that Ray assigns, with the threads of the call or else one."""
    compute = job.compute
    name = compute.device if compute.device != "auto" else environment.device("auto").type
    device = "cuda" if name.startswith("cuda") else "cpu"
    return replace(job, compute=replace(compute, device=device, threads=compute.threads or 1))


class _RayRun:
    """All tasks of one call, from their submission to their outcomes."""

    def __init__(self, ray: Any, jobs: Sequence[Job], progress: ProgressCallback, execution: ExecutionOptions) -> None:
        self._ray, self._progress, self._execution = ray, progress, execution
        self._folders = registry.plugin_folders("methods")[1:]  # a node has the shipped folder itself
        self._images = _put_images(ray, jobs) if execution.ship_data else {}
        this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # The actor stays on the caller's node, so that it survives the death of any other node.
        self._updates = ray.remote(_ProgressActor).options(num_cpus=0, scheduling_strategy=this_node).remote()
        self._running: dict[Any, _Task] = {}
        for job in jobs:
            self._required_resources(job)
        for number, job in enumerate(jobs):
            self._submit(_Task(job, number), "SPREAD")

    def outcomes(self) -> Iterator[JobResult]:
        ray = self._ray
        try:
            while self._running:
                ready, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
                self._poll()
                for ref in ready:
                    task = self._running.pop(ref)
                    outcomes = self._outcome(ref, task)
                    if outcomes is not None:
                        yield task.job, outcomes
        finally:
            for ref in self._running:
                ray.cancel(ref, force=True)

    def _required_resources(self, job: Job) -> dict[str, float]:
        """Return the resources of a task. Raises BenchError if no node has them."""
        gpus = {"GPU": self._execution.gpus_per_task} if job.compute.device == "cuda" else {}
        resources = {"CPU": float(job.compute.threads)} | gpus
        if not self._nodes(resources):
            text = " and ".join(f"{count:g} {kind}" for kind, count in resources.items())
            raise BenchError(
                f"A task needs {text} on one node; no node of the cluster has that. "
                f"Lower --threads or --gpus-per-task, or choose another --device."
            )
        return resources

    def _nodes(self, resources: dict[str, float], excluded: str = "") -> list[str]:
        return [
            node["NodeID"]
            for node in self._ray.nodes()
            if node["Alive"]
            and node["NodeID"] != excluded
            and all(node["Resources"].get(kind, 0) >= count for kind, count in resources.items())
        ]

    def _submit(self, task: _Task, strategy: Any) -> None:
        resources = self._required_resources(task.job)
        remote = self._ray.remote(_run_task).options(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=0, scheduling_strategy=strategy
        )
        files = self._images.get(task.job.data_digest)
        ref = remote.remote(task.job, self._updates, task.number, self._folders, files)
        self._running[ref] = task

    def _poll(self) -> None:
        """Report the progress of each task, and stop those that take too long."""
        timeout = self._execution.timeout
        with suppress(self._ray.exceptions.RayError):
            updates = self._ray.get(self._updates.take_updates.remote())
            for ref, task in self._running.items():
                node, update = updates.get(task.number, ("", None))
                if node:
                    task.node, task.started_at = node, task.started_at or time.monotonic()
                if update:
                    self._progress(*update)
                if timeout and task.started_at and time.monotonic() > task.started_at + timeout and not task.is_stopped:
                    task.is_stopped = True
                    self._ray.cancel(ref, force=True)

    def _outcome(self, ref: Any, task: _Task) -> Sequence[Outcome] | None:
        """Return the outcomes of a finished task; None if its worker died and it is started again."""
        ray = self._ray
        try:
            outcomes: Sequence[Outcome] = ray.get(ref)
        except ray.exceptions.RayError as error:
            if task.is_stopped:
                reason = f"Stopped after --timeout {self._execution.timeout:g} seconds. Raise it."
                return failure_outcomes(task.job, reason)
            reason = " ".join(str(error).split())[:500]
            if isinstance(error, ray.exceptions.RayTaskError) or task.attempts == MAX_ATTEMPTS:
                return failure_outcomes(task.job, f"Its worker failed after {task.attempts} attempt(s): {reason}")
            _log.warning("%s: its worker died; it is started again: %s", task.job.label, reason)
            others = self._nodes(self._required_resources(task.job), excluded=task.node)
            strategies = ray.util.scheduling_strategies
            strategy = strategies.NodeAffinitySchedulingStrategy(others[0], soft=True) if others else "SPREAD"
            self._submit(_Task(task.job, task.number, attempts=task.attempts + 1), strategy)
            return None
        return outcomes


class _ProgressActor:
    """An actor to which tasks send their progress, and from which the caller takes it."""

    def __init__(self) -> None:
        self._updates: dict[int, tuple[str, tuple[Any, ...] | None]] = {}

    def send(self, task: int, node: str, update: tuple[Any, ...] | None) -> None:
        self._updates[task] = (node, update)

    def take_updates(self) -> dict[int, tuple[str, tuple[Any, ...] | None]]:
        updates, self._updates = self._updates, {}
        return updates


def _run_task(
    job: Job, updates: Any, number: int, folders: Sequence[Path], files: dict[str, bytes] | None
) -> list[Outcome]:
    """Run one job on the node to which Ray assigned it."""
    import ray

    node, last = ray.get_runtime_context().get_node_id(), 0.0
    updates.send.remote(number, node, None)

    def progress(*update: Any) -> None:
        nonlocal last
        if time.monotonic() - last > POLL_SECONDS:
            last = time.monotonic()
            updates.send.remote(number, node, update)

    try:
        for folder in folders:
            registry.add_folder("methods", folder)
        return run_job(write_images(job, files) if files is not None else check_local_files(job), progress)
    except BenchError as error:
        return failure_outcomes(job, str(error))


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BenchError(
            f"--executor ray needs Ray, which cannot be imported ({error}). pip install 'maskbench[ray]'."
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        # "local" starts a cluster even if RAY_ADDRESS names another
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except Exception as error:  # Ray raises many types, and Exception itself if a start takes too long
        reason = " ".join(str(error).split())[:200]
        raise BenchError(
            f"--address must name a running Ray cluster; '{address or 'local'}' does not respond ({reason}). "
            f"Start one (ray start --head), or remove --address."
        ) from error


def _put_images(ray: Any, jobs: Sequence[Job]) -> dict[str, Any]:
    """Put the content of the jobs' files into the cluster's object store, once for all jobs on the same data."""
    paths: dict[str, set[Path]] = {}
    for job in jobs:
        paths.setdefault(job.data_digest, set()).update(job_files(job))
    return {digest: ray.put({str(path): path.read_bytes() for path in files}) for digest, files in paths.items()}
