"""FastFlow: two-dimensional normalizing flows on the features of a frozen network (Yu, Zheng, Wang, Li, Wu, Zhao, Wu).

One flow per stage maps the features of good images to a standard normal distribution. It consists of convolutions, so
each position of the map has a likelihood. Where it is low, the image is anomalous.

Paper: https://arxiv.org/abs/2111.07677. Its authors released no code, and we could not read the full paper. [R] is the
re-implementation in common use, https://github.com/gathierry/FastFlow at 2cf1f2f, Apache-2.0.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              paper       re-implementation   source
    backbone             WR50, R18, DeiT, CaiT           [M] [R]; here the convolutional ones. [R] has timm's own
                                                         weights of WideResNet50-2 ("racm"), here torchvision's
    stages               1, 2, 3     1, 2, 3             [M] [R]
    layer_norm           -           yes                 [R] trainable, over channels and positions; not in [M]
    steps                8           8                   [M] [R] blocks per flow
    kernels              3, 1        3, 1                [M] [R] alternating; 3 in all blocks for R18 [R]
    hidden_ratio         1           1                   [R] channels inside a conditioner / its input's channels
    epochs, batch        500, 32     500, 32             [M] [R] the last incomplete batch is used here, not in [R]
    lr, weight_decay     1e-3, 1e-5  1e-3, 1e-5          [M] [R] Adam
    score                -           none                [I] maximum of the map, as in anomalib
    downsample           -           -                   [I] average-pooling factor applied to the input; 1: [R]

Differences from the re-implementation: images of any shape; gray images are converted to RGB; the permutations come
from torch's generator, so the same seed draws others. The loss is the negative log-likelihood of a whole map: values of
-1e5 are normal. Pixel AUROC is best after 5 to 10 epochs and falls later (issue 4 of the re-implementation), so the
last epoch and the best one are far apart (`--selection both`).

    bench run --method fastflow --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    published mean image/pixel AUROC: 99.4/98.5 (the paper [A] [M], with the best backbone per category, epoch not
    stated); the
    re-implementation's pixel AUROC with WideResNet50-2: 97.2 in the last epoch, 98.3 at the best epoch on the test set
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.flows import CouplingBlock2d, Flow, negative_log_likelihood
from .parts.maps import image_score, upsample
from .parts.precision import autocast

TITLE = "FastFlow"
FAMILY = "flow"
PAPER = (
    "Yu, Zheng, Wang, Li, Wu, Zhao, Wu: FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing "
    "Flows, https://arxiv.org/abs/2111.07677"
)
YEAR = 2021
ALIASES = {
    "fastflow_resnet18": {
        "title": "FastFlow (ResNet-18)",
        "settings": {"backbone": "resnet18.tv_in1k", "kernels": [3]},
    },
}
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "downsample": 2, "steps": 4, "epochs": 50, "batch_size": 1},
    "check": {"backbone": "tf_efficientnet_lite0", "steps": 2, "epochs": 2},
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of FastFlow; the table above has the source of each."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # stages of the backbone, as timm counts them
    layer_norm: bool = True  # before each flow
    steps: int = 8  # number of coupling blocks per flow
    kernels: tuple[int, ...] = (3, 1)  # sides of the convolutions, repeated over the blocks
    hidden_ratio: float = 1.0
    epochs: int = 500
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-5
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps", "epochs", "batch_size", "downsample")
        check_at_least(0, self, "lr", "weight_decay")
        check_setting(self.hidden_ratio > 0, self, "hidden_ratio", "must be > 0")
        is_odd = bool(self.kernels) and all(kernel >= 1 and kernel % 2 == 1 for kernel in self.kernels)
        check_setting(is_odd, self, "kernels", "must be one or more odd integers >= 1")


class Flows(nn.Module):
    """One flow per stage, with a trainable LayerNorm over all its channels and positions before it."""

    def __init__(self, settings: Settings, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create the flows for stages of these shapes, (c, h, w) each."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(shape) if settings.layer_norm else nn.Identity() for shape in shapes)
        self.flows = nn.ModuleList()
        for channels, _, _ in shapes:
            hidden = max(1, int((channels - channels // 2) * settings.hidden_ratio))
            kernels = (settings.kernels[step % len(settings.kernels)] for step in range(settings.steps))
            self.flows.append(Flow(*(CouplingBlock2d(channels, hidden, kernel) for kernel in kernels)))

    def forward(self, stages: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Map stages, (b, c, h, w) each, to latent maps of the same shapes and log-determinants (b,)."""
        normed = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        return [flow(stage) for flow, stage in zip(self.flows, normed, strict=True)]


