"""DifferNet: a normalizing flow on averaged multi-scale features (Rudolph, Wandt, Rosenhahn; WACV 2021).

A frozen AlexNet describes an image at three scales by 768 numbers, means over positions. A flow maps these vectors of
good images to a standard normal distribution. An image is anomalous if many rotated copies of it are unlikely. The
method detects images; its anomaly map is the gradient of the likelihood with respect to the pixels. The AMI-Net paper
calls it "DiffNet".

Paper: https://arxiv.org/abs/2008.12577. Code: https://github.com/marco-rudolph/differnet at 9bdf026, MIT by its README.
We could not read the full paper; the README of the code states that its settings are those of the paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              paper      code             source
    backbone             alexnet    alexnet          [C] torchvision's; any timm network is [I]: resnet18.tv_in1k
    stage                -          -                [I] stage of a timm network: layer3 of a ResNet has 256 channels
    scales               3          3                [C] 448, 224 and 112 pixels, resized by nearest neighbor
    blocks, width        8, 2048    8, 2048          [C] coupling blocks, and hidden units of their networks
    transforms           4          4                [C] copies of an image per step, rotated by U(-180, 180) degrees
    epochs, batch        192, 24    24 x 8, 24       [C] images per step, so 96 copies
    lr, betas, eps       2e-4, 0.8, 0.8, 1e-4        [C] Adam
    weight_decay         1e-5       1e-5             [C]
    test_transforms      64         64               [C] copies of a test image
    test_rotations       random     random           [C]; "fixed" are i * 360 / 64 degrees, another script of the code
    test_seed            -          -                [I] seed of the random rotations, the same for every image
    map_transforms       -          64               [I] 16; fixed rotations for the gradient
    map_smoothing        -          3                [C] sigma in pixels of the Gaussian over the gradients
    train_rotations      -          -                [I] 0 samples new angles as [C]; n > 0 computes the features of n
                                                     fixed rotations of each image once, from which each step samples

Differences from the code: one seed instead of the clock; rotations by torch; the anomaly map is the mean of absolute
gradients, which the code squares for its pictures of anomalous images; gradients are rotated back with bicubic
interpolation instead of splines. The loss is divided by the number of dimensions, as in [C].

    bench run --method differnet --profile code --dataset mvtec --protocol kshot --k 2,4,8 --preprocessing paper
    published image AUROC: 80.6/81.3/82.3 for k = 2/4/8 (Table IV of AMI-Net, from RegAD's authors), but 69.4/72.1/73.6
    for 1/5/10 images (the supplement of TDG); 94.9 with all images [M]. The code prints the last and the best epoch on
    the test set; which one the paper has is not stated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.differentiable_features import ALEXNET, AlexNet, PooledFeatures, find_feature_weights
from .parts.features import FrozenFeatures
from .parts.flows import CouplingBlock, Flow, negative_log_likelihood
from .parts.maps import gaussian_filter
from .parts.rotation import rotate

TITLE = "DifferNet"
FAMILY = "flow"
PAPER = (
    "Rudolph, Wandt, Rosenhahn: Same Same But DifferNet: Semi-Supervised Defect Detection with Normalizing Flows, "
    "WACV, https://arxiv.org/abs/2008.12577"
)
YEAR = 2021
NEEDS = ("torchvision's weights of AlexNet in the weights folder",)
ALIASES = {
    "differnet_resnet18": {"title": "DifferNet (ResNet-18)", "settings": {"backbone": "resnet18.tv_in1k"}},
    "differnet_lite0": {"title": "DifferNet (EfficientNet-Lite0)", "settings": {"backbone": "tf_efficientnet_lite0"}},
}
PROFILES = {
    "demo": {  # 16 fixed rotations of each image in training, so the rotations at test time are among them
        "backbone": "tf_efficientnet_lite0", "blocks": 4, "width": 256, "epochs": 200, "batch_size": 4,
        "lr": 5e-4, "train_rotations": 16, "test_transforms": 8, "test_rotations": "fixed",
        "map_transforms": 4,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "stage": 1, "scales": 2, "blocks": 2, "width": 16, "epochs": 2,
        "transforms": 2, "train_rotations": 3, "test_transforms": 2, "map_transforms": 2,
    },
}  # fmt: skip

COPIES = 64
"""Rotated images in memory at once in predict."""

VALUES_PER_PIXEL = 25
"""Number of values per pixel of a rotated image, with AlexNet's activations for its gradient."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of DifferNet; the table above has the source of each."""

    backbone: str = "alexnet"  # or timm's tag
    stage: int = 3  # stage of a timm network
    scales: int = 3  # number of sizes, each half of the previous one
    blocks: int = 8
    width: int = 2048  # hidden units of the coupling networks
    transforms: int = 4
    train_rotations: int = 0  # number of fixed rotations of a training image; 0 samples new ones per step
    epochs: int = 192
    batch_size: int = 24  # images
    lr: float = 2e-4
    betas: tuple[float, float] = (0.8, 0.8)
    eps: float = 1e-4
    weight_decay: float = 1e-5
    test_transforms: int = 64
    test_rotations: Literal["random", "fixed"] = "random"
    test_seed: int = 0
    map_transforms: int = 16
    map_smoothing: float = 3.0

    def __post_init__(self) -> None:
        counts = (
            "scales",
            "blocks",
            "width",
            "transforms",
            "epochs",
            "batch_size",
            "test_transforms",
            "map_transforms",
        )
        check_at_least(1, self, *counts)
        check_at_least(0, self, "stage", "lr", "eps", "weight_decay", "train_rotations")
        check_smoothing(self, "map_smoothing")
        is_enough = self.train_rotations == 0 or self.train_rotations >= self.transforms
        check_setting(is_enough, self, "train_rotations", f"must be 0 or >= transforms = {self.transforms}")


