"""The environment of a run: device, random seeds, versions, commit and memory."""

import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from bench.errors import BenchError, first_line

TIMEABLE_DEVICES = ("cpu", "cuda")
"""Types of device that `bench.evaluation.timing.wait` can synchronize; on others, times would be wrong."""

CODE = ("bench", "methods", "datasets", "reports", "pyproject.toml")
"""The files and folders of a checkout that `commit` compares with its commit."""


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
        reason = first_line(error)
        raise BenchError(
            f"--device must be available on this machine; '{name}' is not ({reason}). Pass --device auto."
        ) from error
    if selected.type == "cpu" and selected.index:
        raise BenchError(f"A CPU has no number, got --device {name}. Pass --device cpu, and --threads for its cores.")
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
    """Return device, versions and numeric flags (TF32, cuDNN benchmark) for a record; no host or user name."""
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


def without_private_paths(text: str, data: Path) -> str:
    """Return the text without absolute paths of the user: relative to the dataset or the working folder, or to ~."""
    for folder, replacement in ((data, ""), (Path.cwd(), ""), (Path.home(), "~/")):
        if len(folder.parts) > 1:  # not the root
            text = text.replace(f"{folder}{os.sep}", replacement)
    return text


@cache
def commit() -> str:
    """Return the commit of the checkout, with "+" if files of the code differ from it; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return ""
    try:
        head = _run_command("git", "-C", str(root), "rev-parse", "HEAD")
        status = _run_command("git", "-C", str(root), "status", "--porcelain", "--", *CODE)
        return head + ("+" if status else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def total_memory(device: torch.device) -> int | None:
    """Return the memory of a GPU, or the main memory that this process may use: of the machine or of its container.

    In bytes; None if it is unknown.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [_proc_bytes("meminfo", "MemTotal") or _physical_memory(), _container_memory()[0]]
    return min((limit for limit in limits if limit is not None), default=None)


def free_memory() -> int | None:
    """Return the main memory that is available to this process in bytes; None if it is unknown."""
    limit, used = _container_memory()
    available = [_proc_bytes("meminfo", "MemAvailable") or _physical_memory(), None if limit is None else limit - used]
    return min((count for count in available if count is not None), default=None)


def _proc_bytes(file: str, name: str) -> int | None:
    """Return a value that a file below /proc states in kB, in bytes; None if there is none."""
    try:
        lines = Path("/proc", file).read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not available on Windows
        return None


def _container_memory() -> tuple[int | None, int]:
    """Return the memory limit of the control group of this process and its use without file caches, in bytes.

    The limit is None if there is none. Control groups of version 2 and of version 1 are supported; in a container, the
    group is often mounted as the root.
    """
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None, 0
    for _, controllers, group in groups:
        if controllers not in {"", "memory"}:
            continue
        root = Path("/sys/fs/cgroup", controllers)
        limit_name, used_name, cache_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        for folder in (root / group.lstrip("/"), root):
            try:
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit_name, used_name))
                stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            except (OSError, ValueError):  # no such group here, or "max"
                continue
            cached = next((int(line.split()[1]) for line in stat if line.startswith(f"{cache_name} ")), 0)
            return limit, used - cached
    return None, 0


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory counters, if the system permits it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak then covers the whole process so far: an upper bound


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory since `reset_peak` in bytes: "host" for this process, "device" for torch on a GPU.

    Without "host" if the system does not measure it.
    """
    host = _proc_bytes("self/status", "VmHWM") or _peak_of_process()
    peaks = {} if host is None else {"host": host}
    return peaks | ({"device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
