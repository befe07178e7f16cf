"""ST-MAE: Siamese transition masked autoencoders (Yao, Wang, Yu; arXiv 2211.00349, 2022).

Frozen features of several stages are cut into patches, and the patches are split into two random halves. An encoder
processes each half separately, with the same weights. The latents of each half, with the positions of the other half,
are decoded to the features of the other half. The difference of the restored features is the anomaly map. There is no
mask token: both halves are encoded, so one pass restores everything.

The authors have released no code, and we could read only the abstract. [R] is TSTB-dev/ST-MAE at a8afa00 (MIT), which
states no results. If [R] and the abstract do not contradict each other, the defaults are those of [R].

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting               default                 R          source
    backbone, stages      vgg19, relu1_2, 2_2,    the same   [R] pretrained CNN [A]
                          3_4, 4_4
    stride                4                       4          [R] pixels per feature of the common map
    normalization         standardize             none       [I] a few channels of VGG would dominate the squared error
    patch                 4                       4          [R] side in features
    width, depth, heads   768, 12, 12             the same   [R] encoder
    decoder_*             512, 8, 16              the same   [R] decoder
    decoding              separate                joint      [I] joint: a restored patch is visible to the decoder
    slot_order            no                      yes        [I] R compares slot s with position s, see below
    shared_norm           no                      yes        [I] R has one LayerNorm for all blocks of a stack
    cosine_weight         5                       5          [R] of 1 - cosine of the whole map
    epochs, batch         400, 8                  400, 8     [R]
    lr, weight_decay      1e-4, 0.05              the same   [R] AdamW
    mask_at_test          complementary           the same   [R] random halves; checkerboard [I]
    test_splits           1                       1          [R] splits whose maps are averaged
    test_seed             0                       random     [I] the same halves for every image
    smoothing             4                       4          [R] sigma in features, cut at 3 features; ours in pixels
    score                 max                     max        [R]

In R, slot s of the decoder gets the position p(s) but its output is compared with the features at position s, so the
network must infer s; `--set slot_order=true` keeps this form. Further differences from R: positions are added in
ascending order (R: in the random order of the split); maps are upsampled to pixels (R: 64 x 64); see also
`parts/siamese_transformer.py`. The alias `stmae_r` has R's values of all settings.

    bench run --method stmae --profile code --dataset mvtec --protocol one-for-one --preprocessing paper

There is no expected number: no result of the paper could be read, and R states none.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.inpainting import token_grid
from .parts.maps import Score, gaussian_filter, image_score, upsample
from .parts.precision import autocast
from .parts.siamese_transformer import SiameseTransformer, halves_of, random_halves
from .parts.similarity import cosine_distance
from .parts.statistics import channel_statistics
from .parts.transformer import patchify, unpatchify

TITLE = "ST-MAE (our reading)"  # the paper's text was not available to us
FAMILY = "mask-based"
PAPER = "Yao, Wang, Yu: Siamese Transition Masked Autoencoders, https://arxiv.org/abs/2211.00349"
YEAR = 2022
ALIASES = {
    "stmae_r": {
        "title": "ST-MAE (re-implementation)",
        "settings": {"normalization": "none", "decoding": "joint", "slot_order": True, "shared_norm": True},
    }
}
PROFILES = {
    "demo": {  # the defaults are a VGG19, widths 768 and 512, 12 + 8 blocks and 400 epochs
        "backbone": "tf_efficientnet_lite0", "stages": [1, 2], "width": 96, "depth": 4, "heads": 4,
        "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4, "epochs": 120, "batch_size": 1, "lr": 1e-3,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "stages": [1, 2], "width": 16, "depth": 1, "heads": 2,
        "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "epochs": 2, "batch_size": 4,
    },
}  # fmt: skip

MIN_RELATIVE_STD = 0.1
"""Lower bound of a channel's standard deviation, relative to the mean of its stage [I]: nearly constant channels."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of ST-MAE; the table above has the source of each."""

    backbone: str = "vgg19.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (0, 1, 2, 3)  # relu1_2, relu2_2, relu3_4, relu4_4 of a VGG19
    stride: int = 4  # pixels per feature of the common map
    normalization: Literal["standardize", "none"] = "standardize"  # each channel over the training set
    patch: int = 4  # side in features
    width: int = 768  # embedding dimension of the encoder
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoding: Literal["separate", "joint"] = "separate"  # how the two halves are decoded
    slot_order: bool = False  # True: the decoder's output stays in the order of the slots
    shared_norm: bool = False  # one LayerNorm for all blocks of a stack
    cosine_weight: float = 5.0
    epochs: int = 400
    batch_size: int = 8
    lr: float = 1e-4
    weight_decay: float = 0.05
    mask_at_test: Literal["complementary", "checkerboard"] = "complementary"  # random halves, or alternating patches
    test_splits: int = 1  # number of random splits whose maps are averaged
    test_seed: int = 0  # seed of the random splits, which are the same for every image
    smoothing: float = 4.0  # sigma in pixels; 0 is none
    score: Score = "max"

    def __post_init__(self) -> None:
        counts = ("stride", "patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
        check_at_least(1, self, *counts, "epochs", "batch_size", "test_splits")
        check_at_least(0, self, "cosine_weight", "lr", "weight_decay")
        check_smoothing(self)
        is_single = self.mask_at_test == "complementary" or self.test_splits == 1
        check_setting(is_single, self, "test_splits", "must be 1 with mask_at_test = checkerboard")


class STMAE(Method):
    """Restores each half of the feature patches from the other half; the anomaly map is the difference."""

    learned = ("mean", "std", "network")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [R]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    mean: Tensor  # (c,) mean of the features of the training set; 0 without standardization
    std: Tensor  # (c,); 1 without standardization
    network: SiameseTransformer

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        self._channels = sum(self.backbone.channels)
        self._grid = token_grid(setup.size, settings.stride, settings.patch)
        self._size = (self._grid[0] * settings.patch, self._grid[1] * settings.patch)  # size of the common map
        if math.prod(self._grid) % 2:
            raise BenchError(
                f"The number of patches must be even, so that two halves are equal, got {self._grid[0]} x "
                f"{self._grid[1]}. Change the size of the images or --set patch=VALUE."
            )
        with torch.device("meta"):  # inconsistent settings raise an error here, before fit
            self.build_network()
        self.test_halves = self._halves_at_test().to(setup.device)  # (splits, 2, n / 2)

    def build_network(self) -> SiameseTransformer:
        """Return the untrained network."""
        return _build_network(self.settings, math.prod(self._grid), self._channels)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to restore each random half of the features of good images from the other half."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.AdamW, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        identity = f"{self.backbone.identity} {self._size}"
        features = FrozenFeatures(self.extract, train, identity=identity, setup=self.setup)
        self.mean, self.std = self._statistics(features)
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same halves on every device

        for epoch in self.epochs(settings.epochs, network, training, generator):
            network.train()
            for stages in features.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                patches = self.to_patches(stages)  # (b, n, k * k * c)
                halves = random_halves(len(patches), patches.shape[1], generator).to(patches.device)
                training.minimize(self.losses(network, patches, halves)["total"], len(patches))
            loss = training.epoch_loss()
            self.network = network.eval()
            progress(epoch, settings.epochs, loss)

    def losses(self, network: SiameseTransformer, patches: Tensor, halves: Tensor) -> dict[str, Tensor]:
        """Return the loss, "total", and its terms for patches (b, n, k * k * c) and halves (b, 2, n / 2)."""
        restored = self.restore_patches(network, patches, halves)
        mse = F.mse_loss(restored, patches)
        cosine = cosine_distance(patches.flatten(1), restored.flatten(1)).mean()  # over whole maps
        return {"mse": mse, "cosine": cosine, "total": mse + self.settings.cosine_weight * cosine}

    def restore_patches(self, network: SiameseTransformer, patches: Tensor, halves: Tensor) -> Tensor:
        """Return the restored patches (b, n, k * k * c), float32."""
        with autocast(self.setup):
            restored: Tensor = network(patches, halves)
        return restored.float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the mean over splits of squared difference times cosine distance, smoothed, and its score."""
        products = [squared * cosine for squared, cosine in self.differences(images)]
        maps = upsample(torch.stack(products).mean(dim=0), self.setup.size, align_corners=False)  # (b, H, W) in pixels
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    def differences(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each split the squared difference, mean over channels, and the cosine distance: (b, h, w) each."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        patches = self.to_patches(self.extract(images))  # (b, n, patch^2 * c)
        for halves in self.test_halves:
            restored = self.restore_patches(network, patches, halves.expand(len(patches), -1, -1))
            original, output = (values.view(*patches.shape[:2], -1, self._channels) for values in (patches, restored))
            factors = torch.cat([(original - output).square().mean(dim=3), cosine_distance(original, output)])
            squared, cosine = unpatchify(factors, self.settings.patch, self._grid[0])[:, 0].chunk(2)
            yield squared, cosine

    @cached_property
    def _inference_network(self) -> SiameseTransformer:
        return with_compiled_methods(self.network, self.setup, "forward")

    def _halves_at_test(self) -> Tensor:
        if self.settings.mask_at_test == "complementary":
            generator = Generator().manual_seed(self.settings.test_seed)
            return random_halves(self.settings.test_splits, math.prod(self._grid), generator)
        rows, columns = (torch.arange(side) for side in self._grid)
        return halves_of(((rows[:, None] + columns) % 2).view(1, -1).bool())

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the features of the stages; those finer than the common map are resized to it."""
        stages: list[Tensor] = self.backbone(images.to(self.setup.device))
        return [self._resize(stage.float()) if stage.shape[2] > self._size[0] else stage for stage in stages]

    def fuse(self, stages: list[Tensor]) -> Tensor:
        """Return the features of the stages on the common grid, concatenated: (b, c, h, w), not normalized."""
        return torch.cat([self._resize(stage.float()) for stage in stages], dim=1)

    def to_patches(self, stages: list[Tensor]) -> Tensor:
        """Return the normalized features as patches (b, n, k * k * c)."""
        maps = (self.fuse(stages) - self.mean[:, None, None]) / self.std[:, None, None]
        return patchify(maps, self.settings.patch)

    def _resize(self, stage: Tensor) -> Tensor:
        if stage.shape[2:] == self._size:
            return stage
        return upsample(stage.contiguous(), self._size, align_corners=False)

    def _statistics(self, features: FrozenFeatures) -> tuple[Tensor, Tensor]:
        if self.settings.normalization == "none":
            zeros = torch.zeros(self._channels, device=self.setup.device)
            return zeros, torch.ones_like(zeros)
        mean, std = channel_statistics(self.fuse(stages) for stages in features.batches(self.settings.batch_size))
        stages = std.split(self.backbone.channels)
        std = torch.cat([stage.maximum(MIN_RELATIVE_STD * stage.mean()) for stage in stages])
        return mean, std.clamp(min=1e-6)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the second half of the first split ("mask"), and the mean of each of the two factors of the map."""
        squared, cosine = (torch.stack(factor).mean(dim=0) for factor in zip(*self.differences(images), strict=True))
        mask = torch.zeros(math.prod(self._grid), device=squared.device)
        mask[self.test_halves[0, 1]] = 1
        pictures = {
            "mask": mask.view(1, 1, *self._grid).expand(len(images), -1, -1, -1),
            "squared difference": squared[:, None],
            "cosine distance": cosine[:, None],
        }
        return {name: F.interpolate(picture, self.setup.size)[:, 0] for name, picture in pictures.items()}

    def info(self) -> Info:
        """Return the sizes of the network and of its input, the passes per image, and the backbone."""
        sizes = {"tokens": math.prod(self._grid), "feature_channels": self._channels}
        return super().info() | sizes | {"passes": len(self.test_halves)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments, of the cached features, and of one step."""
        channels = sum(channels_and_strides(settings.backbone, settings.stages)[0])
        grid = token_grid(size, settings.stride, settings.patch)
        with torch.device("meta"):
            network = _build_network(settings, math.prod(grid), channels)
        features = 4 * channels * math.prod(grid) * settings.patch**2 * n_images
        return network.estimate_training_memory(min(settings.batch_size, n_images)) + min(features, MEMORY_BUDGET)


METHOD = STMAE


def _build_network(settings: Settings, tokens: int, channels: int) -> SiameseTransformer:
    return SiameseTransformer(
        channels * settings.patch**2, tokens, width=settings.width, depth=settings.depth, heads=settings.heads,
        decoder_width=settings.decoder_width, decoder_depth=settings.decoder_depth,
        decoder_heads=settings.decoder_heads, joint=settings.decoding == "joint", slot_order=settings.slot_order,
        shared_norm=settings.shared_norm,
    )  # fmt: skip
