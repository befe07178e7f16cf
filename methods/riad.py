"""RIAD: reconstruction by inpainting (Zavrtanik, Kristan, Skočaj; Pattern Recognition 112, 2021, 107706).

The cells of a grid are divided into three random sets. A U-Net inpaints the image three times, each time with one of
the sets masked, so that every pixel is reconstructed by a pass in which it was masked. Cells are squares of 2, 4, 8 or
16 pixels: one size per step in training, all of them at test time. Pixels that are reconstructed badly are anomalous.

The authors have released no code, and we could not read the paper. [R] is stated only if two public re-implementations
agree: [PY] plutoyuxie/Reconstruction-by-inpainting-for-visual-anomaly-detection at 7c0aaf9, [TI] taikiinoue45/RIAD at
36139f9.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting               default       source
    width                 64            [PY] channels of the first stage; 128, 256, 512, 512 follow
    cell_sizes            2, 4, 8, 16   [R] side in pixels; one random size per step in training
    subsets               3             [R]
    epochs, batch         300, 4        [R]; the paper's batch is 8 [M]
    lr, lr_drop_epoch     1e-4, 250     [PY] Adam, one tenth from that epoch; in TI the drop has no effect
    weight_decay          1e-5          [R]
    gms_weight            1             [R] [M] alpha
    ssim_weight           1             [R] [M] beta
    grayscale             no            [TI] GMS per RGB channel; [PY] yes: GMS of the channel mean
    validation_fraction   0.2           [PY] fraction of the training images
    patience              20            [PY] epochs without a lower validation loss
    mean_filter           21            [TI] [M] side in pixels; [PY] has a Gaussian of sigma 7 instead
    border                reflect       [I] padding of GMS, SSIM and mean filter; "zeros" [TI], see below
    test_seed             0             [I] seed of the masks at test time, which are the same for every image
    downsample            1             [I] average-pooling factor applied to the input; 1 as published

Differences from both, with the measured or expected effect:

- Borders are reflected. TI pads all three filters with zeros, so both images have the same false edge, and defects in
  the outer pixels are masked: on one synthetic pair the multi-scale gradient magnitude
  dissimilarity (1 - MSGMS) of the outermost row is 0.060 here and 0.006 with zeros.
  PY pads SSIM and the median with zeros and the gradients not at all. Pixel AUROC will differ where products touch the
  border (textures). `border = "zeros"` is TI's form.
- The three passes of a step are one batch, so batch norm uses them together.
- The validation masks are the same in every epoch, each batch of four validation images uses one cell size (PY: batches
  of 32, random cell size), and an equal loss is not an improvement. With fewer than 10 images there is no validation,
  and all epochs run.
- Convolutions before a batch norm have no bias (28,800,835 parameters instead of 28,805,699), which has no effect.
- Squares are cut at the border if the cells do not divide the size (PY never masks the rest, TI fails).
- The subset of a cell is its index in a random permutation, modulo 3 (PY, TI: contiguous thirds; PY's last is smaller).
- Tensors are channels last. With channels last, batch norm in training mode is less accurate on CPUs (torch 2.14;
  gradient of a U-Net of width 16: relative error 2e-4 instead of 4e-6), so results of two devices differ in the last
  digits. Contiguous tensors take 15 to 45 % more time per step (width 16 and 8, 128 x 128 pixels, one thread).
- Resize: Lanczos as PY, both sides; PY keeps the aspect ratio, and TI resizes bilinearly without antialiasing.

Differences from PY only: no median blur before the gradients, the four cell sizes have equal weights, no scaling over
the test set. Differences from TI only: no cosine schedule with restarts, which hardly changes the rate. C1, C2 and c
are those for a data range of 1, as in both re-implementations, although the images are in [-1, 1]; the paper's values
are unknown.

    bench run --method riad --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image/pixel AUROC: 91.7/94.2 (the paper; how it chose the epoch is not known). TI states 89.0
    image AUROC; it tests the epoch at which early stopping ended training (or the last epoch), on one of five folds, so
    the two values do not show the variation between runs.

To measure the effect of the random masks, run with --set test_seed=0, 1, 2 and so on.
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
from .parts.inference_batches import passes_per_batch
from .parts.maps import image_score, mean_filter, upsample
from .parts.masks import complementary_masks
from .parts.precision import autocast
from .parts.similarity import msgms, ssim
from .parts.train_validation_split import train_validation_split
from .parts.unet import UNet

TITLE = "RIAD"
FAMILY = "mask-based"
PAPER = "Zavrtanik, Kristan, Skočaj: Reconstruction by inpainting for visual anomaly detection, Pattern Recognition 112"
YEAR = 2021
PROFILES = {
    # Not chosen independently of the test set: epochs and rate were changed after a poor test result on gear was known.
    "demo": {  # the defaults are width 64, 300 epochs, batch 4, lr 1e-4 and images of 256 x 256 pixels
        "width": 8,
        "downsample": 2,  # with cells of 4, 8 and 16 pixels of the image
        "cell_sizes": [2, 4, 8],
        "epochs": 100,
        "batch_size": 1,
        "lr": 2e-3,
        "lr_drop_epoch": 83,
    },
    "check": {"width": 2, "epochs": 2},
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of RIAD; the table above has the source of each."""

    width: int = 64
    cell_sizes: tuple[int, ...] = (2, 4, 8, 16)
    subsets: int = 3
    epochs: int = 300
    batch_size: int = 4
    lr: float = 1e-4
    lr_drop_epoch: int = 250
    weight_decay: float = 1e-5
    gms_weight: float = 1.0
    ssim_weight: float = 1.0
    grayscale: bool = False
    validation_fraction: float = 0.2
    patience: int = 20
    mean_filter: int = 21
    border: Literal["reflect", "zeros"] = "reflect"
    test_seed: int = 0
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "width", "epochs", "batch_size", "patience", "downsample")
        check_at_least(0, self, "lr", "weight_decay")
        has_cells = bool(self.cell_sizes) and min(self.cell_sizes) >= 1
        check_setting(has_cells, self, "cell_sizes", "must be one or more integers >= 1")
        check_setting(self.subsets >= 2, self, "subsets", "must be >= 2, so that some pixels are visible in each pass")
        check_setting(0 <= self.validation_fraction < 1, self, "validation_fraction", "must be in [0, 1)")
        is_odd = self.mean_filter >= 1 and self.mean_filter % 2 == 1
        check_setting(is_odd, self, "mean_filter", "must be an odd integer >= 1")


