"""TDG: a hierarchical generative model that discriminates transformations (Sheynin, Benaim, Wolf; ICCV 2021).

Small patch GANs are trained on the few images, one per scale of an image pyramid. Besides fakes, each discriminator
classifies which of M transformations (as quarter turns) a patch has. In the test an image is transformed in all M ways;
patches of good images get high probabilities of the right transformation. HTDG is another name of the method.

Paper: https://arxiv.org/abs/2104.14535. Code, without a license:
https://github.com/shellysheynin/A-Hierarchical-Transformation-Discriminating-Generative-Model-for-Few-Shot-Anomaly-Detection
at ab47850. We could not read the full paper; [P] is its supplement in the repository.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting               default       source
    transformations       rotations     [C] 4 quarter turns, better on defects [P]; "all": 54 flips, shifts, turns, gray
    max_side, min_side    64, 25        [C] pixels of the largest and of the smallest scale, which may have one more
    scale_factor          0.75          [C] the number of scales follows from it; 5 for 128 pixels
    width                 32            [C] channels, twice as many from the fifth scale on
    iterations            1000          [C] per scale
    steps                 3             [C] steps of discriminator and of generator per iteration
    lr, betas             5e-4, 0.5     [C] Adam; the second beta is 0.999
    lr_drop               500           [C] iteration after which the rate of the discriminator is a tenth
    reconstruction_weight 100           [C] weight of the generator's squared error at a fixed noise
    noise                 0.1           [C] amplitude relative to the mean error of the enlarged previous scale
    fraction              0.1           [C] fraction of an image's patches that count, the lowest; 0.05 for one image
    [P] batch_size            16            [I] random images per step; the code uses all k at once

The map is [I]: the code has none. It is 1 minus the probability of the right transformation, turned back, averaged over
the transformations without shifts and over the scales.

Differences from the code: no histogram equalization, which the code applies to the training images of the 54
transformations but not to test images; a failing transformation raises an error, the code then leaves the image as it
is; a new fake is generated in each step of the generator; shifts are in the direction of the code (right and down for
1), the supplement states the opposite one [P]; scales are not rescaled over the test set, one of two variants [C].

    bench run --method tdg --profile code --dataset mvtec --protocol kshot --k 2,4,8 --preprocessing paper
    published mean image AUROC: 75.6/77.9/78.0 for 1/5/10 images with 4 rotations ([P], Table 5; no selection stated;
    standard deviations of 6 to 7 over draws), but 71.2/72.7/75.2 for k = 2/4/8 (Table IV of AMI-Net, from RegAD's
    authors): below the authors' own result for one image. No pixel values are published
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator as RandomGenerator
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.image_pyramid import ImagePyramid
from .parts.maps import upsample
from .parts.patch_gan import BORDER, Generator, GeneratorChain, PatchNetwork
from .parts.precision import autocast

TITLE = "TDG"
FAMILY = "few-shot"
PAPER = (
    "Sheynin, Benaim, Wolf: A Hierarchical Transformation-Discriminating Generative Model for Few Shot Anomaly "
    "Detection, ICCV, https://arxiv.org/abs/2104.14535"
)
YEAR = 2021
PROFILES = {
    "demo": {"max_side": 40, "width": 16, "iterations": 200, "steps": 1, "lr_drop": 100, "batch_size": 4},
    "check": {"max_side": 16, "min_side": 13, "width": 4, "iterations": 3, "steps": 1, "batch_size": 2},
}

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue [C]."""

SHIFT = 0.15
"""Of the side of an image [C]."""

UPDATES = 20
"""Calls of progress per scale, at most."""


class Transformation(NamedTuple):
    """A flip, then a shift, then quarter turns counter-clockwise, then gray; x and y are -1, 0 or 1."""

    gray: bool
    flip: bool
    x: int
    y: int
    turns: int

    def __call__(self, images: Tensor) -> Tensor:
        """Transform square images (b, c, h, h); a shift mirrors the image at the border."""
        side = images.shape[3]
        if self.flip:
            images = images.flip(3)
        for dim, sign in ((3, self.x), (2, self.y)):
            if sign:
                source = torch.arange(side, device=images.device) - sign * int(SHIFT * side)
                source = torch.where(source < 0, -1 - source, source)
                source = torch.where(source >= side, 2 * side - 1 - source, source)
                images = images.index_select(dim, source)
        images = torch.rot90(images, self.turns, (2, 3))
        if self.gray:
            weights = torch.tensor(GRAY, device=images.device).view(1, 3, 1, 1)
            images = (images * weights).sum(dim=1, keepdim=True).expand_as(images)
        return images

    def undo(self, maps: Tensor) -> Tensor:
        """Turn and flip maps (b, h, h) back."""
        upright = torch.rot90(maps, -self.turns, (1, 2))
        return upright.flip(2) if self.flip else upright


ROTATIONS = tuple(Transformation(False, False, 0, 0, turns) for turns in range(4))

