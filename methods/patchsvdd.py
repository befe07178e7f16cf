"""Patch SVDD: the distance of each patch to the nearest training patch, in a space learned without labels.

Yi, Yoon: Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV 2020
(https://arxiv.org/abs/2006.16067). The authors' code, without a license:
https://github.com/nuclearboy95/Anomaly-Detection-PatchSVDD-PyTorch at 934d623. We could not read the paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting            paper [M]         code [C]             here, if not the code's
    dimensions         64                64
    width              -                 32                   channels of the first convolution, others are multiples
    initialization     -                 pytorch              "kaiming" [I] keeps the variance: see below
    svdd_weight        per class         1, README: 1e-3      1e-3: with 1 the vectors collapse (issue 10)
    output             linear            frozen               matrix of the last layer of the classifier: see below
    repeats            -                 100                  pairs per image, term and epoch
    epochs, batch_size -, -              299, 64              300
    lr                 1e-4              1e-4                 Adam
    strides            16, 4             16, 4                of the patches of 64 and of 32 pixels, even
    combination        product           product              or "sum", and the single scales "large" and "small"
    (neighbors)        1                 1                    exact; the code's search is approximate for 32 pixels

Two encoders describe patches of 32 and, by their quarters, of 64 pixels. They learn from pairs: in which of eight
directions a second patch lies (cross-entropy), and that patches shifted by 1 or 2 pixels have near vectors (SVDD). All
training patches are the memory bank; a map is the mean of the distances of the patches that cover a pixel.

Published details that matter: the code computes the normalized last matrix of the classifier without gradients, so it
keeps its random values ("frozen"); a second patch beyond the border is moved into the image, with the sampled
direction as its label; the SVDD loss is the mean of norms, not of their squares. The first epoch of the code trains
nothing.

With PyTorch's initial weights the vectors of two patches differ by about 1e-3 of their length, and in 150 steps with
width 16 the loss did not fall below that of chance, 2 log 8. `initialization = "kaiming"` [I], which the demo has, is
for short training.

All patches of an image are encoded in one pass: the small encoder is a convolution without padding of stride 2. The
code resizes images by Pillow's default filter, which is bicubic in its newer versions.

    bench run --method patchsvdd --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    published mean image/pixel AUROC: 92.1/95.7 (summary page of the paper). The code evaluates and saves after every
    epoch; several categories are best in the first epochs (issues 10, 11). Which epoch the paper reports is not stated
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.bank import MemoryBank, nearest_neighbors
from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.maps import image_score
from .parts.patch_encoder import LARGE, LEAK, SMALL, PatchEncoder, PositionClassifier
from .parts.precision import autocast
from .parts.random_crops import cut_patches

TITLE = "Patch SVDD"
FAMILY = "one-class"
PAPER = (
    "Yi, Yoon: Patch SVDD: Patch-level SVDD for Anomaly Detection and Segmentation, ACCV, "
    "https://arxiv.org/abs/2006.16067"
)
YEAR = 2020
PROFILES = {
    "demo": {
        "width": 16, "initialization": "kaiming", "repeats": 200, "epochs": 5, "batch_size": 16, "lr": 1e-3,
    },
    "check": {"width": 4, "dimensions": 8, "repeats": 4, "epochs": 2, "batch_size": 8},
}  # fmt: skip

BATCH = 8
"""Images per pass while the memory is computed."""

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Steps in rows and columns, in the order of the labels [C]."""

COLOR_SHIFT, NOISE = 0.02, 0.02
"""Standard deviation of a random shift of each channel, and of the noise, in patches of the classifier [C]."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of Patch SVDD; the table above has the source of each."""

    dimensions: int = 64
    width: int = 32
    initialization: Literal["pytorch", "kaiming"] = "pytorch"
    svdd_weight: float = 1e-3
    output: Literal["frozen", "linear"] = "frozen"
    repeats: int = 100
    epochs: int = 300
    batch_size: int = 64
    lr: float = 1e-4
    strides: tuple[int, int] = (16, 4)
    combination: Literal["product", "sum", "large", "small"] = "product"

    def __post_init__(self) -> None:
        check_at_least(1, self, "dimensions", "width", "repeats", "epochs", "batch_size")
        check_at_least(0, self, "svdd_weight", "lr")
        is_even = all(stride > 0 and stride % 2 == 0 for stride in self.strides)
        check_setting(is_even, self, "strides", "must be two even numbers > 0")


