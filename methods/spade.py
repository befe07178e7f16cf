"""SPADE: the nearest training images give the score, and the features of just these images the map.

Cohen, Hoshen: Sub-Image Anomaly Detection with Deep Pyramid Correspondences, 2020 (https://arxiv.org/abs/2005.02357).
The authors have released no code for this version. [R] is the re-implementation in common use, byungjae89/SPADE-pytorch
at 077c67b, whose README lists its differences from the paper. We could not read the paper's text.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              default           source
    backbone             wide_resnet50_2   [R] with torchvision's first weights
    stages               1, 2, 3           [R] layer1 to layer3, for the map
    pooled_stage         4                 [R] layer4, averaged over the image, for the neighbors and the score
    n_neighbors          50                [R] the paper's value by its README; [R] itself has 5.
                                           With fewer training images, all of them
    drop_partial_block   no                [R] yes: see below
    smoothing            4                 [R] sigma in pixels

The score of an image is the mean Euclidean distance of its pooled vector to its nearest training images, so it is not
the maximum of the map. For each stage, a feature's distance is that to the nearest feature at any position of those
images; the maps of the stages are upsampled and averaged with equal weights, so the stage with the largest distances
dominates.

[R] searches in blocks of 100 features, ordered by image, column and row, and does not search the last, partial block:
features at the right border of the farthest neighbor. `drop_partial_block` reproduces that; a user who corrected it
measured no change of the AUROC (pull request 18 of its repository). Not reproduced: in current versions of torch [R]
measures distances along the wrong axis (issue 15), and it adds 1e-6 to all differences.

Distances are exact: candidates come from a matrix product, their distances from differences (`parts/bank.py`).

    bench run --method spade --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image/pixel AUROC: 85.5/96.0 (the paper, quoted by [R], whose README prints 96.5 as the mean of a
    column that has 96.0); [R] itself 85.4/96.4 with --set n_neighbors=5; nothing is selected on the test set
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup

from .parts.backbone import Backbone, channels_and_strides
from .parts.bank import MemoryBank, nearest_neighbors
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.maps import gaussian_filter, upsample

TITLE = "SPADE"
FAMILY = "memory bank"
PAPER = "Cohen, Hoshen: Sub-Image Anomaly Detection with Deep Pyramid Correspondences, https://arxiv.org/abs/2005.02357"
YEAR = 2020
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "n_neighbors": 5},
    "check": {"backbone": "tf_efficientnet_lite0", "n_neighbors": 2},
}

BATCH = 8
"""Images per batch in fit."""

BLOCK = 100
"""Features per block of [R]."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of SPADE; the table above has the source of each."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # stages of the backbone, as timm counts them
    pooled_stage: int = 4
    n_neighbors: int = 50
    drop_partial_block: bool = False
    smoothing: float = 4.0  # sigma in pixels; 0 is none

    def __post_init__(self) -> None:
        check_at_least(1, self, "n_neighbors")
        check_smoothing(self)
        is_deeper = bool(self.stages) and self.pooled_stage > max(self.stages)
        check_setting(is_deeper, self, "pooled_stage", "must be greater than all stages")