class DifferNet(Method):
    """The likelihood of rotated copies of an image; the map is its gradient with respect to the pixels."""

    learned = ("network",)
    max_instability: ClassVar[float] = (
        1e-2  # the map is a gradient through ReLU, which jumps where an activation changes its sign
    )
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(448, 448)  # [C]
    iterative: ClassVar[bool] = True
    export_obstacle: ClassVar[str] = "its map is a gradient, which the exporter cannot trace"
    backbone_settings = ()  # AlexNet is not one of timm's networks, so `info` and `file_hashes` are defined below
    settings: Settings
    network: Flow

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.pooled = PooledFeatures(settings.backbone, settings.stage, setup)
        self._dimensions = settings.scales * self.pooled.channels

    def build_network(self) -> Flow:
        """Return the untrained flow; its permutations are those of the authors' code."""
        permutations = (np.random.RandomState(k).permutation(self._dimensions) for k in range(self.settings.blocks))
        return Flow(*(CouplingBlock(torch.from_numpy(order), self.settings.width) for order in permutations))

    def fit(self, train: Images, progress: Progress) -> None:
        """Maximize the likelihood of the features of rotated good images."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        identity = f"{self.pooled.identity} {settings.stage} {settings.scales} scales {settings.train_rotations} angles"
        rotations = FrozenFeatures(self._extract_rotations, train, identity=identity, setup=self.setup)
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same angles on every device

        for epoch in self.epochs(settings.epochs, network, training, generator):
            order = torch.randperm(len(train), generator=generator)
            batches = self._draw(rotations, order, generator) if settings.train_rotations else (
                self._rotate_randomly(images, generator) for images in train.batches(settings.batch_size, order)
            )  # fmt: skip
            for features in batches:  # (b * transforms, d)
                training.minimize(self.loss(network, features), len(features))
            loss = training.epoch_loss()
            self.network = network
            progress(epoch, settings.epochs, loss)

    def loss(self, network: Flow, features: Tensor) -> Tensor:
        """Return the negative log-likelihood of features (n, d), per dimension: mean over the copies."""
        return negative_log_likelihood(*network(features)).mean() / features.shape[1]

    @torch.no_grad()
    def _rotate_randomly(self, images: Tensor, generator: Generator) -> Tensor:
        copies = images.to(self.setup.device).repeat_interleave(self.settings.transforms, dim=0)
        degrees = 360 * torch.rand(len(copies), generator=generator) - 180  # (b * transforms,)
        return self.features(self._normalize(rotate(copies, degrees, "nearest")))

    def _draw(self, rotations: FrozenFeatures, order: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Yield the features of `transforms` of the fixed rotations of each image."""
        for (cached,) in rotations.batches(self.settings.batch_size, order):
            features = cached.reshape(len(cached), self.settings.train_rotations, -1)  # (b, rotations, d)
            random = torch.rand(features.shape[:2], generator=generator).argsort(dim=1)[:, : self.settings.transforms]
            index = random.to(features.device)[:, :, None].expand(-1, -1, features.shape[2])
            yield features.gather(1, index).flatten(0, 1)  # (b * transforms, d)

    @torch.no_grad()
    def _extract_rotations(self, images: Tensor) -> list[Tensor]:
        """Return the features of all fixed rotations of (b, 3, h, w), as a map (b, rotations * d, 1, 1)."""
        images = images.to(self.setup.device)
        rotation_features = [
            self.features(self._normalize(rotate(images, angle.expand(len(images)), "nearest")))
            for angle in self._fixed_angles(self.settings.train_rotations)
        ]
        return [torch.stack(rotation_features, dim=1).flatten(1)[:, :, None, None]]  # (b, rotations * d, 1, 1)

    def features(self, inputs: Tensor) -> Tensor:
        """Map normalized images (n, 3, h, w) to the means of their features at all scales, (n, d)."""
        height, width = inputs.shape[2:]
        scales = [(height // 2**scale, width // 2**scale) for scale in range(self.settings.scales)]
        return torch.cat([self.pooled(F.interpolate(inputs, size)) for size in scales], dim=1)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the mean of squared latent values over rotations, and the gradient of the likelihood as the map."""
        network = self.network
        check_image_size(images, self.setup.size)
        scores = self.rotation_scores(network, images, self._test_angles).mean(dim=1)
        return Prediction(scores, self.gradient_maps(network, images))

    def rotation_scores(self, network: Flow, images: Tensor, angles: Tensor) -> Tensor:
        """Return the mean of squared latent values of images (b, 3, h, w) rotated by (r,) degrees: (b, r)."""
        scores = []
        for batch in images.split(max(1, COPIES // len(angles))):
            copies = rotate(batch.repeat_interleave(len(angles), dim=0), angles.repeat(len(batch)), "nearest")
            latent, _ = network(self.features(self._normalize(copies)))  # (b * r, d)
            scores.append(latent.square().mean(dim=1).view(len(batch), -1))  # (b, r)
        return torch.cat(scores)

    def gradient_maps(self, network: Flow, images: Tensor) -> Tensor:
        """Return the mean absolute gradient of the loss, rotated back and smoothed: (b, 3, h, w) to (b, h, w)."""
        angles = self._fixed_angles(self.settings.map_transforms)
        maps = []
        for batch in images.split(max(1, COPIES // len(angles))):
            copies = rotate(batch.repeat_interleave(len(angles), dim=0), angles.repeat(len(batch)), "nearest")
            with torch.enable_grad():
                inputs = self._normalize(copies).requires_grad_()
                losses = negative_log_likelihood(*network(self.features(inputs))) / self._dimensions
                (gradient,) = torch.autograd.grad(losses.sum() / len(angles), inputs)
            upright = rotate(gradient, -angles.repeat(len(batch)), "bicubic")  # (b * r, 3, h, w)
            smooth = gaussian_filter(upright, self.settings.map_smoothing).abs().mean(dim=1)  # (b * r, h, w)
            maps.append(smooth.view(len(batch), len(angles), *smooth.shape[1:]).mean(dim=1))
        return torch.cat(maps)

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self.pooled.mean) / self.pooled.std

    @cached_property
    def _test_angles(self) -> Tensor:
        """Degrees of the rotations of a test image, (test_transforms,), the same for every image and device."""
        if self.settings.test_rotations == "fixed":
            return self._fixed_angles(self.settings.test_transforms)
        generator = Generator().manual_seed(self.settings.test_seed)
        random = torch.rand(self.settings.test_transforms, generator=generator)
        return (360 * random - 180).to(self.setup.device)

    def _fixed_angles(self, count: int) -> Tensor:
        return (torch.arange(count) * (360 / count)).to(self.setup.device)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the rotated copy of each image with the largest score."""
        scores = self.rotation_scores(self.network, images, self._test_angles)
        return {"most anomalous rotation": rotate(images, self._test_angles[scores.argmax(dim=1)], "nearest")}

    def info(self) -> Info:
        """Return the size of the flow, and the weights of the frozen network."""
        tag = self.settings.backbone
        weights = find_feature_weights(tag, self.setup.weights)
        names = {"backbone": tag, "backbone_source": weights.source, "backbone_sha256": weights.sha256}
        return super().info() | names

    @classmethod
    def file_hashes(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """Return the sha256 of the frozen network's weights."""
        return {"backbone": find_feature_weights(settings.backbone, weights).sha256}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments, and of the rotated images of one batch."""
        is_alexnet = settings.backbone == ALEXNET
        channels = AlexNet.CHANNELS if is_alexnet else channels_and_strides(settings.backbone, (settings.stage,))[0][0]
        dimensions = settings.scales * channels
        with torch.device("meta"):
            block = CouplingBlock(torch.arange(dimensions), settings.width)
        n_weights = settings.blocks * sum(parameter.numel() for parameter in block.parameters())
        copies = max(COPIES, settings.transforms * min(settings.batch_size, n_images))
        return 16 * n_weights + 4 * copies * VALUES_PER_PIXEL * size[0] * size[1]


METHOD = DifferNet
