"""A method with a fault that its setting chooses: every executor must continue after each of them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.method import Images, Method, Prediction, Progress

TITLE = "Faulty"


@dataclass(frozen=True, slots=True)
class Settings:
    fault: Literal[
        "none", "raises", "raises the text of the file", "exits", "prints", "NaN scores", "infinite maps",
        "wrong shape", "wrong type", "MemoryError", "device memory", "hangs", "is killed", "is killed once",
        "hangs in predict", "hangs in explain", "is killed in explain", "starts processes", "forks and is killed",
        "is killed in epoch 4 once"
    ] = "none"  # fmt: skip
    file: str = ""  # of "raises the text of the file"; others write to it: "is killed once" before it is killed
    max_batch: int = 2  # with "device memory": the largest batch that does not run out of memory


class Faulty(Method):
    """The mean of the training images; distances from it are the maps."""

    learned = ("mean",)
    mean: Tensor  # (3, h, w)

    def fit(self, train: Images, progress: Progress) -> None:  # noqa: C901  a case per fault
        self.mean = torch.stack([batch.mean(dim=0) for batch in train.batches(1)]).mean(dim=0)
        progress(1, 2, None)
        file = Path(self.settings.file)
        match self.settings.fault:
            case "raises":
                raise ZeroDivisionError("the divisor is 0")
            case "raises the text of the file":
                raise RuntimeError(file.read_text("utf-8"))
            case "exits":
                sys.exit("the method called sys.exit")
            case "prints":
                sys.stdout.write("printed by the method\n")
            case "MemoryError":
                raise MemoryError("no memory is left")
            case "hangs":
                time.sleep(1000)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "is killed once" if not file.exists():
                file.write_text("killed", "utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
            case "starts processes" | "forks and is killed":
                _start_processes(self.settings.fault, file)
            case "is killed in epoch 4 once":
                self._fit_epochs(file)
        progress(2, 2, None)

    def _fit_epochs(self, file: Path) -> None:
        for epoch in self.epochs(6):
            self.mean = (self.mean + torch.rand(1)).frac()
            if epoch == 4 and not file.exists():
                file.write_text("killed", "utf-8")
                os.kill(os.getpid(), signal.SIGKILL)

    def predict(self, images: Tensor) -> Prediction:
        if self.settings.fault == "device memory" and len(images) > self.settings.max_batch:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        maps = (images - self.mean).square().mean(dim=1)  # (b, h, w)
        scores = maps.amax(dim=(1, 2))  # (b,)
        match self.settings.fault:
            case "NaN scores":
                scores = scores * torch.nan
            case "infinite maps":
                maps = maps / 0
            case "wrong shape":
                maps = maps[:, ::2]
            case "wrong type":
                return scores  # type: ignore[return-value]
        if self.settings.fault == "hangs in predict":
            time.sleep(1000)
        return Prediction(scores, maps)

    def explain(self, images: Tensor) -> dict[str, Tensor]:
        if self.settings.fault == "hangs in explain":
            time.sleep(1000)
        if self.settings.fault == "is killed in explain":
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


def _start_processes(fault: str, file: Path) -> None:
    """Write the ids of all processes into the file, and never return."""
    if fault == "starts processes":
        started = [
            subprocess.Popen(["sleep", "1000"]),
            subprocess.Popen(["sh", "-c", "sleep 1000"]),
            subprocess.Popen(["sleep", "1000"], start_new_session=True),
        ]
        file.write_text(" ".join(str(pid) for pid in [os.getpid(), *(each.pid for each in started)]), "utf-8")
        time.sleep(1000)
    if not os.fork():  # the new process inherits the pipe to the parent
        file.write_text(str(os.getpid()), "utf-8")
        time.sleep(1000)
    while not file.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


METHOD = Faulty
