"""DFR: an autoencoder of regional features; the map is its reconstruction error.

Shi, Yang, Qi: Unsupervised anomaly segmentation via deep feature reconstruction, Neurocomputing 424, 2021
(https://arxiv.org/abs/2012.07122). Code: https://github.com/YoungGod/DFR at f2e2d4e, without a license: only its facts
are used here. We could not read the paper's text.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              default        source
    backbone             vgg19          [C] torchvision's weights
    stages               0, 1, 2, 3     [C] blocks whose ReLUs are used: relu1_1 to relu4_4, 12 maps, 3456 channels
    cell                 4              [C] pixels of the resized maps per regional feature, along each axis
    latent               by PCA         [C] dimensions of the code; None: as many components as explain a fraction
    explained_variance   0.9            [C] fraction of the variance of the features of the first images
    pca_images           10             [C] number of these images
    epochs               700            [C] a comment in the code, and [M]; the default of its parser is 150
    lr, batch            1e-4, 4        [C] Adam, constant

The VGG pads by reflection, and 8 of its 12 maps are used with their padding [C]. Images are resized by nearest neighbor
[C]. A backbone that is not a VGG gives its stages [I]. The map is upsampled with align_corners=True and not smoothed
[C]; the score of an image is its maximum [C]: the paper is about segmentation and has no image score [M].

Differences from the code, which change no result beyond rounding: resize and average are one matrix product per axis;
the 1 x 1 convolutions are linear layers; the principal components' variances come from the covariance in float64; the
features, which are frozen, are computed once, if they fit into memory or into the cache.

    bench run --method dfr --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean pixel AUROC: 95 (the paper [M]; AMI-Net's Table I prints 95.5 over rows whose mean is 94.9), image
    AUROC 93.8 (AMI-Net's Table I); the code uses the last epoch
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.maps import image_score, upsample
from .parts.precision import autocast
from .parts.regional_features import regional_features, tapped_backbone

TITLE = "DFR"
FAMILY = "reconstruction"
PAPER = (
    "Shi, Yang, Qi: Unsupervised anomaly segmentation via deep feature reconstruction, Neurocomputing 424, "
    "https://arxiv.org/abs/2012.07122"
)
YEAR = 2021
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "cell": 8, "epochs": 300, "lr": 2e-3},
    "check": {"backbone": "tf_efficientnet_lite0", "cell": 8, "epochs": 2, "latent": 8},
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of DFR; the table above has the source of each."""

    backbone: str = "vgg19.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (0, 1, 2, 3)  # blocks of a VGG, or stages as timm counts them
    cell: int = 4  # side in pixels
    latent: int | None = None  # dimensions of the code; None determines them by PCA
    explained_variance: float = 0.9
    pca_images: int = 10
    epochs: int = 700
    lr: float = 1e-4
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_at_least(1, self, "cell", "pca_images", "epochs", "batch_size")
        check_at_least(0, self, "lr")
        check_setting(self.latent is None or self.latent >= 1, self, "latent", "must be >= 1 or None")
        check_setting(0 < self.explained_variance < 1, self, "explained_variance", "must be in (0, 1)")


