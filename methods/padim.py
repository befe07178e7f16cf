"""PaDiM: a Gaussian of the features at each position of the image; the anomaly map is the Mahalanobis distance.

Defard, Setkov, Loesch, Audigier: PaDiM, ICPR 2020 workshop (https://arxiv.org/abs/2011.08785). The authors have
released no code. [R] is the re-implementation in common use, xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master
at 616004b. We could not read the paper's text.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting          default           source
    backbone         wide_resnet50_2   [R] with torchvision's first weights; the paper also has EfficientNet-B5 [M]
    stages           1, 2, 3           [R] layer1 to layer3: 1792 channels
    dimensions       550               [R] random channels that are used; 100 of 448 with a ResNet18
    channel_seed     1024              [R] seed of the selection, which is the same for all positions and categories
    regularization   0.01              [R] added to the diagonal of each covariance
    smoothing        4                 [R] sigma in pixels

Deep stages are enlarged by nearest neighbor to the grid of the first one [R]. Covariances have the divisor N - 1.

Differences from [R], which change no result beyond rounding: means and covariances are accumulated over batches; the
inverse is applied as a triangular factor (Cholesky, in float64), so a distance is never the root of a negative number;
only the selected channels are enlarged; maps are not rescaled to the range of the test set. One training image has no
covariance: NaN in [R], regularization * I here, so the distance is Euclidean times a constant.

With N - 1 < dimensions a covariance is singular without the regularization, and distances along directions that the
training images do not have are up to 1 / sqrt(regularization) times as large as Euclidean ones.

    bench run --method padim --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image/pixel AUROC: 95.5/97.3 ([R], README; nothing is selected); the paper states 95.3/97.5 [M]

    the same with --set backbone=resnet18.tv_in1k --set dimensions=100: 90.5/96.5 ([R], README)
"""

import random
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.gaussians import GaussianEstimator, mahalanobis_distance, whitening
from .parts.maps import gaussian_filter, image_score, upsample

TITLE = "PaDiM"
FAMILY = "memory bank"
PAPER = (
    "Defard, Setkov, Loesch, Audigier: PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and "
    "Localization, ICPR workshop, https://arxiv.org/abs/2011.08785"
)
YEAR = 2020
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "dimensions": 100},
    "check": {"backbone": "tf_efficientnet_lite0", "dimensions": 20},
}

