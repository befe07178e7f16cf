"""What a record says of the machine, and what makes a run repeatable on it: device, seeds, versions, commit."""

import os
import platform
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from bench.errors import BenchError

TIMEABLE_DEVICES = ("cpu", "cuda", "mps")
"""The kinds of device that `bench.evaluation.timing.wait` waits for; on others a time would be wrong."""


def device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BenchError(f"--device names a device that works here; '{name}' does not ({reason}). Try auto.") from error
    if found.type not in TIMEABLE_DEVICES:
        raise BenchError(
            f"--device is one of {', '.join(TIMEABLE_DEVICES)}, which can be timed; '{name}' is not. Try auto."
        )
    return found


def emulates(on: torch.device, precision: str) -> bool:
    """Whether the device lacks arithmetic of that half precision: torch then emulates it, hundreds of times slower."""
    if on.type != "cpu" or precision == "float32" or platform.machine() not in {"x86_64", "AMD64"}:
        return False
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[precision]
    has = getattr(torch.ops.mkldnn, name, None)
    return has is not None and not has()


def threads() -> int:
    """Threads that torch uses on the CPU where none are asked for."""
    return torch.get_num_threads()


def derive_seed(seed: int, task: str) -> int:
    """The seed of one task: neither the order of the tasks nor what another one drew moves it."""
    return int.from_bytes(sha256(f"{seed}/{task}".encode(errors="surrogateescape")).digest()[:4])


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def describe(on: torch.device) -> dict[str, str | int | bool]:
    """Machine, versions and numeric switches, as a record keeps them; no host or user name."""
    found: dict[str, str | int | bool] = {
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }
    for package in ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "maskbench"):
        try:
            found[package] = str(version(package))
        except PackageNotFoundError:
            found[package] = "not installed"
    found["torch"] = str(torch.__version__)  # tells the build as well, as +cpu
    if on.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        cudnn: Callable[[], int | None] = torch.backends.cudnn.version
        found["cudnn"] = str(cudnn())
        found["driver"] = _driver()
        found["clocks"] = _clocks()
    return found


@cache
def commit() -> str:
    """The checkout's commit, with "+" where files are changed; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return ""
    try:
        head = _run_command("git", "-C", str(root), "rev-parse", "HEAD")
        return head + ("+" if _run_command("git", "-C", str(root), "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def free_memory() -> int:
    """Bytes of main memory that can still be taken."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reset_peak(on: torch.device) -> None:
    """Forgets the peaks so far, where the system lets us."""
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # then the peak is of the whole process so far, and never too small


def peak_memory(on: torch.device) -> dict[str, int]:
    """Peak bytes since `reset_peak`: "host" of this process, "device" of torch's allocations on a GPU."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        host = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host} | ({"device": torch.cuda.max_memory_allocated(on)} if on.type == "cuda" else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _driver() -> str:
    try:
        return _run_command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _clocks() -> str:
    """Of the first GPU at this moment, beside the highest that it may take."""
    try:
        asked = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem"
        now, most, memory, most_memory = (
            _run_command("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits")
            .splitlines()[0]
            .split(", ")
        )
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return "unknown"
    return f"{now} of {most} MHz, memory {memory} of {most_memory} MHz"


def _run_command(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
