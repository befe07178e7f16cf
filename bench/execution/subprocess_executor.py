"""Run jobs one after the other in a child process, so that a time-out, a crash or a kill ends only the child.

The child runs jobs until one of them fails that way; the next job then gets a new child. Progress and outcomes come
back through a pipe, and only the parent writes to the store.
"""

import faulthandler
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile

from bench import registry
from bench.execution.job import Job, JobResult, Outcome, ProgressCallback, failure_outcomes, run_job

TRACEBACK_LINES = 6
"""Number of lines of a killed child's traceback that a record keeps."""

_STARTED = "started"
"""The child's message before each job: the time to start a process is not part of the job's time."""


def run_in_subprocess(jobs: Iterable[Job], progress: ProgressCallback, *, timeout: float = 0) -> Iterator[JobResult]:
    """Yield the outcomes of each job, run in a child process and stopped after `timeout` seconds (0: never)."""
    child: _Child | None = None
    try:
        for job in jobs:
            if child is None or not child.is_alive:
                child = _Child()
            yield job, child.run_job(job, progress, timeout)
    finally:
        if child is not None:
            child.end()


class _Child:
    """The parent's handle of a process that runs one job after the other."""

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would inherit threads and a GPU that only the parent may use
        with NamedTemporaryFile(prefix="maskbench-", suffix=".trace", delete=False) as file:
            self._trace = Path(file.name)
        self._pipe, child_pipe = context.Pipe()
        folders = registry.plugin_folders("methods")[1:]  # the first is the shipped one
        self._process = context.Process(target=_child_main, args=(child_pipe, folders, self._trace))
        self._process.start()
        child_pipe.close()  # so that the pipe ends when the child does

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def run_job(self, job: Job, progress: ProgressCallback, timeout: float) -> Sequence[Outcome]:
        """Return the job's outcomes; failed ones if the child dies or takes longer than `timeout` seconds."""
        deadline, phase = 0.0, "start"
        try:
            self._pipe.send(job)
            while True:
                if deadline and not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                    return failure_outcomes(job, self._stop(timeout, phase))
                message = self._pipe.recv()
                if isinstance(message, list):
                    return message
                if message == _STARTED:
                    deadline = time.monotonic() + timeout if timeout else 0.0
                elif deadline and time.monotonic() > deadline:
                    return failure_outcomes(job, self._stop(timeout, phase))
                else:
                    phase = message[1]
                    progress(*message)
        except (EOFError, OSError):
            self._process.join()
            return failure_outcomes(job, self._describe_exit(phase))

    def end(self) -> None:
        """Kill the child."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._trace.unlink(missing_ok=True)

    def _stop(self, timeout: float, phase: str) -> str:
        """End the child, and return a sentence that states the time limit and the phase, with a traceback."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, signal.SIGUSR1)  # faulthandler writes the traceback of each thread
            time.sleep(0.2)
        traceback = self._traceback_tail()
        self.end()
        return (
            f"Stopped after --timeout {timeout:g} seconds in phase '{phase}'. "
            f"Raise --timeout, or make the fit smaller.{traceback}"
        )

    def _describe_exit(self, phase: str) -> str:
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (unless it was killed on purpose, the machine ran out of memory)" if code == -signal.SIGKILL else ""
        traceback = self._traceback_tail()
        self.end()
        return f"The process of this job {how} in phase '{phase}'{hint}.{traceback}"

    def _traceback_tail(self) -> str:
        """Return the innermost lines of the current thread that faulthandler wrote, each on a new line."""
        with suppress(OSError):
            lines = self._trace.read_text("utf-8", errors="replace").splitlines()
            starts = [i for i, line in enumerate(lines) if line.startswith("Current thread")]
            tail = lines[starts[0] : starts[0] + TRACEBACK_LINES] if starts else []
            return "".join(f"\n{line}" for line in tail)
        return ""


def _child_main(pipe: Connection, folders: Sequence[Path], trace: Path) -> None:
    """Run the jobs that come through the pipe until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    file = trace.open("w", encoding="utf-8")
    faulthandler.enable(file)
    faulthandler.register(signal.SIGUSR1, file)
    for folder in folders:
        registry.add_folder("methods", folder)
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            pipe.send(_STARTED)
            pipe.send(run_job(job, lambda *message: pipe.send(message)))