class FastFlow(Method):
    """Maps features to a normal distribution; the anomaly map is minus the density at each position."""

    learned = ("network",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [R]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: Flows  # in eval mode

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)

    def build_network(self) -> Flows:
        """Return the untrained flows, whose LayerNorms have the sizes of the stages."""
        stages = self.extract(torch.zeros(1, 3, *self.setup.size))
        return Flows(self.settings, [(stage.shape[1], stage.shape[2], stage.shape[3]) for stage in stages])

    def fit(self, train: Images, progress: Progress) -> None:
        """Maximize the likelihood of the features of good images."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        identity = f"{self.backbone.identity} images averaged {settings.downsample}"
        features = FrozenFeatures(self.extract, train, identity=identity, setup=self.setup)
        generator = Generator().manual_seed(self.setup.seed)

        for epoch in self.epochs(settings.epochs, network, training, generator):
            network.train()
            for stages in features.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                training.minimize(self.loss(network, stages), len(stages[0]))
            loss = training.epoch_loss()
            self.network = network.eval()
            progress(epoch, settings.epochs, loss)

    def loss(self, network: Flows, stages: Sequence[Tensor]) -> Tensor:
        """Return the negative log-likelihood of stages (b, c, h, w): sum over stages, mean over images."""
        with autocast(self.setup):
            outputs = network([stage.float().contiguous() for stage in stages])
        losses = [negative_log_likelihood(latent, log_determinant).mean() for latent, log_determinant in outputs]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return minus the mean over stages of the relative density at each pixel, and its maximum as the score."""
        maps = torch.stack(self.stage_maps(images)).mean(dim=0)  # (b, H, W)
        return Prediction(image_score(maps, "max"), maps)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Return for each stage a map (b, H, W) in [-1, 0]: minus the density of each latent vector.

        The density is exp(-0.5 * mean over channels of z^2); the log-determinant is not part of it [R].
        """
        network = self._inference_network
        check_image_size(images, self.setup.size)
        with autocast(self.setup):
            outputs = network([stage.float().contiguous() for stage in self.extract(images)])
        densities = [torch.exp(-0.5 * latent.square().mean(dim=1)) for latent, _ in outputs]  # each (b, h, w)
        return [upsample(-density, self.setup.size, align_corners=False) for density in densities]

    @cached_property
    def _inference_network(self) -> Flows:
        return with_compiled_methods(self.network, self.setup, "forward")

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the features of each stage of the backbone, (b, c, h, w)."""
        return list(self.backbone(F.avg_pool2d(images.to(self.setup.device), self.settings.downsample)))

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map of each stage."""
        return {
            f"stage {stage}": maps for stage, maps in zip(self.settings.stages, self.stage_maps(images), strict=True)
        }

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, features, and the activations of one batch."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        shapes = [
            (c, -(-size[0] // (settings.downsample * stride)), -(-size[1] // (settings.downsample * stride)))
            for c, stride in zip(channels, strides, strict=True)
        ]
        with torch.device("meta"):
            n_weights = sum(parameter.numel() for parameter in Flows(settings, shapes).parameters())
        values = sum(prod(shape) for shape in shapes)  # number of values of one image
        features = min(4 * n_images * values, MEMORY_BUDGET)
        # Per block: coupled maps, scaled maps, permuted maps, and about three times the half of the conditioner.
        activations = (
            4 * min(settings.batch_size, n_images) * values * int(5 + 2 * settings.hidden_ratio) * settings.steps
        )
        return 16 * n_weights + features + activations


METHOD = FastFlow
