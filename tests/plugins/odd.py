"""A user's method that misbehaves as its setting says: what the bench must survive, whoever executes it."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.method import Images, Method, Prediction, Progress


@dataclass(frozen=True, slots=True)
class Settings:
    how: Literal[
        "well", "raises", "exits", "prints", "nan", "infinite", "shape", "type", "lacks memory", "is hungry", "hangs",
        "is killed", "is killed once"
    ] = "well"  # fmt: skip
    flag: str = ""  # a file that says that it was killed before
    limit: int = 2  # the largest batch that does not run out of memory


class Odd(Method):
    _mean: Tensor | None = None

    def fit(self, train: Images, progress: Progress) -> None:
        self._mean = torch.stack([batch.mean(dim=0) for batch in train.batches(1)]).mean(dim=0)
        progress(1, 2, None)
        match self.settings.how:
            case "raises":
                raise ZeroDivisionError("one can't divide so")
            case "exits":
                sys.exit("enough")
            case "prints":
                sys.stdout.write("a word of mine\n")
            case "lacks memory":
                raise MemoryError("there is no more")
            case "hangs":
                time.sleep(1000)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "is killed once" if not (flag := Path(self.settings.flag)).exists():
                flag.write_text("killed", "utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
        progress(2, 2, None)

    def predict(self, images: Tensor) -> Prediction:
        if self.settings.how == "is hungry" and len(images) > self.settings.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        maps = (images - self.state()["mean"]).square().mean(dim=1)
        scores = maps.amax(dim=(1, 2))
        match self.settings.how:
            case "nan":
                scores = scores * torch.nan
            case "infinite":
                maps = maps / 0
            case "shape":
                maps = maps[:, ::2]
            case "type":
                return scores  # type: ignore[return-value]
        return Prediction(scores, maps)

    def state(self) -> dict[str, Tensor]:
        if self._mean is None:
            raise BenchError("fit first")
        return {"mean": self._mean}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._mean = state["mean"]


METHOD = Odd