class PatchSVDD(Method):
    """Encoders of patches, learned from pairs, and the vectors of all training patches."""

    learned = ("encoder", "mean", "large_bank", "small_bank")
    max_instability: ClassVar[float] = (
        0.1  # a score is a distance that is small relative to the vectors, so their rounding is large in it
    )
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256, resample="bicubic")  # [C] with Pillow >= 7
    iterative: ClassVar[bool] = True
    settings: Settings
    encoder: PatchEncoder
    mean: Tensor  # (3, h, w) of the training images
    large_bank: Tensor  # (m, d) vectors of the training patches of 64 pixels
    small_bank: Tensor  # (m, d) of 32 pixels

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        if min(setup.size) < LARGE:
            raise BenchError(
                f"patchsvdd: images must have at least {LARGE} x {LARGE} pixels, got {setup.size[0]} x "
                f"{setup.size[1]}. Use larger images."
            )

    def build_encoder(self) -> PatchEncoder:
        """Return the untrained encoders."""
        encoder = PatchEncoder(self.settings.width, self.settings.dimensions)
        if self.settings.initialization == "kaiming":
            for layer in (*encoder.small, encoder.join, encoder.project):
                nn.init.kaiming_normal_(layer.weight, LEAK)
                nn.init.zeros_(layer.bias)
        return encoder

    def build_classifiers(self) -> nn.ModuleList:
        """Return the untrained classifiers of large and of small patches, which predictions do not need."""
        is_frozen = self.settings.output == "frozen"
        return nn.ModuleList(PositionClassifier(self.settings.dimensions, frozen=is_frozen) for _ in range(2))

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the encoders on pairs of patches, and encode all patches of the training images."""
        settings = self.settings
        encoder = self.initialize(self.build_encoder)
        classifiers = self.initialize(self.build_classifiers, self.setup.seed + 1)
        parameters = chain(encoder.parameters(), classifiers.parameters())
        training = TrainingStep(self.setup, torch.optim.Adam, parameters, lr=settings.lr)
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same pairs on every device
        images = torch.cat([(255 * batch).round().to(torch.uint8) for batch in train.batches(BATCH)])
        images = images.to(self.setup.device)  # (n, 3, h, w)
        self.mean = images.double().mean(dim=0).div(255).float()
        indices = torch.arange(len(images)).repeat(settings.repeats)

        for epoch in self.epochs(settings.epochs, encoder, classifiers, training, generator):
            encoder.train()
            for index in indices[torch.randperm(len(indices), generator=generator)].split(settings.batch_size):
                loss = torch.zeros((), device=self.setup.device)
                for side, classifier in zip((LARGE, SMALL), classifiers, strict=True):
                    corners, labels = draw_directions(len(index), side, self.setup.size, generator)
                    patches = distort(self.cut(images, index, corners, side), generator)
                    corners = draw_neighbors(len(index), side, self.setup.size, generator)
                    neighbors = self.cut(images, index, corners, side)
                    position, svdd = self.losses(encoder, classifier, patches, labels, neighbors)
                    loss = loss + position + settings.svdd_weight * svdd
                training.minimize(loss, len(index))
            loss_of_epoch = training.epoch_loss()
            self.encoder = encoder.eval()
            self.large_bank, self.small_bank = self._encode_training_images(images)
            progress(epoch, settings.epochs, loss_of_epoch)

    def cut(self, images: Tensor, index: Tensor, corners: Tensor, side: int) -> Tensor:
        """Return the patches of pairs, minus the mean image: (2 b, 3, side, side), the first ones of all pairs first.

        Args:
            images: (n, 3, h, w) uint8.
            index: (b,) of the image of a pair.
            corners: (2, b, 2) row and column of the first and the second patches.
            side: side in pixels.
        """
        index, corner = index.repeat(2).to(images.device), corners.flatten(0, 1).to(images.device)
        means = cut_patches(self.mean[None], torch.zeros_like(index), corner, side)
        return cut_patches(images, index, corner, side).float() / 255 - means

    def losses(
        self, encoder: PatchEncoder, classifier: nn.Module, patches: Tensor, labels: Tensor, neighbors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the directions, and the mean distance of neighbors.

        Args:
            encoder: the encoder to train.
            classifier: the PositionClassifier to train.
            patches: (2 b, 3, side, side), pairs of which the classifier predicts the direction.
            labels: (b,) indices into DIRECTIONS.
            neighbors: (2 b, 3, side, side).
        """
        with autocast(self.setup):
            vectors = encoder.encode(torch.cat([patches, neighbors]))  # (4 b, d)
            first, second, third, fourth = vectors.chunk(4)
            logits = classifier(first, second)
        position = F.cross_entropy(logits.float(), labels.to(logits.device))
        return position, (third.float() - fourth.float()).norm(dim=1).mean()

    @torch.no_grad()
    def _encode_training_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of all large and all small patches, (m, d) each."""
        batches = [self.encode(batch.float() / 255) for batch in images.split(BATCH)]
        banks = [[maps.permute(0, 2, 3, 1).flatten(0, 2) for maps in scale] for scale in zip(*batches, strict=True)]
        return torch.cat(banks[0]), torch.cat(banks[1])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of the large and of the small patches of (b, 3, h, w) in [0, 1], (b, d, n, m) each.

        On a CPU each image has a separate pass, which takes the same time: distances may be so small relative to the
        vectors that the rounding of another batch size would matter.
        """
        batches = []
        for batch in (images - self.mean).split(1 if images.device.type == "cpu" else BATCH):
            with autocast(self.setup):
                batches.append(self.encoder.encode_images(batch, self.settings.strides))
        large, small = (torch.cat(maps).float() for maps in zip(*batches, strict=True))
        return large, small

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the product of the maps of both scales, and its maximum as the score."""
        large, small = self.scale_maps(images)
        maps = {"product": large * small, "sum": large + small, "large": large, "small": small}[
            self.settings.combination
        ]
        return Prediction(image_score(maps, "max"), maps)

    def scale_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of large and of small patches, (b, h, w) each."""
        banks = self._banks
        check_image_size(images, self.setup.size)
        large, small = self.encode(images)
        distances = nearest_distances(large, banks[0]), nearest_distances(small, banks[1])
        sides = zip(distances, (LARGE, SMALL), self.settings.strides, strict=True)
        maps = [mean_over_patches(values, side, stride, self.setup.size) for values, side, stride in sides]
        return maps[0], maps[1]

    @cached_property
    def _banks(self) -> tuple[MemoryBank, MemoryBank]:
        banks = []
        for rows in (self.large_bank, self.small_bank):
            center = rows.mean(dim=0)
            banks.append(MemoryBank.from_rows(rows - center, center, self.setup.precision))
        return banks[0], banks[1]

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of both scales."""
        large, small = self.scale_maps(images)
        return {"nearest distance 64 pixels": large, "nearest distance 32 pixels": small}

    def info(self) -> Info:
        """Return the encoder, and the number of stored vectors of both scales."""
        sizes = {"large_patches": len(self.large_bank), "small_patches": len(self.small_bank)}
        return super().info() | sizes

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of the images, of the vectors of all patches, and of the activations of one step."""
        pixels = size[0] * size[1]
        patches = sum(pixels // stride**2 for stride in settings.strides) * n_images
        # 5 patches of 32 pixels (four quarters and a small one) of 4 kinds; 16 widths of values at half of the side.
        activations = 20 * min(settings.batch_size, settings.repeats * n_images) * 2 * 16 * settings.width * 16**2
        return 3 * pixels * n_images + 4 * (2 * settings.dimensions * patches + activations)


def draw_directions(count: int, side: int, size: tuple[int, int], generator: Generator) -> tuple[Tensor, Tensor]:
    """Return corners (2, count, 2) of pairs of patches, and the labels of their directions, (count,).

    The second patch lies 3/4 to 1 of the side away and is moved into the image, if it is beyond the border [C].
    """
    limit = torch.tensor([length - side for length in size])
    first = draw_corners(count, limit, generator)
    labels = torch.randint(len(DIRECTIONS), (count,), generator=generator)
    distance = 3 * side // 4 + torch.randint(side // 4, (count, 2), generator=generator)
    second = first + torch.tensor(DIRECTIONS)[labels] * distance
    return torch.stack([first, second.clamp(min=0).minimum(limit)]), labels


def draw_neighbors(count: int, side: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Return corners (2, count, 2) of pairs of patches that are shifted by up to 1/32 of the side, but not by 0, 0."""
    limit = torch.tensor([length - side for length in size])
    first, radius = draw_corners(count, limit, generator), side // 32
    shifts = torch.cartesian_prod(*2 * [torch.arange(-radius, radius + 1)])
    shifts = torch.cat([shifts[: len(shifts) // 2], shifts[len(shifts) // 2 + 1 :]])  # without (0, 0), the middle one
    second = first + shifts[torch.randint(len(shifts), (count,), generator=generator)]
    return torch.stack([first, second.clamp(min=0).minimum(limit)])


def draw_corners(count: int, limit: Tensor, generator: Generator) -> Tensor:
    """Return whole numbers (count, 2), uniform from 0 to the limits (2,)."""
    return torch.stack([torch.randint(int(n) + 1, (count,), generator=generator) for n in limit], dim=1)


def distort(patches: Tensor, generator: Generator) -> Tensor:
    """Add a random shift to each channel of each patch (b, 3, side, side), and noise to each pixel [C]."""
    shift = COLOR_SHIFT * torch.randn(*patches.shape[:2], 1, 1, generator=generator)
    noise = NOISE * torch.randn(patches.shape, generator=generator)
    return patches + (shift + noise).to(patches.device)


def nearest_distances(vectors: Tensor, bank: MemoryBank) -> Tensor:
    """Return the distance of each vector of (b, d, n, m) to the nearest one of the bank: (b, n, m)."""
    b, _, n, m = vectors.shape
    queries = vectors.permute(0, 2, 3, 1).flatten(0, 2) - bank.center  # (b * n * m, d)
    squared, _ = nearest_neighbors(queries, bank, 1)  # (b * n * m, 1)
    return squared.sqrt().view(b, n, m)


def mean_over_patches(values: Tensor, side: int, stride: int, size: tuple[int, int]) -> Tensor:
    """Return at each pixel the mean of the values (b, n, m) of the patches that cover it: (b, h, w).

    Pixels after the last patch have the value of the last covered pixel.
    """
    rows, columns = (
        _coverage(length, n, side, stride, values.device) for length, n in zip(size, values.shape[1:], strict=True)
    )
    return rows @ (values @ columns.T)


@lru_cache(maxsize=8)
def _coverage(length: int, count: int, side: int, stride: int, device: torch.device) -> Tensor:
    """Return (length, count): the weight of each patch at each pixel of one axis."""
    with torch.inference_mode(mode=False):  # cached for later calls
        first = stride * torch.arange(count)
        pixel = torch.arange(length).clamp(max=int(first[-1]) + side - 1)[:, None]
        covers = ((pixel >= first) & (pixel < first + side)).float()
        return (covers / covers.sum(dim=1, keepdim=True)).to(device)


METHOD = PatchSVDD
