"""MFRNet, our reading: multi-feature reconstruction by crossed-mask restoration (https://arxiv.org/abs/2404.13273).

Wang, Xu, Li, Gao, Cheng, Lu: Multi-feature Reconstruction Network using Crossed-mask Restoration for Unsupervised
Industrial Anomaly Detection, 2024. We could read no more of the paper than its abstract and what others cite of its
captions, and found no public code: this is NOT a reproduction, and tables must call it "MFRNet (our reading)".

The fused features of a frozen network are masked in complementary random parts. A transformer restores each part from
the rest; combined, the restorations are the features that a normal image would have. The difference from the original
features, in value and in structure, is the loss in training and the anomaly map at test time.

    bench run --method mfrnet --profile code --dataset mvtec --protocol one-for-one --preprocessing paper

There is no expected number: none of the paper's results were available to us.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

[P] covers only the captions of figures as others cite them, and [R] only summaries of the paper by others.

    what                                                                    source
    features of several scales, from a pre-trained network, as one map      [A]; a frozen VGG16, resized, joined [R]
    masks on the features, random, complementary, covering all              [A] [P]
    cells of k features and n subsets; the example has k = 2, n = 3         [P]
    several restorations in parallel, combined                              [A]
    a transformer restores; its unit is a "hybrid transformer block"        [A] [P]
    one hybrid loss, pixel and structural, for training and anomaly map     [A]
    input, layers, size of the map, normalization, values of k and n,       [I]
    the network (`parts/restoration_net.py`), the structural measure,
    weights, optimizer, schedule, masks at test time, fusion, smoothing,
    image score

Where the paper is not known we use the choices of RIAD (Zavrtanik et al., Pattern Recognition 2021), the most similar
method: the optimizer with its schedule, validation images to choose the epoch, several sizes of cells.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep, check_finite

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.features import MEMORY_BUDGET, FrozenFeatures, fuse
from .parts.maps import Score, gaussian_filter, image_score, upsample
from .parts.masks import complementary_masks
from .parts.precision import autocast
from .parts.restoration_net import RestorationNet
from .parts.similarity import msgms, ssim
from .parts.train_validation_split import train_validation_split

TITLE = "MFRNet (our reading)"  # the paper's text was not available to us
FAMILY = "mask-based"
PAPER = (
    "Wang, Xu, Li, Gao, Cheng, Lu: Multi-feature Reconstruction Network using Crossed-mask Restoration for "
    "Unsupervised Industrial Anomaly Detection, https://arxiv.org/abs/2404.13273"
)
YEAR = 2024
PROFILES = {
    # The defaults are a VGG16, 64 x 64 features, three wider levels and 300 epochs. With a stride of 8 these cells
    # have the same size in pixels as with the defaults.
    "demo": {
        "backbone": "tf_efficientnet_lite0", "stages": [1, 2, 3], "stride": 8, "cell_sizes": [1, 2, 4],
        "widths": [64, 96], "depth": 1, "head_width": 32, "pools": [8, 4, 2], "epochs": 60, "batch_size": 1, "lr": 2e-3,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "stages": [1, 2, 3], "cell_sizes": [1, 2], "widths": [16, 24], "depth": 1,
        "head_width": 8, "pools": [4, 2], "epochs": 2, "batch_size": 4,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of MFRNet. Every default without a source is [I]."""

    backbone: str = "vgg16.tv_in1k"  # [R] VGG16; [I] timm's tag of torchvision's weights
    stages: tuple[int, ...] = (
        0,
        1,
        2,
        3,
    )  # VGG16: relu1_2, relu2_2, relu3_3, relu4_3; 1,2,3 has 896 of 960 channels
    stride: int = 4  # pixels per feature of the common map: 64 x 64 features for 256 x 256 pixels; or 2, 8
    normalization: Literal["standardize", "l2"] = "standardize"  # each channel over the training set, or each feature
    min_relative_std: float = 0.1  # lower bound of a channel's std, relative to the mean std of its stage
    subsets: int = 3  # n, [P] in the example
    cell_sizes: tuple[int, ...] = (
        2,
        4,
        8,
    )  # k, [P] 2 in the example; [I] training draws one per step, the test averages
    mask_token: Literal["zero", "learned"] = "zero"  # noqa: S105 - zero: the channels' means, after standardization
    widths: tuple[int, ...] = (256, 320, 512)  # channels of the U-Net's levels, finest first; one width: no U-Net
    depth: int = 2  # number of blocks per level of the encoder
    decoder_depth: int = 0  # number of blocks per level of the decoder
    head_width: int = 64  # channels of an attention head; or 32
    pools: tuple[int, ...] = (16, 8, 4, 2)  # sides of the grids of keys; 16 alone is attention to one grid
    feed_forward: Literal["convolution", "mlp"] = "convolution"  # from the abstract of the Defect Transformer
    structure: Literal["ssim", "msgms", "both"] = "ssim"  # [A] structural; [I] which measure
    structure_weight: float = 1.0  # lambda
    data_range: float = 1.0  # range of the features, which scales SSIM's constants
    epochs: int = 300  # this and the next six: RIAD's
    lr: float = 1e-4  # of Adam
    lr_drop_epoch: int = 250  # epoch from which the learning rate is one tenth
    weight_decay: float = 0.0
    batch_size: int = 8
    validation_fraction: float = (
        0.2  # fraction of at least 10 training images; the epoch with their lowest loss is used
    )
    patience: int = 20  # epochs without a lower validation loss after which training ends
    test_seed: int = 0  # seed of the masks at test time, which are the same for every image
    map_merge: Literal["sum", "product"] = "sum"  # how pixel and structural difference are combined; the loss is a sum
    smoothing: float = 4.0  # sigma in pixels; 0 is none
    score: Score = "max"

    def __post_init__(self) -> None:
        check_at_least(1, self, "stride", "depth", "head_width", "epochs", "batch_size", "patience")
        check_at_least(0, self, "decoder_depth", "min_relative_std", "structure_weight")
        check_smoothing(self)
        check_at_least(0, self, "lr", "weight_decay")
        for name in ("cell_sizes", "widths", "pools"):
            values = getattr(self, name)
            check_setting(bool(values) and min(values) >= 1, self, name, "must be one or more integers >= 1")
        check_setting(
            self.subsets >= 2, self, "subsets", "must be >= 2, so that some features are visible in each pass"
        )
        check_setting(self.data_range > 0, self, "data_range", "must be > 0")
        check_setting(0 <= self.validation_fraction < 1, self, "validation_fraction", "must be in [0, 1)")