BATCH = 8
"""Images per batch in fit."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of PaDiM; the table above has the source of each."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # stages of the backbone, as timm counts them
    dimensions: int = 550  # channels that are used, of all channels of the stages
    channel_seed: int = 1024
    regularization: float = 0.01
    smoothing: float = 4.0  # sigma in pixels; 0 is none

    def __post_init__(self) -> None:
        check_at_least(1, self, "dimensions")
        check_smoothing(self)
        check_setting(
            self.regularization > 0, self, "regularization", "must be > 0, so that covariances are invertible"
        )


class PaDiM(Method):
    """Estimates a Gaussian per position; nothing is trained."""

    learned = ("channels", "mean", "whitening")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(
        256, 256, resample="lanczos", keep_aspect=True, crop=224
    )
    supports_compile: ClassVar[bool] = True  # compiles the backbone
    settings: Settings
    channels: Tensor  # (d,) indices of the selected channels, in random order
    mean: Tensor  # (h * w, d)
    whitening: Tensor  # (h * w, d, d) lower triangular; its square is the inverse covariance

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        available = sum(self.backbone.channels)
        if settings.dimensions > available:
            raise BenchError(
                f"padim: dimensions must be <= {available}, the channels of the stages {settings.stages} of "
                f"{settings.backbone}, got {settings.dimensions}. Change it with --set dimensions=VALUE."
            )

    @torch.no_grad()
    def fit(self, train: Images, progress: Progress) -> None:
        """Select random channels, and estimate mean and covariance of the features at each position."""
        settings, device = self.settings, self.setup.device
        draw = random.Random(settings.channel_seed)  # noqa: S311 - [R]
        selected = draw.sample(range(sum(self.backbone.channels)), settings.dimensions)
        self.channels = torch.tensor(selected, device=device)
        n_batches = -(-len(train) // BATCH)
        estimator: GaussianEstimator | None = None
        for done, images in enumerate(train.batches(BATCH), start=1):
            features = self.embed(images.to(device))  # (b, d, h, w)
            if estimator is None:
                estimator = GaussianEstimator(features[0, 0].numel(), settings.dimensions, device)
            estimator.add(features.flatten(2).permute(2, 0, 1))  # (h * w, b, d)
            progress(done, n_batches + 1, None)
        assert estimator is not None
        if not estimator.mean.isfinite().all():
            raise BenchError("Features must be finite, got NaN or infinity. Pass --precision float32.")
        self.mean = estimator.mean
        self.whitening = whitening(estimator.covariance(), settings.regularization)
        progress(n_batches + 1, n_batches + 1, None)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed map of distances, and its maximum as the score."""
        maps = upsample(self.distances(images), self.setup.size, align_corners=False)  # (b, H, W)
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, "max"), maps)

    def embed(self, images: Tensor) -> Tensor:
        """Return the selected channels on the grid of the first stage: (b, d, h, w), in the order of `channels`."""
        stages, (channels, order) = self.backbone(images), self._selection
        grid = stages[0].shape[2:]
        parts = [
            F.interpolate(stage[:, indices].float(), grid)  # (b, d_i, h, w), nearest neighbor
            for stage, indices in zip(stages, channels, strict=True)
            if len(indices)
        ]
        return torch.cat(parts, dim=1)[:, order]

    @cached_property
    def _selection(self) -> tuple[list[Tensor], Tensor]:
        """Indices of the selected channels in each stage, and their positions, stage by stage, in `channels`."""
        ascending = self.channels.sort()
        limits = torch.tensor(self.backbone.channels, device=ascending.values.device).cumsum(0)  # (stages,)
        starts = [0, *torch.searchsorted(ascending.values, limits).tolist()]
        firsts = [0, *limits.tolist()]
        parts = [ascending.values[a:b] - first for a, b, first in zip(starts, starts[1:], firsts, strict=False)]
        return parts, ascending.indices.argsort()

    def distances(self, images: Tensor) -> Tensor:
        """Return the Mahalanobis distance at each position of the grid, (b, h, w)."""
        mean, factors = self.mean, self.whitening
        check_image_size(images, self.setup.size)
        features = self.embed(images)  # (b, d, h, w)
        distances = mahalanobis_distance(features.flatten(2).permute(2, 0, 1), mean, factors)  # (h * w, b)
        return distances.T.reshape(len(images), *features.shape[2:])

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the distances before smoothing, and the Euclidean ones, which do not use the covariance."""
        mahalanobis, features = self.distances(images), self.embed(images)
        differences = features.flatten(2) - self.mean.T  # (b, d, h * w)
        euclidean = torch.linalg.vector_norm(differences, dim=1).view_as(mahalanobis)
        pictures = {"Mahalanobis distance": mahalanobis, "Euclidean distance from the mean": euclidean}
        return {name: upsample(maps, self.setup.size, align_corners=False) for name, maps in pictures.items()}

    def info(self) -> Info:
        """Return the backbone, and the number and size of the Gaussians."""
        n_positions, dimensions = self.mean.shape
        return super().info() | {"positions": n_positions, "dimensions": dimensions}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of the covariances, and of the features of a batch."""
        _, strides = channels_and_strides(settings.backbone, settings.stages)
        n_positions = -(-size[0] // strides[0]) * -(-size[1] // strides[0])
        return 4 * n_positions * settings.dimensions * (settings.dimensions + 3 * min(n_images, BATCH))


METHOD = PaDiM
