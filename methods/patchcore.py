"""PatchCore: the distance of each patch to its nearest normal patch.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022
(https://arxiv.org/abs/2106.08265). [C] marks what only the authors' code says
(https://github.com/amazon-science/patchcore-inspection, fcaa92f).

Departures from the paper, all as in the authors' code unless a setting says else:
(1) Distances are squared, `distance = "squared"`; the paper's are "euclidean".
(2) The image score is the largest patch score; the paper's reweighting by the neighbourhood is `reweight = 9`.
(3) The greedy coreset starts from mean distances to 10 random patches, not from an empty set, and works on a linear
    layer's random projection to 128 dimensions.
Departures from the code, which change no answer beyond rounding:
(4) Channels are pooled before the second layer is enlarged to the first one's grid; both are linear, so they commute.
(5) The picks of the coreset are found many at a time (`greedy_coreset`); they are the same picks.
(6) On a CPU the nearest patch is sought in few dimensions first (`parts/bank.py`); it is the same patch.
(7) Scores and maps aren't rescaled to the range of the test set.

    bench run --method patchcore --profile code --preparation native
    expect image AUROC 99.2, pixel AUROC 98.1 (the authors' result file for these settings: WideResNet50, 10 %, 224 px)

    bench run --method patchcore --profile code --dataset folder --data DIR --category bottle,capsule \
        --set backbone=resnet18.tv_in1k --set coreset=0.01
    expect image/pixel AUROC: bottle 100.0/98.4, capsule 98.3/98.5 (the authors' code, means of 3 seeds; 256 px);
    ours 100.0/98.3 and 97.2/98.8, where the seed of the coreset alone moves capsule's image AUROC from 96.4 to 98.4
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Preparation, Progress, Setup

from .parts.backbone import Backbone, find, layout
from .parts.bank import Bank, nearest
from .parts.maps import gaussian, upsample
from .parts.refusals import refuse_below, refuse_unless

BATCH = 8  # images a pass through the backbone while fitting
TICKS = 100  # times that progress hears of the coreset's picks
CANDIDATES = 2048  # patches among which the coreset's next picks are sought, so few that they stay in the cache
BLOCK = 2**18  # distances of the coreset that are held at once


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen; the defaults are the authors' code's for their WideResNet50 result at 10 %."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # paper, sec. 4
    stages: tuple[int, ...] = (2, 3)  # paper, sec. 3.1: the second and third of the ResNet's blocks
    patch: int = 3  # paper, sec. 4.4.1: side of the neighbourhood that a patch feature sums up, in features
    pretrain_dim: int = 1024  # [C]: each layer's channels x neighbours are pooled to so many
    target_dim: int = 1024  # [C]: both layers together are pooled to so many
    coreset: float = 0.1  # paper, table 1: fraction of the patches that is kept; 1 keeps all, also 0.25 and 0.01
    projection: int | None = 128  # [C]: dimensions in which the coreset is chosen; None for the features' own
    starts: int = 10  # [C]: random patches whose mean distance starts the greedy choice
    neighbours: int = 1  # paper, eq. 6: nearest patches whose distances are averaged
    distance: Literal["squared", "euclidean"] = "squared"  # [C]; the paper, eq. 6, says euclidean
    reweight: int = 0  # paper, eq. 7: neighbourhood that weighs the image score; 0 = off [C], 9 = anomalib's choice
    smoothing: float = 4.0  # paper, sec. 3.3: sigma of the Gaussian over the map, in pixels

    def __post_init__(self) -> None:
        refuse_below(1, "PatchCore", self, "pretrain_dim", "target_dim", "starts", "neighbours")
        refuse_below(0, "PatchCore", self, "smoothing")
        refuse_unless(0 < self.coreset <= 1, "PatchCore's coreset is a fraction above 0 and at most 1", self.coreset)
        odd = self.patch > 0 and self.patch % 2 == 1
        refuse_unless(odd, "PatchCore's patch is odd, so that a neighbourhood has a middle", self.patch)
        some = self.projection is None or self.projection >= 1
        refuse_unless(some, "PatchCore's projection is at least 1, or None", self.projection)
        holds = self.reweight == 0 or self.reweight >= 2  # a neighbourhood of one weighs every score with 0
        refuse_unless(holds, "PatchCore's reweight is 0 (off) or at least 2", self.reweight)


class PatchCore(Method):
    """A memory of normal patches, thinned to a coreset; nothing is trained."""

    native: ClassVar[Preparation] = Preparation(256, 256, keep_aspect=True, crop=224)  # [C]
    compiles: ClassVar[bool] = True  # the backbone
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.of(settings.backbone, settings.stages, setup)
        self.bank: Bank | None = None

    @torch.no_grad()
    def fit(self, train: Images, progress: Progress) -> None:
        """Gathers the patches of all images and keeps a coreset of them."""
        settings = self.settings
        _refuse_what_does_not_fit(self.memory(settings, self.setup.size, len(train)), self.setup.device)
        passes = -(-len(train) // BATCH)
        ticks = TICKS if settings.coreset < 1 else 0

        features, filled = torch.empty(0), 0
        for done, images in enumerate(train.batches(BATCH)):
            patches, grid = self._patches(images.to(self.setup.device))  # (b * h * w, d)
            if done == 0:
                features = patches.new_empty(len(train) * prod(grid), patches.shape[1])  # (n, d)
            features[filled : filled + len(patches)] = patches
            filled += len(patches)
            progress(min(done + 1, passes), passes + ticks, None)
        centre = features.mean(dim=0)  # (d,)
        if not centre.isfinite().all():
            raise BenchError("Patch features are finite numbers; some aren't. Try --precision float32.")
        features -= centre

        def tell(picked: int, count: int) -> None:
            progress(passes + picked * ticks // count, passes + ticks, None)

        rows = features[self._coreset(features, tell)] if settings.coreset < 1 else features
        self.restore({"bank": rows, "centre": centre})

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """The smoothed map of distances, and the largest of them as the score."""
        patches, grid, scores, index = self._judged(images)
        maps = scores.view(len(images), *grid)  # (b, h, w)
        flat = maps.flatten(1)  # (b, h * w)
        best = flat.argmax(dim=1, keepdim=True)  # (b, 1)
        image_scores = flat.gather(1, best)[:, 0]  # (b,)
        if self.settings.reweight:
            farthest = best[:, 0] + torch.arange(len(images), device=best.device) * flat.shape[1]
            image_scores = image_scores * self._weight(patches[farthest], index[farthest, 0])
        maps = upsample(maps, (images.shape[2], images.shape[3]), align_corners=False)  # (b, H, W)
        return Prediction(image_scores, gaussian(maps, self.settings.smoothing))

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """The distances before smoothing."""
        _, grid, scores, _ = self._judged(images)
        maps = upsample(scores.view(-1, *grid), (images.shape[2], images.shape[3]), align_corners=False)
        return {"nearest distance": maps}

    def facts(self) -> dict[str, str | int | float]:
        """The backbone, and the bank's rows and dimensions."""
        facts = self.backbone.facts()
        facts["trainable_parameters"] = 0
        if self.bank is not None:
            facts["bank_rows"], facts["bank_dimensions"] = self.bank.rows.shape
        return facts

    def state(self) -> dict[str, Tensor]:
        """The bank and the centre that was taken from it."""
        bank = self._fitted()
        return {"bank": bank.rows, "centre": bank.centre}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes over a bank."""
        rows, centre = (state[name].to(self.setup.device) for name in ("bank", "centre"))
        self.bank = Bank.of(rows, centre, self.setup.precision, count=self.settings.neighbours)

    @classmethod
    def inputs(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """The hash of the backbone's weights."""
        return {"backbone": find(settings.backbone, weights).sha256}

    @classmethod
    def memory(cls, settings: Settings, size: tuple[int, int], images: int) -> int:
        """Bytes of all patches, their projection, coreset, few dimensions if used, and a batch's neighbourhoods."""
        channels, strides = layout(settings.backbone, settings.stages)
        grids = [-(-size[0] // stride) * -(-size[1] // stride) for stride in strides]
        patches = images * grids[0]
        kept = 0 if settings.coreset == 1 else int(patches * settings.coreset)
        projected = settings.projection if kept and settings.projection else 0
        batch = sum(c * settings.patch**2 * grid for c, grid in zip(channels, grids, strict=True))
        batch += grids[0] * (2 * len(channels) * settings.pretrain_dim + settings.target_dim)
        few = (kept or patches) * settings.target_dim // 4
        return 4 * ((patches + kept) * settings.target_dim + few + patches * projected + min(images, BATCH) * batch)

    def _fitted(self) -> Bank:
        if self.bank is None:
            raise BenchError(NOT_FITTED)
        return self.bank

    def _patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(b, 3, H, W) -> locally aware patch features (b * h * w, target_dim) in float32, and the grid (h, w)."""
        settings, stages = self.settings, self.backbone(images)
        return locally_aware(stages, settings.patch, pretrain_dim=settings.pretrain_dim, target_dim=settings.target_dim)

    def _coreset(self, features: Tensor, tell: Callable[[int, int], None]) -> Tensor:
        """(n, d) -> the kept rows in the order in which they were picked, at least one."""
        generator = torch.Generator().manual_seed(self.setup.seed)
        n, d = features.shape
        reduced = features
        if self.settings.projection and self.settings.projection != d:  # a linear layer's usual first weights [C]
            weight = torch.empty(self.settings.projection, d).uniform_(-(d**-0.5), d**-0.5, generator=generator)
            reduced = features @ weight.to(features.device).T  # (n, projection)
        starts = torch.randperm(n, generator=generator)[: self.settings.starts].to(features.device)
        return greedy_coreset(reduced, max(1, int(n * self.settings.coreset)), starts, tell)

    def _judged(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor, Tensor]:
        """Centred patches (n, d), grid (h, w), patch scores (n,), and the bank's rows nearest to each (n, k)."""
        bank = self._fitted()
        patches, grid = self._patches(images)
        patches = patches - bank.centre
        squared, index = nearest(patches, bank, self.settings.neighbours)  # (n, k)
        distances = squared if self.settings.distance == "squared" else squared.sqrt()
        return patches, grid, distances.mean(dim=1), index

    def _weight(self, farthest: Tensor, index: Tensor) -> Tensor:
        """Eq. 7: (b, d) the farthest patch of each image and (b,) its nearest row of the bank -> (b,) in [0, 1].

        A patch whose nearest neighbour lies in a sparse region of the bank counts more. The exponentials are of
        Euclidean distances whatever `distance` says, and the neighbourhood holds the neighbour itself (our reading).
        """
        bank = self._fitted()
        _, around = nearest(bank.rows[index], bank, self.settings.reweight)  # (b, k)
        own = (farthest - bank.rows[index]).norm(dim=1)  # (b,)
        others = (farthest[:, None] - bank.rows[around]).norm(dim=2)  # (b, k)
        return (1 - torch.exp(own - others.logsumexp(dim=1))).clamp(min=0)


def locally_aware(
    stages: list[Tensor], patch: int, *, pretrain_dim: int, target_dim: int
) -> tuple[Tensor, tuple[int, int]]:
    """Feature maps (b, c_i, h_i, w_i) -> (b * h * w, target_dim) in float32, rows in reading order, and the first grid.

    Each feature is joined with its patch x patch neighbours, zeros beyond the border, and each stage pooled to
    `pretrain_dim`, enlarged to the first stage's grid, then all of them pooled to `target_dim`. Paper, eq. 2 and 3;
    the one-dimensional adaptive average pools are [C].
    """
    grid = (stages[0].shape[2], stages[0].shape[3])
    pooled = []
    for stage in stages:
        own = _pooled(_neighbourhoods(stage.float(), patch), pretrain_dim)  # (b, pretrain_dim, h_i * w_i)
        own = own.reshape(len(stage), -1, *stage.shape[2:])  # (b, pretrain_dim, h_i, w_i)
        pooled.append(upsample(own, grid, align_corners=False).flatten(2))  # (b, pretrain_dim, h * w)
    joined = _pooled(torch.cat(pooled, dim=1), target_dim)  # (b, target_dim, h * w)
    return joined.transpose(1, 2).flatten(0, 1), grid


def _neighbourhoods(stage: Tensor, patch: int) -> Tensor:
    """(b, c, h, w) -> (b, c * patch^2, h * w): `F.unfold`, but several times as fast, as a copy of windows."""
    padded = F.pad(stage.contiguous(), (patch // 2,) * 4)
    windows = padded.unfold(2, patch, 1).unfold(3, patch, 1)  # (b, c, h, w, patch, patch)
    return windows.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def _pooled(values: Tensor, count: int) -> Tensor:
    """(b, c, n) -> (b, count, n): adaptive average pooling of the channels, done for neighbouring places at once."""
    if values.shape[1] == count:
        return values
    as_image = values.unsqueeze(2).permute(0, 3, 1, 2)  # (b, n, c, 1), channels last
    return F.adaptive_avg_pool2d(as_image, (count, 1)).squeeze(3).transpose(1, 2)


def greedy_coreset(
    features: Tensor, count: int, starts: Tensor, tell: Callable[[int, int], None] = lambda _done, _count: None
) -> Tensor:
    """Indices (count,) of rows that cover all others well, in the order of picking; no row is picked twice.

    features: (n, d), best centred.  starts: (s,) indices whose mean distance to a row is that row's first anchor.
    The next pick is always the row with the largest anchor, and each anchor falls to the distance of the nearest pick
    (paper, alg. 1; the starting points are the authors' "approximate greedy" [C]).

    Anchors only ever fall. So as long as some of the rows with the largest anchors has more than `limit`, what any
    other row has at most, the next pick is among them. Many picks thus come from a few rows that stay in the cache, and
    all other anchors learn of them in one matrix product: the picks are those of the plain loop, which passes over all
    rows for each of them.
    """
    norms = features.square().sum(dim=1)  # (n,)
    anchors = torch.empty_like(norms)  # squared, as are all distances
    for rows in _blocks(len(features), len(starts)):
        squared = _squared(features[rows], norms[rows], features[starts], norms[starts])
        anchors[rows] = squared.clamp_(min=0).sqrt_().mean(dim=1).square_()
    picks: list[Tensor] = []
    picked = 0
    while picked < count:
        highest, candidates = anchors.topk(min(CANDIDATES + 1, len(anchors)))
        limit = float(highest[-1]) if len(anchors) > CANDIDATES else float("-inf")
        candidates = candidates[:CANDIDATES].sort().values  # of equals, the first is picked
        few = _greedy_among(features[candidates], norms[candidates], anchors[candidates], limit, count - picked)
        few = candidates[few]
        for rows in _blocks(len(features), len(few)):
            squared = _squared(features[rows], norms[rows], features[few], norms[few]).amin(dim=1).clamp_(min=0)
            anchors[rows] = torch.minimum(anchors[rows], squared)
        anchors[few] = -1.0
        picks.append(few)
        picked += len(few)
        tell(picked, count)
    return torch.cat(picks)


def _greedy_among(features: Tensor, norms: Tensor, anchors: Tensor, limit: float, count: int) -> Tensor:
    """The plain loop over a few rows: picks until no anchor exceeds `limit`, at least one and at most `count`."""
    picks: list[Tensor] = []
    while len(picks) < count:
        highest, pick = anchors.max(dim=0)
        if picks and float(highest) <= limit:
            break
        squared = torch.addmv(norms, features, features[pick], alpha=-2).add_(norms[pick]).clamp_(min=0)
        anchors = torch.minimum(anchors, squared)
        anchors[pick] = -1.0
        picks.append(pick)
    return torch.stack(picks)


def _squared(rows: Tensor, row_norms: Tensor, columns: Tensor, column_norms: Tensor) -> Tensor:
    """(n, d) and (m, d) with their squared norms -> (n, m) squared distances, a little below 0 where they round so."""
    return torch.addmm(column_norms, rows, columns.T, alpha=-2).add_(row_norms[:, None])


def _blocks(n: int, columns: int) -> list[slice]:
    """Slices over n rows such that a block of them by so many columns stays in the cache."""
    rows = max(64, BLOCK // columns)
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _refuse_what_does_not_fit(needed: int, device: torch.device) -> None:
    """Tells how much memory the patches need. Raises BenchError where the machine hasn't got it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        there = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        try:
            there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError):  # Windows doesn't tell
            there = needed
    gigabytes = f"{needed / 1e9:.2f} GB"
    logging.getLogger(__name__).info("The patches of all training images need about %s of memory.", gigabytes)
    if needed > there:
        raise BenchError(
            f"PatchCore keeps the patches of all training images in memory until the coreset is chosen: {gigabytes}; "
            f"{device} has {there / 1e9:.2f} GB. Take fewer images (--limit N) or --set target_dim=256 or less."
        )


METHOD = PatchCore