class MFRNet(Method):
    """Masks crossed parts of fused features and restores them; the anomaly map is the restoration error."""

    learned = ("mean", "std", "network", "best_epoch")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)
    supports_compile: ClassVar[bool] = True  # compiles the backbone
    iterative: ClassVar[bool] = True
    settings: Settings
    mean: Tensor  # (c,) mean of the features of the training set
    std: Tensor  # (c,)
    network: RestorationNet
    best_epoch: Tensor  # () epoch of the network

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        self._channels = sum(self.backbone.channels)
        self._grid = _grid(settings, setup.size)
        self._scales = min(4, min(self._grid).bit_length())  # scales of MSGMS: the coarsest has at least one feature
        # Inconsistent settings raise an error here, before fit.
        with torch.device("meta"):
            self.build_network()
        generator = Generator().manual_seed(settings.test_seed)
        self.test_masks = [self._masks(cell, generator) for cell in settings.cell_sizes]  # each (n, h, w)

    def build_network(self) -> RestorationNet:
        """Return the untrained network."""
        return _build_network(self.settings, self._channels)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to restore the features that crossed masks cover; keep the epoch with the lowest validation loss."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        identity = f"{self.backbone.identity} {self._grid}"
        features = FrozenFeatures(self.extract, train, identity=identity, setup=self.setup)
        self.mean, self.std = self._statistics(features, len(train))
        generator = Generator().manual_seed(self.setup.seed)
        train_indices, validation = train_validation_split(len(train), settings.validation_fraction, generator)
        best: dict[str, float] = {"epoch": 0, "loss": math.inf}

        for epoch in self.epochs(settings.epochs, network, training, generator, best):
            if epoch == settings.lr_drop_epoch:
                training.optimizer.param_groups[0]["lr"] = settings.lr / 10
            order = train_indices[torch.randperm(len(train_indices), generator=generator)]
            for stages in features.batches(settings.batch_size, order):
                maps = self.normalize(stages)  # (b, c, h, w)
                training.minimize(self.losses(network, maps, self.training_masks(generator))["total"], len(maps))
            loss = training.epoch_loss()
            validation_loss = self.validation_loss(network, features, validation) if len(validation) else loss
            check_finite(validation_loss, epoch)
            if validation_loss < best["loss"] or not len(validation):
                best["epoch"], best["loss"] = epoch, validation_loss
                self.network = deepcopy(network) if len(validation) else network
                self.best_epoch = torch.tensor(epoch)
            stop = epoch - best["epoch"] >= settings.patience
            progress(epoch, epoch if stop else settings.epochs, loss)
            if stop:
                break

    def losses(self, network: RestorationNet, features: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return the loss, "total", and its terms.

        Args:
            network: the network to train.
            features: (b, c, h, w) original features.
            masks: (n, h, w), True for the features that a pass masks.
        """
        restored = self._restore(network, features, masks)
        pixel, structure = (difference.mean() for difference in self.differences(features, restored))
        return {"pixel": pixel, "structure": structure, "total": pixel + self.settings.structure_weight * structure}

    @torch.no_grad()
    def validation_loss(self, network: RestorationNet, features: FrozenFeatures, validation: Tensor) -> float:
        """Return the mean loss over the validation images, with masks that are the same in every epoch."""
        generator, total = Generator().manual_seed(self.setup.seed), torch.zeros((), device=self.setup.device)
        for stages in features.batches(self.settings.batch_size, validation):
            maps = self.normalize(stages)
            total += self.losses(network, maps, self.training_masks(generator))["total"] * len(maps)
        return float(total) / len(validation)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Restore all features once per cell size, and return the mean difference over cell sizes."""
        differences = [self.differences(features, restored) for features, restored, _ in self.restorations(images)]
        combined = torch.stack([self.combine_maps(*factors) for factors in differences]).mean(dim=0)  # (b, h, w)
        maps = upsample(combined, self.setup.size, align_corners=False)  # (b, H, W) in pixels
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each cell size the masks and the restored features in false colors, and both differences.

        A mask has the number of the pass that masks a feature, divided by the number of passes. "mask" is that of the
        largest cells.
        """
        pictures: dict[str, Tensor] = {}
        differences = []
        for cell, (features, restored, masks) in zip(self.settings.cell_sizes, self.restorations(images), strict=True):
            pass_number = (masks.int().argmax(dim=0) + 1) / len(masks)  # (h, w) in (0, 1]
            mask_name = "mask" if cell == max(self.settings.cell_sizes) else f"mask cells of {cell}"
            pictures[mask_name] = pass_number.expand(len(images), 1, -1, -1)
            pictures["features"], pictures[f"restored cells of {cell}"] = false_colors(features, restored)
            differences.append(torch.stack(self.differences(features, restored), dim=1))  # (b, 2, h, w)
        pixel, structure = torch.stack(differences).mean(dim=0).split(1, dim=1)  # each (b, 1, h, w)
        pictures |= {"pixel difference": pixel, "structural difference": structure}
        resized = {name: F.interpolate(picture, self.setup.size) for name, picture in pictures.items()}
        return {name: picture[:, 0] if picture.shape[1] == 1 else picture for name, picture in resized.items()}

    def restorations(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for each cell size the features and their restoration, each (b, c, h, w), and the masks (n, h, w)."""
        network = self.network
        check_image_size(images, self.setup.size)
        features = self.normalize(self.extract(images))
        for masks in self.test_masks:
            yield features, self._restore(network, features, masks), masks

    def _restore(self, network: RestorationNet, features: Tensor, masks: Tensor) -> Tensor:
        with autocast(self.setup):
            restored: Tensor = network(features, masks)
        return restored.float()

    def differences(self, features: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """Return the differences of two (b, c, h, w) at each feature, in value and in structure: each (b, h, w)."""
        pixel = (features - restored).square().mean(dim=1)
        first, second = ((maps / self.settings.data_range).contiguous() for maps in (features, restored))
        structure = torch.zeros_like(pixel)
        if self.settings.structure != "msgms":
            structure = structure + 1 - ssim(first, second).mean(dim=1)
        if self.settings.structure != "ssim":
            structure = structure + 1 - msgms(first, second, self._scales).mean(dim=1)
        return pixel, structure

    def combine_maps(self, pixel: Tensor, structure: Tensor) -> Tensor:
        """Combine the two differences, each (b, h, w), to one map."""
        if self.settings.map_merge == "product":
            return pixel * structure
        return pixel + self.settings.structure_weight * structure

    def training_masks(self, generator: Generator) -> Tensor:
        """Return the masks (n, h, w) of one step, with cells of a random size."""
        cell = self.settings.cell_sizes[int(torch.randint(len(self.settings.cell_sizes), (), generator=generator))]
        return self._masks(cell, generator)

    def _masks(self, cell: int, generator: Generator) -> Tensor:
        """Return masks (n, h, w), sampled on the CPU: the same on every device."""
        masks = complementary_masks(*self._grid, cell=cell, subsets=self.settings.subsets, generator=generator)
        return masks.to(self.setup.device, non_blocking=True)

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the stages, averaged to the common grid if they are finer; the first one is resized to it anyway."""
        stages: list[Tensor] = self.backbone(images.to(self.setup.device))
        rows, columns = self._grid
        small = [F.adaptive_avg_pool2d(s.float(), (min(rows, s.shape[2]), min(columns, s.shape[3]))) for s in stages]
        if small[0].shape[2:] != self._grid:
            small[0] = upsample(small[0], self._grid, align_corners=True)
        return small

    def normalize(self, stages: list[Tensor]) -> Tensor:
        """Return the stages on the common grid as one normalized map (b, c, h, w)."""
        maps = fuse(stages)
        if self.settings.normalization == "l2":  # to a root mean square of 1 over the channels of each feature
            return F.normalize(maps, dim=1) * math.sqrt(maps.shape[1])
        return (maps - self.mean[:, None, None]) / self.std[:, None, None]

    @torch.no_grad()
    def _statistics(self, features: FrozenFeatures, n_images: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (c,) of each channel over the training set, in one iteration.

        Moments are computed relative to the first batch's mean, so there is no cancellation.
        """
        offset, moments = None, torch.zeros(2, self._channels, device=self.setup.device)
        for stages in features.batches(self.settings.batch_size):
            maps = fuse(stages)
            offset = maps.mean(dim=(0, 2, 3)) if offset is None else offset
            centered = maps - offset[:, None, None]
            moments += torch.stack([centered.sum(dim=(0, 2, 3)), centered.square().sum(dim=(0, 2, 3))])
        first, second = moments / (n_images * math.prod(self._grid))
        std = (second - first.square()).clamp(min=0).sqrt()
        stages = std.split(self.backbone.channels)
        std = torch.cat([stage.maximum(self.settings.min_relative_std * stage.mean()) for stage in stages])
        return offset + first, std.clamp(min=1e-6)

    def info(self) -> Info:
        """Return the sizes of the network and of its input, the epoch that is used, and the backbone."""
        sizes = {"features": math.prod(self._grid), "feature_channels": self._channels}
        return super().info() | sizes | {"best_epoch": int(self.best_epoch)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments, of the cached features, and of one step."""
        channels = sum(channels_and_strides(settings.backbone, settings.stages)[0])
        grid, batch = _grid(settings, size), min(settings.batch_size, n_images)
        maps = 4 * channels * math.prod(grid)  # bytes of an image's features, the maximum in the cache
        with torch.device("meta"):
            network = _build_network(settings, channels)
        training = network.estimate_training_memory(batch * settings.subsets, grid)
        # about 30 copies of the features for the loss and its gradient
        return training + 30 * batch * maps + min(n_images * maps, MEMORY_BUDGET)


METHOD = MFRNet


def _grid(settings: Settings, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the common map."""
    return -(-size[0] // settings.stride), -(-size[1] // settings.stride)


def _build_network(settings: Settings, channels: int) -> RestorationNet:
    return RestorationNet(
        channels, widths=settings.widths, depth=settings.depth, decoder_depth=settings.decoder_depth,
        head_width=settings.head_width, pools=settings.pools, convolution=settings.feed_forward == "convolution",
        learn_token=settings.mask_token == "learned",  # noqa: S105 - not a password
    )  # fmt: skip


def false_colors(features: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    """Map two (b, c, h, w) to two (b, 3, h, w) in [0, 1]: the three principal components of each image's features.

    Both are projected on the principal axes of `features`, so a feature that is restored exactly has the same color.
    """
    mean = features.mean(dim=(2, 3), keepdim=True)  # (b, c, 1, 1)
    centered = (features - mean).flatten(2)  # (b, c, h * w)
    axes = torch.linalg.eigh(centered @ centered.mT).eigenvectors[:, :, -3:]  # (b, c, 3)
    axes = axes * axes.sum(dim=1, keepdim=True).sign()  # the sign of an axis would otherwise be arbitrary
    components = [torch.einsum("bcx,bchw->bxhw", axes, maps - mean) for maps in (features, restored)]
    low, high = components[0].amin(dim=(2, 3), keepdim=True), components[0].amax(dim=(2, 3), keepdim=True)
    first, second = (((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) for maps in components)
    return first, second
