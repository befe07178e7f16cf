"""The floor that every method must beat: how far a pixel lies from the mean of the training images."""
# ruff: noqa: D101, D102 - the contract documents its verbs, and this file shows how little a method needs

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Progress

from .parts.maps import gaussian, image_score


@dataclass(frozen=True, slots=True)
class Settings:
    smoothing: float = 2.0  # sigma of the Gaussian over the map, in pixels


class MeanMap(Method):
    _learned: dict[str, Tensor] | None = None

    def fit(self, train: Images, progress: Progress) -> None:
        total = torch.zeros(3, *self.setup.size, device=self.setup.device)
        for done, image in enumerate(train.batches(1), start=1):
            total += image[0].to(self.setup.device)
            progress(done, len(train), None)
        self._learned = {"mean": total / len(train)}

    def predict(self, images: Tensor) -> Prediction:
        maps = gaussian((images - self.state()["mean"]).square().mean(dim=1), self.settings.smoothing)  # (b, h, w)
        return Prediction(image_score(maps, "max"), maps)

    def state(self) -> dict[str, Tensor]:
        if self._learned is None:
            raise BenchError(NOT_FITTED)
        return self._learned

    def restore(self, state: dict[str, Tensor]) -> None:
        self._learned = {name: value.to(self.setup.device) for name, value in state.items()}


METHOD = MeanMap