class SPADE(Method):
    """Stores the features of all training images; nothing is trained."""

    learned = ("pooled", "gallery")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(
        256, 256, resample="lanczos", keep_aspect=True, crop=224
    )
    supports_compile: ClassVar[bool] = True  # compiles the backbone
    settings: Settings
    pooled: Tensor  # (n, c) vectors of the pooled stage
    gallery: Tensor  # (n, sum of h_i w_i c_i) the features of all stages, each stage ordered by column, row, channel

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, (*settings.stages, settings.pooled_stage), setup)

    @torch.no_grad()
    def fit(self, train: Images, progress: Progress) -> None:
        """Store the pooled vectors and the features of all images."""
        n_batches, filled = -(-len(train) // BATCH), 0
        pooled, gallery = torch.empty(0), torch.empty(0)
        for done, images in enumerate(train.batches(BATCH), start=1):
            vectors, stages = self.extract(images.to(self.setup.device))
            flat = torch.cat([stage.flatten(1) for stage in stages], dim=1)  # (b, sum of h_i w_i c_i)
            if done == 1:
                pooled, gallery = (rows.new_empty(len(train), rows.shape[1]) for rows in (vectors, flat))
            pooled[filled : filled + len(flat)], gallery[filled : filled + len(flat)] = vectors, flat
            filled += len(flat)
            if done == n_batches:
                self.pooled, self.gallery = pooled, gallery
            progress(done, n_batches, None)
        if not (self.pooled.isfinite().all() and self.gallery.isfinite().all()):
            raise BenchError("Features must be finite, got NaN or infinity. Pass --precision float32.")

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed mean of the stages' maps, and the mean distance to the nearest images as the score."""
        scores, _, stage_maps = self.measure(images)
        maps = torch.stack([upsample(maps, self.setup.size, align_corners=False) for maps in stage_maps]).mean(dim=0)
        return Prediction(scores, gaussian_filter(maps, self.settings.smoothing))

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return scores (b,), the nearest training images (b, k), nearest first, and a map (b, h_i, w_i) per stage."""
        pooled, gallery = self.pooled, self.gallery
        check_image_size(images, self.setup.size)
        vectors, stages = self.extract(images)
        distances = (vectors[:, None] - pooled).norm(dim=2)  # (b, n)
        nearest = distances.topk(min(self.settings.n_neighbors, len(pooled)), largest=False)  # (b, k), ascending
        stage_features = gallery.split([prod(stage.shape[1:]) for stage in stages], dim=1)
        maps = []
        for features, stage in zip(stage_features, stages, strict=True):
            rows = [
                features[index].view(-1, stage.shape[3]) for index in nearest.indices
            ]  # of each image, (k * w * h, c)
            maps.append(torch.stack([self._search(*pair) for pair in zip(stage, rows, strict=True)]))  # (b, h, w)
        return nearest.values.mean(dim=1), nearest.indices, maps

    def _search(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Return the distance of each of (w, h, c) features to the nearest of the rows (m, c): a map (h, w)."""
        if self.settings.drop_partial_block:
            rows = rows[: len(rows) // BLOCK * BLOCK]
            if not len(rows):
                raise BenchError(
                    f"spade: drop_partial_block requires {BLOCK} features per stage in the nearest images. "
                    f"Use larger images or --set drop_partial_block=false."
                )
        center = rows.mean(dim=0)
        centered = rows - center
        precise = centered.to(getattr(torch, self.setup.precision))
        bank = MemoryBank(centered, centered.square().sum(dim=1), center, precise, projected=None)  # is searched once
        squared, _ = nearest_neighbors(queries.flatten(0, 1) - center, bank, 1)  # (w * h, 1)
        return squared.sqrt().view(queries.shape[:2]).T

    def extract(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the pooled vectors (b, c) and, per stage, the features (b, w, h, c_i): columns first, as in [R]."""
        *stages, deepest = self.backbone(images)
        features = [stage.float().permute(0, 3, 2, 1).contiguous() for stage in stages]  # (b, w, h, c_i)
        return deepest.float().mean(dim=(2, 3)), features

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the distances of each stage before smoothing."""
        _, _, maps = self.measure(images)
        return {
            f"nearest distance stage {stage}": upsample(map_, self.setup.size, align_corners=False)
            for stage, map_ in zip(self.settings.stages, maps, strict=True)
        }

    def info(self) -> Info:
        """Return the backbone, and the size of the gallery."""
        images, values = self.gallery.shape
        neighbors = min(self.settings.n_neighbors, images)
        return super().info() | {"gallery_images": images, "values_per_image": values, "neighbors": neighbors}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of the gallery, and of the features of a batch."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        per_image = sum(c * prod(-(-side // s) for side in size) for c, s in zip(channels, strides, strict=True))
        return 4 * per_image * (n_images + 2 * min(n_images, BATCH))


METHOD = SPADE
