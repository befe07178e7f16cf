"""MBPFM: bidirectional pre-trained feature mapping (Wan, Gao, Li, Wen; IEEE TII 2022).

Two frozen networks get the same image. At three stages a small network maps the features of the first to those of the
second, and back, through a shared bottleneck. It is trained on good images; where the mapping fails, the image is
anomalous. The abstract abbreviates the method as PFM; the AMI-Net paper calls it MBPFM.

Paper: https://doi.org/10.1109/TII.2022.3182385. Code, without a license:
https://github.com/smiler96/PFM-and-PEFM-for-Image-Anomaly-Detection-and-Segmentation at 89268b6. We could not read the
full paper. [C] includes the log of the published run.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              paper       code              source
    small_backbone       ResNet34    ResNet34          [C] torchvision's; any pair with equal strides is [I]
    large_backbone       ResNet50    ResNet50          [C]
    stages               1, 2, 3     1, 2, 3           [C] features are divided by their norm at each position
    latents              200, 400, 900                 [C] channels of the shared bottleneck per stage
    lrs                  3e-3, 3e-4, 3e-4              [C] one Adam per stage
    weight_decay         1e-5        1e-5              [C]
    epochs, batch        200, 8      200, 8            [C] the parser's default batch is 1; README and log have 8
    downsample           -           -                 [I] average-pooling factor applied to the input; 1 as published

Differences from the code: no gradient is computed for the frozen networks; their features are computed once; a
division by the variances of the training set, which the code has switched off, is left out. The last epoch is used, as
in the code. Its log shows jumps between epochs (bottle falls to 73.2/90.2 in epoch 80, between 100/98.5 in epochs 70
and 90), so a single epoch is not representative.

    bench run --method mbpfm --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    published mean image/pixel AUROC: 97.5/97.3 (Table I of AMI-Net [M]); 97.45/97.28 (the log); both the last epoch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.maps import image_score, upsample
from .parts.precision import autocast

TITLE = "MBPFM"
FAMILY = "distillation"
PAPER = (
    "Wan, Gao, Li, Wen: Unsupervised Image Anomaly Detection and Segmentation Based on Pre-trained Feature Mapping, "
    "IEEE TII, https://doi.org/10.1109/TII.2022.3182385"
)
YEAR = 2022
NEEDS = ("weights of resnet34.tv_in1k and resnet50.tv_in1k",)
ALIASES = {
    "mbpfm_resnet18": {
        "title": "MBPFM (ResNet-18 + ResNet-50)",
        "settings": {"small_backbone": "resnet18.tv_in1k", "large_backbone": "resnet50"},
    },
}
PROFILES = {
    "demo": {  # only one pretrained network is installed with the package; the other one has random weights
        "small_backbone": "tf_efficientnet_lite0", "large_backbone": "random:resnet18", "latents": [50, 100, 200],
        "downsample": 2, "lrs": [3e-3, 3e-3, 3e-3], "epochs": 100, "batch_size": 1,
    },
    "check": {
        "small_backbone": "tf_efficientnet_lite0", "large_backbone": "random:resnet18", "stages": [1], "latents": [8],
        "lrs": [3e-3], "epochs": 2, "batch_size": 3,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of MBPFM; the table above has the source of each."""

    small_backbone: str = "resnet34.tv_in1k"  # timm's tag
    large_backbone: str = "resnet50.tv_in1k"
    stages: tuple[int, ...] = (1, 2, 3)  # stages of both backbones, as timm counts them
    latents: tuple[int, ...] = (200, 400, 900)  # one per stage
    lrs: tuple[float, ...] = (3e-3, 3e-4, 3e-4)  # one per stage
    weight_decay: float = 1e-5
    epochs: int = 200
    batch_size: int = 8
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "epochs", "batch_size", "downsample")
        check_at_least(0, self, "weight_decay")
        count = len(self.stages)
        is_valid = len(self.latents) == count and min(self.latents, default=0) >= 1
        check_setting(is_valid, self, "latents", f"must be {count} integers >= 1, one per stage")
        is_valid = len(self.lrs) == count and min(self.lrs, default=-1) >= 0
        check_setting(is_valid, self, "lrs", f"must be {count} numbers >= 0, one per stage")


