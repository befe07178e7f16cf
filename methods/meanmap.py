"""The simplest baseline, which a useful method should exceed: the distance of a pixel from the mean training image."""
# ruff: noqa: D101, D102 - the base class documents these methods; this file shows how short a method can be

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.method import Images, Method, Prediction, Progress

from .parts.checks import check_image_size, check_smoothing
from .parts.maps import gaussian_filter, image_score

TITLE = "Mean map (baseline)"
FAMILY = "baseline"


@dataclass(frozen=True, slots=True)
class Settings:
    smoothing: float = 2.0  # sigma of the Gaussian over the map, in pixels

    def __post_init__(self) -> None:
        check_smoothing(self)


class MeanMap(Method):
    learned = ("mean",)
    mean: Tensor

    def fit(self, train: Images, progress: Progress) -> None:
        total = torch.zeros(3, *self.setup.size, device=self.setup.device)
        for done, image in enumerate(train.batches(1), start=1):
            total += image[0].to(self.setup.device)
            progress(done, len(train), None)
        self.mean = total / len(train)

    def predict(self, images: Tensor) -> Prediction:
        check_image_size(images, self.setup.size)
        maps = gaussian_filter((images - self.mean).square().mean(dim=1), self.settings.smoothing)  # (b, h, w)
        return Prediction(image_score(maps, "max"), maps)


METHOD = MeanMap
