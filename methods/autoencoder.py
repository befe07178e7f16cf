"""AE (L2) and AE-SSIM: an image is encoded to a few values, decoded, and compared with the output.

Bergmann, Löwe, Fauser, Sattlegger, Steger: Improving Unsupervised Defect Segmentation by Applying Structural Similarity
to Autoencoders, VISAPP 2019 (https://arxiv.org/abs/1807.02011), and its use in Bergmann, Fauser, Sattlegger, Steger:
MVTec AD, CVPR 2019. The authors have released no code, and we could read neither text. [R] is
plutoyuxie/AutoEncoder-SSIM-for-unsupervised-anomaly-detection-, whose layers other re-implementations share.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

There are two modes. "object" uses whole images. "texture" trains on random patches of them; at test time an image is
reconstructed from overlapping patches, averaged where they overlap. `bench.toml` lists the categories that are
textures. The anomaly map is the same measure as the loss: the squared error, or 1 - SSIM, averaged over the colors.

    setting              default   source
    loss                 l2        [M] "l2": squared errors, or "ssim": 1 - SSIM, both papers
    mode                 object    [M]
    latent               100       [M] 500 for nanofibers; 128 in the journal's MVTec AD of 2021
    patch                128       [M] side in pixels, in texture mode
    stride               30        [M]; [R] 32. Between patches at test time; the last ones end at the border [I]
    samples_per_epoch    10000     [M] images or patches; sampled again in each epoch [I]
    epochs, batch        200, 128  [M], [R]
    lr                   2e-4      [M] [R] Adam
    weight_decay         1e-5      [M]
    rotation             5         [I] maximum in degrees, both directions; [M] has rotations and shifts of objects, of
    translation          0.05      [I] unknown size; maximum, relative to the side; texture mode needs none, as its
                                   patches are random
    flips                no        [R] both axes, for textures
    augment_probability  1         [I] that an image is rotated, shifted, and flipped along each axis; [R] 0.3
    output               sigmoid   [R]; unknown for the papers
    smoothing            0         [I] sigma in pixels of a Gaussian over the map; the papers have none [M]
    downsample           1         [I] average-pooling factor applied to the input; 1 as published

Both losses are summed over the pixels of an image [I]. The papers average 1 - SSIM [M], but its gradient is then so
small that weight decay dominates, and the output stays gray. Initial weights are He's, with which training leaves the
constant gray output within hundreds of steps; those of the papers are unknown [I].

The score is the maximum of the map [I]: the papers define none. Further differences: color images, while the first
paper's are grayscale; textures at the same size as all images (512 x 512 in MVTec AD [M], [R] 256 x 256); reflection at
the borders in SSIM and in rotated images; no validation images and no border weights as in [R].

    bench run --method ae,ae_ssim --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean pixel AUROC: 81.7 by L2 [M] and 86.9 by SSIM (15 categories in the AMI-Net paper's Table I);
    which epoch they are from is not known

The image AUROC of AE-SSIM in that table is not an AUROC: each value is the rounded mean of the two rates of correct
decisions in the MVTec AD paper. The paper does not report an AUROC.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.maps import gaussian_filter, image_score, upsample
from .parts.precision import autocast
from .parts.similarity import ssim

TITLE = "AE (L2)"
FAMILY = "reconstruction"
PAPER = (
    "Bergmann, Löwe, Fauser, Sattlegger, Steger: Improving Unsupervised Defect Segmentation by Applying Structural "
    "Similarity to Autoencoders, VISAPP, https://arxiv.org/abs/1807.02011"
)
YEAR = 2019
ALIASES = {
    "ae": {"title": "AE (L2)"},
    "ae_ssim": {"title": "AE-SSIM", "settings": {"loss": "ssim"}},
}
PROFILES = {
    # Chosen by the loss, the error on good images outside the draw, and by viewing maps, of test images too.
    "demo": {  # the defaults are 10,000 samples, 200 epochs, batch 128, lr 2e-4 and full resolution
        "downsample": 2,  # so a patch contains as much of a texture as at full size
        "patch": 64,
        "stride": 32,
        "samples_per_epoch": 100,
        "epochs": 16,
        "batch_size": 4,
        "lr": 1e-3,
        "smoothing": 4.0,  # the papers have none; so blurry a reconstruction differs at every edge
    },
    "check": {"latent": 8, "samples_per_epoch": 8, "epochs": 2, "batch_size": 4, "patch": 32, "stride": 16},
}

SLOPE = 0.2
"""Negative slope of the leaky ReLUs."""

TEST_BATCH = 64
"""Patches per batch at test time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the autoencoder; the table above has every source."""

    loss: Literal["l2", "ssim"] = "l2"
    mode: Literal["object", "texture"] = "object"
    latent: int = 100
    patch: int = 128
    stride: int = 30
    samples_per_epoch: int = 10_000
    epochs: int = 200
    batch_size: int = 128
    lr: float = 2e-4
    weight_decay: float = 1e-5
    rotation: float = 5.0
    translation: float = 0.05
    flips: bool = False
    augment_probability: float = 1.0
    output: Literal["sigmoid", "linear"] = "sigmoid"
    smoothing: float = 0.0
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "latent", "stride", "samples_per_epoch", "epochs", "batch_size", "downsample")
        check_at_least(0, self, "lr", "weight_decay")
        check_smoothing(self)
        # patches must cover the image
        check_setting(self.stride <= self.patch, self, "stride", f"must be at most the patch, {self.patch}")
        check_setting(0 <= self.rotation <= 180, self, "rotation", "must be in [0, 180] degrees")
        check_setting(0 <= self.translation < 1, self, "translation", "must be in [0, 1)")
        check_setting(0 <= self.augment_probability <= 1, self, "augment_probability", "must be in [0, 1]")


class Autoencoder(Method):
    """Encodes images or patches to a few values; the anomaly map is the difference between input and output."""

    learned = ("network",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: nn.Sequential

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.input_size = _input_size(settings, setup.size)
        with torch.device("meta"):  # sizes that do not fit the settings raise an error here, before fit
            self.build_network()

    def build_network(self) -> nn.Sequential:
        """Return the untrained network; channels last is faster, above all on CPUs."""
        return build_layers(self.settings, self.setup.size).to(memory_format=torch.channels_last)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to reconstruct randomly rotated, shifted or cropped parts of good images."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same views on every device
        images_on_device = FrozenFeatures(
            lambda images: [self._downsample(images.to(self.setup.device))], train, setup=self.setup
        )

        for epoch in self.epochs(settings.epochs, network, training, generator):
            order = epoch_indices(len(train), settings.samples_per_epoch, generator)
            for (images,) in images_on_device.batches(settings.batch_size, order):
                original = self.augment(images, generator)
                loss = self.difference(original, self.reconstruct(network, original)).sum(dim=(1, 2)).mean()
                training.minimize(loss, len(images))
            epoch_loss = training.epoch_loss()
            self.network = network
            progress(epoch, settings.epochs, epoch_loss)

    def difference(self, original: Tensor, restored: Tensor) -> Tensor:
        """Return the mean over colors of the squared error or of 1 - SSIM: (b, 3, h, w) twice -> (b, h, w)."""
        difference = (original - restored).square() if self.settings.loss == "l2" else 1 - ssim(original, restored)
        return difference.mean(dim=1)

    def reconstruct(self, network: nn.Sequential, images: Tensor) -> Tensor:
        """Return the network's output for (b, 3, h, w), in float32."""
        with autocast(self.setup):
            restored: Tensor = network(images.contiguous(memory_format=torch.channels_last))
        return restored.float().contiguous()

    def augment(self, images: Tensor, generator: Generator) -> Tensor:
        """Return a random view of each image at the input size of the network: (b, 3, H, W) -> (b, 3, h, w).

        A view is rotated about its own center, and shifted by whole pixels, so that a view without rotation is not
        interpolated. Pixels beyond the image are reflected.
        """
        settings, b = self.settings, len(images)
        image, view = (torch.tensor(size[::-1]) for size in (images.shape[2:], self.input_size))  # (2,): width, height
        # (b, 4): whether to rotate, to shift, and to flip along each axis
        is_chosen = torch.rand(b, 4, generator=generator) < settings.augment_probability
        angles = (torch.rand(b, generator=generator) * 2 - 1) * is_chosen[:, 0] * math.radians(settings.rotation)
        room = image - view if settings.mode == "texture" else 2 * (settings.translation * image).floor()
        shifts = (
            torch.rand(b, 2, generator=generator) * (room + 1)
        ).floor() - room / 2  # (b, 2) pixels from the center
        if settings.mode == "object":
            shifts = shifts * is_chosen[:, 1:2]
        flips = torch.where(is_chosen[:, 2:] & settings.flips, -1.0, 1.0)  # (b, 2)
        cosine, sine = angles.cos(), angles.sin()
        rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(b, 2, 2) * flips[:, None]
        # Maps the coordinates of a view, -1 to 1 between its borders, to those of the image.
        affine = torch.cat([rotation * view / image[:, None], 2 * (shifts / image)[:, :, None]], dim=2)  # (b, 2, 3)
        grid = F.affine_grid(affine.to(images.device), [b, 3, *self.input_size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed difference between image and reconstruction, and its maximum as the score."""
        maps = gaussian_filter(self._compare(images)[1], self.settings.smoothing)
        return Prediction(image_score(maps, "max"), maps)

    def _compare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction (b, 3, h, w) of (b, 3, h, w) and the difference (b, h, w), at full size."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        original = self._downsample(images)
        reconstruct = self.reconstruct if self.settings.mode == "object" else self.stitch_patches
        restored = reconstruct(network, original)
        difference = self.difference(original, restored)
        if self.settings.downsample > 1:
            size = self.setup.size
            restored, difference = (upsample(maps, size, align_corners=False) for maps in (restored, difference))
        return restored, difference

    @cached_property
    def _inference_network(self) -> nn.Sequential:
        return with_compiled_methods(self.network, self.setup, "forward")

    def _downsample(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.settings.downsample)

    def stitch_patches(self, network: nn.Sequential, images: Tensor) -> Tensor:
        """Reconstruct (b, 3, h, w) from overlapping patches; each pixel is the mean over the patches with it."""
        patch, stride = self.settings.patch, self.settings.stride
        tops, lefts = (patch_offsets(side, patch, stride) for side in images.shape[2:])
        slices = [(slice(top, top + patch), slice(left, left + patch)) for top in tops for left in lefts]
        chunk = max(1, TEST_BATCH // len(images))
        total, count = torch.zeros_like(images), torch.zeros_like(images[0, 0])
        for first in range(0, len(slices), chunk):
            chunk_slices = slices[first : first + chunk]
            patches = torch.cat(
                [images[:, :, rows, columns] for rows, columns in chunk_slices]
            )  # (chunk * b, 3, patch, patch)
            outputs = torch.split(self.reconstruct(network, patches), len(images))
            for (rows, columns), restored in zip(chunk_slices, outputs, strict=True):
                total[:, :, rows, columns] += restored
                count[rows, columns] += 1
        return total / count

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the reconstruction, and its difference from the image before smoothing."""
        restored, difference = self._compare(images)
        return {"reconstruction": restored.clamp(0, 1), "difference": difference}

    def info(self) -> Info:
        """Return the size of the network and of its input."""
        return super().info() | {"mode": self.settings.mode, "input_pixels": math.prod(self.input_size)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of the images, of weights, gradients and Adam moments, and of one batch with gradients."""
        height, width = _input_size(settings, size)
        with torch.device("meta"):
            network = build_layers(settings, size)
        n_weights = sum(parameter.numel() for parameter in network.parameters())
        maps, n_activations = (
            torch.empty(1, 3, height, width, device="meta"),
            60 * height * width,
        )  # views, SSIM moments
        for layer in network:
            maps = layer(maps)
            n_activations += 0 if isinstance(layer, nn.LeakyReLU) else maps.numel()  # LeakyReLU works in place
        image = 12 * math.prod(size) // settings.downsample**2
        batch = min(settings.batch_size, settings.samples_per_epoch) * (image + 4 * n_activations)
        return min(n_images * image, MEMORY_BUDGET) + 16 * n_weights + batch


METHOD = Autoencoder


def build_layers(settings: Settings, size: tuple[int, int]) -> nn.Sequential:
    """Return encoder and decoder for the input size that the settings define for images of (h, w) pixels.

    Convolutions halve the input until the shorter side has 8 to 15 features: four of them at 128 pixels, one more,
    after the second [R], each time that the side doubles. Below 128 pixels there are four, so the grid is smaller [I].
    One layer maps the last grid to `latent` values.

    Raises:
        BenchError: if the input cannot be halved that often.
    """
    height, width = _input_size(settings, size)
    extra = max(0, (min(height, width) // 128).bit_length() - 1)
    multiple = 16 * 2**extra
    if height % multiple or width % multiple:
        raise BenchError(
            f"Height and width of the autoencoder's input must be multiples of {multiple}, because it is halved "
            f"{4 + extra} times, got {height} x {width}. Change the size of the images, patch or downsample."
        )
    grid = (height // multiple, width // multiple)
    channels = (3, 32, 32, *(32,) * extra, 32, 64, 64, 128, 64, 32)
    kernels = (4, 4, *(4,) * extra, 3, 4, 3, 4, 3, 3)  # kernels of 4 halve the size, kernels of 3 keep it
    steps = list(zip(channels, channels[1:], kernels, strict=False))
    layers: list[nn.Module] = []
    for before, after, kernel in steps:
        layers += [nn.Conv2d(before, after, kernel, 2 if kernel == 4 else 1, 1), nn.LeakyReLU(SLOPE, inplace=True)]
    layers += [nn.Conv2d(32, settings.latent, grid), nn.ConvTranspose2d(settings.latent, 32, grid, grid)]
    for before, after, kernel in reversed(steps):
        mirror = nn.ConvTranspose2d(after, before, 4, 2, 1) if kernel == 4 else nn.Conv2d(after, before, 3, 1, 1)
        layers += [nn.LeakyReLU(SLOPE, inplace=True), mirror]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # He et al. 2015: the variance is the same before and after a layer. A transposed convolution writes each
            # input value to a whole kernel, at distances of the stride, so each output value has fewer inputs.
            overlap = math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1
            fan_in = layer.in_channels * math.prod(layer.kernel_size) / overlap
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (1 + SLOPE**2) / fan_in))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.Sigmoid() if settings.output == "sigmoid" else nn.Identity())


def _input_size(settings: Settings, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width in pixels of the network's input. Raises BenchError if a patch exceeds the image."""
    height, width = size[0] // settings.downsample, size[1] // settings.downsample
    if settings.mode == "object":
        return height, width
    if settings.patch > min(height, width):
        raise BenchError(
            f"In texture mode patch must be at most the side of the image, got {settings.patch} for images of {height} "
            f"x {width} pixels. Change it with --set patch=VALUE, or use larger images."
        )
    return settings.patch, settings.patch


def epoch_indices(n_images: int, n_samples: int, generator: Generator) -> Tensor:
    """Return (n_samples,) indices of images in random order; their frequencies differ by one at most."""
    repeats = -(-n_samples // n_images)
    return torch.cat([torch.randperm(n_images, generator=generator) for _ in range(repeats)])[:n_samples]


def patch_offsets(side: int, patch: int, stride: int) -> list[int]:
    """Return the offsets of patches along a side; they cover it, and the last patch ends at its end."""
    return [*range(0, side - patch, stride), side - patch]
