"""Run jobs on a Ray cluster, one task per fit: on a running cluster, or on one that is started on this machine.

A node needs maskbench, the weights and, unless they are shipped, the images at the caller's paths. Outcomes come back
to the caller, and only the caller writes to the store.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import environment, registry
from bench.config.options import ExecutionOptions
from bench.errors import BenchError
from bench.execution.image_shipping import check_local_files, job_files, write_images
from bench.execution.job import (
    Job,
    JobResult,
    Outcome,
    ProgressCallback,
    failure_outcomes,
    run_job,
    unfinished_outcomes,
)

MAX_ATTEMPTS = 3
"""Maximum number of attempts of a fit whose worker dies; each on another node if there is one."""

POLL_SECONDS = 0.5
"""Seconds between two queries of the tasks' progress."""

HEAD_SECONDS = 20.0
"""Seconds without a connection after which the cluster's head counts as lost; Ray ends this process after 60."""

_CONTINUE = "Finished records are stored; start the cluster again, and repeat the command for the others."

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Task:
    """A submitted job.

    Attributes:
        job, number: the job and its number.
        node: node that runs it.
        started_at, started: when it started there, on the monotonic and on the wall clock; 0 and None if it waits.
        phase: phase of its last progress.
        attempts: number of attempts.
        is_stopped: whether it took too long.
    """

    job: Job
    number: int
    node: str = ""
    started_at: float = 0.0
    started: datetime | None = None
    phase: str = "start"
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
    """Return the job as a task runs it: on the device that Ray assigns, with the threads of the command or else one."""
    compute = job.compute
    name = compute.device if compute.device != "auto" else environment.device("auto").type
    device = "cuda" if name.startswith("cuda") else "cpu"
    return replace(job, compute=replace(compute, device=device, threads=compute.threads or 1))


class _RayRun:
    """All tasks of one command, from their submission to their outcomes."""

    def __init__(self, ray: Any, jobs: Sequence[Job], progress: ProgressCallback, execution: ExecutionOptions) -> None:
        self._ray, self._progress, self._execution = ray, progress, execution
        self._folders = registry.plugin_folders("methods")[1:]  # a node has the shipped folder itself
        self._images = _put_images(ray, jobs) if execution.ship_data else {}
        this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # The actor stays on the caller's node, so that it continues if any other node fails.
        self._updates = ray.remote(_ProgressActor).options(num_cpus=0, scheduling_strategy=this_node).remote()
        self._running: dict[Any, _Task] = {}
        self._head: str = ray.get_runtime_context().gcs_address
        self._head_seen = time.monotonic()
        for job in jobs:
            self._required_resources(job)
        for number, job in enumerate(jobs):
            self._submit(_Task(job, number), "SPREAD")

    def outcomes(self) -> Iterator[JobResult]:
        ray = self._ray
        try:
            while self._running:
                ready, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
                self._check_head()
                self._poll()
                for ref in ready:
                    task = self._running.pop(ref)
                    outcomes = self._outcome(ref, task)
                    if outcomes is not None:
                        yield task.job, outcomes
        finally:
            with suppress(ray.exceptions.RayError):  # of a cluster that is lost
                for ref in self._running:
                    ray.cancel(ref, force=True)

    def _check_head(self) -> None:
        """Raise BenchError if the cluster's head has accepted no connection for some time."""
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError as error:
            if time.monotonic() > self._head_seen + HEAD_SECONDS:
                raise BenchError(
                    f"The head of the Ray cluster at {self._head} is lost ({error}). {_CONTINUE}"
                ) from error
        else:
            self._head_seen = time.monotonic()

    def _required_resources(self, job: Job) -> dict[str, float]:
        """Return the resources of a task. Raises BenchError if no node has them."""
        gpus = {"GPU": self._execution.gpus_per_task} if job.compute.device == "cuda" else {}
        resources = {"CPU": float(job.compute.threads)} | gpus
        if not self._nodes(resources):
            text = " and ".join(f"{count:g} {resource}" for resource, count in resources.items())
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
            and all(node["Resources"].get(resource, 0) >= count for resource, count in resources.items())
        ]

    def _submit(self, task: _Task, strategy: Any) -> None:
        resources = self._required_resources(task.job)
        remote = self._ray.remote(_run_task).options(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=0, scheduling_strategy=strategy
        )
        files = self._images.get(task.job.data_hash)
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
                    task.started = task.started or datetime.now(UTC)
                if update:
                    task.phase = update[1]
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
                seconds = f"{self._execution.timeout:g} seconds"
                reason = f"Stopped after --timeout {seconds} in phase '{task.phase}'. Raise it."
                return unfinished_outcomes(task.job, self._take_finished(task), reason) or self._failures(task, reason)
            reason = " ".join(str(error).split())[:500]
            if isinstance(error, ray.exceptions.RayTaskError) or task.attempts == MAX_ATTEMPTS:
                reason = f"Its worker failed after {task.attempts} attempt(s) in phase '{task.phase}': {reason}"
                return unfinished_outcomes(task.job, self._take_finished(task), reason) or self._failures(task, reason)
            if not self._nodes({}):
                raise BenchError(f"The Ray cluster has no node left ({reason}). {_CONTINUE}") from error
            _log.warning("%s: its worker died; it is started again: %s", task.job.label, reason)
            others = self._nodes(self._required_resources(task.job), excluded=task.node)
            strategies = ray.util.scheduling_strategies
            strategy = strategies.NodeAffinitySchedulingStrategy(others[0], soft=True) if others else "SPREAD"
            self._submit(_Task(task.job, task.number, attempts=task.attempts + 1), strategy)
            return None
        self._take_finished(task)  # they are not needed
        return outcomes

    def _failures(self, task: _Task, reason: str) -> Sequence[Outcome]:
        return failure_outcomes(task.job, reason, task.started)

    def _take_finished(self, task: _Task) -> Sequence[Outcome]:
        """Return the outcomes without pictures and times that the task has sent, if there are any."""
        with suppress(self._ray.exceptions.RayError):
            finished: Sequence[Outcome] = self._ray.get(self._updates.take_finished.remote(task.number))
            return finished
        return ()


