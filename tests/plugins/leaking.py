"""A method that changes a part of the state of its process and does not change it back."""

import decimal
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import sklearn
import torch
from torch import Tensor

from bench.method import Images, Method, Prediction, Progress

TITLE = "Leaking"

_kept: list[Any] = []


def enter(mode: Any) -> None:
    """Enter a context manager that is never left."""
    mode.__enter__()
    _kept.append(mode)


LEAKS: dict[str, Callable[[], Any]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "inference mode": lambda: enter(torch.inference_mode()),
    "autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "anomaly detection of torch": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms of torch": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "number of threads of torch": lambda: torch.set_num_threads(2),
    "denormal numbers": lambda: torch.set_flush_denormal(True),
    "float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "flag of NNPACK": lambda: torch.backends.nnpack.set_flags(False),
    "torch.backends.mkldnn.enabled": lambda: torch.backends.mkldnn.set_flags(False),
    "torch.backends.mkldnn.deterministic": lambda: torch.backends.mkldnn.set_flags(None, True),
    "torch.backends.cuda.matmul.allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "torch.backends.cuda.matmul.fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "torch.backends.cudnn.allow_tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "working folder": lambda: os.chdir("/"),
    "environment variables": lambda: os.environ.update(OMP_NUM_THREADS="7", LEAKED="yes"),
    "umask": lambda: os.umask(0o077),
    "sys.path": lambda: sys.path.insert(0, "/leaked"),
    "standard streams": lambda: setattr(sys, "stdout", sys.stderr),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "garbage collection": gc.disable,
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "NumPy's handling of errors": lambda: np.seterr(all="raise"),
    "CPU affinity": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "signal handlers": lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "decimal context": lambda: setattr(decimal.getcontext(), "prec", 2),
    "default time-out of sockets": lambda: socket.setdefaulttimeout(0.001),
    "interval timer": lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
    "resource limits": lambda: resource.setrlimit(
        resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    ),
    "settings of scikit-learn": lambda: sklearn.set_config(transform_output="pandas"),
    "settings of matplotlib": lambda: mpl.rcParams.update({"axes.titlesize": 3.0}),
}
"""What each leak changes -> a function that changes it."""

UNNAMED_LEAKS: dict[str, Callable[[], Any]] = {
    "filters of warnings": lambda: warnings.simplefilter("ignore"),
    "Python's generator": lambda: random.seed(5),
    "NumPy's bit generator": lambda: np.random.set_bit_generator(np.random.PCG64(5)),
    "NumPy's generator": lambda: np.random.seed(5),
    "torch's generator": lambda: torch.manual_seed(5),
}
"""Leaks that are restored, but of which no warning is recorded."""


@dataclass(frozen=True, slots=True)
class Settings:
    leak: str = ""
    phase: Literal["fit", "explain"] = "explain"


class Leaking(Method):
    """The mean of the training images; distances from it are the maps."""

    learned = ("mean",)
    mean: Tensor  # (3, h, w)

    def fit(self, train: Images, progress: Progress) -> None:
        self.mean = torch.stack([batch.mean(dim=0) for batch in train.batches(1)]).mean(dim=0)
        if self.settings.phase == "fit":
            LEAKS[self.settings.leak]()
        progress(1, 1, None)

    def predict(self, images: Tensor) -> Prediction:
        maps = (images - self.mean).square().mean(dim=1)  # (b, h, w)
        return Prediction(maps.amax(dim=(1, 2)), maps)

    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Leak in the last call of the method."""
        if self.settings.phase == "explain":
            (LEAKS | UNNAMED_LEAKS)[self.settings.leak]()
        return {}


METHOD = Leaking
