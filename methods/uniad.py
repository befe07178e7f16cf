"""UniAD: a unified model for multi-class anomaly detection (You, Cui, Shen, Yang, Lu, Zheng, Le; NeurIPS 2022).

A transformer reconstructs the features of a frozen network, but cannot copy them: in every attention the neighborhood
of a token is masked, every decoder layer has its own queries, and the input is jittered in training. What it
reconstructs badly is anomalous. It was designed as one model for all categories.

Paper: https://arxiv.org/abs/2206.03687. Code: https://github.com/zhiyuanyou/UniAD at a5b9d9d, Apache-2.0. We could not
read the full paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              paper       code        source
    backbone             as code     B4          [M] [C] EfficientNet-B4; the nearest weights in timm are
                                                 tf_efficientnet_b4.aa_in1k, whose stages have the same shapes
    stages               as code     0 to 3      [C] 24, 32, 56 and 160 channels, resized to the last one's grid by
                                                 sampling (bilinear, align_corners), not by averaging
    neighborhood         7, 7        7, 7        [M] [C] in all three attentions; 0, 0 masks nothing
    width, heads         256, 8      256, 8      [M] [C]
    mlp_width            1024        1024        [M] [C]
    encoder_, decoder_depth  4, 4    4, 4        [M] [C]
    dropout              0.1         0.1         [C]
    jitter_scale         20          20          [M] [C] noise / channels x norm of the token
    jitter_probability   1           1           [M] [C] drawn once per batch
    epochs, batch        1000, 64    1000, 8     [M] 8 on each of 8 GPUs, [C] 8 per process
    lr, lr_drop_epoch    1e-4, 801   1e-4, 801   [C] AdamW, one tenth after 800 epochs
    weight_decay         1e-4        1e-4        [C] on every parameter
    max_grad_norm        0.1         0.1         [C] it limits the gradient in every step
    score                max         max         [C] of the map after a mean filter of score_window = 16 pixels
    downsample           -           -           [I] average-pooling factor applied to the input; 1 as published

Differences from the code: the last epoch is used, while the code uses the one with the best mean pixel AUROC on the
test set among every tenth (`--selection oracle`); an AUROC below 0.5 is not replaced by 1 - AUROC; random numbers come
from one seed, and features of the frozen network are computed once.

    bench run --method uniad --profile code --dataset mvtec --protocol unified --preprocessing paper
    published mean image/pixel AUROC, unified: 96.5/96.8 (the paper [A], epoch not stated); 96.7/96.8 on 8 GPUs and
    97.6/97.0 on one (the README of the code), at the best epoch on the test set
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.inpainting import jittered
from .parts.maps import Score, image_score, upsample
from .parts.neighbor_masked_transformer import NeighborMaskedTransformer, neighbor_mask
from .parts.precision import autocast

TITLE = "UniAD"
FAMILY = "reconstruction"
PAPER = (
    "You, Cui, Shen, Yang, Lu, Zheng, Le: A Unified Model for Multi-class Anomaly Detection, NeurIPS, "
    "https://arxiv.org/abs/2206.03687"
)
YEAR = 2022
NEEDS = ("weights of tf_efficientnet_b4.aa_in1k",)
PROFILES = {
    "demo": {  # 256 x 256 pixels are averaged to 128 x 128: 8 x 8 tokens, of which 3 x 3 are masked for each
        "backbone": "tf_efficientnet_lite0", "downsample": 2, "neighborhood": [3, 3], "width": 64, "heads": 4,
        "mlp_width": 128, "encoder_depth": 2, "decoder_depth": 2, "epochs": 150, "batch_size": 1, "lr": 2e-3,
        "lr_drop_epoch": 121,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "neighborhood": [3, 3], "width": 16, "heads": 2, "mlp_width": 32,
        "encoder_depth": 1, "decoder_depth": 1, "epochs": 2,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of UniAD; the table above has the source of each."""

    backbone: str = "tf_efficientnet_b4.aa_in1k"  # timm's tag
    stages: tuple[int, ...] = (0, 1, 2, 3)  # stages of the backbone, as timm counts them
    neighborhood: tuple[int, int] = (7, 7)  # rows and columns of tokens that each token does not attend to
    width: int = 256  # embedding dimension
    heads: int = 8
    mlp_width: int = 1024
    encoder_depth: int = 4
    decoder_depth: int = 4
    dropout: float = 0.1
    jitter_scale: float = 20.0
    jitter_probability: float = 1.0
    epochs: int = 1000
    batch_size: int = 8
    lr: float = 1e-4
    lr_drop_epoch: int = 801  # epoch from which the learning rate is one tenth
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.1  # 0 does not clip
    score: Score = "max"  # "max" is that of the map after the mean filter
    score_window: int = 16  # side of the mean filter in pixels, for "max"
    downsample: int = 1

    def __post_init__(self) -> None:
        counts = (
            "width",
            "heads",
            "mlp_width",
            "encoder_depth",
            "decoder_depth",
            "epochs",
            "batch_size",
            "score_window",
        )
        check_at_least(1, self, *counts, "downsample")
        check_at_least(0, self, "jitter_scale", "lr", "weight_decay", "max_grad_norm")
        check_setting(0 <= self.dropout < 1, self, "dropout", "must be in [0, 1)")
        check_setting(0 <= self.jitter_probability <= 1, self, "jitter_probability", "must be in [0, 1]")
        is_valid = self.width % 2 == 0 and self.width % self.heads == 0
        check_setting(is_valid, self, "width", f"must be even and a multiple of heads = {self.heads}")
        is_odd = self.neighborhood == (0, 0) or all(side >= 1 and side % 2 == 1 for side in self.neighborhood)
        check_setting(is_odd, self, "neighborhood", "must be two odd integers >= 1, or 0,0")


