"""A method that pretrains on the other categories; `info` states which images `pretrain` and `fit` got."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.method import Images, Info, Method, Prediction, Progress

TITLE = "Pretraining"


@dataclass(frozen=True, slots=True)
class Settings:
    weight: float = 0.5  # of the mean of the other categories


class Pretraining(Method):
    """Distances from a mix of two means: of the training images, and of those of the other categories."""

    learned = ("mean", "mean_of_others")
    pretrains = True
    mean: Tensor  # (3, h, w)
    mean_of_others: Tensor | None = None  # (3, h, w)
    sums: Mapping[str, float] = {}

    def pretrain(self, others: Mapping[str, Images], progress: Progress) -> None:
        pixels = {name: torch.cat(list(images.batches(2))) for name, images in others.items()}  # (n, 3, h, w) each
        self.sums = {f"pretrained on {name}": float(images.double().sum()) for name, images in pixels.items()}
        self.mean_of_others = torch.cat(list(pixels.values())).mean(dim=0)
        progress(1, 1, None)

    def fit(self, train: Images, progress: Progress) -> None:
        pixels = torch.cat(list(train.batches(2)))  # (n, 3, h, w)
        self.sums = {**self.sums, "fitted": float(pixels.double().sum())}
        self.mean = pixels.mean(dim=0)
        progress(1, 1, None)

    def predict(self, images: Tensor) -> Prediction:
        center = self.mean
        if self.mean_of_others is not None:
            center = torch.lerp(self.mean, self.mean_of_others, self.settings.weight)
        maps = (images - center).square().mean(dim=1)  # (b, h, w)
        return Prediction(maps.amax(dim=(1, 2)), maps)

    def info(self) -> Info:
        return {**super().info(), **self.sums}


METHOD = Pretraining
