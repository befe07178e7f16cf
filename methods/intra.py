"""InTra: inpainting transformer (Pirnay, Chai; ICIAP 2022; https://arxiv.org/abs/2104.13897).

An image is a grid of square patches. One patch of a window of 7 x 7 patches is masked, and a transformer restores it
from the other 48. At test time every patch is restored once, from a window around it. There is no convolution, and
nothing is pretrained. What cannot be restored is anomalous.

The authors have released no code, and only the abstract could be read. The defaults are those of the paper as
far as [M] covers them. [JH] is the re-implementation jhy12/inpainting-transformer at 1dbbbaf, [UZ]
uzl/inpainting-transformer at d98363d (training only).

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              default      source
    patch, window        16, 7        [M] [JH] [UZ] side of a patch in pixels, side of a window in patches
    width, depth, heads  512, 13, 8   [M] [JH] [UZ]
    attention            mfsa         [M] [JH] queries and keys by MLPs of half the width; "msa" [UZ]
    pos_embed            global       [JH] an embedding per patch of the image, or "local" [UZ] of the window; the paper
                                      chooses one by category [M]
    skips                mirrored     [M] [UZ] block i is added to the input of block 14 - i; "off_by_one" [JH]: the
                                      middle block gets its own input twice
    gms_weight           0.01         [M] [UZ]; [JH] 1
    ssim_weight          0.01         [M] [UZ]; [JH] 1
    windows_per_image    600          [M] [UZ] per epoch; [JH] 1
    batch_size           256          [M] [JH] windows per step, of up to `images_per_step` = 16 images [I]
    epochs               2000         [JH]; the paper stops early [M]
    patience             50           [M] epochs without a lower validation loss
    validation_fraction  0.1          [M] [JH] of the training images, all patches of each are restored
    lr, weight_decay     1e-4, 0      [M] Adam; [JH] weight decay 1e-5, and a tenth of the rate after 2/3 of the epochs
    window_at_test       centered     [M] if the border permits; "shifted" [JH] is one patch up and left
    subtract_normal      yes          [M] map = (difference - mean difference of the training images)^2; [JH] no
    mean_filter          21           [M] [JH] side in pixels, zeros outside
    downsample           1            [I] average-pooling factor applied to the input; 1 as published

Not taken from the re-implementations: JH's losses on a patch whose axes are interchanged (its vectors are row, column,
color and are reshaped to color, row, column), and its dropout of 0.1; UZ's windows, which never include the last row
and column. No augmentation [I] (paper: flips and rotations for some categories [M]; JH: flips, shifts, noise).

    bench run --method intra --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image/pixel AUROC: 95.0/96.6 (the paper's value on a leaderboard, with 256, 320 or 512 pixels by
    category [M]); no reproduction is published. The epoch is selected without test images.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep, check_finite

from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.features import FrozenFeatures
from .parts.inference_batches import passes_per_batch
from .parts.inpainting_transformer import InpaintingTransformer, Skips, window_patches, window_starts
from .parts.maps import image_score, mean_filter, upsample
from .parts.precision import autocast
from .parts.similarity import msgms, ssim
from .parts.train_validation_split import train_validation_split
from .parts.transformer import patchify, unpatchify

TITLE = "InTra"
FAMILY = "mask-based"
PAPER = "Pirnay, Chai: Inpainting Transformer for Anomaly Detection, ICIAP, https://arxiv.org/abs/2104.13897"
YEAR = 2022
PROFILES = {
    "demo": {  # the defaults are width 512, 13 blocks, 600 windows of each image and epoch, and full resolution
        "downsample": 2, "width": 64, "depth": 5, "heads": 4, "windows_per_image": 48, "images_per_step": 4,
        "batch_size": 16, "epochs": 60, "lr": 1e-3,
    },
    "check": {
        "patch": 8, "window": 3, "width": 16, "depth": 3, "heads": 2, "windows_per_image": 4, "batch_size": 8,
        "epochs": 2, "mean_filter": 5,
    },
}  # fmt: skip

SCALES = 3
"""Number of scales of MSGMS [JH]: sides of 16, 8 and 4 pixels per patch."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of InTra; the table above has the source of each."""

    patch: int = 16
    window: int = 7
    width: int = 512
    depth: int = 13
    heads: int = 8
    attention: Literal["mfsa", "msa"] = "mfsa"
    pos_embed: Literal["global", "local"] = "global"
    skips: Skips = "mirrored"
    gms_weight: float = 0.01
    ssim_weight: float = 0.01
    windows_per_image: int = 600
    batch_size: int = 256
    images_per_step: int = 16
    epochs: int = 2000
    patience: int = 50
    validation_fraction: float = 0.1
    lr: float = 1e-4
    weight_decay: float = 0.0
    window_at_test: Literal["centered", "shifted"] = "centered"
    subtract_normal: bool = True
    mean_filter: int = 21
    downsample: int = 1

    def __post_init__(self) -> None:
        counts = ("width", "depth", "heads", "windows_per_image", "batch_size", "images_per_step", "epochs", "patience")
        check_at_least(1, self, *counts, "downsample")
        check_at_least(0, self, "gms_weight", "ssim_weight", "lr", "weight_decay")
        check_setting(self.window >= 2, self, "window", "must be >= 2, so that some patches are visible")
        is_multiple = self.patch >= 4 and self.patch % 4 == 0
        check_setting(is_multiple, self, "patch", "must be a multiple of 4, as a patch is halved twice")
        check_setting(0 <= self.validation_fraction < 1, self, "validation_fraction", "must be in [0, 1)")
        is_odd = self.mean_filter >= 1 and self.mean_filter % 2 == 1
        check_setting(is_odd, self, "mean_filter", "must be an odd integer >= 1")


