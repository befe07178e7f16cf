"""SSM: self-supervised masking (Huang, Xu, Wang, Wang, Zhang; IEEE TMM 25, 2023; https://arxiv.org/abs/2205.06568).

A network inpaints the image three times, each time with one of three complementary random sets of cells masked, as in
RIAD. It gets the mask and also predicts it. At test time a first round finds the blocks that are clearly normal.
They are not masked in the second round, which inpaints the remaining pixels with more context.

The authors' code: MediaBrain-SJTU/SSM at dbf8e0c (MIT), which has only the retinal images. We could read only the
abstract. The defaults are those of the code.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting             default       source
    width               64            [C] channels of the first stage; 128, 256, 512, 512 follow
    cell_sizes          2, 4, 8       [C] side in pixels of the network's input; one random size per step in training
    subsets             3             [C]
    epochs, batch       50, 32        [C]
    lr, lr_drop_epochs  1e-4          [C] Adam; one tenth at epochs 15, 30, 45
    weight_decay        1e-5          [C]
    mask_loss_weight    1             [C] weight of the squared error of the predicted mask, summed over the three
    passes median              yes           [C] 3 x 3 median before the gradients, zeros outside
    rounds              2             [C]; the abstract has "progressive"; 1 is without refinement
    block               8             [C] side in pixels of the blocks that are uncovered
    block_ratio         0.8           [C] a block is normal if more than that of it is
    normal_above        0.9843        [C] weighted mean GMS of a normal pixel; the code has 255 * A < -0.96, which is
                                      this value for its cells at 128 x 128 pixels; "auto" [I], see below
    auto_quantile       0.5           [I] "auto": quantile of the mean GMS over good images that is the threshold
    cell_weights        area          [C] weights of the maps of the cell sizes: side^2; or "equal"
    smoothing           7             [C] sigma in pixels of the network's input
    smoothing_axes      both          [C] the evaluation in training; "rows": test.py, whose batch of 1 loses an axis
    score               max           [I] maximum of the map; the code adds the MSE, both scaled over the test set
    test_seed           0             [I] seed of the masks, the same for every image; the code fixes 8 and 9
    downsample          1             [I] average-pooling factor applied to the input; 1 as published

The threshold of the code is that of a network after many steps; after a short training nothing exceeds it, and the
second round is then only another draw of masks. With normal_above = "auto" the threshold is the median over held-out
good images (a tenth; all training images if there are fewer than 10), so about half of a good image can be uncovered.

Differences from the code: the map is the weighted mean of 1 - GMS, an increasing linear function of the code's; the
last epoch is used, while the code uses the one with the best image AUROC on the test set; the subset of a cell is its
index in a random permutation, modulo 3 (code: contiguous thirds). Not a difference: a defect that the first round
restores well is uncovered and never masked again.

    bench run --method ssm --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected: 93.9 AUROC on MVTec AD [A] (level, epoch, size and cells are not stated); 98.3 image AUROC on the retinal
    images [A] [C], with both parts of the score scaled over the test set, at the best epoch on the test set
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.inference_batches import convolution_format, passes_per_batch
from .parts.maps import gaussian_filter, gaussian_kernel, image_score, separable_filter, upsample
from .parts.mask_aware_unet import MaskAwareUNet
from .parts.masks import complementary_masks
from .parts.precision import autocast
from .parts.similarity import gms_pyramid, msgms, ssim
from .parts.train_validation_split import train_validation_split

TITLE = "SSM"
FAMILY = "mask-based"
PAPER = "Huang, Xu, Wang, Wang, Zhang: Self-Supervised Masking, IEEE TMM 25, https://arxiv.org/abs/2205.06568"
YEAR = 2022
PROFILES = {
    "demo": {  # the defaults are width 64, 50 epochs, batch 32, lr 1e-4 and images of 128 x 128 pixels
        "width": 8, "downsample": 2, "epochs": 100, "batch_size": 1, "lr": 2e-3, "lr_drop_epochs": [83],
        "normal_above": "auto",
    },
    "check": {"width": 2, "cell_sizes": [4, 8], "epochs": 2, "normal_above": "auto"},
}  # fmt: skip

HELD_OUT = 0.1
"""Fraction of the training images that the threshold "auto" is computed from [I]."""

THRESHOLD_PERIOD = 10
"""Epochs between two computations of the threshold "auto", which is also computed after the last epoch [I]."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of SSM; the table above has the source of each."""

    width: int = 64
    cell_sizes: tuple[int, ...] = (2, 4, 8)
    subsets: int = 3
    epochs: int = 50
    batch_size: int = 32
    lr: float = 1e-4
    lr_drop_epochs: tuple[int, ...] = (15, 30, 45)
    weight_decay: float = 1e-5
    mask_loss_weight: float = 1.0
    median: bool = True
    rounds: int = 2
    block: int = 8
    block_ratio: float = 0.8
    normal_above: float | Literal["auto"] = 0.9843
    auto_quantile: float = 0.5
    cell_weights: Literal["area", "equal"] = "area"
    smoothing: float = 7.0
    smoothing_axes: Literal["both", "rows"] = "both"
    score: Literal["max", "mse"] = "max"  # "mse": mean squared error of the last round, summed over cell sizes
    test_seed: int = 0
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "width", "epochs", "batch_size", "rounds", "block", "downsample")
        check_at_least(0, self, "lr", "weight_decay", "mask_loss_weight")
        check_smoothing(self)
        has_cells = bool(self.cell_sizes) and min(self.cell_sizes) >= 1
        check_setting(has_cells, self, "cell_sizes", "must be one or more integers >= 1")
        check_setting(self.subsets >= 2, self, "subsets", "must be >= 2, so that some pixels are visible in each pass")
        check_setting(0 <= self.block_ratio <= 1, self, "block_ratio", "must be in [0, 1]")
        check_setting(0 <= self.auto_quantile <= 1, self, "auto_quantile", "must be in [0, 1]")


