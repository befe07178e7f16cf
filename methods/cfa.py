"""CFA: features are adapted to lie within spheres around normal features; the anomaly map is the distance to them.

Lee, Lee, Song: CFA: Coupled-hypersphere-based Feature Adaptation, IEEE Access 10, 2022
(https://arxiv.org/abs/2206.04325). Code: https://github.com/sungwool/CFA_for_anomaly_localization at 0708086, without a
license: only its facts are used here. We could not read the paper's text.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting               default            source
    backbone, stages      wide_resnet50_2, 1-3   [C] torchvision's first weights; layer1 to layer3
    features              pre_activation     [C] the sums before a stage's last ReLU, through LeakyReLU(0.01)
    descriptor_reduction  1                  [C] gamma_d: channels of the features per channel of the descriptor
    memory_reduction      1                  [C] gamma_c: positions per vector of the memory, by k-means; 1 is none
    n_neighbors           3                  [C] K, nearest vectors of the memory that attract, and that give the score
    n_hard_negatives      3                  [C] J, the vectors after these, which repel
    margin                0.1                [C] alpha of the repulsion
    loss_weight           1000               [C] weight of both terms
    radius                1e-5               [C] initial value; it is trained
    epochs, batch         30, 4              [C]
    lr, weight_decay      1e-3, 5e-4         [C] AdamW with amsgrad, constant, also for the radius
    smoothing             4                  [C] sigma in pixels

Each stage is averaged over 3 x 3 features and resized to the first one's grid; two channels with the row and the column
are added, and the descriptor is linear. The memory is the mean over the training images of the UNTRAINED descriptor's
output at each position, and constant afterwards [C], so the targets depend on the seed. The score of a position is the
distance to the nearest vector times its softmin among the K nearest.

Differences from the code: incomplete batches, which the code drops, are used in training and for the memory (with fewer
images than a batch, no image would be used); squared distances are computed from differences, so a root is never NaN;
each fit has the seed of the run, the code sets 1024 once for all categories; maps are not rescaled over the test set.
The descriptor is linear, so its mean output is its output for the mean features.

anomalib's Cfa is another method in three respects: its radius is never trained, so nothing repels; its features are
those after the ReLU; its weights are others.

    bench run --method cfa --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image/pixel AUROC: 99.3/98.2 (the code's README, crop), AN ORACLE: the code keeps the best image AUROC
    and the best pixel AUROC on the TEST set, each from another epoch. The abstract's 99.5/98.5 also takes the
    better of two preprocessings per category. Here the result is that of the last epoch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.bank import MemoryBank, nearest_neighbors
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.maps import gaussian_filter, image_score, upsample
from .parts.precision import autocast

TITLE = "CFA"
FAMILY = "memory bank"
PAPER = (
    "Lee, Lee, Song: CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly Localization, "
    "IEEE Access 10, https://arxiv.org/abs/2206.04325"
)
YEAR = 2022
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "stages": [2, 3], "features": "stage", "epochs": 300},
    "check": {
        "backbone": "tf_efficientnet_lite0",
        "stages": [2, 3],
        "features": "stage",
        "descriptor_reduction": 4,
        "epochs": 2,
    },
}

LEAK = 0.01
"""Slope of the LeakyReLU for negative sums [C]."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of CFA; the table above has the source of each."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # stages of the backbone, as timm counts them
    features: Literal["pre_activation", "stage"] = "pre_activation"  # "stage": the stages as timm returns them
    descriptor_reduction: int = 1
    memory_reduction: int = 1
    n_neighbors: int = 3
    n_hard_negatives: int = 3
    margin: float = 0.1
    loss_weight: float = 1000.0
    radius: float = 1e-5
    epochs: int = 30
    batch_size: int = 4
    lr: float = 1e-3
    weight_decay: float = 5e-4
    smoothing: float = 4.0  # sigma in pixels; 0 is none

    def __post_init__(self) -> None:
        counts = ("descriptor_reduction", "memory_reduction", "n_neighbors", "n_hard_negatives", "epochs", "batch_size")
        check_at_least(1, self, *counts)
        check_at_least(0, self, "margin", "lr", "weight_decay")
        check_smoothing(self)
        check_setting(self.loss_weight > 0, self, "loss_weight", "must be > 0")
        check_setting(self.radius > 0, self, "radius", "must be > 0, so that it has a gradient")


