"""scikit-learn's outlier detectors on pooled frozen features: `--method sklearn:IsolationForest`, `sklearn:PCA`, ...

Every estimator with `fit` and `score_samples` can be used: the outlier detectors (IsolationForest, LocalOutlierFactor,
OneClassSVM, EllipticEnvelope, ...) and the densities (GaussianMixture, KernelDensity, PCA, ...). It is not the method
of a paper: it measures a standard detector on the features that the papers' methods start from.

The stages of a frozen backbone are fused to one map, whose means over a grid of cells are the feature vectors. The
estimator is fitted on those of all training images; at test time the map is minus the score of each cell, resized to
the image. With `grid = 1` an image is one vector, and its map is constant.

    setting         default                    meaning
    model           none                       name of the class in scikit-learn
    options         "{}"                       a JSON object of its arguments, for example {"n_estimators": 300}
    backbone        wide_resnet50_2.tv_in1k    timm's tag, as in the papers' methods
    stages          2, 3                       as in PatchCore
    grid            16                         cells per side
    standardize     yes                        each channel to mean 0 and std 1 over the training vectors
    pca_components  0                          principal components that are used; 0 is all
    max_vectors     20000                      maximum number of random training vectors
    smoothing       4                          sigma in pixels of a Gaussian over the map
    score           max                        image score from the map

An estimator with `random_state` gets the run's seed; a LocalOutlierFactor gets novelty=True, so that it can score new
images.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators
from torch import Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Progress, Setup

from .parts.backbone import Backbone
from .parts.checks import check_at_least, check_smoothing
from .parts.features import fuse
from .parts.json_options import parse_json_object
from .parts.maps import Score, gaussian_filter, image_score, upsample

TITLE = "{model} (scikit-learn)"
FAMILY = "external"
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0"},
    "check": {"model": "IsolationForest", "backbone": "tf_efficientnet_lite0", "grid": 4},
}

BATCH = 8
"""Images per batch in fit."""

EXAMPLE = '{"n_estimators": 300}'
"""Example of the setting `options` in error messages."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an external estimator; the table above explains them."""

    model: str = ""
    options: str = "{}"
    backbone: str = "wide_resnet50_2.tv_in1k"
    stages: tuple[int, ...] = (2, 3)
    grid: int = 16
    standardize: bool = True
    pca_components: int = 0
    max_vectors: int = 20_000
    smoothing: float = 4.0
    score: Score = "max"

    def __post_init__(self) -> None:
        check_at_least(1, self, "grid", "max_vectors")
        check_at_least(0, self, "pca_components")
        check_smoothing(self)
        parse_json_object(self.options, EXAMPLE)


class SklearnMethod(Method):
    """An estimator of scikit-learn on the cells of a frozen backbone's features."""

    learned = ("vectors",)  # the estimator is fitted on them again after a load, so no file with code is needed
    export_obstacle: ClassVar[str] = "the estimator is code of scikit-learn, which is not made of torch's operations"
    settings: Settings
    vectors: Tensor  # (n, c), on the CPU during fit

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._class = _estimator_class(settings.model)
        self._create_estimator()  # wrong options raise an error here, before fit
        self._backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)

    def fit(self, train: Images, progress: Progress) -> None:
        """Compute the vectors of all cells and fit the estimator on at most `max_vectors` of them."""
        batches = []
        for done, images in enumerate(train.batches(BATCH), start=1):
            batches.append(self._cells(images.to(self.setup.device)).flatten(0, 2).cpu())
            progress(min(done * BATCH, len(train)), len(train), None)
        vectors = torch.cat(batches)  # (n * grid * grid, c)
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(self.setup.seed))
        self.vectors = vectors[order[: self.settings.max_vectors].sort().values]
        _ = self._estimator  # fitted here, so that its time is part of the fit

    @cached_property
    def _estimator(self) -> Any:
        """The estimator, fitted on the vectors."""
        vectors = self.vectors.cpu().numpy()
        try:
            return self._create_estimator().fit(vectors)
        except ValueError as error:
            raise BenchError(f"{self.settings.model} cannot be fitted on {len(vectors)} vectors: {error}") from error

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return minus the estimator's score of each cell, resized and smoothed."""
        estimator = self._estimator
        cells = self._cells(images)  # (b, grid, grid, c)
        scores = -estimator.score_samples(cells.flatten(0, 2).cpu().numpy())
        maps = torch.as_tensor(scores, dtype=torch.float32, device=images.device).view(cells.shape[:3])
        maps = upsample(maps, (images.shape[2], images.shape[3]), align_corners=False)
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    def info(self) -> Info:
        """Return the backbone, and the number of vectors that the estimator was fitted on."""
        return super().info() | {"vectors": len(self.vectors)}

    def _cells(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to the means of the fused features over cells: (b, grid, grid, c)."""
        features = fuse([stage.float() for stage in self._backbone(images)])
        return F.adaptive_avg_pool2d(features, self.settings.grid).permute(0, 2, 3, 1)

    def _create_estimator(self) -> Any:
        """Return the unfitted pipeline of standardization, PCA and estimator."""
        settings = self.settings
        options = parse_json_object(settings.options, EXAMPLE)
        parameters = inspect.signature(self._class).parameters
        defaults = {"random_state": self.setup.seed, "novelty": True}
        try:
            estimator = self._class(**{name: value for name, value in defaults.items() if name in parameters} | options)
        except TypeError as error:
            raise BenchError(
                f"options must be arguments of scikit-learn's {settings.model}: {error}. "
                f"Its arguments are {', '.join(parameters)}."
            ) from error
        steps = [StandardScaler()] if settings.standardize else []
        steps += [PCA(settings.pca_components, random_state=self.setup.seed)] if settings.pca_components else []
        return make_pipeline(*steps, estimator)


METHOD = SklearnMethod


def _estimator_class(name: str) -> Any:
    classes = {key: cls for key, cls in all_estimators() if hasattr(cls, "score_samples")}
    if name not in classes:
        raise BenchError(
            f"sklearn needs the name of a model, for example sklearn:IsolationForest, got '{name}'. "
            f"There are: {', '.join(sorted(classes))}."
        )
    return classes[name]