class Round(NamedTuple):
    """Results of one round of inpainting for b images."""

    uncovered: Tensor  # (b, h, w) bool: masked in no pass, because it was normal in the previous round
    restored: Tensor  # (cells, b, 3, h, w); the image itself where uncovered
    similarity: Tensor  # (b, h, w) weighted mean GMS, smoothed


class SSM(Method):
    """Inpaints every part of an image from the rest, then again with the normal blocks visible."""

    learned = ("network", "threshold")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(128, 128)  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: MaskAwareUNet  # in eval mode
    threshold: Tensor  # () mean GMS above which a pixel is normal

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        multiple = settings.downsample * math.lcm(MaskAwareUNet.STRIDE, settings.block)
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} (of 16 and block = {settings.block}, times "
                f"downsample = {settings.downsample}), got {setup.size[0]} x {setup.size[1]}. Change the size of the "
                "images."
            )
        self._size = (setup.size[0] // settings.downsample, setup.size[1] // settings.downsample)
        generator = Generator().manual_seed(settings.test_seed)  # on the CPU: the same masks on every device
        masks = [self._masks(cell, generator) for _ in range(settings.rounds) for cell in settings.cell_sizes]
        shape = (settings.rounds, len(settings.cell_sizes), settings.subsets, *self._size)
        self.test_masks = torch.stack(masks).view(shape).to(setup.device)  # (rounds, cells, subsets, h, w)
        weights = torch.tensor([1.0 if settings.cell_weights == "equal" else cell**2 for cell in settings.cell_sizes])
        self._cell_weights = (weights / weights.sum()).to(setup.device)  # (cells,)

    def build_network(self) -> MaskAwareUNet:
        """Return the untrained network."""
        return MaskAwareUNet(self.settings.width)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the network to inpaint good images and to predict the mask."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same masks on every device
        is_auto = settings.normal_above == "auto"
        train_indices, held_out = train_validation_split(len(train), HELD_OUT if is_auto else 0, generator)
        held_out = held_out if len(held_out) else train_indices

        for epoch in self.epochs(settings.epochs, network, training, generator):
            if epoch in settings.lr_drop_epochs:
                training.optimizer.param_groups[0]["lr"] /= 10
            network.train()
            order = train_indices[torch.randperm(len(train_indices), generator=generator)]
            for images in train.batches(settings.batch_size, order):
                cell = settings.cell_sizes[int(torch.randint(len(settings.cell_sizes), (), generator=generator))]
                masks = self._masks(cell, generator).to(self.setup.device)
                losses = self.losses(network, self.scale(images.to(self.setup.device)), masks)
                training.minimize(losses["total"], len(images))
            loss = training.epoch_loss()
            self.network = network.eval()
            if epoch % THRESHOLD_PERIOD == 1 or epoch == settings.epochs:
                self.threshold = self._threshold(train, held_out)
            progress(epoch, settings.epochs, loss)

    def losses(self, network: MaskAwareUNet, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return the loss, "total", and its terms.

        Args:
            network: the network to train; each pass is a separate forward pass, so batch norm uses the statistics of
                each.
            images: (b, 3, h, w) in [0, 1].
            masks: (subsets, h, w), True for the pixels that a pass masks.
        """
        restored, mask_loss = torch.zeros_like(images), torch.zeros((), device=images.device)
        for mask in masks:
            visible = (~mask).to(images.dtype).expand(len(images), 1, -1, -1)
            with autocast(self.setup):
                output, predicted = network(images * visible, visible)
            restored = restored + output.float() * mask
            mask_loss = mask_loss + F.mse_loss(predicted.float(), visible)
        grays = images.mean(dim=1, keepdim=True), restored.mean(dim=1, keepdim=True)
        by_scale = [1 - gms.mean() for gms in gms_pyramid(*grays, border="valid", median=self.settings.median)]
        losses = {
            "mse": F.mse_loss(restored, images),
            "msgms": torch.stack(by_scale).mean(),
            "ssim": 1 - ssim(images, restored, "zeros").mean(),
            "mask": mask_loss,
        }
        total = losses["mse"] + losses["msgms"] + losses["ssim"] + self.settings.mask_loss_weight * mask_loss
        return losses | {"total": total}

    @torch.no_grad()
    def _threshold(self, train: Images, indices: Tensor) -> Tensor:
        """Return the threshold of normal pixels: the setting, or a quantile over good images in the first round."""
        if self.settings.normal_above != "auto":
            return torch.tensor(self.settings.normal_above, device=self.setup.device)
        similarities = []
        for images in train.batches(self.settings.batch_size, indices):
            original = self.scale(images.to(self.setup.device))
            restored = self.inpaint(original, self.test_masks[0][:, :, None].expand(-1, -1, len(original), -1, -1))
            similarities.append(self.similarity(original, restored).flatten())
        values = torch.cat(similarities).sort().values  # torch.quantile accepts no more than 2^24 values
        return values[round(self.settings.auto_quantile * (len(values) - 1))].clone()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the weighted mean of 1 - GMS over cell sizes in the last round, smoothed, and the score."""
        original = self.scale(images)
        *_, last = self.rounds(images)
        maps = upsample(1 - last.similarity, self.setup.size, align_corners=False)  # (b, H, W)
        if self.settings.score == "max":
            return Prediction(image_score(maps, "max"), maps)
        return Prediction((original - last.restored).square().mean(dim=(2, 3, 4)).sum(dim=0), maps)

    def rounds(self, images: Tensor) -> Iterator[Round]:
        """Yield the results of each round for images (b, 3, H, W)."""
        check_image_size(images, self.setup.size)
        original = self.scale(images)
        uncovered = torch.zeros(len(images), *self._size, dtype=torch.bool, device=original.device)
        for masks in self.test_masks:
            restored = self.inpaint(original, masks[:, :, None] & ~uncovered)
            similarity = self.similarity(original, restored)
            yield Round(uncovered, restored, similarity)
            uncovered = uncovered | self.normal_blocks(similarity)

    def inpaint(self, images: Tensor, masks: Tensor) -> Tensor:
        """Combine the passes, each pixel from the pass that masked it; a pixel that is never masked stays as it is.

        Args:
            images: (b, 3, h, w) in [0, 1].
            masks: (cells, subsets, b, h, w), True for the pixels that a pass sets to 0 (black).

        Returns:
            (cells, b, 3, h, w).
        """
        network = self._inference_network
        visible = (~masks)[:, :, :, None]  # (cells, subsets, b, 1, h, w)
        # With `to`, and not `contiguous`, a tensor of one channel gets the layout too, and so its concatenations.
        layout = convolution_format(images.device)
        inputs = [
            value.flatten(0, 2).to(images.dtype, memory_format=layout) for value in (images * visible, visible)
        ]  # (cells * subsets * b, 3 and 1, h, w)
        batch = passes_per_batch(images.device, MaskAwareUNet.activation_bytes(self.settings.width, self._size))
        with autocast(self.setup):
            passes = [
                network(*batch_inputs)[0].float()
                for batch_inputs in zip(*(value.split(batch) for value in inputs), strict=True)
            ]
        outputs = torch.cat(passes).contiguous().view(*masks.shape[:2], *images.shape)  # (cells, subsets, b, 3, h, w)
        return (outputs * ~visible).sum(dim=1) + images * visible.all(dim=1)

    def similarity(self, images: Tensor, restored: Tensor) -> Tensor:
        """Return the weighted mean over cells of MSGMS of images (b, 3, h, w) and (cells, b, 3, h, w), smoothed."""
        gray = images.mean(dim=1, keepdim=True)
        by_cell = [
            msgms(gray, image.mean(dim=1, keepdim=True), border="valid", median=self.settings.median)[:, 0]
            for image in restored
        ]
        similarity = torch.einsum("c,cbhw->bhw", self._cell_weights, torch.stack(by_cell))
        if self.settings.smoothing_axes == "both" or self.settings.smoothing == 0:
            return gaussian_filter(similarity, self.settings.smoothing)
        kernel = gaussian_kernel(self.settings.smoothing, int(4 * self.settings.smoothing + 0.5))
        return separable_filter(similarity, (1.0,), kernel)

    def normal_blocks(self, similarity: Tensor) -> Tensor:
        """Return (b, h, w), True in the blocks in which more than `block_ratio` of the pixels are normal."""
        block = self.settings.block
        fraction = F.avg_pool2d((similarity > self.threshold).float()[:, None], block)[:, 0]
        is_normal = fraction > self.settings.block_ratio
        return is_normal.repeat_interleave(block, 1).repeat_interleave(block, 2)

    @cached_property
    def _inference_network(self) -> MaskAwareUNet:
        return with_compiled_methods(self.network, self.setup, "forward")

    def _masks(self, cell: int, generator: Generator) -> Tensor:
        return complementary_masks(*self._size, cell=cell, subsets=self.settings.subsets, generator=generator)

    def scale(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] at the resolution of the network."""
        return F.avg_pool2d(images, self.settings.downsample)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the uncovered pixels, and for each round a mask, the restoration and the map of the largest cells.

        "mask" is the one of the last round, which masks no uncovered pixel.
        """
        pictures: dict[str, Tensor] = {}
        for i, result in enumerate(self.rounds(images)):
            name, mask = f"round {i + 1}", self.test_masks[i, -1, 0] & ~result.uncovered
            is_last = i + 1 == self.settings.rounds
            if i:
                pictures[f"uncovered {name}"] = result.uncovered.float()
            pictures["mask" if is_last else f"mask {name}"] = mask.float()
            pictures[f"restored {name}"] = result.restored[-1].clamp(0, 1)
            pictures[f"GMS dissimilarity {name}"] = 1 - result.similarity
        return {name: upsample(picture, self.setup.size, align_corners=False) for name, picture in pictures.items()}

    def info(self) -> Info:
        """Return the size of the network, its passes per image, and the threshold of normal pixels."""
        return super().info() | {
            "passes": math.prod(self.test_masks.shape[:3]),
            "normal_above": round(float(self.threshold), 6),
        }

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, and the activations that one step saves."""
        with torch.device("meta"):
            n_weights = sum(parameter.numel() for parameter in MaskAwareUNet(settings.width).parameters())
        network_size = (size[0] // settings.downsample, size[1] // settings.downsample)
        passes = settings.subsets * min(settings.batch_size, n_images)
        return 16 * n_weights + passes * MaskAwareUNet.activation_bytes(settings.width, network_size)


METHOD = SSM
