"""PatchCore: the distance of each patch feature to its nearest neighbor among normal patch features.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022
(https://arxiv.org/abs/2106.08265). The authors' code:
https://github.com/amazon-science/patchcore-inspection at fcaa92f. Settings without a source are from the paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

Differences from the paper, all as in the authors' code unless a setting changes it:
(1) Distances are squared, `distance = "squared"`; the paper's are "euclidean".
(2) The image score is the maximum patch score; the paper's reweighting by the neighborhood is `reweight = 9`.
(3) The greedy coreset starts from mean distances to 10 random patches instead of an empty set, and uses a random
    projection to 128 dimensions by a linear layer.
Differences from the code, which change no result beyond rounding:
(4) Channels are pooled before the second stage is upsampled to the first one's grid; both are linear, so they commute.
(5) Rows of the coreset are selected in blocks (`greedy_coreset`); the selected rows are the same.
(6) On a CPU nearest neighbors are searched in few dimensions first (`parts/bank.py`); the result is the same.
(7) Scores and maps are not rescaled to the range of the test set.

    bench run --method patchcore --profile code --preprocessing paper
    expected image AUROC 99.2, pixel AUROC 98.1 (the authors' result file: WideResNet50, 10 %, 224 px);
    nothing is selected on the test set

    bench run --method patchcore --profile code --dataset folder --data DIR --category bottle,capsule \
        --set backbone=resnet18.tv_in1k --set coreset=0.01
    expected image/pixel AUROC: bottle 100.0/98.4, capsule 98.3/98.5 (the authors' code, means of 3 seeds; 256 px);
    ours 100.0/98.3 and 97.2/98.8; the seed of the coreset alone changes capsule's image AUROC between 96.4 and 98.4
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup

from .parts.backbone import Backbone, channels_and_strides
from .parts.bank import MemoryBank, nearest_neighbors
from .parts.checks import check_at_least, check_setting, check_smoothing
from .parts.locally_aware import locally_aware
from .parts.maps import gaussian_filter, upsample

TITLE = "PatchCore"
FAMILY = "memory bank"
PAPER = (
    "Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: Towards Total Recall in Industrial Anomaly Detection, CVPR, "
    "https://arxiv.org/abs/2106.08265"
)
YEAR = 2022
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "pretrain_dim": 96, "target_dim": 96},
    "paper": {
        "distance": "euclidean",  # eq. 6; the code squares
        "reweight": 9,  # eq. 7; the code leaves it out, and 9 is anomalib's choice
    },
    "check": {"backbone": "tf_efficientnet_lite0", "pretrain_dim": 32, "target_dim": 32, "projection": 16},
}

BATCH = 8
"""Images per batch in fit."""

PROGRESS_STEPS = 100
"""Number of calls to progress while the coreset is selected."""

CANDIDATES = 2048
"""Rows among which the next rows of the coreset are searched, few enough for the processor's cache."""

