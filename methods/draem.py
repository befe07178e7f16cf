"""DRAEM: a discriminatively trained reconstruction embedding (Zavrtanik, Kristan, Skočaj; ICCV 2021).

A network learns to remove simulated defects from images; a second one gets both images and learns to segment the
defects. Both are trained from scratch on good images with defects that are cut from other textures along Perlin noise.

Paper: https://arxiv.org/abs/2108.07610. Code: https://github.com/VitjanZ/DRAEM at 2dbf673, MIT. We could not read the
full paper, only its abstract page. [R] is anomalib, including the values that it attributes to the paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting                  paper        code       source
    textures                 DTD          DTD        [A] [C] the Describable Textures Dataset, which is not part of this
                                                     project: pass --set textures=DIR with the alias draem_dtd.
                                                     "generated": crops of other training images and
                                                     generated patterns [I]
    reconstruction_width     128          128        [C]
    segmentation_width       64           64         [C]
    opacity                  0.1, 1       0, 0.8     [R] [C] range of the weight of the image in a defect
    clean_fraction           -            0.5        [C] fraction of images without a defect; more if a mask is empty
    rotation_probability     -            0.3        [C] rotation by U(-90, 90) degrees, [M] 45; corners are black
    perlin_threshold         0.5          0.5        [C]
    epochs, batch            700, 8       700, 8     [C] an epoch samples as many images, with replacement, as there are
    lr, lr_factor            1e-4, 0.1    1e-4, 0.2  [M] [C] Adam
    lr_drop_epochs           401, 601     561, 631   [R] [C] epochs at which the rate is multiplied by lr_factor
    score_window             21           21         [C] side of the mean filter with zero padding, before the max
    downsample               -            -          [I] average-pooling factor applied to the input; 1 as published

Differences from the code: RGB instead of BGR; the ten changes of a texture by Pillow instead of imgaug; rotations by
torch instead of imgaug; a seed; masks of other sizes than 256 x 256 are possible. As in the code, images are in [0, 1]
without further normalization, and the range of SSIM's constants is inferred from the reconstruction.

    bench run --method draem_dtd --set textures=~/data/dtd/images --profile code --dataset mvtec --preprocessing paper
    published mean image/pixel AUROC: 98.0/97.3 (the paper [A]); 98.1/97.5 (README, released weights); the last epoch
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.draem_networks import ReconstructionNetwork, SegmentationNetwork
from .parts.maps import upsample
from .parts.precision import autocast
from .parts.rotation import rotate
from .parts.similarity import ssim
from .parts.simulated_defects import simulate_defects
from .parts.textures import draw_textures, random_images, texture_folder

TITLE = "DRAEM (generated textures)"
FAMILY = "reconstruction"
PAPER = (
    "Zavrtanik, Kristan, Skočaj: DRAEM - A discriminatively trained reconstruction embedding for surface anomaly "
    "detection, ICCV, https://arxiv.org/abs/2108.07610"
)
YEAR = 2021
NEEDS = ("a folder with textures for draem_dtd",)
ALIASES = {"draem_dtd": {"title": "DRAEM", "settings": {"textures": "dtd"}}}
PROFILES = {
    "demo": {
        "reconstruction_width": 16, "segmentation_width": 16, "downsample": 2, "epochs": 100, "batch_size": 4,
        "lr": 1e-3, "lr_drop_epochs": [81, 91], "score_window": 11,
    },
    "paper": {"opacity": [0.1, 1.0], "lr_factor": 0.1, "lr_drop_epochs": [401, 601]},
    "check": {"reconstruction_width": 2, "segmentation_width": 2, "epochs": 2, "batch_size": 3},
}  # fmt: skip

STRIDE = 32
"""Sides of images must be multiples of this, times `downsample`."""

SMOOTH = 1e-5
"""Lower bound of probabilities and of their complements in the focal loss."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of DRAEM; the table above has the source of each."""

    textures: str = "generated"  # or a folder with images
    reconstruction_width: int = 128
    segmentation_width: int = 64
    opacity: tuple[float, float] = (0.0, 0.8)
    clean_fraction: float = 0.5
    rotation_probability: float = 0.3
    perlin_threshold: float = 0.5
    epochs: int = 700
    batch_size: int = 8
    lr: float = 1e-4
    lr_factor: float = 0.2
    lr_drop_epochs: tuple[int, ...] = (561, 631)
    score_window: int = 21
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "reconstruction_width", "segmentation_width", "epochs", "batch_size", "downsample")
        check_at_least(0, self, "lr", "lr_factor")
        for name in ("clean_fraction", "rotation_probability"):
            check_setting(0 <= getattr(self, name) <= 1, self, name, "must be in [0, 1]")
        check_setting(0 <= self.opacity[0] <= self.opacity[1] <= 1, self, "opacity", "must be a range within [0, 1]")
        is_odd = self.score_window >= 1 and self.score_window % 2 == 1
        check_setting(is_odd, self, "score_window", "must be an odd integer >= 1")
        check_setting(bool(self.textures), self, "textures", "must be a folder with images, or 'generated'")