ALL = tuple(
    Transformation(bool(gray), bool(flip), x, y, turns)
    for gray, flips, xs, ys, all_turns in (
        (0, (0, 1), (-1, 1, 0), (-1,), (0,)),
        (0, (0, 1), (0, 1), (0, 1), (0, 1, 2, 3)),
        (1, (0, 1), (0,), (0,), (0, 1, 2, 3)),
        (0, (0, 1), (-1,), (1, 0), (0,)),
        (1, (0,), (1, -1), (0,), (0,)),
        (1, (0,), (0,), (1, -1), (0,)),
    )
    for flip in flips
    for x in xs
    for y in ys
    for turns in all_turns
)
"""The 54 transformations of the code for images in color."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of TDG; the table above has the source of each."""

    transformations: Literal["rotations", "all"] = "rotations"
    max_side: int = 64  # pixels
    min_side: int = 25
    scale_factor: float = 0.75
    width: int = 32
    iterations: int = 1000
    steps: int = 3
    lr: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.999)
    lr_drop: int = 500  # iterations
    reconstruction_weight: float = 100.0
    noise: float = 0.1
    fraction: float = 0.1  # of the patches
    batch_size: int = 16  # images

    def __post_init__(self) -> None:
        check_at_least(1, self, "width", "iterations", "steps", "batch_size", "lr_drop")
        check_at_least(0, self, "lr", "reconstruction_weight", "noise")
        check_at_least(2 * BORDER + 1, self, "min_side")
        check_setting(self.max_side > self.min_side, self, "max_side", f"must be > min_side = {self.min_side}")
        check_setting(0 < self.scale_factor < 1, self, "scale_factor", "must be in (0, 1)")
        check_setting(0 < self.fraction <= 1, self, "fraction", "must be in (0, 1]")