BLOCK = 2**18
"""Number of distances in memory at once while the coreset is selected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of PatchCore; the defaults are those of the authors' code for their WideResNet50 result at 10 %."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # paper, sec. 4
    stages: tuple[int, ...] = (2, 3)  # paper, sec. 3.1: the second and third of the ResNet's blocks
    patch: int = 3  # paper, sec. 4.4.1: side of the neighborhood of a patch feature, in features
    pretrain_dim: int = 1024  # [C]: dimensions to which each stage's channels x neighbors are pooled
    target_dim: int = 1024  # [C]: dimensions to which both stages together are pooled
    coreset: float = 0.1  # paper, table 1: fraction of the patches in the memory bank; also 1 (all), 0.25 and 0.01
    projection: int | None = 128  # [C]: number of dimensions in which the coreset is selected; None: all
    n_starting_points: int = 10  # [C]: number of random patches whose mean distance starts the greedy selection
    n_neighbors: int = 1  # paper, eq. 6: nearest patches whose distances are averaged
    distance: Literal["squared", "euclidean"] = "squared"  # [C]; in the paper, eq. 6, euclidean
    reweight: int = 0  # paper, eq. 7: neighborhood that weights the image score; 0 = off [C], 9 = anomalib's choice
    smoothing: float = 4.0  # paper, sec. 3.3: sigma of the Gaussian over the map, in pixels

    def __post_init__(self) -> None:
        check_at_least(1, self, "pretrain_dim", "target_dim", "n_starting_points", "n_neighbors")
        check_smoothing(self)
        check_setting(0 < self.coreset <= 1, self, "coreset", "must be in (0, 1]")
        check_setting(self.patch > 0 and self.patch % 2 == 1, self, "patch", "must be an odd integer >= 1")
        check_setting(self.projection is None or self.projection >= 1, self, "projection", "must be >= 1 or None")
        is_valid = self.reweight == 0 or self.reweight >= 2  # a neighborhood of one gives every score the weight 0
        check_setting(is_valid, self, "reweight", "must be 0 (off) or >= 2")


class PatchCore(Method):
    """A memory bank of normal patch features, reduced to a coreset; nothing is trained."""

    learned = ("bank", "center")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256, keep_aspect=True, crop=224)  # [C]
    supports_compile: ClassVar[bool] = True  # compiles the backbone
    settings: Settings
    bank: Tensor  # (m, d) patch features of the coreset, minus center
    center: Tensor  # (d,) mean of all patch features

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)

    @torch.no_grad()
    def fit(self, train: Images, progress: Progress) -> None:
        """Compute the patch features of all images and select a coreset of them."""
        settings = self.settings
        _check_memory(self.estimate_memory(settings, self.setup.size, len(train)), self.setup.device)
        n_batches = -(-len(train) // BATCH)
        n_steps = PROGRESS_STEPS if settings.coreset < 1 else 0

        features, filled = torch.empty(0), 0
        for done, images in enumerate(train.batches(BATCH)):
            patches, grid = self.extract_patches(images.to(self.setup.device))  # (b * h * w, d)
            if done == 0:
                features = patches.new_empty(len(train) * prod(grid), patches.shape[1])  # (n, d)
            features[filled : filled + len(patches)] = patches
            filled += len(patches)
            progress(min(done + 1, n_batches), n_batches + n_steps, None)
        center = features.mean(dim=0)  # (d,)
        if not center.isfinite().all():
            raise BenchError("Patch features must be finite, got NaN or infinity. Pass --precision float32.")
        features -= center

        def report(selected: int, count: int) -> None:
            progress(n_batches + selected * n_steps // count, n_batches + n_steps, None)

        self.bank = features[self._coreset(features, report)] if settings.coreset < 1 else features
        self.center = center

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed map of distances, and the maximum distance as the score."""
        patches, grid, scores, index = self.score_patches(images)
        maps = scores.view(len(images), *grid)  # (b, h, w)
        flat = maps.flatten(1)  # (b, h * w)
        farthest_index = flat.argmax(dim=1, keepdim=True)  # (b, 1)
        image_scores = flat.gather(1, farthest_index)[:, 0]  # (b,)
        if self.settings.reweight:
            farthest = farthest_index[:, 0] + torch.arange(len(images), device=farthest_index.device) * flat.shape[1]
            image_scores = image_scores * self.score_weight(patches[farthest], index[farthest, 0])
        maps = upsample(maps, (images.shape[2], images.shape[3]), align_corners=False)  # (b, H, W)
        return Prediction(image_scores, gaussian_filter(maps, self.settings.smoothing))

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the distances before smoothing."""
        _, grid, scores, _ = self.score_patches(images)
        maps = upsample(scores.view(-1, *grid), (images.shape[2], images.shape[3]), align_corners=False)
        return {"nearest distance": maps}

    def info(self) -> Info:
        """Return the backbone, and the size of the memory bank."""
        rows, dimensions = self.bank.shape
        return super().info() | {"bank_rows": rows, "bank_dimensions": dimensions}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of all patches, projection, coreset, projected bank, and the neighborhoods of a batch."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        grids = [-(-size[0] // stride) * -(-size[1] // stride) for stride in strides]
        n_patches = n_images * grids[0]
        n_selected = 0 if settings.coreset == 1 else int(n_patches * settings.coreset)
        projection = settings.projection if n_selected and settings.projection else 0
        batch = sum(c * settings.patch**2 * grid for c, grid in zip(channels, grids, strict=True))
        batch += grids[0] * (2 * len(channels) * settings.pretrain_dim + settings.target_dim)
        projected_bank = (n_selected or n_patches) * settings.target_dim // 4
        patches = (n_patches + n_selected) * settings.target_dim + n_patches * projection
        return 4 * (patches + projected_bank + min(n_images, BATCH) * batch)

    @cached_property
    def _memory_bank(self) -> MemoryBank:
        return MemoryBank.from_rows(self.bank, self.center, self.setup.precision, count=self.settings.n_neighbors)

    def extract_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Map (b, 3, H, W) to locally aware patch features (b * h * w, target_dim) in float32, and the grid (h, w)."""
        settings, stages = self.settings, self.backbone(images)
        return locally_aware(stages, settings.patch, pretrain_dim=settings.pretrain_dim, target_dim=settings.target_dim)

    def _coreset(self, features: Tensor, report: Callable[[int, int], None]) -> Tensor:
        """Return indices of the selected rows of (n, d), at least one, in the order of selection."""
        generator = torch.Generator().manual_seed(self.setup.seed)
        n, d = features.shape
        projected = features
        if (
            self.settings.projection and self.settings.projection != d
        ):  # PyTorch's initial weights of a linear layer [C]
            weight = torch.empty(self.settings.projection, d).uniform_(-(d**-0.5), d**-0.5, generator=generator)
            projected = features @ weight.to(features.device).T  # (n, projection)
        starts = torch.randperm(n, generator=generator)[: self.settings.n_starting_points].to(features.device)
        return greedy_coreset(projected, max(1, int(n * self.settings.coreset)), starts, report)

    def score_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor, Tensor]:
        """Return centered patches (n, d), grid (h, w), scores (n,), and the nearest rows of the bank (n, k)."""
        bank = self._memory_bank
        patches, grid = self.extract_patches(images)
        patches = patches - bank.center
        squared, index = nearest_neighbors(patches, bank, self.settings.n_neighbors)  # (n, k)
        distances = squared if self.settings.distance == "squared" else squared.sqrt()
        return patches, grid, distances.mean(dim=1), index

    def score_weight(self, farthest: Tensor, index: Tensor) -> Tensor:
        """Return the weight of eq. 7 in [0, 1], (b,).

        A patch whose nearest neighbor is in a sparse region of the bank has a larger weight. The exponentials use
        Euclidean distances for both values of `distance`, and the neighborhood contains the neighbor itself [R].

        Args:
            farthest: (b, d) the patch with the maximum score of each image.
            index: (b,) index of its nearest row of the bank.
        """
        bank = self._memory_bank
        _, neighborhood = nearest_neighbors(bank.rows[index], bank, self.settings.reweight)  # (b, k)
        distance = (farthest - bank.rows[index]).norm(dim=1)  # (b,)
        others = (farthest[:, None] - bank.rows[neighborhood]).norm(dim=2)  # (b, k)
        return (1 - torch.exp(distance - others.logsumexp(dim=1))).clamp(min=0)


