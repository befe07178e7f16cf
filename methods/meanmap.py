"""The floor: how far each pixel lies from its mean over the training images. Every method must beat it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Progress

from .parts.maps import gaussian


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen."""

    smoothing: float = 4.0  # sigma of the Gaussian over the map, in pixels, as the compared methods have it


class MeanMap(Method):
    """Squared difference to the mean training image, averaged over colours."""

    mean: Tensor | None = None  # (3, h, w)

    def fit(self, train: Images, progress: Progress) -> None:
        """Averages the training images."""
        self.mean = sum((batch.sum(0) for batch in train.batches(8)), torch.zeros(())).to(self.setup.device) / len(train)
        progress(1, 1, None)

    def predict(self, images: Tensor) -> Prediction:
        """The image score is the largest value of the map."""
        if self.mean is None:
            raise BenchError(NOT_FITTED)
        maps = gaussian(((images - self.mean) ** 2).mean(1), self.settings.smoothing)  # (b, 3, h, w) -> (b, h, w)
        return Prediction(maps.amax((1, 2)), maps)

    def state(self) -> dict[str, Tensor]:
        """The mean image."""
        if self.mean is None:
            raise BenchError(NOT_FITTED)
        return {"mean": self.mean}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the mean image back."""
        self.mean = state["mean"].to(self.setup.device)


METHOD = MeanMap
