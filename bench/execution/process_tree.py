"""The processes that a process has started, and a watcher that ends them if that process is killed.

The watcher is a separate process that runs this file: no code of a process runs after SIGKILL. It needs Linux, whose
/proc lists the children of a process; elsewhere no process is found, and nothing is watched.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

WATCH_SECONDS = 0.25
"""Seconds between two checks of the processes: one that was started and orphaned in between is missed."""


def descendants(pid: int, excluded: Mapping[int, str] = MappingProxyType({})) -> dict[int, str]:
    """Return the processes that `pid` has started, directly or not, by number, with their start times.

    The `excluded` processes are left out, and all that they have started.
    """
    processes: dict[int, str] = {}
    parents = [pid]
    while parents:
        parent = parents.pop()
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                children = {int(child): _start_time(int(child)) for child in file.read_text("ascii").split()}
                children = {child: start for child, start in children.items() if excluded.get(child) != start}
                parents += [child for child in children if child not in processes]
                processes |= children
    return processes


def kill(processes: Mapping[int, str]) -> None:
    """Kill the processes that still run; a process with a different start time has reused the number."""
    for pid, start_time in processes.items():
        if start_time and _start_time(pid) == start_time:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def descendants_end_with_this_process() -> Iterator[None]:
    """Start the watcher of the processes that are started inside the block, which ends them if this process is killed.

    At the end of the block, stop the watcher without ending any process.
    """
    if not Path("/proc/self/task").exists():
        yield
        return
    existing = (f"{pid}:{start_time}" for pid, start_time in descendants(os.getpid()).items())
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), *existing]
    # A new session: Ctrl-C in a terminal must not end the watcher before this process.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    ) as watcher:
        try:
            yield
        finally:
            watcher.kill()


def _start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since the start of the machine; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _watch(pid: int, existing: Mapping[int, str]) -> None:
    """Wait until the process `pid` has ended, then kill what it has started, except what existed before."""
    processes: dict[int, str] = {}
    start_time = _start_time(pid)
    while start_time and os.getppid() == pid and _start_time(pid) == start_time:
        processes |= descendants(pid, existing)
        time.sleep(WATCH_SECONDS)
    processes.pop(os.getpid(), None)
    for process in list(processes):  # what they have started since the last check
        processes |= descendants(process, existing)
    kill(processes)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), {int(pid): start for pid, _, start in (text.partition(":") for text in sys.argv[2:])})