def greedy_coreset(
    features: Tensor, count: int, starts: Tensor, report: Callable[[int, int], None] = lambda _selected, _count: None
) -> Tensor:
    """Return indices (count,) of rows that cover all others, in the order of selection; no row is selected twice.

    The next row is always the one with the largest anchor, and each anchor is reduced to the distance of the nearest
    selected row (paper, alg. 1; the starting points are the authors' "approximate greedy" [C]).

    Anchors never increase. So as long as one of the rows with the largest anchors has more than `limit`, the maximum of
    all other rows, the next row is among them. Many rows are thus selected from a few candidates that fit into the
    processor's cache, and all other anchors are updated in one matrix product. The result is that of the plain loop,
    which reads all rows for each selection.

    Args:
        features: (n, d), preferably centered.
        count: number of rows to select.
        starts: (s,) indices of rows; the mean distance to them is a row's first anchor.
        report: called with the number of selected rows and `count`.
    """
    norms = features.square().sum(dim=1)  # (n,)
    anchors = torch.empty_like(norms)  # squared, as are all distances
    for rows in _blocks(len(features), len(starts)):
        squared = _squared_distances(features[rows], norms[rows], features[starts], norms[starts])
        anchors[rows] = squared.clamp_(min=0).sqrt_().mean(dim=1).square_()
    selected: list[Tensor] = []
    n_selected = 0
    while n_selected < count:
        highest, candidates = anchors.topk(min(CANDIDATES + 1, len(anchors)))
        limit = float(highest[-1]) if len(anchors) > CANDIDATES else float("-inf")
        candidates = candidates[:CANDIDATES].sort().values  # the first of equal anchors
        block = _select(features[candidates], norms[candidates], anchors[candidates], limit, count - n_selected)
        block = candidates[block]
        for rows in _blocks(len(features), len(block)):
            squared = _squared_distances(features[rows], norms[rows], features[block], norms[block])
            anchors[rows] = torch.minimum(anchors[rows], squared.amin(dim=1).clamp_(min=0))
        anchors[block] = -1.0
        selected.append(block)
        n_selected += len(block)
        report(n_selected, count)
    return torch.cat(selected)


def _select(features: Tensor, norms: Tensor, anchors: Tensor, limit: float, count: int) -> Tensor:
    """Run the plain loop on few rows: select until no anchor exceeds `limit`, at least one and at most `count`."""
    selected: list[Tensor] = []
    while len(selected) < count:
        highest, row = anchors.max(dim=0)
        if selected and float(highest) <= limit:
            break
        squared = torch.addmv(norms, features, features[row], alpha=-2).add_(norms[row]).clamp_(min=0)
        anchors = torch.minimum(anchors, squared)
        anchors[row] = -1.0
        selected.append(row)
    return torch.stack(selected)


def _squared_distances(rows: Tensor, row_norms: Tensor, columns: Tensor, column_norms: Tensor) -> Tensor:
    """Map (n, d) and (m, d) with their squared norms to (n, m) squared distances; rounding can make them negative."""
    return torch.addmm(column_norms, rows, columns.T, alpha=-2).add_(row_norms[:, None])


def _blocks(n: int, columns: int) -> list[slice]:
    """Return slices over n rows such that a block of them by so many columns fits into the processor's cache."""
    rows = max(64, BLOCK // columns)
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _check_memory(required: int, device: torch.device) -> None:
    """Log the memory that the patches require. Raises BenchError if it is more than the device has."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        available = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        try:
            available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError):  # not available on Windows
            available = required
    gigabytes = f"{required / 1e9:.2f} GB"
    logging.getLogger(__name__).info("The patches of all training images require about %s of memory.", gigabytes)
    if required > available:
        raise BenchError(
            f"PatchCore requires {gigabytes} for the patches of all training images; {device} has "
            f"{available / 1e9:.2f} GB. Use fewer images (--limit N) or --set target_dim=256 or less."
        )


METHOD = PatchCore