class Descriptor(nn.Module):
    """A linear map of each feature and its position (a 1 x 1 CoordConv), and the radius of the spheres."""

    def __init__(self, channels: int, outputs: int, radius: float) -> None:
        super().__init__()
        self.projection = nn.Linear(channels + 2, outputs)
        self.radius = nn.Parameter(torch.tensor(radius))

    def forward(self, features: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, h * w, outputs), row by row."""
        b, _, h, w = features.shape
        rows = torch.linspace(-1, 1, h, device=features.device)[:, None].expand(h, w)
        columns = torch.linspace(-1, 1, w, device=features.device).expand(h, w)
        positions = torch.stack([rows, columns], dim=2).expand(b, h, w, 2)
        tokens = torch.cat([features.permute(0, 2, 3, 1), positions], dim=3)  # (b, h, w, c + 2)
        descriptors: Tensor = self.projection(tokens.flatten(1, 2))  # (b, h * w, outputs)
        return descriptors


class CFA(Method):
    """Adapts features to a memory of mean normal features; the anomaly map is the weighted distance to the nearest."""

    learned = ("network", "memory")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(
        256, 256, resample="lanczos", keep_aspect=True, crop=224
    )
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: Descriptor
    memory: Tensor  # (m, d)

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        self._identity = f"{self.backbone.identity} {settings.features} averaged"
        if settings.features == "pre_activation":
            return_pre_activations(self.backbone, settings)

    def build_network(self) -> Descriptor:
        """Return the untrained descriptor."""
        channels = sum(self.backbone.channels)
        return Descriptor(channels, max(1, channels // self.settings.descriptor_reduction), self.settings.radius)

    def fit(self, train: Images, progress: Progress) -> None:
        """Compute the memory with the untrained descriptor, and train descriptor and radius."""
        settings = self.settings
        network = self.initialize(self.build_network)
        features = FrozenFeatures(self.extract, train, identity=self._identity, setup=self.setup)
        self.memory = self.compute_memory(network, features, len(train))
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "amsgrad": True}
        training = TrainingStep(self.setup, torch.optim.AdamW, network.parameters(), **options)
        generator = Generator().manual_seed(self.setup.seed)
        for epoch in self.epochs(settings.epochs, network, training, generator):
            network.train()
            for stages in features.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                training.minimize(self.loss(network, join(stages)), len(stages[0]))
            loss = training.epoch_loss()
            self.network = network.eval()
            progress(epoch, settings.epochs, loss)

    @torch.no_grad()
    def compute_memory(self, network: Descriptor, features: FrozenFeatures, n_images: int) -> Tensor:
        """Return the descriptor's output for the mean features at each position, or its k-means centers: (m, d)."""
        settings = self.settings
        total: Tensor | None = None
        for stages in features.batches(settings.batch_size):
            summed = join(stages).sum(dim=0, keepdim=True)  # (1, c, h, w)
            total = summed if total is None else total + summed
        assert total is not None
        memory: Tensor = network(total / n_images)[0]  # (h * w, d)
        if settings.memory_reduction > 1:
            from sklearn.cluster import KMeans  # takes a second to import

            count = max(1, len(memory) // settings.memory_reduction)
            kmeans = KMeans(count, max_iter=3000, random_state=self.setup.seed).fit(memory.cpu().numpy())
            memory = torch.from_numpy(kmeans.cluster_centers_).to(memory)
        required = settings.n_neighbors + settings.n_hard_negatives
        if len(memory) < required:
            raise BenchError(
                f"cfa: the memory must have at least n_neighbors + n_hard_negatives = {required} vectors, got "
                f"{len(memory)}. Use larger images or a lower --set memory_reduction=VALUE."
            )
        return memory

    def loss(self, network: Descriptor, features: Tensor) -> Tensor:
        """Return attraction to the nearest vectors of the memory plus repulsion from the next ones.

        Squared distances beyond the squared radius attract, and those within it less the margin repel.
        """
        settings, bank = self.settings, self._bank
        descriptors = self.describe(network, features) - bank.center  # (b * h * w, d)
        count = settings.n_neighbors + settings.n_hard_negatives
        _, index = nearest_neighbors(descriptors.detach(), bank, count)  # (b * h * w, count), nearest first
        squared = (descriptors[:, None] - bank.rows[index]).square().sum(dim=2)
        within = network.radius.square()
        attraction = F.relu(squared[:, : settings.n_neighbors] - within).mean()
        repulsion = F.relu(within - squared[:, settings.n_hard_negatives :] - settings.margin).mean()
        return settings.loss_weight * (attraction + repulsion)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed map of weighted distances, and its maximum as the score."""
        distance, weight = self.distances(images)
        maps = upsample(distance * weight, self.setup.size, align_corners=False)  # (b, H, W)
        maps = gaussian_filter(maps, self.settings.smoothing)
        return Prediction(image_score(maps, "max"), maps)

    def distances(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest vector of the memory and its softmin among the nearest, (b, h, w) each."""
        network, bank = self._inference_network, self._bank
        check_image_size(images, self.setup.size)
        features = join(self.extract(images))  # (b, c, h, w)
        descriptors = self.describe(network, features) - bank.center
        squared, _ = nearest_neighbors(descriptors, bank, self.settings.n_neighbors)  # (b * h * w, k)
        distances = squared.sqrt()
        shape = (len(images), *features.shape[2:])
        return distances[:, 0].view(shape), distances.neg().softmax(dim=1)[:, 0].view(shape)

    def describe(self, network: Descriptor, features: Tensor) -> Tensor:
        """Return the descriptors of (b, c, h, w) features in float32: (b * h * w, d)."""
        with autocast(self.setup):
            descriptors: Tensor = network(features)
        return descriptors.float().flatten(0, 1)

    @cached_property
    def _bank(self) -> MemoryBank:
        count = self.settings.n_neighbors + self.settings.n_hard_negatives
        center = self.memory.mean(dim=0)
        return MemoryBank.from_rows(self.memory - center, center, self.setup.precision, count=count)

    @cached_property
    def _inference_network(self) -> Descriptor:
        return with_compiled_methods(self.network, self.setup, "forward")

    @torch.no_grad()
    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the stages of (b, 3, H, W) images, averaged over 3 x 3 features including the zero padding."""
        return [F.avg_pool2d(stage.float(), 3, 1, 1) for stage in self.backbone(images.to(self.setup.device))]

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the two factors of the map before smoothing."""
        distance, weight = self.distances(images)
        pictures = {"nearest distance": distance, "softmin weight": weight}
        return {name: upsample(maps, self.setup.size, align_corners=False) for name, maps in pictures.items()}

    def info(self) -> Info:
        """Return the backbone, the size of the memory, and the trained radius."""
        vectors, dimensions = self.memory.shape
        values = {"memory_vectors": vectors, "dimensions": dimensions, "radius": float(self.network.radius.detach())}
        return super().info() | values

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of cached features, of weights and Adam moments, and of the neighbors of one step."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        grids = [prod(-(-side // stride) for side in size) for stride in strides]
        stages = sum(c * grid for c, grid in zip(channels, grids, strict=True))
        outputs = max(1, sum(channels) // settings.descriptor_reduction)
        queries = min(settings.batch_size, n_images) * grids[0]
        neighbors = 3 * queries * (settings.n_neighbors + settings.n_hard_negatives) * outputs
        weights = 5 * sum(channels) * outputs
        return min(4 * n_images * stages, MEMORY_BUDGET) + 4 * (weights + neighbors + 3 * queries * sum(channels))


def join(stages: Sequence[Tensor]) -> Tensor:
    """Concatenate stages (b, c_i, h_i, w_i), resized to the grid of the first one: (b, sum of c_i, h_0, w_0)."""
    grid = (stages[0].shape[2], stages[0].shape[3])
    return torch.cat([stages[0], *(upsample(stage, grid, align_corners=False) for stage in stages[1:])], dim=1)


def return_pre_activations(backbone: Backbone, settings: Settings) -> None:
    """Change a ResNet such that each stage returns the sums before its last ReLU, through a LeakyReLU.

    The next stage begins with a ReLU, which gives its original input: ReLU(LeakyReLU(x)) = ReLU(x).

    Raises:
        BenchError: if the backbone is no ResNet of timm.
    """
    network: Any = backbone.network
    for stage in settings.stages:
        name, next_layer = f"layer{stage}", f"layer{stage + 1}"
        block = getattr(network, name)[-1] if hasattr(network, name) else None
        act = next((act for act in ("act3", "act2") if hasattr(block, act)), None)
        if act is None:
            raise BenchError(
                f"cfa: features = pre_activation requires a ResNet, got backbone = {settings.backbone}. Change it with "
                f"--set features=stage."
            )
        setattr(block, act, nn.LeakyReLU(LEAK))
        if hasattr(network, next_layer):
            setattr(network, next_layer, nn.Sequential(nn.ReLU(), *getattr(network, next_layer)))


METHOD = CFA
