"""MKD: multiresolution knowledge distillation (Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee; CVPR 2021).

A thin network, the cloner, learns to reproduce four feature maps of a frozen VGG16 on good images. An image is
anomalous if they differ in direction and length; a pixel, if the gradient of that difference is large there.

Paper: https://arxiv.org/abs/2011.11108. Code: https://github.com/rohban-lab/Knowledge_Distillation_AD at 0c574ae,
without a license. We could not read the full paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              paper      code             source
    backbone, stages     VGG16      VGG16, 1 to 4    [M] [C]; timm's stages end before a max-pool, which is added.
                                                     Any timm network is [I], with a ReLU for features of both signs
    normalize            -          no               [C] images in [0, 1] for MVTec AD, though weights are ImageNet's
    width                thin       16               [C] channels inside the cloner; 0: those of the teacher [C, a flag]
    mse_weight           0.5        0.5              [C] lambda, for MVTec AD; 0 is the loss of directions only
    score_stages         -          3                [C] last stages in score and map; the loss has all four
    epochs, batch        -          602, 64          [C] the loop runs to 601 inclusive
    lr                   -          1e-3             [C] Adam
    gradients            smooth     guided           [M] SmoothGrad is best by a little; [C] guided backpropagation
    smooth_samples       -          50               [C] noisy copies for gradients = "smooth"
    smooth_noise         -          0.05             [C] noise: (0.05 / (max - min))^2 of the image is its deviation
    map_range            -          image            [C] each map is scaled to its 99th percentile, then to [0, 1]
    smoothing            -          4                [C] sigma of the Gaussian in pixels
    test_seed            -          -                [I] seed of the noise, which is the same for every image
    downsample           -          -                [I] average-pooling factor applied to the input; 1 as published

Maps that are scaled one by one cannot be compared between images: the published pixel AUROC is over defective images
only, and of maps after a morphological opening. Here all maps are evaluated together, as those of every other method,
which `map_range = "none"` takes into account [I]. The last epoch is used; which one the paper used is not stated.

    bench run --method mkd --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    published mean image/pixel AUROC: 87.7/90.7 (Table I of AMI-Net; the pixel AUROC as just described)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.cloner import Cloner, guided_relu
from .parts.differentiable_features import differentiable_stages
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.maps import gaussian_filter, upsample
from .parts.precision import autocast
from .parts.similarity import cosine_distance

TITLE = "MKD"
FAMILY = "distillation"
PAPER = (
    "Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee: Multiresolution Knowledge Distillation for Anomaly Detection, CVPR, "
    "https://arxiv.org/abs/2011.11108"
)
YEAR = 2021
NEEDS = ("weights of vgg16.tv_in1k",)
ALIASES = {
    "mkd_resnet18": {
        "title": "MKD (ResNet-18)",
        "settings": {"backbone": "resnet18.tv_in1k", "stages": [0, 1, 2, 3], "normalize": True},
    },
}
PROFILES = {
    "demo": {
        "backbone": "tf_efficientnet_lite0", "stages": [0, 1, 2, 3], "normalize": True, "mse_weight": 0.01,
        "map_range": "none", "downsample": 2, "epochs": 100, "batch_size": 1,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "stages": [0, 1, 2], "normalize": True, "width": 4, "epochs": 2,
        "score_stages": 2,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of MKD; the table above has the source of each."""

    backbone: str = "vgg16.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3, 4)  # stages of the backbone, as timm counts them
    normalize: bool = False  # whether images are normalized as the weights require
    width: int = 16  # channels inside the cloner
    mse_weight: float = 0.5
    score_stages: int = 3  # number of last stages in score and map
    epochs: int = 602
    batch_size: int = 64
    lr: float = 1e-3
    gradients: Literal["vanilla", "guided", "smooth"] = "guided"
    smooth_samples: int = 50
    smooth_noise: float = 0.05
    map_range: Literal["image", "none"] = "image"
    smoothing: float = 4.0
    test_seed: int = 0
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "epochs", "batch_size", "smooth_samples", "downsample", "score_stages")
        check_at_least(0, self, "lr", "width", "mse_weight", "smooth_noise")
        check_smoothing(self)
        n_stages = len(self.stages)
        check_setting(self.score_stages <= n_stages, self, "score_stages", f"must be at most the {n_stages} stages")


