"""Does jobs, one after the other, in a child process, so that a time-out, a crash or a kill takes only the child along.

The child stays while its jobs go well; after a time-out or a death the next job gets a new one. Progress and outcomes
come back through a pipe, and the caller alone writes the store.
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

TRACE_LINES = 6
"""How many lines of a dead child's traceback a record keeps."""


def run_in_subprocess(jobs: Iterable[Job], watch: ProgressCallback, *, timeout: float = 0) -> Iterator[JobResult]:
    """The outcomes of each job, done in a child process and stopped after `timeout` seconds (0: never)."""
    child: _Child | None = None
    try:
        for job in jobs:
            if child is None or not child.alive:
                child = _Child()
            yield job, child.run_job(job, watch, timeout)
    finally:
        if child is not None:
            child.end()


class _Child:
    """A process that does one job after the other, seen from its parent."""

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would inherit threads and a GPU that only the parent may use
        with NamedTemporaryFile(prefix="maskbench-", suffix=".trace", delete=False) as file:
            self._trace = Path(file.name)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, registry.plugin_folders("methods")[1:], self._trace)
        )
        self._process.start()
        theirs.close()  # so that the pipe ends when the child does

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def run_job(self, job: Job, watch: ProgressCallback, timeout: float) -> Sequence[Outcome]:
        """The job's outcomes; failed ones where the child dies of it or needs longer than `timeout` seconds."""
        end, phase = 0.0, "start"
        try:
            self._pipe.send(job)
            while True:
                if end and not self._pipe.poll(max(0.0, end - time.monotonic())):
                    return failure_outcomes(job, self._stopped(timeout, phase))
                told = self._pipe.recv()
                if isinstance(told, list):
                    return told
                if told == "begun":  # what it takes to start a process is no part of the job's time
                    end = time.monotonic() + timeout if timeout else 0.0
                elif end and time.monotonic() > end:
                    return failure_outcomes(job, self._stopped(timeout, phase))
                else:
                    phase = told[1]
                    watch(*told)
        except (EOFError, OSError):
            self._process.join()
            return failure_outcomes(job, self._died(phase))

    def end(self) -> None:
        """Ends the child, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._trace.unlink(missing_ok=True)

    def _stopped(self, timeout: float, phase: str) -> str:
        """Ends the child; says that it was too slow, and where it was."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, signal.SIGUSR1)  # faulthandler writes where each thread is
            time.sleep(0.2)
        where = self._where()
        self.end()
        return f"Stopped after --timeout {timeout:g} seconds, in its {phase}. Raise it, or make the fit smaller.{where}"

    def _died(self, phase: str) -> str:
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (where nobody did that, the machine ran out of memory)" if code == -signal.SIGKILL else ""
        where = self._where()
        self.end()
        return f"The process of this task {how} in its {phase}{hint}.{where}"

    def _where(self) -> str:
        """The innermost lines of what faulthandler wrote of the current thread, each on a line of its own."""
        with suppress(OSError):
            lines = self._trace.read_text("utf-8", errors="replace").splitlines()
            starts = [i for i, line in enumerate(lines) if line.startswith("Current thread")]
            return "".join(f"\n{line}" for line in lines[starts[0] : starts[0] + TRACE_LINES]) if starts else ""
        return ""


def _serve(pipe: Connection, folders: Sequence[Path], trace: Path) -> None:
    """The child's life: jobs in, progress and outcomes out, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this process
    file = trace.open("w", encoding="utf-8")
    faulthandler.enable(file)
    faulthandler.register(signal.SIGUSR1, file)
    for folder in folders:
        registry.add_folder("methods", folder)
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            pipe.send("begun")
            pipe.send(run_job(job, lambda *told: pipe.send(told)))
