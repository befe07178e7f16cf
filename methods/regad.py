"""RegAD: registration of two images of a category, learned on other categories (Huang et al.; ECCV 2022).

A network is trained on the OTHER categories to make the features of two images of one category equal: warps bring them
to a common pose, and a Siamese loss compares them. For a new category nothing is trained: the few good images are
augmented, a Gaussian of the features, warped back, is estimated at each position as in PaDiM, and the map is the
Mahalanobis distance.

Paper: https://arxiv.org/abs/2207.07361. Code: https://github.com/MediaBrain-SJTU/RegAD at 5e2c1f8 (MIT). We could not
read the paper's text; [P] is its numbers as the README of the code quotes them.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting              default     source
    backbone, stages     resnet18, 1 to 3   [C] torchvision's, trained; a warp after each stage
    normalize            no          [C] images in [0, 1], although the weights are ImageNet's
    pretrain_epochs      49          [C] those before an evaluation; the code trains 50, the last one with rate 0.
                                     0 does not pretrain, as before the code's first evaluation
    batch_size           32          [C] queries of one category
    n_references         2           [C] images of the category per query, as many as the k of the test; here one value
    lr, momentum         1e-4, 0.9   [C] SGD; the rate of epoch e is lr (1 + cos(pi e / (epochs + 1))) / 2
    regularization       0.01        [C] added to the diagonal of each covariance
    smoothing            4           [C] sigma in pixels

`pretrain` gets the good images of all other categories. Without any (one category, or one model for all), or with
pretrain_epochs = 0 (alias regad_unregistered), the backbone stays pretrained on ImageNet with identity warps; such
results are not those of RegAD and must be called "not registered". `info` has the number of categories.

The Gaussian comes from 22 views of each image [C]: itself, 8 rotations, 8 shifts, mirrored, gray, 3 quarter turns.

Differences from the code: the last epoch is used; a Mahalanobis distance solves n equations for n views, which is
exact, instead of inverting a covariance (`parts/pyramid_gaussians`); with as many views as channels, covariances are
accumulated as in PaDiM; maps are not rescaled over the test set; each fit has the seed of the run, in the code only
CUDA is seeded; one optimizer instead of three with equal settings; the batches of all categories are shuffled; the k
images are selected by this toolkit, those of the authors are not published.

    bench run --method regad,regad_unregistered --profile code --dataset mvtec --protocol kshot --k 2,4,8
        --preprocessing paper
    published mean image/pixel AUROC: 85.7/94.6, 88.2/95.8, 91.2/96.7 for k = 2/4/8 ([P], Table IV of AMI-Net), and
    85.5/95.6, 89.2/96.2, 91.2/97.1 (the code's README, released weights), AN ORACLE: the code keeps the epoch with the
    best mean of image and pixel AUROC on the TEST set, over 10 draws of the k images
"""

import logging
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep
from bench.weights import find_weights

from .parts.backbone import channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.gaussians import GaussianEstimator, mahalanobis_distance, whitening
from .parts.maps import gaussian_filter, image_score, upsample
from .parts.precision import autocast
from .parts.pyramid_gaussians import PyramidGaussians
from .parts.spatial_transformer import RegisteringBackbone, warp

_log = logging.getLogger(__name__)

TITLE = "RegAD"
FAMILY = "few-shot"
PAPER = (
    "Huang, Guan, Jiang, Zhang, Spratling, Wang: Registration based Few-Shot Anomaly Detection, ECCV, "
    "https://arxiv.org/abs/2207.07361"
)
YEAR = 2022
NEEDS = ("other categories to pretrain on",)
ALIASES = {"regad_unregistered": {"title": "RegAD (not registered)", "settings": {"pretrain_epochs": 0}}}
PROFILES = {
    "demo": {
        "backbone": "tf_efficientnet_lite0", "normalize": True, "pretrain_epochs": 2, "batch_size": 4,
        "n_references": 1, "lr": 3e-4,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "stages": [1, 2], "normalize": True, "pretrain_epochs": 1,
        "batch_size": 2, "n_references": 1,
    },
}  # fmt: skip

ROTATIONS = (-4, -3, -2, -1, 1, 2, 3, 4)
"""Of the views of a support image, in units of pi / 16 [C]."""