class MKD(Method):
    """A student that reproduces a teacher's features; the anomaly map is the gradient of their difference."""

    learned = ("cloner",)
    max_instability: ClassVar[float] = (
        1e-2  # the map is a gradient through ReLU, which jumps where an activation changes its sign
    )
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(128, 128)  # [C]
    iterative: ClassVar[bool] = True
    export_obstacle: ClassVar[str] = "its map is a gradient, which the exporter cannot trace"
    settings: Settings
    cloner: Cloner  # in eval mode

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        self._strides = [2 * stride for stride in self.backbone.strides]  # after the max-pool
        multiple = settings.downsample * self._strides[-1]
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} pixels (stride {self._strides[-1]} of the last "
                f"stage, times downsample = {settings.downsample}), got {setup.size[0]} x {setup.size[1]}. Change the "
                "size of the images."
            )

    def build_cloner(self) -> Cloner:
        """Return the untrained student."""
        return Cloner(self.backbone.channels, self._strides, self.settings.width)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the cloner to reproduce the teacher's stages of good images."""
        settings = self.settings
        cloner = self.initialize(self.build_cloner)
        training = TrainingStep(self.setup, torch.optim.Adam, cloner.parameters(), lr=settings.lr)
        identity = f"{self.backbone.identity} pooled, normalized {settings.normalize}, averaged {settings.downsample}"
        features = FrozenFeatures(self._extract, train, identity=identity, setup=self.setup)
        generator = Generator().manual_seed(self.setup.seed)

        for epoch in self.epochs(settings.epochs, cloner, training, generator):
            cloner.train()
            order = torch.randperm(len(train), generator=generator)
            batches = train.batches(settings.batch_size, order), features.batches(settings.batch_size, order)
            for images, targets in zip(*batches, strict=True):
                training.minimize(self.loss(cloner, self.to_inputs(images), targets), len(images))
            loss = training.epoch_loss()
            self.cloner = cloner.eval()
            progress(epoch, settings.epochs, loss)

    def loss(self, cloner: Cloner, inputs: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the mean over images of the discrepancy of all stages."""
        with autocast(self.setup):
            stages = cloner(inputs)
        return self.discrepancy(targets, stages).mean()

    def discrepancy(self, targets: Sequence[Tensor], stages: Sequence[Tensor]) -> Tensor:
        """Return the sum over stages, (b, c, h, w) each, of 1 - cosine and the weighted mean squared error: (b,)."""
        terms = []
        for target, stage in zip(targets, stages, strict=True):
            expected, values = target.float().flatten(1), stage.float().flatten(1)  # (b, c * h * w)
            error = (values - expected).square().mean(dim=1)
            terms.append(cosine_distance(expected, values) + self.settings.mse_weight * error)
        return torch.stack(terms).sum(dim=0)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the discrepancy of the last stages, and its gradient at each pixel as the map."""
        settings, cloner = self.settings, self.cloner
        check_image_size(images, self.setup.size)
        inputs = self.to_inputs(images)
        scores, maps = self.scores_and_maps(cloner, inputs)
        if settings.gradients == "smooth":
            maps = self._smooth_maps(cloner, inputs)
        if settings.gradients != "vanilla":
            maps = self._scale(maps, 1.0)
        maps = gaussian_filter(upsample(maps, self.setup.size, align_corners=False), settings.smoothing)  # (b, H, W)
        return Prediction(scores, maps)

    def scores_and_maps(self, cloner: Cloner, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the discrepancy (b,) of the last stages, and its scaled gradient (b, h, w) at inputs (b, 3, h, w).

        The discrepancies of images do not depend on each other, so one backward pass of their sum gives all gradients.
        """
        last = slice(-self.settings.score_stages, None)
        activation = guided_relu if self.settings.gradients == "guided" else F.relu
        with torch.enable_grad():
            inputs = inputs.detach().clone().requires_grad_()
            targets = self._pooled(inputs)[last]
            with autocast(self.setup):
                stages = cloner(inputs, activation)[last]
            scores = self.discrepancy(targets, stages)
            (gradients,) = torch.autograd.grad(scores.sum(), inputs)
        return scores.detach(), self._scale(gradients.abs().sum(dim=1), 0.99)

    def _smooth_maps(self, cloner: Cloner, inputs: Tensor) -> Tensor:
        """Return the mean of the maps (b, h, w) of noisy copies of the inputs (b, 3, h, w)."""
        generator = Generator().manual_seed(self.settings.test_seed)  # on the CPU: the same noise on every device
        span = inputs.amax(dim=(1, 2, 3), keepdim=True) - inputs.amin(dim=(1, 2, 3), keepdim=True)
        deviation = (self.settings.smooth_noise / span.clamp(min=1e-6)).square()  # (b, 1, 1, 1)
        total = torch.zeros_like(inputs[:, 0])
        for _ in range(self.settings.smooth_samples):
            noise = torch.randn(inputs.shape[1:], generator=generator).to(inputs.device)
            total += self.scores_and_maps(cloner, inputs + noise * deviation)[1]
        return total / self.settings.smooth_samples

    def _scale(self, maps: Tensor, quantile: float) -> Tensor:
        """Map (b, h, w) to [0, 1]: the minimum of each map to 0, its quantile to 1, if maps are scaled at all."""
        if self.settings.map_range == "none":
            return maps
        values = maps.flatten(1)  # (b, h * w)
        low = values.amin(dim=1)[:, None, None]
        high = torch.quantile(values, quantile, dim=1)[:, None, None]
        return ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)

    def to_inputs(self, images: Tensor) -> Tensor:
        """Return the input of both networks for images (b, 3, H, W) in [0, 1]."""
        images = F.avg_pool2d(images.to(self.setup.device), self.settings.downsample)
        return (images - self.backbone.mean) / self.backbone.std if self.settings.normalize else images

    @torch.no_grad()
    def _extract(self, images: Tensor) -> list[Tensor]:
        return self._pooled(self.to_inputs(images))

    def _pooled(self, inputs: Tensor) -> list[Tensor]:
        """Return the teacher's stages after a ReLU, which changes only features of both signs, and a max-pool."""
        return [F.max_pool2d(F.relu(stage), 2) for stage in differentiable_stages(self.backbone, inputs)]

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return 1 - cosine of teacher and cloner at each position of each stage."""
        stages = self.cloner(self.to_inputs(images))
        pictures = {}
        for stage, expected, values in zip(self.settings.stages, self._extract(images), stages, strict=True):
            distance = cosine_distance(expected.movedim(1, 3), values.movedim(1, 3))  # (b, h, w)
            pictures[f"distance in stage {stage}"] = upsample(distance, self.setup.size, align_corners=False)
        return pictures

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, targets, and the activations of one batch."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        pixels = size[0] * size[1] // settings.downsample**2
        with torch.device("meta"):
            cloner = Cloner(channels, [2 * stride for stride in strides], settings.width)
        targets = sum(c * pixels // (2 * stride) ** 2 for c, stride in zip(channels, strides, strict=True))
        # The outputs of a convolution, its norm and its activation are saved for the backward pass.
        activations: int = sum(
            3 * module.out_channels * pixels // 4**position
            for position, block in enumerate(cloner.blocks)
            for module in block.modules()
            if isinstance(module, torch.nn.Conv2d)
        )
        n_weights = sum(parameter.numel() for parameter in cloner.parameters())
        features = min(4 * n_images * targets, MEMORY_BUDGET)
        return 16 * n_weights + features + 4 * min(settings.batch_size, n_images) * activations


METHOD = MKD
