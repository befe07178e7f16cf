"""SCADN: semantic context based anomaly detection network (Yan, Zhang, Xu, Hu, Heng; AAAI 2021).

Stripes of several widths cover half of an image, in columns or in rows. The generator of a GAN restores the image. Four
masks of each width cover each pixel twice, once by a column and once by a row. What cannot be restored is anomalous.

The authors' code: Xudong-Yan/SCADN at 5f25dd9 (no license: read, not copied). We could read only the abstract. The
defaults are those of the code.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting               default   source
    scales                1, 2, 3   [C] stripes of side / 4, / 8, / 16: 128, 64, 32 of 512 pixels
    fill                  1         [C] value of masked pixels, white
    width, blocks         64, 8     [C] channels of the first stage; dilated residual blocks
    masked_weight         4         [C] of the squared error of masked pixels, relative to visible ones
    adversarial_weight    0.001     [C] 0 trains without the discriminator
    epochs, batch         200, 4    [C]; incomplete batches are used [I], dropped in the code
    lr, lr_discriminator  1e-4,     [C] Adam with betas (0, 0.9)
                          1e-5
    scale_choice          largest   [C] per image the scale whose mean error exceeds that of the training images most;
                                    "mean" averages the maps of all scales [I]
    score                 mean      [C] of the map, scaled over the test set in the code
    smoothing             0         [C] none; sigma in pixels
    downsample            1         [I] average-pooling factor applied to the input; 1 as published

At test time the masks are the same for every image and nothing is random: 4 masks of 3 scales are 12 passes. The map of
a scale is the squared error of masked pixels, the larger one of both directions.

Differences from the code: it computes the losses of both networks first, steps the discriminator and then uses the old
graph for the generator, which raises an error since torch 1.5; here the discriminator's output for the generator is
computed again after its step. The last epoch is used (code: the smallest error on the training images, every 10
epochs). Spectral norm is torch's current one, whose power iteration starts half a step later.

    bench run --method scadn --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image AUROC: 81.8 on MVTec AD [M], how the epoch was selected is not stated; the code selects without
    test images and has no pixel metric
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.inference_batches import convolution_format, passes_per_batch
from .parts.inpainting_gan import Discriminator, Generator
from .parts.maps import Score, gaussian_filter, image_score, upsample
from .parts.masks import stripe_masks
from .parts.precision import autocast

TITLE = "SCADN"
FAMILY = "mask-based"
PAPER = (
    "Yan, Zhang, Xu, Hu, Heng: Learning Semantic Context from Normal Samples for Unsupervised Anomaly Detection, "
    "AAAI, https://doi.org/10.1609/aaai.v35i4.16420"
)
YEAR = 2021
PROFILES = {
    "demo": {  # the defaults are width 64, batch 4, lr 1e-4 and images of 512 x 512 pixels
        "downsample": 2, "width": 8, "blocks": 4, "epochs": 80, "batch_size": 2, "lr": 1e-3, "lr_discriminator": 1e-4,
    },
    "check": {"width": 2, "blocks": 1, "epochs": 2},
}  # fmt: skip

BETAS = (0.0, 0.9)
"""Betas of Adam [C]."""

NORM_PERIOD = 10
"""Epochs between two computations of the mean errors of good images, which are also computed after the last epoch."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of SCADN; the table above has the source of each."""

    scales: tuple[int, ...] = (1, 2, 3)
    fill: float = 1.0
    width: int = 64
    blocks: int = 8
    masked_weight: float = 4.0
    adversarial_weight: float = 0.001
    epochs: int = 200
    batch_size: int = 4
    lr: float = 1e-4
    lr_discriminator: float = 1e-5
    scale_choice: Literal["largest", "mean"] = "largest"
    score: Score = "mean"
    smoothing: float = 0.0
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "width", "blocks", "epochs", "batch_size", "downsample")
        check_at_least(0, self, "masked_weight", "adversarial_weight", "lr", "lr_discriminator")
        check_smoothing(self)
        is_valid = bool(self.scales) and min(self.scales) >= 0
        check_setting(is_valid, self, "scales", "must be one or more integers >= 0")