class RIAD(Method):
    """Reconstructs every pixel of an image from the others; the anomaly map is the dissimilarity of the gradients."""

    learned = ("network", "best_epoch")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256, resample="lanczos")  # [PY]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: UNet  # in eval mode
    best_epoch: Tensor  # () epoch of the network

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        multiple = UNet.STRIDE * settings.downsample
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} (16 of RIAD's U-Net, times downsample = "
                f"{settings.downsample}), got {setup.size[0]} x {setup.size[1]}. Change the size of the images."
            )
        self._size = (setup.size[0] // settings.downsample, setup.size[1] // settings.downsample)
        generator = Generator().manual_seed(settings.test_seed)  # on the CPU: the same masks on every device
        masks = [
            complementary_masks(*self._size, cell=cell, subsets=settings.subsets, generator=generator)
            for cell in settings.cell_sizes  # cells that are too large for the image raise an error here, before fit
        ]
        self.test_masks = torch.stack(masks).to(setup.device)  # (cells, subsets, h, w), the same for every image

    def build_network(self) -> UNet:
        """Return the untrained U-Net; channels last is faster, above all on CPUs."""
        return UNet(self.settings.width).to(memory_format=torch.channels_last)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the U-Net to reconstruct good images; if there are validation images, keep the best epoch on them."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same masks on every device
        train_indices, validation = train_validation_split(len(train), settings.validation_fraction, generator)
        best: dict[str, float] = {"epoch": 0, "loss": math.inf}

        for epoch in self.epochs(settings.epochs, network, training, generator, best):
            if epoch == settings.lr_drop_epoch:
                training.optimizer.param_groups[0]["lr"] = settings.lr / 10
            network.train()
            order = train_indices[torch.randperm(len(train_indices), generator=generator)]
            for images in train.batches(settings.batch_size, order):
                training.minimize(self.loss(network, images, generator), len(images))
            network.eval()
            loss = training.epoch_loss()
            validation_loss = self.validation_loss(network, train, validation) if len(validation) else loss
            check_finite(validation_loss, epoch)
            if validation_loss < best["loss"] or not len(validation):
                best["epoch"], best["loss"] = epoch, validation_loss
                self.network = deepcopy(network) if len(validation) else network
                self.best_epoch = torch.tensor(epoch)
            stop = epoch - best["epoch"] >= settings.patience
            progress(epoch, epoch if stop else settings.epochs, loss)
            if stop:
                break

    @torch.no_grad()
    def validation_loss(self, network: UNet, train: Images, validation: Tensor) -> float:
        """Return the mean loss over the validation images, with masks that are the same in every epoch."""
        generator, total = Generator().manual_seed(self.setup.seed), torch.zeros((), device=self.setup.device)
        for images in train.batches(self.settings.batch_size, validation):
            total += self.loss(network, images, generator) * len(images)
        return float(total) / len(validation)

    def loss(self, network: UNet, images: Tensor, generator: Generator) -> Tensor:
        """Return the loss of (b, 3, h, w) images in [0, 1] with random masks of one random cell size."""
        settings = self.settings
        original = self.scale(images.to(self.setup.device))
        cell = settings.cell_sizes[int(torch.randint(len(settings.cell_sizes), (), generator=generator))]
        masks = complementary_masks(*self._size, cell=cell, subsets=settings.subsets, generator=generator)
        reconstructed = self.reconstruct(
            network, original, masks[None].to(original.device), len(masks) * len(original)
        )[0]
        dissimilarity = self.gms_dissimilarity(original, reconstructed).mean()
        loss = F.mse_loss(reconstructed, original) + settings.gms_weight * dissimilarity
        return loss + settings.ssim_weight * (1 - ssim(original, reconstructed, settings.border).mean())

    def reconstruct(self, network: UNet, images: Tensor, masks: Tensor, batch_size: int) -> Tensor:
        """Reconstruct the images: run the network once per mask subset, take each pixel from the pass that masked it.

        Args:
            network: the network to apply.
            images: (b, 3, h, w) in [-1, 1].
            masks: (cells, subsets, h, w), True for masked pixels, which are set to 0 (mid-gray).
            batch_size: passes per batch.

        Returns:
            The reconstructions (cells, b, 3, h, w).
        """
        is_masked = masks[:, :, None, None]  # (cells, subsets, 1, 1, h, w)
        visible = (images * ~is_masked).flatten(0, 2)  # (cells * subsets * b, 3, h, w)
        with autocast(self.setup):
            passes = [
                network(inputs.contiguous(memory_format=torch.channels_last)) for inputs in visible.split(batch_size)
            ]
        reconstructed = torch.cat(passes).float().contiguous()  # (cells * subsets * b, 3, h, w)
        return (reconstructed.view(*masks.shape[:2], *images.shape) * is_masked).sum(dim=1)

    def gms_dissimilarity(self, original: Tensor, reconstructed: Tensor) -> Tensor:
        """Return (b, h, w): 1 - MSGMS of two images (b, 3, h, w), averaged over channels.

        If the setting `grayscale` is True, it is that of their channel means.
        """
        if self.settings.grayscale:
            original, reconstructed = original.mean(dim=1, keepdim=True), reconstructed.mean(dim=1, keepdim=True)
        return 1 - msgms(original, reconstructed, border=self.settings.border).mean(dim=1)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the anomaly maps, the smoothed mean of 1 - MSGMS over cell sizes, and their maxima as scores."""
        original, reconstructed = self.reconstruct_images(images)
        dissimilarity = torch.stack([self.gms_dissimilarity(original, image) for image in reconstructed]).mean(dim=0)
        if self.settings.downsample > 1:
            dissimilarity = upsample(dissimilarity, self.setup.size, align_corners=False)  # (b, h, w)
        maps = mean_filter(dissimilarity, self.settings.mean_filter, self.settings.border)
        return Prediction(image_score(maps, "max"), maps)

    def reconstruct_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's input (b, 3, h, w) and its reconstructions (cells, b, 3, h, w)."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        original = self.scale(images)
        batch_size = passes_per_batch(original.device, UNet.activation_bytes(self.settings.width, self._size))
        return original, self.reconstruct(network, original, self.test_masks, batch_size)

    @cached_property
    def _inference_network(self) -> UNet:
        return with_compiled_methods(self.network, self.setup, "forward")

    def scale(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1] at the resolution of the network."""
        return F.avg_pool2d(images, self.settings.downsample) * 2 - 1

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each cell size the reconstruction, the mask of one pass ("mask": largest cells), and 1 - MSGMS."""
        original, reconstructed = self.reconstruct_images(images)
        pictures = {}
        for cell, masks, image in zip(self.settings.cell_sizes, self.test_masks, reconstructed, strict=True):
            mask_name = "mask" if cell == max(self.settings.cell_sizes) else f"mask cells of {cell}"
            pictures[f"reconstruction cells of {cell}"] = (image + 1) / 2
            pictures[mask_name] = masks[0].float().expand(len(images), -1, -1)
            pictures[f"dissimilarity cells of {cell}"] = self.gms_dissimilarity(original, image)
        if self.settings.downsample > 1:
            size = self.setup.size
            pictures = {name: upsample(picture, size, align_corners=False) for name, picture in pictures.items()}
        return pictures

    def info(self) -> Info:
        """Add the passes per image and the best epoch to `Method.info`."""
        passes = len(self.settings.cell_sizes) * self.settings.subsets
        return super().info() | {"passes": passes, "best_epoch": int(self.best_epoch)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, and of the activations that one training step saves.

        The activations are those that the passes of a step save for the backward pass.
        """
        with torch.device("meta"):
            n_weights = sum(parameter.numel() for parameter in UNet(settings.width).parameters())
        network_size = (size[0] // settings.downsample, size[1] // settings.downsample)
        passes = settings.subsets * min(settings.batch_size, n_images)
        return 16 * n_weights + passes * UNet.activation_bytes(settings.width, network_size)


METHOD = RIAD
