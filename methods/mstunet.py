"""MSTUnet, our reading: masked Swin transformer U-Net (Jiang et al.; IEEE TII 19(2), 2023).

Jiang, Zhu, Bilal, Cui, Kumar, Dou, Su, Xu: Masked Swin Transformer Unet for Industrial Anomaly Detection. We could read
no more than the beginning of its abstract and a sentence about it in the paper of AMI-Net, and found no code: this is
NOT a reproduction, and tables must call it "MSTUnet (our reading)".

Defects are simulated on good images and parts of the images are masked. A U-Net of Swin transformer blocks inpaints
the image without the defect. A convolutional U-Net gets the image and the inpainted image, and segments the defects.

    bench run --method mstunet --profile code --dataset mvtec --protocol one-for-one --preprocessing paper

There is no expected number: none of the paper's results were available to us.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

[AMI] is the paper of AMI-Net. Every default is [I]. Where the paper is not known we use the choices of DRAEM (Zavrtanik
et al., ICCV 2021), the most similar method with public code, and of Swin-Unet (Cao et al., 2021).

    what                                                                    source
    inpainting of a masked image by a U-Net of Swin transformer blocks      [A] [AMI]
    anomalies are simulated on good images; random masks                    [AMI]
    a convolutional U-Net localizes from the inpainted image                [M]
    image size, widths, depths, windows, size and ratio of the mask, how    [I]
    defects are simulated, losses, optimizer, epochs, masks at test time,
    score

`textures` is a folder of images from which defects are cut, or "generated": crops of other training images and
generated patterns. The Describable Textures Dataset, which DRAEM uses, is not part of this project; the record states
the source.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.draem_networks import SegmentationNetwork
from .parts.maps import image_score, mean_filter, upsample
from .parts.masks import complementary_masks
from .parts.precision import autocast
from .parts.similarity import ssim
from .parts.simulated_defects import simulate_defects
from .parts.swin_unet import SwinUNet
from .parts.textures import draw_textures, random_images, texture_folder

TITLE = "MSTUnet (our reading)"  # the paper's text was not available to us
FAMILY = "mask-based"
PAPER = (
    "Jiang, Zhu, Bilal, Cui, Kumar, Dou, Su, Xu: Masked Swin Transformer Unet for Industrial Anomaly Detection, "
    "IEEE TII 19(2), https://doi.org/10.1109/TII.2022.3199228"
)
YEAR = 2023
PROFILES = {
    "demo": {  # the defaults are 256 x 256 pixels, widths 96 to 768 and 64 to 512, and 700 epochs
        "downsample": 2, "cell": 8, "width": 24, "depths": [2, 2, 2], "heads": [2, 4, 8], "localizer_width": 8,
        "epochs": 100, "batch_size": 2, "lr": 1e-3, "lr_drop_epochs": [80, 90], "score_window": 11,
    },
    "check": {
        "cell": 8, "width": 8, "depths": [1, 1], "heads": [1, 2], "window": 4, "localizer_width": 2, "epochs": 2,
        "batch_size": 3,
    },
}  # fmt: skip

LOCALIZER_STRIDE = 32
"""Sides of images must be multiples of this, times `downsample`, for the convolutional U-Net."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of MSTUnet. Every default is [I]."""

    textures: str = "generated"  # or a folder with images
    opacity: tuple[float, float] = (0.0, 0.8)  # range of the image's weight in a defect; this and the next two: DRAEM's
    clean_fraction: float = 0.5  # fraction of the training images without a simulated defect
    perlin_threshold: float = 0.5  # value of the noise above which a pixel is in a defect
    cell: int = 16  # side in pixels of a square that is masked
    mask_ratio: tuple[float, float] = (0.25, 0.5)  # range of the masked fraction in training
    mask_at_test: Literal["complementary", "none"] = "complementary"  # two passes, each masks one half; or one pass
    test_seed: int = 0  # seed of the masks at test time, which are the same for every image
    patch: int = 4  # side in pixels of an embedded patch
    width: int = 96  # this and the next three: Swin-Unet's
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 8  # so that windows divide the grids of 256 x 256 pixels
    localizer_width: int = 64  # this and all that follow: DRAEM's
    ssim_weight: float = 1.0
    focal_weight: float = 1.0
    epochs: int = 700
    batch_size: int = 8
    lr: float = 1e-4  # of Adam
    lr_factor: float = 0.2
    lr_drop_epochs: tuple[int, ...] = (561, 631)
    score_window: int = 21  # side in pixels of the mean filter, with zeros outside, before the maximum
    downsample: int = 1  # average-pooling factor applied to the input

    def __post_init__(self) -> None:
        check_at_least(
            1, self, "cell", "patch", "width", "window", "localizer_width", "epochs", "batch_size", "downsample"
        )
        check_at_least(0, self, "ssim_weight", "focal_weight", "lr", "lr_factor")
        check_setting(bool(self.textures), self, "textures", "must be a folder with images, or 'generated'")
        check_setting(0 <= self.clean_fraction <= 1, self, "clean_fraction", "must be in [0, 1]")
        check_setting(0 <= self.opacity[0] <= self.opacity[1] <= 1, self, "opacity", "must be a range within [0, 1]")
        is_range = 0 <= self.mask_ratio[0] <= self.mask_ratio[1] < 1
        check_setting(is_range, self, "mask_ratio", "must be a range within [0, 1)")
        has_stages = len(self.depths) >= 2 and min(self.depths) >= 1
        check_setting(has_stages, self, "depths", "must be two or more integers >= 1")
        is_odd = self.score_window >= 1 and self.score_window % 2 == 1
        check_setting(is_odd, self, "score_window", "must be an odd integer >= 1")


