"""scikit-learn's outlier detectors over pooled frozen features: `--method sklearn:IsolationForest`, `sklearn:PCA`, ...

Any estimator with `fit` and `score_samples` is hosted: the outlier detectors (IsolationForest, LocalOutlierFactor,
OneClassSVM, EllipticEnvelope, ...) and the densities (GaussianMixture, KernelDensity, PCA, ...). No paper stands behind
this: it tells what a textbook detector makes of the features that the papers' methods begin with.

The stages of a frozen backbone are joined to one map, whose means over a grid of cells are the vectors. The estimator
is fitted on those of all training images; at test each cell's anomaly is minus its score, enlarged to the image's size.
With `grid = 1` an image is one vector, and its map is flat.

    setting       default                    meaning
    model         none                       the class's name in scikit-learn
    options       "{}"                       a JSON object of its arguments, as {"n_estimators": 300}
    backbone      wide_resnet50_2.tv_in1k    timm's tag, as the papers' methods
    stages        2, 3                       as PatchCore's
    grid          16                         cells on a side
    standardise   yes                        each channel to mean 0 and deviation 1 over the training vectors
    dimensions    0                          principal components kept; 0 is all
    rows          20000                      training vectors at most, drawn at random
    smoothing     4                          sigma in pixels of a Gaussian over the map
    score         max                        of the map

Where the estimator draws, it draws from the run's seed; a LocalOutlierFactor is made to judge new images.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators
from torch import Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Preparation, Progress, Setup

from .parts.backbone import Backbone, find
from .parts.features import fuse
from .parts.maps import Score, gaussian, image_score, upsample
from .parts.options import parsed
from .parts.refusals import refuse_below

BATCH = 8
EXAMPLE = '{"n_estimators": 300}'  # of options


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen; the table above tells what it means."""

    model: str = ""
    options: str = "{}"
    backbone: str = "wide_resnet50_2.tv_in1k"
    stages: tuple[int, ...] = (2, 3)
    grid: int = 16
    standardise: bool = True
    dimensions: int = 0
    rows: int = 20_000
    smoothing: float = 4.0
    score: Score = "max"

    def __post_init__(self) -> None:
        refuse_below(1, "scikit-learn", self, "grid", "rows")
        refuse_below(0, "scikit-learn", self, "dimensions", "smoothing")
        parsed(self.options, EXAMPLE)


class Detector(Method):
    """A textbook detector on the cells of a frozen backbone's features."""

    native: ClassVar[Preparation] = Preparation()
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._kind = _kind(settings.model)
        self._made()  # what it refuses is told now
        self._backbone = Backbone.of(settings.backbone, settings.stages, setup)
        self._vectors: Tensor | None = None
        self._estimator: Any = None

    def fit(self, train: Images, progress: Progress) -> None:
        """Gathers the vectors of all cells and fits the estimator on at most `rows` of them."""
        gathered = []
        for done, images in enumerate(train.batches(BATCH), start=1):
            gathered.append(self._cells(images.to(self.setup.device)).flatten(0, 2).cpu())
            progress(min(done * BATCH, len(train)), len(train), None)
        vectors = torch.cat(gathered)  # (n * grid * grid, c)
        drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(self.setup.seed))
        self._learn(vectors[drawn[: self.settings.rows].sort().values])

    def _learn(self, vectors: Tensor) -> None:
        try:
            self._estimator = self._made().fit(vectors.numpy())
        except ValueError as error:
            raise BenchError(f"{self.settings.model} can't be fitted on {len(vectors)} vectors: {error}") from error
        self._vectors = vectors

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Minus the estimator's score of each cell, enlarged and smoothed."""
        if self._estimator is None:
            raise BenchError(NOT_FITTED)
        cells = self._cells(images)  # (b, grid, grid, c)
        found = -self._estimator.score_samples(cells.flatten(0, 2).cpu().numpy())
        maps = torch.as_tensor(found, dtype=torch.float32, device=images.device).view(cells.shape[:3])
        maps = upsample(maps, (images.shape[2], images.shape[3]), align_corners=False)
        maps = gaussian(maps, self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    def facts(self) -> dict[str, str | int | float]:
        """The backbone, and how many vectors the estimator was fitted on."""
        return self._backbone.facts() | ({"vectors": len(self._vectors)} if self._vectors is not None else {})

    def state(self) -> dict[str, Tensor]:
        """The vectors: the estimator is what fitting on them makes, which needs no file that could run code."""
        if self._vectors is None:
            raise BenchError(NOT_FITTED)
        return {"vectors": self._vectors.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Fits again on the vectors that `state` gave."""
        self._learn(state["vectors"].cpu())

    @classmethod
    def inputs(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """The hash of the backbone's weights."""
        return {"backbone": find(settings.backbone, weights).sha256}

    def _cells(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, grid, grid, c): the means of the fused features over cells."""
        features = fuse([stage.float() for stage in self._backbone(images)])
        return F.adaptive_avg_pool2d(features, self.settings.grid).permute(0, 2, 3, 1)

    def _made(self) -> Any:
        """The estimator behind the steps that the settings ask for, unfitted."""
        settings = self.settings
        options = parsed(settings.options, EXAMPLE)
        taken = inspect.signature(self._kind).parameters
        own = {"random_state": self.setup.seed, "novelty": True}
        try:
            estimator = self._kind(**{name: value for name, value in own.items() if name in taken} | options)
        except TypeError as error:
            told = f"scikit-learn's {settings.model} is not made so: {error}. It takes {', '.join(taken)}."
            raise BenchError(told) from error
        steps = [StandardScaler()] if settings.standardise else []
        steps += [PCA(settings.dimensions, random_state=self.setup.seed)] if settings.dimensions else []
        return make_pipeline(*steps, estimator)


METHOD = Detector


def _kind(name: str) -> Any:
    kinds = {own: kind for own, kind in all_estimators() if hasattr(kind, "score_samples")}
    if name not in kinds:
        raise BenchError(
            f"scikit-learn hosts many detectors, and one is named, as sklearn:IsolationForest; '{name}' is none. "
            f"There are: {', '.join(sorted(kinds))}."
        )
    return kinds[name]