class TDG(Method):
    """Patch GANs whose discriminators classify transformations; the map is 1 minus the probability of the right one."""

    learned = ("discriminators",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(128, 128, resample="lanczos", keep_aspect=True)  # [C]
    settings: Settings
    discriminators: nn.ModuleList  # of PatchNetwork, one per scale, ascending

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        height, width = setup.size
        if height != width or height <= settings.min_side:
            raise BenchError(
                f"tdg: images must be squares, so that a quarter turn fits, of more than min_side = "
                f"{settings.min_side} pixels, got {height} x {width}. Change their size."
            )
        self.pyramid = ImagePyramid.from_sides(height, settings.max_side, settings.min_side, settings.scale_factor)
        self.transformations = ROTATIONS if settings.transformations == "rotations" else ALL
        self._unshifted = [i for i, t in enumerate(self.transformations) if not (t.x or t.y)]

    def build_discriminators(self) -> nn.ModuleList:
        """Return the untrained discriminators."""
        classes = len(self.transformations) + 1  # the last one is "fake"
        return nn.ModuleList(PatchNetwork(3, width, classes) for width in self._widths())

    def _widths(self) -> list[int]:
        return [self.settings.width * 2 ** (scale // 4) for scale in range(len(self.pyramid.sides))]

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the GAN of each scale on all images, from the smallest scale to the largest one."""
        settings, widths = self.settings, self._widths()
        discriminators = self.initialize(self.build_discriminators)
        generators = self.initialize(lambda: nn.ModuleList(map(Generator, widths)), self.setup.seed + 1)
        batches = [self.pyramid.resize(images.to(self.setup.device)) for images in train.batches(8)]
        reals = [torch.cat(parts) for parts in zip(*batches, strict=True)]  # (n, 3, side, side) per scale
        random = RandomGenerator().manual_seed(self.setup.seed)
        chain = GeneratorChain(generators, self.pyramid, random)
        total = len(reals) * settings.iterations
        for scale, real in enumerate(reals):
            chain.begin(real, settings.noise)
            if scale and widths[scale] == widths[scale - 1]:
                for networks in (discriminators, generators):
                    networks[scale].load_state_dict(networks[scale - 1].state_dict())
            for iteration, loss in self._train_scale(discriminators[scale], chain, real, random):
                done = scale * settings.iterations + iteration
                if done == total:
                    self.discriminators = discriminators.eval()
                progress(done, total, loss)

    def _train_scale(
        self, discriminator: nn.Module, chain: GeneratorChain, real: Tensor, random: RandomGenerator
    ) -> Iterator[tuple[int, float]]:
        """Train both networks of a scale; yield iteration and loss of the discriminator about UPDATES times."""
        settings, generator = self.settings, chain.generator
        discriminator.train()
        generator.train()
        by_discriminator, by_generator = (
            TrainingStep(self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, betas=settings.betas)
            for network in (discriminator, generator)
        )
        every = max(1, settings.iterations // UPDATES)
        is_last = len(chain.amplitudes) == len(self.pyramid.sides)
        state = (discriminator, generator, by_discriminator, by_generator, random)
        for iteration in self.epochs(settings.iterations, *state, is_last=is_last):
            if iteration == settings.lr_drop + 1:
                by_discriminator.optimizer.param_groups[0]["lr"] *= 0.1
            numbers = torch.randperm(len(real), generator=random)[: settings.batch_size].to(real.device)
            inputs = chain.draw(numbers)
            with torch.no_grad(), autocast(self.setup):
                fake = generator(*inputs, numbers).float()
            for _ in range(settings.steps):
                losses = self.discriminator_losses(discriminator, real[numbers], fake)
                by_discriminator.minimize(torch.stack(losses).sum(), len(numbers))
            discriminator.requires_grad_(requires_grad=False)
            for _ in range(settings.steps):
                with autocast(self.setup):
                    fake, restored = generator(*inputs, numbers), generator(*chain.fixed_inputs(numbers), numbers)
                losses = self.generator_losses(discriminator, real[numbers], fake.float(), restored.float())
                by_generator.minimize(torch.stack(losses).sum(), len(numbers))
            discriminator.requires_grad_(requires_grad=True)
            if iteration % every == 0 or iteration == settings.iterations:
                by_generator.epoch_loss()  # raises an error if it is not finite
                yield iteration, by_discriminator.epoch_loss()

    def discriminator_losses(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies of transformed real images and their transformation, and of fakes and "fake"."""
        fakes = self.classify(discriminator, fake)
        is_fake = torch.full((len(fakes), *fakes.shape[2:]), len(self.transformations), device=fakes.device)
        return self._transformation_loss(discriminator, real), F.cross_entropy(fakes, is_fake)

    def generator_losses(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, restored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of transformed fakes and their transformation, and the reconstruction error."""
        error = F.mse_loss(restored, real)
        return self._transformation_loss(discriminator, fake), self.settings.reconstruction_weight * error

    def _transformation_loss(self, discriminator: nn.Module, images: Tensor) -> Tensor:
        logits = self.classify(discriminator, images)  # (m * b, m + 1, h, h)
        classes = torch.arange(len(self.transformations), device=images.device).repeat_interleave(len(images))
        return F.cross_entropy(logits, classes[:, None, None].expand(-1, *logits.shape[2:]))

    def classify(self, discriminator: nn.Module, images: Tensor) -> Tensor:
        """Return the logits (m * b, m + 1, h - 10, h - 10) of images (b, 3, h, h), transformation by transformation."""
        transformed = torch.cat([transform(images) for transform in self.transformations])  # (m * b, 3, h, h)
        with autocast(self.setup):
            logits: Tensor = discriminator(transformed)
        return logits.float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return minus the mean score over scales, and the mean map."""
        check_image_size(images, self.setup.size)
        probabilities = list(self.probabilities(images))
        maps = torch.stack([self.anomaly_map(scale_probabilities) for scale_probabilities in probabilities]).mean(dim=0)
        return Prediction(-self.scale_scores(probabilities).mean(dim=1), maps)

    def probabilities(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the probability of the right transformation at each scale, (b, m, h, h); "fake" is left out."""
        count = len(self.transformations)
        for discriminator, scaled in zip(self.discriminators, self.pyramid.resize(images), strict=True):
            logits = self.classify(discriminator, scaled)[:, :-1].unflatten(0, (count, len(images)))
            yield logits.softmax(dim=2).diagonal(dim1=0, dim2=2).movedim(3, 1)  # (m, b, m, h, h) to (b, m, h, h)

    def scale_scores(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Return the sum over transformations of the lowest probabilities' mean, (b, scales); higher is more normal."""
        scores = []
        for scale_probabilities in probabilities:
            values = scale_probabilities.flatten(2)  # (b, m, h * h)
            count = max(1, int(self.settings.fraction * values.shape[2]))
            lowest = values.topk(count, dim=2, largest=False).values
            scores.append(lowest.mean(dim=2).sum(dim=1))
        return torch.stack(scores, dim=1)

    def anomaly_map(self, probabilities: Tensor) -> Tensor:
        """Return 1 - probabilities (b, m, h, h) rotated back, mean over transformations without shift: (b, H, W)."""
        upright = [self.transformations[i].undo(probabilities[:, i]) for i in self._unshifted]
        anomaly_map = 1 - torch.stack(upright).mean(dim=0)  # (b, h, h)
        padded = F.pad(anomaly_map, (BORDER,) * 4, mode="replicate")  # a probability belongs to the center of its patch
        return upsample(padded, self.setup.size, align_corners=False)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map of each scale."""
        sides = self.pyramid.sides
        return {
            f"map at {side} pixels": self.anomaly_map(probabilities)
            for side, probabilities in zip(sides, self.probabilities(images), strict=True)
        }

    def info(self) -> Info:
        """Return the number of parameters, scales and transformations."""
        return super().info() | {"scales": len(self.pyramid.sides), "transformations": len(self.transformations)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of the activations and gradients of a step at the largest scale, and of all images."""
        sides = ImagePyramid.from_sides(size[0], settings.max_side, settings.min_side, settings.scale_factor).sides
        width: int = settings.width * 2 ** ((len(sides) - 1) // 4)
        count = 4 if settings.transformations == "rotations" else len(ALL)
        # Each block keeps the outputs of the convolution and of the batch norm.
        step = count * min(settings.batch_size, n_images) * 2 * 4 * width * sides[-1] ** 2
        return 4 * (step + 3 * n_images * sum(side**2 for side in sides))


METHOD = TDG
