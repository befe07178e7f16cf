"""Run jobs one after the other in a child process, so that a time-out, a crash or a kill ends only the child.

The child runs jobs until one of them fails that way; the next job then gets a new child. Progress and outcomes come
back through a pipe, and only the parent writes to the store. The child and the processes that a fit starts are one
process group, which ends with the child and with the parent, however the parent ends.
"""

import faulthandler
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import gettempdir
from threading import Thread
from types import ModuleType
from typing import Any

from bench import registry
from bench.execution.job import (
    Job,
    JobResult,
    Outcome,
    ProgressCallback,
    failure_outcomes,
    run_job,
    unfinished_outcomes,
)
from bench.execution.process_tree import descendants, kill
from bench.files import remove_abandoned, temporary_folder

TRACEBACK_LINES = 6
"""Number of lines of a killed child's traceback that a record keeps."""

TRACEBACK_SIGNAL = getattr(signal, "SIGUSR1", None)
"""On this signal, faulthandler writes the traceback of each thread of the child; Windows has none."""

POLL_SECONDS = 1.0
"""Seconds between two checks whether the child is alive."""


class _Started:
    """The child's message before each job: the time to start a process is not part of the job's time."""


@dataclass(frozen=True, slots=True)
class _Finished:
    """The child's message with outcomes: all of a job, or those without pictures and times."""

    outcomes: Sequence[Outcome]
    is_complete: bool


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
        temporary = Path(gettempdir())
        remove_abandoned(temporary)
        self._resources = ExitStack()
        self._trace = self._resources.enter_context(temporary_folder(temporary / "maskbench")) / "traceback.txt"
        self._pipe, child_pipe = context.Pipe()
        folders = registry.plugin_folders("methods")[1:]  # the first is the shipped one
        self._process = context.Process(target=_child_main, args=(child_pipe, folders, self._trace))
        with _empty_main_module():
            self._process.start()
        child_pipe.close()  # so that the pipe ends when the child does

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def run_job(self, job: Job, progress: ProgressCallback, timeout: float) -> Sequence[Outcome]:
        """Return the job's outcomes.

        If the child ends or takes longer than `timeout` seconds, they have no pictures and times if the metrics were
        computed before, else they are failed ones.
        """
        deadline, phase, started = math.inf, "start", datetime.now(UTC)
        finished: Sequence[Outcome] = ()
        with suppress(OSError):  # the child has ended, which `_receive` reports
            self._pipe.send(job)
        while True:
            message = self._receive(deadline)
            match message:
                case None:
                    is_late = time.monotonic() >= deadline
                    reason = self._describe_timeout(timeout, phase) if is_late else self._describe_exit(phase)
                    self.end()
                    return unfinished_outcomes(job, finished, reason) or failure_outcomes(job, reason, started)
                case _Started():
                    started, deadline = datetime.now(UTC), time.monotonic() + (timeout or math.inf)
                case _Finished() if message.is_complete:
                    return message.outcomes
                case _Finished():
                    finished = message.outcomes
                case _:
                    phase = message[1]
                    progress(*message)

    def _receive(self, deadline: float) -> Any:
        """Return the next message of the child; None if it has ended, or at the deadline."""
        try:
            while (remaining := deadline - time.monotonic()) > 0:
                if self._pipe.poll(min(remaining, POLL_SECONDS)):
                    return self._pipe.recv()
                # A process that the fit forked may keep the pipe open after the child has ended.
                if not self.is_alive and not self._pipe.poll():
                    return None
        except (EOFError, OSError):
            self._process.join(POLL_SECONDS)  # longer only if the plug-in closed the pipe
        return None

    def end(self) -> None:
        """Kill the child and the processes that it has started, also those that have left its process group."""
        started_processes = descendants(self._process.pid or 0)
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # it has ended, or has not created its group yet
                os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        kill(started_processes)
        self._pipe.close()
        self._resources.close()

    def _describe_timeout(self, timeout: float, phase: str) -> str:
        """Return a sentence that states the time limit and the phase, with the traceback that the child writes now."""
        if TRACEBACK_SIGNAL is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid or 0, TRACEBACK_SIGNAL)
                time.sleep(0.2)
        return (
            f"Stopped after --timeout {timeout:g} seconds in phase '{phase}'. "
            f"Raise --timeout, or make the fit smaller.{self._traceback_tail()}"
        )

    def _describe_exit(self, phase: str) -> str:
        """Return a sentence that states how the child ended, and in which phase, with its last traceback."""
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (unless it was killed on purpose, the machine ran out of memory)" if code == -9 else ""
        return f"The process of this job {how} in phase '{phase}'{hint}.{self._traceback_tail()}"

    def _traceback_tail(self) -> str:
        """Return the innermost lines of the current thread that faulthandler wrote, each on a new line."""
        with suppress(OSError):
            lines = self._trace.read_text("utf-8", errors="replace").splitlines()
            starts = [i for i, line in enumerate(lines) if line.startswith("Current thread")]
            tail = lines[starts[0] : starts[0] + TRACEBACK_LINES] if starts else []
            return "".join(f"\n{line}" for line in tail)
        return ""


@contextmanager
def _empty_main_module() -> Iterator[None]:
    """Hide the main module of this process inside the block.

    A spawned process would import it under another name: a script without `if __name__ == "__main__"` would start
    again in the child, and a script from stdin has no file. Jobs refer to nothing in it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child_main(pipe: Connection, folders: Sequence[Path], trace: Path) -> None:
    """Run the jobs that come through the pipe until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    warnings.simplefilter("ignore", FutureWarning)  # of other libraries, about their own code
    sys.stdout = sys.stderr  # what a method prints must not mix with the JSON of the parent
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    Thread(target=_end_with_parent, daemon=True).start()
    file = trace.open("w", encoding="utf-8")
    faulthandler.enable(file)
    if TRACEBACK_SIGNAL is not None:
        faulthandler.register(TRACEBACK_SIGNAL, file)
    for folder in folders:
        registry.add_folder("methods", folder)
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            pipe.send(_Started())
            outcomes = run_job(
                job,
                lambda *message: pipe.send(message),
                lambda outcomes: pipe.send(_Finished(outcomes, is_complete=False)),
            )
            pipe.send(_Finished(outcomes, is_complete=True))


def _end_with_parent() -> None:
    """Wait until the parent has ended, then kill this process and those that it has started."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