class Mapper(nn.Module):
    """Maps the features of each network to those of the other at one stage, by 1 x 1 convolutions.

    Both directions share the convolution in the middle.
    """

    def __init__(self, small: int, large: int, latent: int) -> None:
        """Create the mapper for `small` and `large` channels, with `latent` channels in the middle."""
        super().__init__()
        self.small_encoder = _encoder(small, latent)
        self.shared = nn.Conv2d(2 * latent, latent, 1)
        self.large_decoder = _decoder(large, latent)
        self.large_encoder = _encoder(large, latent)
        self.small_decoder = _decoder(small, latent)

    def forward(self, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
        """Return small features (b, small, h, w) predicted from the large ones, and large ones from the small ones."""
        from_large = self.small_decoder(self.shared(self.large_encoder(large)))
        from_small = self.large_decoder(self.shared(self.small_encoder(small)))
        return from_large, from_small


class MBPFM(Method):
    """Maps the features of two frozen networks to each other; the anomaly map is the error of both directions."""

    learned = ("mappers",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256, resample="lanczos")  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    backbone_settings = ("small_backbone", "large_backbone")
    settings: Settings
    mappers: nn.ModuleList  # one per stage, in eval mode

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.small = Backbone.from_setup(settings.small_backbone, settings.stages, setup)
        self.large = Backbone.from_setup(settings.large_backbone, settings.stages, setup)
        if self.small.strides != self.large.strides:
            raise BenchError(
                f"Both backbones must have the same strides, got {self.small.strides} of {settings.small_backbone} and "
                f"{self.large.strides} of {settings.large_backbone}. Choose other stages or another backbone."
            )

    def build_mappers(self) -> nn.ModuleList:
        """Return the untrained mappers."""
        return _build_mappers(self.small.channels, self.large.channels, self.settings)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the mapper of each stage on its own, with the features of good images."""
        settings = self.settings
        mappers = self.initialize(self.build_mappers)
        trainings = [
            TrainingStep(self.setup, torch.optim.Adam, mapper.parameters(), lr=lr, weight_decay=settings.weight_decay)
            for mapper, lr in zip(mappers, settings.lrs, strict=True)
        ]
        identity = f"{self.small.identity} {self.large.identity} images averaged {settings.downsample}"
        features = FrozenFeatures(self.extract, train, identity=identity, setup=self.setup)
        generator = Generator().manual_seed(self.setup.seed)

        for epoch in self.epochs(settings.epochs, mappers, *trainings, generator):
            mappers.train()
            for stages in features.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                for mapper, training, pair in zip(mappers, trainings, normalized_pairs(stages), strict=True):
                    training.minimize(self.loss(mapper, *pair), len(pair[0]))
            loss = sum(training.epoch_loss() for training in trainings)
            self.mappers = mappers.eval()
            progress(epoch, settings.epochs, loss)

    def loss(self, mapper: nn.Module, small: Tensor, large: Tensor) -> Tensor:
        """Return the sum of the mean squared errors of both directions."""
        with autocast(self.setup):
            restored_small, restored_large = mapper(small, large)
        return F.mse_loss(restored_small.float(), small) + F.mse_loss(restored_large.float(), large)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the mean over stages of the squared error of both directions, and its maximum as the score."""
        check_image_size(images, self.setup.size)
        maps = self.map_features(self.extract(images)).mean(dim=0)  # (b, H, W)
        return Prediction(image_score(maps, "max"), maps)

    def map_features(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the error maps (stages, b, H, W) of features as `extract` returns them.

        The error is the mean over directions of the sum over channels.
        """
        maps = []
        for mapper, (small, large) in zip(self._inference_mappers, normalized_pairs(stages), strict=True):
            with autocast(self.setup):
                restored_small, restored_large = mapper(small, large)
            error = (small - restored_small.float()).square().sum(dim=1)  # (b, h, w)
            error = (error + (large - restored_large.float()).square().sum(dim=1)) / 2
            maps.append(upsample(error, self.setup.size, align_corners=False))
        return torch.stack(maps)

    @cached_property
    def _inference_mappers(self) -> list[nn.Module]:
        return [with_compiled_methods(mapper, self.setup, "forward") for mapper in self.mappers]

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the stages of the small backbone, then those of the large one, each (b, c, h, w)."""
        images = F.avg_pool2d(images.to(self.setup.device), self.settings.downsample)
        return [*self.small(images), *self.large(images)]

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the error of each stage."""
        maps = self.map_features(self.extract(images))
        return {f"error of stage {stage}": map_ for stage, map_ in zip(self.settings.stages, maps, strict=True)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, features, and the activations of one batch."""
        small, strides = channels_and_strides(settings.small_backbone, settings.stages)
        large, _ = channels_and_strides(settings.large_backbone, settings.stages)
        with torch.device("meta"):
            n_weights = sum(value.numel() for value in _build_mappers(small, large, settings).parameters())
        image = activations = 0
        for a, b, latent, stride in zip(small, large, settings.latents, strides, strict=True):
            n_positions = size[0] * size[1] // (settings.downsample * stride) ** 2
            image += (a + b) * n_positions
            # Outputs of convolution and norm: twice 2 encoders and decoders, and the features themselves.
            activations += (4 * (a + b + 8 * latent) + 4 * (a + b)) * n_positions
        features = min(4 * n_images * image, MEMORY_BUDGET)
        return 16 * n_weights + features + 4 * min(settings.batch_size, n_images) * activations


def normalized_pairs(stages: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair the stages of two backbones, one after the other, and divide features by their norm at each position."""
    vectors = [F.normalize(stage.float(), dim=1) for stage in stages]
    half = len(vectors) // 2
    return list(zip(vectors[:half], vectors[half:], strict=True))


def _build_mappers(small: Sequence[int], large: Sequence[int], settings: Settings) -> nn.ModuleList:
    return nn.ModuleList(Mapper(*channels) for channels in zip(small, large, settings.latents, strict=True))


def _encoder(channels: int, latent: int) -> nn.Sequential:
    return nn.Sequential(
        _conv_bn_relu(channels, channels // 2 + latent),
        _conv_bn_relu(channels // 2 + latent, 2 * latent),
    )


def _decoder(channels: int, latent: int) -> nn.Sequential:
    return nn.Sequential(
        _conv_bn_relu(latent, 2 * latent),
        _conv_bn_relu(2 * latent, channels // 2 + latent),
        nn.Conv2d(channels // 2 + latent, channels, 1),
    )


def _conv_bn_relu(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


METHOD = MBPFM