SHIFTS = tuple((x * d, y * d) for d in (0.2, 0.1) for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1)))
"""Of the views, x and y in halves of the side [C]."""

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue [C]."""

VIEWS = 1 + len(ROTATIONS) + len(SHIFTS) + 5
"""Of each support image."""

BATCH = 32
"""Views per batch in fit."""

VALUES_PER_PIXEL = 140
"""Of an image in a training step: maps that a ResNet18 keeps for its gradients, up to layer3, counted."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of RegAD; the table above has the source of each."""

    backbone: str = "resnet18.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # of the backbone, as timm counts them
    normalize: bool = False  # images, as the backbone's weights require
    pretrain_epochs: int = 49  # 0: not registered
    batch_size: int = 32  # queries
    n_references: int = 2  # images per query
    lr: float = 1e-4
    momentum: float = 0.9
    regularization: float = 0.01
    smoothing: float = 4.0  # sigma in pixels; 0 is none

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size", "n_references")
        check_at_least(0, self, "pretrain_epochs", "lr", "momentum")
        check_smoothing(self)
        check_setting(
            self.regularization > 0, self, "regularization", "must be > 0, so that covariances are invertible"
        )


class SiameseHead(nn.Module):
    """Encoder and predictor of the Siamese loss; they are used in pretraining only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = _convolutions(channels, 3)
        self.predictor = _convolutions(channels, 2)

    def forward(self, query: Tensor, reference: Tensor) -> Tensor:
        """Return the loss in [-1, 1]: minus the mean cosine of each one's prediction and the other one's code."""
        codes = [self.encoder(maps) for maps in (query, reference)]
        predictions = [self.predictor(code) for code in codes]
        pairs = zip(predictions, reversed(codes), strict=True)
        cosines = [F.cosine_similarity(p.float(), z.detach().float(), dim=1).mean() for p, z in pairs]
        return -(cosines[0] + cosines[1]) / 2


def _convolutions(channels: int, count: int) -> nn.Sequential:
    """Return 1 x 1 convolutions without bias; a batch norm and a ReLU follow each but the last one."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class RegAD(Method):
    """Gaussians of registered features of augmented images; the map is the Mahalanobis distance."""

    learned = ("network", "pretrain_categories", "supports", "mean", "whitening")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(224, 224, resample="lanczos", keep_aspect=True)  # [C]
    supports_compile: ClassVar[bool] = True
    pretrains: ClassVar[bool] = True
    settings: Settings
    network: RegisteringBackbone
    pretrain_categories: Tensor  # () number of categories that the network was trained on; 0: not registered
    supports: Tensor | None = (
        None  # (22 k, v) values of all stages of each view, if there are fewer views than channels
    )
    mean: Tensor | None = None  # else (h * w, c)
    whitening: Tensor | None = None  # (h * w, c, c)

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._weights = find_weights(settings.backbone, setup.weights)
        self._channels, strides = channels_and_strides(settings.backbone, settings.stages)
        height, width = setup.size
        if height != width or height % strides[-1]:
            raise BenchError(
                f"regad: images must be squares, so that a quarter turn fits, and their side a multiple of "
                f"{strides[-1]} pixels, the stride of the last stage, got {height} x {width}. Change their size."
            )
        self._grids = [(height // stride, width // stride) for stride in strides]

    @classmethod
    def pretrains_with(cls, settings: Settings) -> bool:
        """Return whether the network is trained on other categories."""
        return settings.pretrain_epochs > 0

    def build_network(self) -> RegisteringBackbone:
        """Return the backbone with pretrained weights and identity warps."""
        settings = self.settings
        network = RegisteringBackbone(self._weights, settings.stages, self.setup.size, normalize=settings.normalize)
        return network.requires_grad_(settings.pretrain_epochs > 0)

    def pretrain(self, others: Mapping[str, Images], progress: Progress) -> None:
        """Train the registration on pairs of images of one category, among the other categories."""
        settings = self.settings
        others = {category: images for category, images in others.items() if len(images) > 1}
        if not settings.pretrain_epochs or not others:
            return
        network = self.initialize(self.build_network)
        self._check_batch_norms(network)
        head = self.initialize(lambda: SiameseHead(self._channels[-1]))
        parameters = [*network.parameters(), *head.parameters()]
        training = TrainingStep(self.setup, torch.optim.SGD, parameters, lr=settings.lr, momentum=settings.momentum)
        generator = Generator().manual_seed(self.setup.seed)
        network.train()
        for epoch in self.epochs(settings.pretrain_epochs, network, head, training, generator, is_last=False):
            for group in training.optimizer.param_groups:
                group["lr"] = settings.lr * (1 + math.cos(math.pi * epoch / (settings.pretrain_epochs + 1))) / 2
            for queries, references in self._draw_pairs(others, generator):
                training.minimize(self.loss(network, head, queries, references), len(queries))
            progress(epoch, settings.pretrain_epochs, training.epoch_loss())
        self.network = network.eval()
        self.pretrain_categories = torch.tensor(len(others))

    def _draw_pairs(self, others: Mapping[str, Images], generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield queries (b, 3, h, w) and references (b, r, 3, h, w) of one category at a time, in random order."""
        settings = self.settings
        batches = [
            (category, queries)
            for category, images in others.items()
            for queries in torch.randperm(len(images), generator=generator).split(settings.batch_size)
        ]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            category, queries = batches[index]
            images = others[category]
            shape = (len(queries), settings.n_references)
            references = torch.randint(len(images) - 1, shape, generator=generator)
            references += references >= queries[:, None]  # never the query itself
            order = torch.cat([queries, references.flatten()])  # (b + b * r,)
            batch = torch.cat(list(images.batches(len(order), order))).to(self.setup.device)
            yield batch[: len(queries)], batch[len(queries) :].unflatten(0, shape)

    def loss(self, network: RegisteringBackbone, head: SiameseHead, queries: Tensor, references: Tensor) -> Tensor:
        """Return the Siamese loss of queries (b, 3, h, w) and the mean features of references (b, r, 3, h, w)."""
        with autocast(self.setup):
            query = network.register(queries)[0][-1]
            reference = network.register(references.flatten(0, 1))[0][-1].unflatten(0, references.shape[:2])
            loss: Tensor = head(query, reference.mean(dim=1))
        return loss

    @torch.no_grad()
    def fit(self, train: Images, progress: Progress) -> None:
        """Estimate the Gaussians of the features of all views of the images."""
        if "network" not in vars(self):
            if self.settings.pretrain_epochs:
                _log.warning("RegAD is not registered: there are no other categories with two images to pretrain on.")
            self.network = self.initialize(self.build_network).eval()
            self.pretrain_categories = torch.tensor(0)
        total = len(train) + 1
        self.supports, self.mean, self.whitening = None, None, None
        if VIEWS * len(train) < sum(self._channels):
            views = [self._embed_views(images) for images in train.batches(len(train))]
            self.supports = torch.cat([torch.cat([stage.flatten(1) for stage in stages], dim=1) for stages in views])
            progress(len(train), total, None)
            self._check_finite(self.supports)
            _ = self._gaussians  # factored here and not in the first call of predict
        else:
            estimator = GaussianEstimator(prod(self._grids[0]), sum(self._channels), self.setup.device)
            for done, images in enumerate(train.batches(1), start=1):
                estimator.add(self._join(self._embed_views(images)))
                progress(done, total, None)
            self._check_finite(estimator.mean)
            self.mean = estimator.mean
            self.whitening = whitening(estimator.covariance(), self.settings.regularization)
        progress(total, total, None)

    def _embed_views(self, images: Tensor) -> list[Tensor]:
        """Return the features of each stage of all views of the images, (22 b, c, h, w) each."""
        views = augment(images.to(self.setup.device))
        parts = [self.embed(batch) for batch in views.split(BATCH)]
        return [torch.cat(stage) for stage in zip(*parts, strict=True)]

    def embed(self, images: Tensor) -> list[Tensor]:
        """Return the features of each stage, (b, c, h, w), in the pose of the image."""
        with autocast(self.setup):
            stages: list[Tensor] = self._inference_network(images.contiguous(memory_format=torch.channels_last))
        return stages

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed map of distances, and its maximum as the score."""
        maps = upsample(self.distances(images), self.setup.size, align_corners=False)  # (b, H, W)
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, "max"), maps)

    def distances(self, images: Tensor) -> Tensor:
        """Return the Mahalanobis distance at each position of the first stage, (b, h, w)."""
        check_image_size(images, self.setup.size)
        stages = self.embed(images)
        if self.mean is None or self.whitening is None:
            return self._gaussians.distance(stages)
        distances = mahalanobis_distance(self._join(stages), self.mean, self.whitening)  # (h * w, b)
        return distances.T.reshape(len(images), *self._grids[0])

    def _join(self, stages: list[Tensor]) -> Tensor:
        """Return the embeddings (h * w, b, c) on the grid of the first stage: each cell has that which covers it."""
        embeddings = torch.cat([F.interpolate(stage, self._grids[0]) for stage in stages], dim=1)  # (b, c, h, w)
        return embeddings.flatten(2).permute(2, 0, 1)

    @cached_property
    def _gaussians(self) -> PyramidGaussians:
        return PyramidGaussians(list(self._stages_of_supports()), self.settings.regularization)

    def _stages_of_supports(self) -> Iterator[Tensor]:
        """Yield the features of all views per stage, (22 k, c, h, w)."""
        assert self.supports is not None
        sizes = [channels * prod(grid) for channels, grid in zip(self._channels, self._grids, strict=True)]
        stages = zip(self.supports.split(sizes, dim=1), self._channels, self._grids, strict=True)
        for values, channels, grid in stages:
            yield values.unflatten(1, (channels, *grid))

    @cached_property
    def _inference_network(self) -> RegisteringBackbone:
        network = deepcopy(self.network).to(memory_format=torch.channels_last)  # about twice as fast on a CPU
        return with_compiled_methods(network, self.setup, "forward")

    def _check_batch_norms(self, network: RegisteringBackbone) -> None:
        """Raise BenchError if the weights have no statistics: training would normalize features that were not."""
        norms = [module for module in network.stages[0].modules() if isinstance(module, nn.BatchNorm2d)]
        running_mean = norms[0].running_mean
        if self._weights.source != "random" and running_mean is not None and not running_mean.any():
            raise BenchError(
                f"regad: pretraining requires weights with statistics of batch norms; those of {self._weights.source} "
                f"are fused into the convolutions. Use other weights, or --set pretrain_epochs=0 (not registered)."
            )

    def _check_finite(self, features: Tensor) -> None:
        if not features.isfinite().all():
            raise BenchError("Features must be finite, got NaN or infinity. Pass --precision float32 or a lower lr.")

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the distances before smoothing, and the image under the warps of all stages."""
        distances = upsample(self.distances(images), self.setup.size, align_corners=False)
        _, (matrix, *others) = self.network.register(images)
        for other in others:  # there is no translation, so a product of the first two columns is a composition
            matrix = torch.cat([matrix[:, :, :2] @ other[:, :, :2], matrix[:, :, 2:]], dim=2)
        return {"Mahalanobis distance": distances, "registered image": warp(images, matrix)}

    def info(self) -> Info:
        """Return the categories that the network was pretrained on (0: not registered), and the backbone."""
        return super().info() | {"pretrain_categories": int(self.pretrain_categories)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of a training step, or of the Gaussians if they need more."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        grids = [prod(side // stride for side in size) for stride in strides]
        n_views, n_channels = VIEWS * n_images, sum(channels)
        step = VALUES_PER_PIXEL * prod(size) * settings.batch_size * (1 + settings.n_references)
        values = 2 * n_views * sum(c * grid for c, grid in zip(channels, grids, strict=True))
        few = values + grids[0] * n_views**2
        many = grids[0] * n_channels * (n_channels + 3 * VIEWS)
        gaussians = few if n_views < n_channels else many
        return 4 * max(step if settings.pretrain_epochs else 0, gaussians)


def augment(images: Tensor) -> Tensor:
    """Return 22 views of square images (k, 3, h, h) as (22 k, 3, h, h); the first k are the images themselves."""
    views = [images]
    for number in ROTATIONS:
        cos, sin = math.cos(number * math.pi / 16), math.sin(number * math.pi / 16)
        views.append(_transform(images, [[cos, -sin, 0], [sin, cos, 0]]))
    views += [_transform(images, [[1, 0, x], [0, 1, y]]) for x, y in SHIFTS]
    gray = (images * torch.tensor(GRAY, device=images.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    views += [images.flip(3), gray.expand_as(images)]
    views += [torch.rot90(images, turns, (2, 3)) for turns in (1, 2, 3)]
    return torch.cat(views)


def _transform(images: Tensor, matrix: list[list[float]]) -> Tensor:
    return warp(images, torch.tensor(matrix, device=images.device).expand(len(images), -1, -1))


METHOD = RegAD
