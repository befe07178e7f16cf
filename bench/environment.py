"""The environment of a run: device, random seeds, versions, commit and memory."""

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
"""Types of device that `bench.evaluation.timing.wait` can synchronize; on others, times would be wrong."""


def device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the first GPU, or the CPU if there is none.

    Raises:
        BenchError: torch cannot use the device, or it cannot be synchronized for timing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        selected = torch.device(name)
        torch.empty(1, device=selected)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BenchError(
            f"--device must be available on this machine; '{name}' is not ({reason}). Pass --device auto."
        ) from error
    if selected.type not in TIMEABLE_DEVICES:
        raise BenchError(
            f"--device must be one of {', '.join(TIMEABLE_DEVICES)}, which can be timed, got '{name}'. "
            f"Pass --device auto."
        )
    return selected


def emulates(device: torch.device, precision: str) -> bool:
    """Return whether torch emulates the half precision on the device, which is hundreds of times slower."""
    if device.type != "cpu" or precision == "float32" or platform.machine() not in {"x86_64", "AMD64"}:
        return False
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[precision]
    is_supported = getattr(torch.ops.mkldnn, name, None)
    return is_supported is not None and not is_supported()


def threads() -> int:
    """Return the number of CPU threads that torch uses by default."""
    return torch.get_num_threads()


def derive_seed(seed: int, task: str) -> int:
    """Return the seed of one task, which does not depend on the other tasks or on their order."""
    return int.from_bytes(sha256(f"{seed}/{task}".encode(errors="surrogateescape")).digest()[:4])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def describe(device: torch.device) -> dict[str, str | int | bool]:
    """Return device, versions and numeric switches for a record; no host or user name."""
    description: dict[str, str | int | bool] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }
    for package in ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "maskbench"):
        try:
            description[package] = str(version(package))
        except PackageNotFoundError:
            description[package] = "not installed"
    description["torch"] = str(torch.__version__)  # includes the build, for example +cpu
    if device.type == "cuda":
        description["cuda"] = str(torch.version.cuda)
        cudnn_version: Callable[[], int | None] = torch.backends.cudnn.version
        description["cudnn"] = str(cudnn_version())
        description["driver"] = _driver()
        description["clocks"] = _clocks()
    return description


@cache
def commit() -> str:
    """Return the commit of the checkout, with "+" if files are modified; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return ""
    try:
        head = _run_command("git", "-C", str(root), "rev-parse", "HEAD")
        return head + ("+" if _run_command("git", "-C", str(root), "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def free_memory() -> int:
    """Return the available main memory in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory counters, if the system permits it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak then covers the whole process so far: an upper bound


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory since `reset_peak` in bytes: "host" for this process, "device" for torch on a GPU."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        host = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"host": host} | ({"device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


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
    """Return the current and the maximum clocks of the first GPU."""
    try:
        fields = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem"
        core, max_core, memory, max_memory = (
            _run_command("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
            .splitlines()[0]
            .split(", ")
        )
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return "unknown"
    return f"{core} of {max_core} MHz, memory {memory} of {max_memory} MHz"


def _run_command(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