class DRAEM(Method):
    """Removes simulated defects and segments them; the anomaly map is the probability of a defect."""

    learned = ("reconstruction", "segmentation")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    reconstruction: ReconstructionNetwork  # in eval mode, as the other network
    segmentation: SegmentationNetwork

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        multiple = STRIDE * settings.downsample
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} (32 of DRAEM's networks, times downsample = "
                f"{settings.downsample}), got {setup.size[0]} x {setup.size[1]}. Change the size of the images."
            )
        self._folder = texture_folder(settings.textures)

    def build_reconstruction(self) -> ReconstructionNetwork:
        """Return the untrained autoencoder."""
        return ReconstructionNetwork(self.settings.reconstruction_width)

    def build_segmentation(self) -> SegmentationNetwork:
        """Return the untrained U-Net."""
        return SegmentationNetwork(self.settings.segmentation_width)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train both networks on good images with simulated defects."""
        settings = self.settings
        reconstruction = self.initialize(self.build_reconstruction)
        segmentation = self.initialize(self.build_segmentation, self.setup.seed + 1)
        parameters = chain(reconstruction.parameters(), segmentation.parameters())
        training = TrainingStep(self.setup, torch.optim.Adam, parameters, lr=settings.lr)
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same defects on every device

        for epoch in self.epochs(settings.epochs, reconstruction, segmentation, training, generator):
            if epoch in settings.lr_drop_epochs:
                training.optimizer.param_groups[0]["lr"] *= settings.lr_factor
            reconstruction.train()
            segmentation.train()
            batches = (random_images(train, settings.batch_size, generator) for _ in range(2))
            for images, sources in zip(*batches, strict=True):
                clean, defective, masks = self.make_defects(images, sources, generator)
                losses = self.losses(reconstruction, segmentation, clean, defective, masks)
                training.minimize(torch.stack(losses).sum(), len(images))
            loss = training.epoch_loss()
            self.reconstruction, self.segmentation = reconstruction.eval(), segmentation.eval()
            progress(epoch, settings.epochs, loss)

    def make_defects(self, images: Tensor, sources: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return clean images, the same with simulated defects, and masks (b, 1, h, w) of the defects.

        Args:
            images: (b, 3, H, W) in [0, 1].
            sources: (b, 3, H, W) other images, from which textures are generated.
            generator: random generator on the CPU.
        """
        settings, count = self.settings, len(images)
        clean, sources = (F.avg_pool2d(batch.cpu(), settings.downsample) for batch in (images, sources))
        size = (clean.shape[2], clean.shape[3])
        is_rotated = torch.rand(count, generator=generator) < settings.rotation_probability
        degrees = (180 * torch.rand(count, generator=generator) - 90) * is_rotated
        clean = torch.where(is_rotated[:, None, None, None], rotate(clean, degrees, "bilinear"), clean)
        textures = self._folder.load(count, size, generator) if self._folder else draw_textures(sources, generator)
        defective, masks = simulate_defects(
            clean, textures, threshold=settings.perlin_threshold, clean_fraction=settings.clean_fraction,
            opacity=settings.opacity, generator=generator,
        )  # fmt: skip
        device = self.setup.device
        return clean.to(device), defective.to(device), masks.to(device)

    def losses(
        self,
        reconstruction: ReconstructionNetwork,
        segmentation: SegmentationNetwork,
        clean: Tensor,
        defective: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return squared error and SSIM loss of the reconstruction, and the focal loss of the segmentation."""
        with autocast(self.setup):
            restored = reconstruction(defective)
            logits = segmentation(torch.cat([restored, defective], dim=1))
        restored = restored.to(clean.dtype)
        return F.mse_loss(restored, clean), ssim_loss(restored, clean), focal_loss(logits.to(clean.dtype), masks)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the probability of a defect at each pixel, and the maximum of its mean over windows."""
        _, maps = self.restore_and_segment(images)  # (b, h, w)
        window = self.settings.score_window
        scores = F.avg_pool2d(maps[:, None], window, stride=1, padding=window // 2).amax(dim=(1, 2, 3))
        if self.settings.downsample > 1:
            maps = upsample(maps, self.setup.size, align_corners=False)  # (b, H, W)
        return Prediction(scores, maps)

    def restore_and_segment(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions (b, 3, h, w) and probabilities of a defect (b, h, w), at the networks' resolution."""
        reconstruction, segmentation = self._inference_networks
        check_image_size(images, self.setup.size)
        images = F.avg_pool2d(images, self.settings.downsample)
        with autocast(self.setup):
            restored = reconstruction(images)
            logits = segmentation(torch.cat([restored, images], dim=1))
        return restored.float(), logits.float().softmax(dim=1)[:, 1]

    @cached_property
    def _inference_networks(self) -> tuple[ReconstructionNetwork, SegmentationNetwork]:
        return (
            with_compiled_methods(self.reconstruction, self.setup, "forward"),
            with_compiled_methods(self.segmentation, self.setup, "forward"),
        )

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the reconstruction, its error, and how training would change the image: a defect and its mask."""
        restored, _ = self.restore_and_segment(images)
        error = (restored - F.avg_pool2d(images, self.settings.downsample)).abs().mean(dim=1)
        generator = Generator().manual_seed(self.setup.seed)
        _, defective, masks = self.make_defects(images, images.roll(1, dims=0), generator)
        pictures = {
            "reconstruction": restored.clamp(0, 1),
            "reconstruction error": error,
            "simulated defect": defective.clamp(0, 1),
            "mask of the simulated defect": masks[:, 0],
        }
        return {name: upsample(picture, self.setup.size, align_corners=False) for name, picture in pictures.items()}

    @classmethod
    def file_hashes(cls, settings: Settings, weights: Path | None) -> dict[str, str]:  # noqa: ARG003
        """Return a hash of the texture files, if there are any."""
        folder = texture_folder(settings.textures)
        return {"textures": folder.sha256()} if folder else {}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments, and of the activations of one batch."""
        with torch.device("meta"):
            networks = (
                ReconstructionNetwork(settings.reconstruction_width),
                SegmentationNetwork(settings.segmentation_width),
            )
        n_weights = sum(parameter.numel() for network in networks for parameter in network.parameters())
        pixels = size[0] * size[1] // settings.downsample**2
        # At each level l, 1 / 4^l of the pixels, min(2^l, 8) times the width; the outputs of convolution and norm.
        widths = settings.reconstruction_width + settings.segmentation_width
        activations = sum(12 * widths * min(1 << level, 8) * pixels // (1 << 2 * level) for level in range(6))
        return 16 * n_weights + 4 * min(settings.batch_size, n_images) * activations


def ssim_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Return 1 - mean SSIM with an 11 x 11 Gaussian window and zeros beyond the border [C].

    The range of values in its constants is inferred from the reconstruction: the top is 255 if any value exceeds 128,
    else 1; the bottom is -1 if any value is below -0.5, else 0.
    """
    high = torch.where(restored.amax() > 128, 255.0, 1.0)
    value_range = high - torch.where(restored.amin() < -0.5, -1.0, 0.0)
    return 1 - ssim(restored, clean, "zeros", value_range=value_range).mean()


def focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of -(1 - p)^2 log p over pixels, p the smoothed probability of the true class [C].

    Args:
        logits: (b, 2, h, w) logits of both classes.
        masks: (b, 1, h, w), 1 for the second class.
    """
    probability = logits.softmax(dim=1)
    true, other = torch.where(masks > 0, probability.flip(1), probability).unbind(dim=1)  # each (b, h, w)
    p = true * (1 - SMOOTH) + other * SMOOTH + SMOOTH
    return -((1 - p).square() * p.log()).mean()


METHOD = DRAEM