class InTra(Method):
    """Restores every patch from a window around it; the anomaly map is the dissimilarity of the gradients."""

    learned = ("network", "normal_map", "best_epoch")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [JH]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: InpaintingTransformer  # in eval mode
    normal_map: Tensor  # (h, w) mean difference of the training images
    best_epoch: Tensor  # () epoch of the network

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        side = settings.patch * settings.downsample
        self._grid = (setup.size[0] // side, setup.size[1] // side)
        if setup.size[0] % side or setup.size[1] % side or min(self._grid) < settings.window:
            raise BenchError(
                f"Height and width must be multiples of {side} (patch = {settings.patch} times downsample = "
                f"{settings.downsample}) and at least {side * settings.window} (window = {settings.window} patches), "
                f"got {setup.size[0]} x {setup.size[1]}. Change the size of the images or these settings."
            )
        with torch.device("meta"):  # inconsistent settings raise an error here, before fit
            self.build_network()
        self.test_top_left = self._top_left_at_test().to(setup.device)  # (patches, 2)

    def build_network(self) -> InpaintingTransformer:
        """Return the untrained network."""
        return _build_network(self.settings, self._grid)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to restore masked patches of good images; keep the epoch with the lowest validation loss."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same windows on every device
        train_indices, validation = train_validation_split(len(train), settings.validation_fraction, generator)
        pixels = FrozenFeatures(lambda images: [self.scale(images.to(self.setup.device))], train, setup=self.setup)
        images_per_step = min(settings.images_per_step, len(train_indices))
        windows = min(
            settings.windows_per_image, max(1, settings.batch_size // images_per_step)
        )  # windows of an image in a step
        best: dict[str, float] = {"epoch": 0, "loss": math.inf}

        for epoch in self.epochs(settings.epochs, network, training, generator, best):
            network.train()
            for _ in range(-(-settings.windows_per_image // windows)):
                order = train_indices[torch.randperm(len(train_indices), generator=generator)]
                for (images,) in pixels.batches(images_per_step, order):
                    patches = self.to_patches(images)  # (b, n, k * k * 3)
                    top_left, masked_index = self._random_windows(len(images) * windows, generator)
                    training.minimize(self.losses(network, patches, top_left, masked_index)["total"], len(images))
            network.eval()
            loss = training.epoch_loss()
            validation_loss = self.validation_loss(network, pixels, validation) if len(validation) else loss
            check_finite(validation_loss, epoch)
            if validation_loss < best["loss"] or not len(validation):
                best["epoch"], best["loss"] = epoch, validation_loss
                self.network = deepcopy(network) if len(validation) else network
                self.normal_map = self._normal_map(pixels, train_indices)
                self.best_epoch = torch.tensor(epoch)
            stop = epoch - best["epoch"] >= settings.patience
            progress(epoch, epoch if stop else settings.epochs, loss)
            if stop:
                break

    def _random_windows(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return random top left patches (count, 2) of windows, and the index (count,) of the masked patch of each."""
        window, (rows, columns) = self.settings.window, self._grid
        row, column, masked_index = (
            torch.randint(limit, (count,), generator=generator)
            for limit in (rows - window + 1, columns - window + 1, window**2)
        )
        return torch.stack([row, column], dim=1).to(self.setup.device), masked_index.to(self.setup.device)

    def losses(
        self, network: InpaintingTransformer, patches: Tensor, top_left: Tensor, masked_index: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss, "total", and its terms.

        Args:
            network: the network to train.
            patches: (b, n, k * k * 3) all patches of the images.
            top_left: (b * m, 2) first patch of m windows of each image.
            masked_index: (b * m,) index of the masked patch in its window.
        """
        patch_index = window_patches(top_left, self.settings.window, self._grid[1])  # (b * m, window^2)
        image = torch.arange(len(patches), device=masked_index.device).repeat_interleave(
            len(masked_index) // len(patches)
        )
        target = patches[image, patch_index.gather(1, masked_index[:, None])[:, 0]]  # (b * m, k * k * 3)
        with autocast(self.setup):
            embedded = network.embedding(patches[image[:, None], patch_index])
            restored = network(network.mask_tokens(embedded, masked_index, self._position_index(patch_index))).float()
        return self.patch_losses(target, restored)

    def patch_losses(self, target: Tensor, restored: Tensor) -> dict[str, Tensor]:
        """Return the loss of restored patches (b, k * k * 3), "total", and its terms."""
        first, second = (unpatchify(each[:, None], self.settings.patch, 1).contiguous() for each in (target, restored))
        losses = {
            "mse": F.mse_loss(restored, target),
            "msgms": 1 - msgms(first, second, SCALES, "zeros").mean(),
            "ssim": 1 - ssim(first, second, "zeros").mean(),
        }
        structure = self.settings.gms_weight * losses["msgms"] + self.settings.ssim_weight * losses["ssim"]
        return losses | {"total": losses["mse"] + structure}

    @torch.no_grad()
    def validation_loss(self, network: InpaintingTransformer, pixels: FrozenFeatures, validation: Tensor) -> float:
        """Return the mean loss over all patches of the validation images."""
        total = torch.zeros((), device=self.setup.device)
        for (images,) in pixels.batches(1, validation):
            patches = self.to_patches(images)
            total += self.patch_losses(patches[0], self.restore_patches(network, patches)[0])["total"]
        return float(total) / len(validation)

    @torch.no_grad()
    def _normal_map(self, pixels: FrozenFeatures, indices: Tensor) -> Tensor:
        total = torch.zeros(self._pixels, device=self.setup.device)
        if self.settings.subtract_normal:
            for (images,) in pixels.batches(1, indices):
                total += self.difference(images, self.restore_images(self.network, images))[0]
        return total / len(indices)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the squared deviation of 1 - MSGMS from its mean over good images, and its maximum as the score."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        original = self.scale(images)
        maps = self.difference(original, self.restore_images(network, original))
        if self.settings.subtract_normal:
            maps = (maps - self.normal_map).square()
        maps = upsample(maps, self.setup.size, align_corners=False)  # (b, H, W)
        return Prediction(image_score(maps, "max"), maps)

    def restore_images(self, network: InpaintingTransformer, images: Tensor) -> Tensor:
        """Restore every patch of images (b, 3, h, w) from the window around it; the result has the same shape."""
        restored = self.restore_patches(network, self.to_patches(images))
        return unpatchify(restored, self.settings.patch, self._grid[0]).contiguous()

    def restore_patches(self, network: InpaintingTransformer, patches: Tensor) -> Tensor:
        """Restore all patches (b, n, k * k * 3); each patch is embedded once for all windows that contain it."""
        top_left, (rows, columns), window = self.test_top_left, self._grid, self.settings.window
        patch_index = window_patches(top_left, window, columns)  # (n, window^2)
        index = torch.arange(rows * columns, device=patches.device)
        row, column = index // columns - top_left[:, 0], index % columns - top_left[:, 1]
        masked_index, position_index = row * window + column, self._position_index(patch_index)
        batch = passes_per_batch(patches.device, network.activation_bytes(window**2))
        restored = torch.empty_like(patches)
        with autocast(self.setup):
            embedded = network.embedding(patches)  # (b, n, width)
            for window_index in torch.arange(patches.shape[0] * patches.shape[1], device=patches.device).split(batch):
                image, patch = window_index // len(index), window_index % len(index)
                tokens = network.mask_tokens(
                    embedded[image[:, None], patch_index[patch]], masked_index[patch], position_index[patch]
                )
                restored[image, patch] = network(tokens).float()
        return restored

    def difference(self, images: Tensor, restored: Tensor) -> Tensor:
        """Return 1 - MSGMS of two (b, 3, h, w), mean over colors, smoothed: (b, h, w)."""
        return mean_filter(1 - msgms(images, restored, SCALES, "zeros").mean(dim=1), self.settings.mean_filter, "zeros")

    def _position_index(self, patch_index: Tensor) -> Tensor:
        """Return the index of the position embedding of each patch of windows (b, window^2)."""
        if self.settings.pos_embed == "global":
            return patch_index
        return torch.arange(patch_index.shape[1], device=patch_index.device).expand_as(patch_index)

    def _top_left_at_test(self) -> Tensor:
        is_shifted = self.settings.window_at_test == "shifted"
        axes = [window_starts(count, self.settings.window, shifted=is_shifted) for count in self._grid]
        return torch.cartesian_prod(*axes)  # (patches, 2), row-major

    @property
    def _pixels(self) -> tuple[int, int]:
        return self._grid[0] * self.settings.patch, self._grid[1] * self.settings.patch

    @cached_property
    def _inference_network(self) -> InpaintingTransformer:
        return with_compiled_methods(self.network, self.setup, "forward")

    def scale(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] at the resolution of the network."""
        return F.avg_pool2d(images, self.settings.downsample)

    def to_patches(self, images: Tensor) -> Tensor:
        """Cut images (b, 3, h, w) into patches (b, n, k * k * 3)."""
        return patchify(images, self.settings.patch)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the window of the central patch, the restored image, and 1 - MSGMS with its mean over good images.

        The window is "mask": the masked patch is 1 and the visible patches are 0.5.
        """
        original, (rows, columns) = self.scale(images), self._grid
        restored = self.restore_images(self._inference_network, original)
        center = rows // 2 * columns + columns // 2
        window = torch.zeros(rows * columns, device=original.device)
        window[window_patches(self.test_top_left[center : center + 1], self.settings.window, columns)[0]] = 0.5
        window[center] = 1  # masked
        pictures = {
            "mask": window.view(1, rows, columns).expand(len(images), -1, -1),
            "restored": restored.clamp(0, 1),
            "gradient difference": self.difference(original, restored),
            "mean of good images": self.normal_map.expand(len(images), -1, -1),
        }
        return {
            name: F.interpolate(picture[:, None] if picture.ndim == 3 else picture, self.setup.size).squeeze(1)
            for name, picture in pictures.items()
        }

    def info(self) -> Info:
        """Return the size of the network, its passes per image, and the epoch that is used."""
        return super().info() | {"passes": len(self.test_top_left), "best_epoch": int(self.best_epoch)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:  # noqa: ARG003
        """Return the bytes of weights, gradients and Adam moments, and of the windows of one step."""
        side = settings.patch * settings.downsample
        with torch.device("meta"):
            network = _build_network(settings, (size[0] // side, size[1] // side))
        n_weights = sum(parameter.numel() for parameter in network.parameters())
        return 16 * n_weights + settings.batch_size * network.activation_bytes(settings.window**2)


METHOD = InTra


def _build_network(settings: Settings, grid: tuple[int, int]) -> InpaintingTransformer:
    n_positions = math.prod(grid) if settings.pos_embed == "global" else settings.window**2
    return InpaintingTransformer(
        3 * settings.patch**2, n_positions, width=settings.width, depth=settings.depth, heads=settings.heads,
        feature_attention=settings.attention == "mfsa", skips=settings.skips,
    )  # fmt: skip