class MSTUnet(Method):
    """Inpaints masked images without their defects, and segments what differs; the anomaly map is the probability."""

    learned = ("inpainter", "localizer")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [I]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    inpainter: SwinUNet  # in eval mode, as the other network
    localizer: SegmentationNetwork

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        multiple = LOCALIZER_STRIDE * settings.downsample
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} (32 of the convolutional U-Net, times downsample = "
                f"{settings.downsample}), got {setup.size[0]} x {setup.size[1]}. Change the size of the images."
            )
        self._size = (setup.size[0] // settings.downsample, setup.size[1] // settings.downsample)
        with torch.device("meta"):  # inconsistent settings raise an error here, before fit
            self.build_inpainter()
        self._folder = texture_folder(settings.textures)
        self.test_masks = self._masks_at_test().to(setup.device)  # (passes, h, w), True where masked

    def build_inpainter(self) -> SwinUNet:
        """Return the untrained U-Net of Swin transformer blocks."""
        return _build_inpainter(self.settings, self._size)

    def build_localizer(self) -> SegmentationNetwork:
        """Return the untrained convolutional U-Net."""
        return SegmentationNetwork(self.settings.localizer_width)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train both networks on good images with simulated defects."""
        settings = self.settings
        inpainter = self.initialize(self.build_inpainter)
        localizer = self.initialize(self.build_localizer, self.setup.seed + 1)
        parameters = chain(inpainter.parameters(), localizer.parameters())
        training = TrainingStep(self.setup, torch.optim.Adam, parameters, lr=settings.lr)
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same defects on every device

        for epoch in self.epochs(settings.epochs, inpainter, localizer, training, generator):
            if epoch in settings.lr_drop_epochs:
                training.optimizer.param_groups[0]["lr"] *= settings.lr_factor
            inpainter.train()
            localizer.train()
            batches = (random_images(train, settings.batch_size, generator) for _ in range(2))
            for images, sources in zip(*batches, strict=True):
                clean, defective, defects = self.make_defects(images, sources, generator)
                masks = self.random_masks(len(images), generator).to(clean.device)
                losses = self.losses(inpainter, localizer, clean, defective, defects, masks=masks)
                training.minimize(losses["total"], len(images))
            loss = training.epoch_loss()
            self.inpainter, self.localizer = inpainter.eval(), localizer.eval()
            progress(epoch, settings.epochs, loss)

    def make_defects(self, images: Tensor, sources: Tensor, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return clean images, the same with simulated defects, and the masks (b, h, w) of the defects.

        Args:
            images: (b, 3, H, W) in [0, 1].
            sources: (b, 3, H, W) other images, from which textures are generated.
            generator: random generator on the CPU.
        """
        settings, count = self.settings, len(images)
        clean, sources = (self.scale(batch.cpu()) for batch in (images, sources))
        textures = (
            self._folder.load(count, self._size, generator) if self._folder else draw_textures(sources, generator)
        )
        defective, defects = simulate_defects(
            clean, textures, threshold=settings.perlin_threshold, clean_fraction=settings.clean_fraction,
            opacity=settings.opacity, generator=generator,
        )  # fmt: skip
        device = self.setup.device
        return clean.to(device), defective.to(device), defects[:, 0].bool().to(device)

    def random_masks(self, count: int, generator: Generator) -> Tensor:
        """Return (count, h, w), True in random squares: a uniform random fraction of each image."""
        cell, (height, width) = self.settings.cell, self._size
        rows, columns = -(-height // cell), -(-width // cell)
        low, high = self.settings.mask_ratio
        ratios = low + (high - low) * torch.rand(count, 1, generator=generator)
        ranks = torch.rand(count, rows * columns, generator=generator).argsort(dim=1).argsort(dim=1)
        is_masked = (ranks < ratios * rows * columns).view(count, rows, columns)
        return is_masked.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width]

    def losses(
        self,
        inpainter: SwinUNet,
        localizer: SegmentationNetwork,
        clean: Tensor,
        defective: Tensor,
        defects: Tensor,
        *,
        masks: Tensor,
    ) -> dict[str, Tensor]:
        """Return the loss, "total", and its terms.

        Args:
            inpainter: the inpainting network to train.
            localizer: the segmentation network to train.
            clean: (b, 3, h, w) images without defects.
            defective: the same with simulated defects.
            defects: (b, h, w), True for defect pixels.
            masks: (b, h, w), True for the pixels that are 0 in the input of the inpainter.
        """
        with autocast(self.setup):
            restored = inpainter(defective * ~masks[:, None])
            logits = localizer(torch.cat([restored, defective], dim=1))  # (b, 2, h, w)
        restored = restored.float().contiguous()
        losses = {
            "mse": F.mse_loss(restored, clean),
            "ssim": 1 - ssim(clean, restored).mean(),
            "focal": focal_loss(logits.float(), defects),
        }
        total = losses["mse"] + self.settings.ssim_weight * losses["ssim"]
        return losses | {"total": total + self.settings.focal_weight * losses["focal"]}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the probability of a defect at each pixel, and the maximum of its mean over windows."""
        _, probabilities = self.restore_and_localize(images)
        smoothed = mean_filter(probabilities, self.settings.score_window, "zeros")
        maps = upsample(probabilities, self.setup.size, align_corners=False)  # (b, H, W)
        return Prediction(image_score(smoothed, "max"), maps)

    def restore_and_localize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return inpainted images (b, 3, h, w) and probabilities of a defect (b, h, w), at the networks' resolution."""
        inpainter, localizer = self._inference_networks
        check_image_size(images, self.setup.size)
        original = self.scale(images)
        masks = self.test_masks[:, None, None]  # (passes, 1, 1, h, w)
        with autocast(self.setup):
            outputs = inpainter((original * ~masks).flatten(0, 1)).view(len(masks), *original.shape)
            # A single pass gives all pixels; two passes give the pixels that each one masked.
            restored = outputs[0] if len(masks) == 1 else (outputs * masks).sum(dim=0)
            logits = localizer(torch.cat([restored, original], dim=1))  # (b, 2, h, w)
        return restored.float(), logits.float().softmax(dim=1)[:, 1]

    @cached_property
    def _inference_networks(self) -> tuple[SwinUNet, SegmentationNetwork]:
        return (
            with_compiled_methods(self.inpainter, self.setup, "forward"),
            with_compiled_methods(self.localizer, self.setup, "forward"),
        )

    def _masks_at_test(self) -> Tensor:
        if self.settings.mask_at_test == "none":
            return torch.zeros(1, *self._size, dtype=torch.bool)
        generator = Generator().manual_seed(self.settings.test_seed)
        return complementary_masks(*self._size, cell=self.settings.cell, subsets=2, generator=generator)

    def scale(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] at the resolution of the networks."""
        return F.avg_pool2d(images, self.settings.downsample)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return a mask, the inpainted image and its error, and a simulated defect as in training with its mask."""
        restored, _ = self.restore_and_localize(images)
        generator = Generator().manual_seed(self.setup.seed)
        _, defective, defects = self.make_defects(images, images.roll(1, dims=0), generator)
        pictures = {
            "mask": self.test_masks[0].float().expand(len(images), -1, -1),
            "inpainted": restored.clamp(0, 1),
            "inpainting error": (restored - self.scale(images)).abs().mean(dim=1),
            "simulated defect": defective.clamp(0, 1),
            "mask of the simulated defect": defects.float(),
        }
        return {name: upsample(picture, self.setup.size, align_corners=False) for name, picture in pictures.items()}

    def info(self) -> Info:
        """Return the size of the networks, the passes of the inpainter per image, and the source of the textures."""
        source = "folder" if self._folder else "generated"
        return super().info() | {"passes": len(self.test_masks), "texture_source": source}

    @classmethod
    def file_hashes(cls, settings: Settings, weights: Path | None) -> dict[str, str]:  # noqa: ARG003
        """Return a hash of the texture files, if there are any."""
        folder = texture_folder(settings.textures)
        return {"textures": folder.sha256()} if folder else {}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments, and of the activations of one batch."""
        network_size = (size[0] // settings.downsample, size[1] // settings.downsample)
        with torch.device("meta"):
            networks = (_build_inpainter(settings, network_size), SegmentationNetwork(settings.localizer_width))
        n_weights = sum(parameter.numel() for network in networks for parameter in network.parameters())
        swin = SwinUNet.activation_bytes(network_size, settings.patch, settings.width, settings.depths)
        # At level l of the convolutional U-Net 1 / 4^l of the pixels and min(2^l, 8) times the width, 12 maps each.
        pixels = network_size[0] * network_size[1] * settings.localizer_width
        convolutional = 4 * sum(12 * min(1 << level, 8) * pixels // (1 << 2 * level) for level in range(6))
        return 16 * n_weights + min(settings.batch_size, n_images) * (swin + convolutional)


def focal_loss(logits: Tensor, defects: Tensor) -> Tensor:
    """Return the mean of -(1 - p)^2 log p, p the probability of the true class: (b, 2, h, w) and (b, h, w)."""
    log_p = -F.cross_entropy(logits, defects.long(), reduction="none")
    return -((1 - log_p.exp()).square() * log_p).mean()


METHOD = MSTUnet


def _build_inpainter(settings: Settings, size: tuple[int, int]) -> SwinUNet:
    return SwinUNet(
        size, patch=settings.patch, width=settings.width, depths=settings.depths, heads=settings.heads,
        window=settings.window,
    )  # fmt: skip