class _ProgressActor:
    """An actor to which tasks send their progress, and from which the caller takes it."""

    def __init__(self) -> None:
        self._updates: dict[int, tuple[str, tuple[Any, ...] | None]] = {}
        self._finished: dict[int, Sequence[Outcome]] = {}

    def send(self, task: int, node: str, update: tuple[Any, ...] | None) -> None:
        self._updates[task] = (node, update)

    def take_updates(self) -> dict[int, tuple[str, tuple[Any, ...] | None]]:
        updates, self._updates = self._updates, {}
        return updates

    def finish(self, task: int, outcomes: Sequence[Outcome]) -> None:
        self._finished[task] = outcomes

    def take_finished(self, task: int) -> Sequence[Outcome]:
        return self._finished.pop(task, ())


def _run_task(
    job: Job, updates: Any, number: int, folders: Sequence[Path], files: dict[str, bytes] | None
) -> list[Outcome]:
    """Run one job on the node to which Ray assigned it."""
    import ray

    node, last, last_phase = ray.get_runtime_context().get_node_id(), 0.0, ""
    updates.send.remote(number, node, None)

    def progress(*update: Any) -> None:
        nonlocal last, last_phase
        is_new_phase = update[1] != last_phase
        if time.monotonic() - last > POLL_SECONDS or is_new_phase:
            last, last_phase = time.monotonic(), update[1]
            sent = updates.send.remote(number, node, update)
            if is_new_phase:
                ray.get(sent)  # the caller must know the phase even if the worker is killed next

    try:
        for folder in folders:
            registry.add_folder("methods", folder)
        job = write_images(job, files) if files is not None else check_local_files(job)
        return run_job(job, progress, lambda outcomes: ray.get(updates.finish.remote(number, outcomes)))
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
        # "local" starts a cluster even if RAY_ADDRESS names another; only processes of this machine can reach it
        private = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        ray.init(
            address or "local", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **private
        )
    except Exception as error:  # Ray raises many types, and Exception itself if a start takes too long
        reason = " ".join(str(error).split())[:200]
        raise BenchError(
            f"--address must name a running Ray cluster; '{address or 'local'}' does not accept us ({reason}). "
            f"Start one (ray start --head) with the token of this machine (docs/cluster.md), or remove --address."
        ) from error


def _put_images(ray: Any, jobs: Sequence[Job]) -> dict[str, Any]:
    """Put the content of the jobs' files into the cluster's object store, once for all jobs on the same data."""
    paths: dict[str, set[Path]] = {}
    for job in jobs:
        paths.setdefault(job.data_hash, set()).update(job_files(job))
    return {data: ray.put({str(path): path.read_bytes() for path in files}) for data, files in paths.items()}