class SCADN(Method):
    """Restores images behind stripes by a GAN; the anomaly map is the squared error of the masked pixels."""

    learned = ("network", "normal_errors")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(512, 512, keep_aspect=True)  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: Generator  # in eval mode
    normal_errors: Tensor  # (scales,) mean error of the training images

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        multiple = Generator.STRIDE * settings.downsample
        if setup.size[0] % multiple or setup.size[1] % multiple or min(setup.size) < 4 * multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} (8 of SCADN's generator, times downsample = "
                f"{settings.downsample}) and at least {4 * multiple}, got {setup.size[0]} x {setup.size[1]}. Change "
                "the size of the images."
            )
        self._size = (setup.size[0] // settings.downsample, setup.size[1] // settings.downsample)
        masks = [stripe_masks(*self._size, scale) for scale in settings.scales]
        self.test_masks = torch.stack(masks).to(setup.device)  # (scales, 4, h, w), True where masked

    def build_network(self) -> Generator:
        """Return the untrained generator."""
        return Generator(self.settings.width, self.settings.blocks)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the generator to restore good images behind random stripes, against the discriminator."""
        settings = self.settings
        network = self.initialize(self.build_network)
        discriminator = self.initialize(lambda: Discriminator(settings.width), self.setup.seed + 1)
        training = TrainingStep(self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, betas=BETAS)
        discriminator_training = TrainingStep(
            self.setup, torch.optim.Adam, discriminator.parameters(), lr=settings.lr_discriminator, betas=BETAS
        )
        generator = torch.Generator().manual_seed(self.setup.seed)  # on the CPU: the same masks on every device
        masks = self.test_masks.flatten(0, 1)  # (scales * 4, h, w)

        for epoch in self.epochs(settings.epochs, network, discriminator, training, discriminator_training, generator):
            network.train()
            for images in train.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                original = self.scale(images.to(self.setup.device))
                choice = torch.randint(len(masks), (len(images),), generator=generator)
                batch_masks = masks[choice.to(masks.device)]  # (b, h, w)
                restored = self.restore_images(network, original, batch_masks)
                if settings.adversarial_weight:
                    loss = self.discriminator_loss(discriminator, original, restored.detach())
                    discriminator_training.minimize(loss, len(images))
                losses = self.generator_losses(discriminator, original, restored, batch_masks)
                training.minimize(losses["total"], len(images))
            loss_of_epoch = training.epoch_loss()
            if settings.adversarial_weight:
                discriminator_training.epoch_loss()
            self.network = network.eval()
            if epoch % NORM_PERIOD == 1 or epoch == settings.epochs:
                self.normal_errors = self._normal_errors(train)
            progress(epoch, settings.epochs, loss_of_epoch)

    def restore_images(self, network: Generator, images: Tensor, masks: Tensor) -> Tensor:
        """Return the generator's output (b, 3, h, w) for images with masks (b, h, w)."""
        with autocast(self.setup):
            restored: Tensor = network(torch.where(masks[:, None], self.settings.fill, images))
        return restored.float()

    def discriminator_loss(self, discriminator: Discriminator, original: Tensor, restored: Tensor) -> Tensor:
        """Return the mean binary cross entropy of the discriminator for both kinds of images (b, 3, h, w)."""
        discriminator.requires_grad_(requires_grad=True)
        with autocast(self.setup):
            logits = [discriminator(images).float() for images in (original, restored)]
        labels = torch.ones_like(logits[0]), torch.zeros_like(logits[1])
        losses = [F.binary_cross_entropy_with_logits(*pair) for pair in zip(logits, labels, strict=True)]
        return (losses[0] + losses[1]) / 2

    def generator_losses(
        self, discriminator: Discriminator, original: Tensor, restored: Tensor, masks: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss of the generator, "total", and its terms; no gradient of the discriminator is computed."""
        error, is_masked = (restored - original).square(), masks[:, None]
        visible_error, masked_error = (error * ~is_masked).mean(), (error * is_masked).mean()  # over all pixels
        restoration = (visible_error + self.settings.masked_weight * masked_error) / masks.float().mean()
        if not self.settings.adversarial_weight:
            return {"restoration": restoration, "total": restoration}
        discriminator.requires_grad_(requires_grad=False)
        with autocast(self.setup):
            logits = discriminator(restored).float()
        adversarial = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        total = restoration + self.settings.adversarial_weight * adversarial
        return {"restoration": restoration, "adversarial": adversarial, "total": total}

    @torch.no_grad()
    def _normal_errors(self, train: Images) -> Tensor:
        total = torch.zeros(len(self.settings.scales), device=self.setup.device)
        for images in train.batches(self.settings.batch_size):
            errors = self.errors(self.scale(images.to(self.setup.device)))[1]
            total += errors.mean(dim=(2, 3)).sum(dim=1)
        return total / len(train)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the error map of one scale, or the mean over scales, and its score."""
        check_image_size(images, self.setup.size)
        errors = self.errors(self.scale(images))[1]
        maps = errors.mean(dim=0)  # (b, h, w)
        if self.settings.scale_choice == "largest":
            maps = errors[self.chosen_scales(errors), torch.arange(len(images), device=errors.device)]
        maps = upsample(maps, self.setup.size, align_corners=False)  # (b, H, W)
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    def errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Restore images (b, 3, h, w) behind all stripes.

        Returns:
            The outputs of the generator (scales, 4, b, 3, h, w), and the error maps (scales, b, h, w): the squared
            error of masked pixels, mean over colors, the larger one of both directions.
        """
        network, (n_scales, n_masks) = self._inference_network, self.test_masks.shape[:2]
        masks = self.test_masks[:, :, None].expand(-1, -1, len(images), -1, -1)  # (scales, 4, b, h, w)
        inputs = images.expand(n_scales, n_masks, *images.shape).flatten(0, 2)  # (scales * 4 * b, 3, h, w)
        inputs = inputs.contiguous(memory_format=convolution_format(images.device))
        settings = self.settings
        batch = passes_per_batch(images.device, Generator.activation_bytes(settings.width, settings.blocks, self._size))
        batches = zip(inputs.split(batch), masks.flatten(0, 2).split(batch), strict=True)
        restored = torch.cat([self.restore_images(network, *batch_inputs) for batch_inputs in batches])
        restored = restored.contiguous().view(n_scales, n_masks, *images.shape)
        squared = (restored - images).square().mean(dim=3)  # (scales, 4, b, h, w)
        return restored, (squared * masks).amax(dim=1)

    def chosen_scales(self, errors: Tensor) -> Tensor:
        """Return for each image the scale whose mean error exceeds the one of good images most, (b,)."""
        return (errors.mean(dim=(2, 3)) - self.normal_errors[:, None]).argmax(dim=0)

    @cached_property
    def _inference_network(self) -> Generator:
        return with_compiled_methods(self.network, self.setup, "forward")

    def scale(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] at the resolution of the network."""
        return F.avg_pool2d(images, self.settings.downsample)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each scale the column mask, the image composed of both column masks' restorations, the error.

        "mask" is the one of the widest stripes.
        """
        check_image_size(images, self.setup.size)
        restored, errors = self.errors(self.scale(images))
        pictures: dict[str, Tensor] = {}
        for scale, outputs, masks, error in zip(self.settings.scales, restored, self.test_masks, errors, strict=True):
            name = f"{2 ** (scale + 1)} stripes"
            mask_name = "mask" if scale == min(self.settings.scales) else f"mask {name}"
            pictures[mask_name] = masks[0].float().expand(len(images), -1, -1)
            pictures[f"restored {name}"] = torch.where(masks[0], outputs[0], outputs[1])
            pictures[f"error {name}"] = error
        return {name: upsample(picture, self.setup.size, align_corners=False) for name, picture in pictures.items()}

    def info(self) -> Info:
        """Return the size of the generator, its passes per image, and the mean error of good images by scale."""
        errors = {
            f"normal_error_{2 ** (scale + 1)}_stripes": float(error)
            for scale, error in zip(self.settings.scales, self.normal_errors, strict=True)
        }
        return super().info() | {"passes": 4 * len(self.settings.scales)} | errors

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments of both networks, and of one step."""
        with torch.device("meta"):
            networks = [Generator(settings.width, settings.blocks), Discriminator(settings.width)]
        n_weights = sum(parameter.numel() for network in networks for parameter in network.parameters())
        network_size = (size[0] // settings.downsample, size[1] // settings.downsample)
        step = Generator.activation_bytes(settings.width, settings.blocks, network_size)
        return 16 * n_weights + min(settings.batch_size, n_images) * step


METHOD = SCADN