class DFR(Method):
    """Reconstructs regional features from a code of few dimensions; the anomaly map is the mean squared error."""

    learned = ("latent", "network")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256, resample="nearest")  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    latent: Tensor  # () dimensions of the code
    network: nn.Sequential

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        if setup.size[0] % settings.cell or setup.size[1] % settings.cell:
            raise BenchError(
                f"Height and width must be multiples of cell = {settings.cell}, got {setup.size[0]} x {setup.size[1]}. "
                f"Change the size of the images or --set cell=VALUE."
            )
        self.backbone = tapped_backbone(settings.backbone, settings.stages, setup)

    def build_network(self) -> nn.Sequential:
        """Return the untrained autoencoder."""
        return autoencoder(sum(self.backbone.channels), int(self.latent))

    def fit(self, train: Images, progress: Progress) -> None:
        """Determine the dimensions of the code, and train to reconstruct the features of good images."""
        settings = self.settings
        features = FrozenFeatures(
            lambda images: [self.extract(images)],
            train,
            identity=f"{self.backbone.identity} cells of {settings.cell}",
            setup=self.setup,
        )
        self.latent = torch.tensor(settings.latent or self.principal_components(features, len(train)))
        network = self.initialize(self.build_network)
        training = TrainingStep(self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr)
        generator = Generator().manual_seed(self.setup.seed)
        for epoch in self.epochs(settings.epochs, network, training, generator):
            network.train()
            for (regions,) in features.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                training.minimize(self.errors(network, regions).mean(), len(regions))
            loss = training.epoch_loss()
            self.network = network.eval()
            progress(epoch, settings.epochs, loss)

    def principal_components(self, features: FrozenFeatures, n_images: int) -> int:
        """Return the number of principal components that explain more than `explained_variance` of the first images."""
        first = torch.arange(min(self.settings.pca_images, n_images))
        channels = sum(self.backbone.channels)
        total, products = (
            torch.zeros(channels, dtype=torch.float64),
            torch.zeros(channels, channels, dtype=torch.float64),
        )
        count = 0
        for (regions,) in features.batches(1, first):
            rows = to_rows(regions).cpu().double()  # (h * w, c)
            total += rows.sum(dim=0)
            products.addmm_(rows.T, rows)
            count += len(rows)
        variances = torch.linalg.eigvalsh(products - total.outer(total) / count).flip(0).clamp(min=0)  # descending
        share = variances.cumsum(0) / variances.sum()
        threshold = torch.tensor(self.settings.explained_variance, dtype=torch.float64)
        return int(torch.searchsorted(share, threshold, right=True)) + 1

    def errors(self, network: nn.Module, regions: Tensor) -> Tensor:
        """Return the squared errors of the reconstruction of (b, c, h, w) regional features: (b, h, w, c)."""
        features = regions.permute(0, 2, 3, 1)  # (b, h, w, c)
        with autocast(self.setup):
            restored: Tensor = network(to_rows(regions)).float()
        return (features - restored.view(features.shape)).square()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the map of mean squared errors, and its maximum as the score."""
        maps = upsample(self.image_errors(images).mean(dim=3), self.setup.size, align_corners=True)  # (b, H, W)
        return Prediction(image_score(maps, "max"), maps)

    def image_errors(self, images: Tensor) -> Tensor:
        """Return the squared errors of (b, 3, H, W) images: (b, h, w, c)."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        return self.errors(network, self.extract(images))

    @cached_property
    def _inference_network(self) -> nn.Sequential:
        return with_compiled_methods(self.network, self.setup, "forward")

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Return the regional features of (b, 3, H, W) images: (b, c, h, w)."""
        return regional_features(self.backbone(images.to(self.setup.device)), self.setup.size, self.settings.cell)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean squared error of the shallower and of the deeper half of the feature maps."""
        channels = self.backbone.channels
        middle = sum(channels[: len(channels) // 2])
        errors = self.image_errors(images)
        error_groups = {
            "error of shallow features": errors[..., :middle],
            "error of deep features": errors[..., middle:],
        }
        return {
            name: upsample(error.mean(dim=3), self.setup.size, align_corners=True)
            for name, error in error_groups.items()
            if error.shape[3]
        }

    def info(self) -> Info:
        """Return the backbone, and the dimensions of features and code."""
        return super().info() | {"channels": sum(self.backbone.channels), "latent": int(self.latent)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of cached features, of one step, and of the stages of a batch, for backbones with stages."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        regions = sum(channels) * (size[0] // settings.cell) * (size[1] // settings.cell)
        stages = sum(c * (size[0] // s) * (size[1] // s) for c, s in zip(channels, strides, strict=True))
        cached = min(4 * n_images * regions, MEMORY_BUDGET)
        return cached + 4 * min(settings.batch_size, n_images) * (6 * regions + stages)


def autoencoder(channels: int, latent: int) -> nn.Sequential:
    """Return encoder and decoder of (n, channels) features; the code has `latent` dimensions."""
    widths = [channels, (channels + 2 * latent) // 2, 2 * latent, latent]
    return nn.Sequential(_layers(widths), _layers(widths[::-1]))


def _layers(widths: list[int]) -> nn.Sequential:
    """Return linear layers, with batch norm and ReLU after each but the last one."""
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layers.extend([nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()])
    return layers[:-2]


def to_rows(regions: Tensor) -> Tensor:
    """Map (b, c, h, w) to (b * h * w, c)."""
    return regions.permute(0, 2, 3, 1).flatten(0, 2)


METHOD = DFR