class UniAD(Method):
    """Reconstructs features by a transformer that cannot copy them; the anomaly map is the reconstruction error."""

    learned = ("network",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(224, 224)  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: NeighborMaskedTransformer  # in eval mode

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        height, width = (side // settings.downsample for side in setup.size)
        stride = self.backbone.strides[-1]
        self.grid = (-(-height // stride), -(-width // stride))
        neighbor_mask(self.grid, settings.neighborhood)  # a neighborhood that is too large raises an error here
        is_valid = settings.score_window <= min(setup.size)
        check_setting(is_valid, settings, "score_window", f"must be at most the image's {min(setup.size)} pixels")

    def build_network(self) -> NeighborMaskedTransformer:
        """Return the untrained transformer."""
        return build_network(self.settings, self.grid, sum(self.backbone.channels))

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to reconstruct the features of good images from jittered ones."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.AdamW, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )  # fmt: skip
        identity = f"{self.backbone.identity} on the last stage's grid, images averaged {settings.downsample}"
        features = FrozenFeatures(self.extract, train, identity=identity, setup=self.setup)
        shuffle = Generator().manual_seed(self.setup.seed)
        noise = Generator(self.setup.device).manual_seed(self.setup.seed)

        for epoch in self.epochs(settings.epochs, network, training, shuffle, noise):
            if epoch == settings.lr_drop_epoch:
                training.optimizer.param_groups[0]["lr"] = settings.lr / 10
            network.train()
            for (maps,) in features.batches(settings.batch_size, torch.randperm(len(train), generator=shuffle)):
                tokens = to_tokens(maps)  # (b, n, c)
                is_jittered = float(torch.rand((), generator=shuffle)) <= settings.jitter_probability
                jitter = jittered(tokens, scale=settings.jitter_scale, generator=noise) if is_jittered else tokens
                training.minimize(self.loss(network, jitter, tokens), len(tokens))
            loss = training.epoch_loss()
            self.network = network.eval()
            progress(epoch, settings.epochs, loss)

    def loss(self, network: NeighborMaskedTransformer, jitter: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean squared error of clean tokens (b, n, c) reconstructed from jittered ones."""
        with autocast(self.setup):
            restored = network(jitter)
        return F.mse_loss(restored.float(), tokens)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the norm of the reconstruction error at each pixel, and the score of the image."""
        maps = upsample(self.token_errors(images), self.setup.size, align_corners=True)  # (b, H, W)
        return Prediction(image_score(self._score_maps(maps), self.settings.score), maps)

    def token_errors(self, images: Tensor) -> Tensor:
        """Return the norm over channels of the reconstruction error of each token of (b, 3, H, W): (b, h, w)."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        tokens = to_tokens(self.extract(images)[0])  # (b, n, c)
        with autocast(self.setup):
            restored = network(tokens)
        errors: Tensor = torch.linalg.vector_norm(tokens - restored.float(), dim=2)  # (b, n)
        return errors.view(-1, *self.grid)

    def _score_maps(self, maps: Tensor) -> Tensor:
        if self.settings.score != "max":
            return maps
        return F.avg_pool2d(maps[:, None], self.settings.score_window, stride=1)[:, 0]  # (b, H - 15, W - 15)

    @cached_property
    def _inference_network(self) -> NeighborMaskedTransformer:
        return with_compiled_methods(self.network, self.setup, "forward")

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the stages of images (b, 3, H, W) at the last one's grid, concatenated: one map (b, c, h, w)."""
        images = F.avg_pool2d(images.to(self.setup.device), self.settings.downsample)
        stages = [stage.float() for stage in self.backbone(images)]
        return [torch.cat([upsample(stage, self.grid, align_corners=True) for stage in stages], dim=1)]

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the error of each token, and the attention mask of the token with the largest error ("mask")."""
        errors = self.token_errors(images)  # (b, h, w)
        mask = self.network.attn_mask[errors.flatten(1).argmax(dim=1)]  # (b, n)
        maps = {"error of each token": errors, "mask": mask.float().unflatten(1, self.grid)}
        return {name: F.interpolate(map_[:, None], self.setup.size)[:, 0] for name, map_ in maps.items()}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, features, and the activations of one batch."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        grid = (-(-size[0] // (settings.downsample * strides[-1])), -(-size[1] // (settings.downsample * strides[-1])))
        with torch.device("meta"):
            network = build_network(settings, grid, sum(channels))
        n_tokens, attentions = prod(grid), settings.encoder_depth + 2 * settings.decoder_depth
        layers = settings.encoder_depth + settings.decoder_depth
        image = 3 * attentions * settings.heads * n_tokens**2  # scores, weights and their dropout
        image += n_tokens * (10 * attentions * settings.width + 3 * layers * settings.mlp_width)
        features = min(4 * n_images * n_tokens * sum(channels), MEMORY_BUDGET)
        n_weights = sum(parameter.numel() for parameter in network.parameters())
        return 16 * n_weights + features + 4 * min(settings.batch_size, n_images) * image


def to_tokens(maps: Tensor) -> Tensor:
    """Map (b, c, h, w) to row-major tokens (b, h * w, c)."""
    return maps.flatten(2).mT.contiguous()


def build_network(settings: Settings, grid: tuple[int, int], channels: int) -> NeighborMaskedTransformer:
    """Return the untrained transformer for tokens of `channels` channels."""
    return NeighborMaskedTransformer(
        channels, grid, neighborhood=settings.neighborhood, width=settings.width, heads=settings.heads,
        mlp_width=settings.mlp_width, encoder_depth=settings.encoder_depth, decoder_depth=settings.decoder_depth,
        dropout=settings.dropout,
    )  # fmt: skip


METHOD = UniAD
