"""A method of the user with a fault that its setting `how` chooses; the benchmark must handle all of them."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.method import Images, Method, Prediction, Progress


@dataclass(frozen=True, slots=True)
class Settings:
    how: Literal[
        "well", "raises", "exits", "prints", "nan", "infinite", "shape", "type", "lacks memory", "is hungry", "hangs",
        "is killed", "is killed once"
    ] = "well"  # fmt: skip
    flag: str = ""  # file that marks an earlier kill
    limit: int = 2  # largest batch that does not run out of memory


class Odd(Method):
    learned: ClassVar[tuple[str, ...]] = ("mean",)
    mean: Tensor

    def fit(self, train: Images, progress: Progress) -> None:
        self.mean = torch.stack([batch.mean(dim=0) for batch in train.batches(1)]).mean(dim=0)
        progress(1, 2, None)
        match self.settings.how:
            case "raises":
                raise ZeroDivisionError("division failed on purpose")
            case "exits":
                sys.exit("exit on purpose")
            case "prints":
                sys.stdout.write("printed by the method\n")
            case "lacks memory":
                raise MemoryError("no memory on purpose")
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
        maps = (images - self.mean).square().mean(dim=1)  # (b, h, w)
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


METHOD = Odd
