"""RD4AD: reverse distillation. A decoder restores a teacher's features from their compressed form.

Deng, Li: Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022
(https://arxiv.org/abs/2201.10703). Code: https://github.com/hq-deng/RD4AD at 6554076 (MIT). We could not
read the paper's text.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting             default                source
    backbone, stages    wide_resnet50_2, 1-3   [C] the teacher, torchvision's first weights; layer1 to layer3
    block               bottleneck             [C] of bottleneck and decoder; basic with a ResNet18
    bottleneck_blocks   3                      [C] of a ResNet's layer4; 2 with a ResNet18
    decoder_blocks      3, 4, 6                [C] deepest stage first, so not mirrored; 2, 2, 2 with a ResNet18
    width_divisor       2                      [C] a wide ResNet's; 4 for a plain ResNet50
    signed              no                     [I] no ReLU after the decoder's stages, for teachers with features < 0
    loss                flattened              [C] cosine of whole maps as vectors; "per_position" is the paper's [M]
    epochs, batch       200, 16                [C], [M]
    lr, betas           0.005, (0.5, 0.999)    [C], [M] Adam, constant
    smoothing           4                      [C] sigma in pixels

A user of the code found that the paper's loss is worse (issue 22 of its repository: carpet 92.3 image AUROC), so the
profile `paper` is the only place where it is used.

The anomaly map is the sum over stages of 1 - cosine at each position, each upsampled with align_corners=True [C]; the
score of an image is the maximum of the smoothed map [C].

Differences from the code, which change no result: two layers of the bottleneck that the code never calls (8.4 of 67.3
million parameters) are left out; no gradient is computed for the teacher; its features are computed once. The code
seeds once for all categories; here each fit has the seed of the run. A teacher that is not a ResNet may have any number
of channels c1, c2, c3 at strides that double; the embedding has 2 * c3 channels [I]. An EfficientNet's features can be
negative, which a decoder that ends with a ReLU cannot restore; hence the setting `signed` [I].

    bench run --method rd4ad --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    expected mean image/pixel AUROC: 98.5/97.8 (the paper [M]); the code returns the last of 200 epochs
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from bench.errors import BenchError
from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.features import MEMORY_BUDGET, FrozenFeatures
from .parts.maps import gaussian_filter, image_score, upsample
from .parts.precision import autocast
from .parts.reverse_distillation_net import BlockType, ReverseDistillationNet
from .parts.similarity import cosine_distance

TITLE = "RD4AD"
FAMILY = "distillation"
PAPER = (
    "Deng, Li: Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR, "
    "https://arxiv.org/abs/2201.10703"
)
YEAR = 2022
PROFILES = {
    "demo": {
        "backbone": "tf_efficientnet_lite0", "block": "basic", "bottleneck_blocks": 2, "decoder_blocks": [2, 2, 2],
        "signed": True, "epochs": 100, "batch_size": 4,
    },
    "paper": {"loss": "per_position"},
    "check": {
        "backbone": "tf_efficientnet_lite0", "block": "basic", "bottleneck_blocks": 1, "decoder_blocks": [1, 1, 1],
        "signed": True, "epochs": 2,
    },
}  # fmt: skip

NETWORK_STRIDE = 8
"""Features of the first stage per feature of the embedding, along each axis."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of RD4AD; the table above has the source of each."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag of the teacher
    stages: tuple[int, ...] = (1, 2, 3)  # three, as timm counts them
    block: BlockType = "bottleneck"
    bottleneck_blocks: int = 3
    decoder_blocks: tuple[int, ...] = (3, 4, 6)
    width_divisor: int = 2
    signed: bool = False  # True: restored features can be negative, as those of EfficientNets
    loss: Literal["flattened", "per_position"] = "flattened"
    epochs: int = 200
    lr: float = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    batch_size: int = 16
    smoothing: float = 4.0  # sigma in pixels; 0 is none

    def __post_init__(self) -> None:
        check_at_least(1, self, "bottleneck_blocks", "width_divisor", "epochs", "batch_size")
        check_at_least(0, self, "lr")
        check_smoothing(self)
        check_setting(len(self.stages) == 3, self, "stages", "must be three stages")
        is_valid = len(self.decoder_blocks) == 3 and min(self.decoder_blocks) >= 1
        check_setting(is_valid, self, "decoder_blocks", "must be three integers >= 1")


class RD4AD(Method):
    """Restores the teacher's stages from a compressed embedding; the anomaly map is their cosine distance."""

    learned = ("network",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: ReverseDistillationNet

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._teacher = Backbone.from_setup(settings.backbone, settings.stages, setup)
        first, second, third = self._teacher.strides
        if (second, third) != (2 * first, 4 * first):
            raise BenchError(
                f"rd4ad: the strides of the stages must double, got {self._teacher.strides}. Change it with "
                f"--set stages=VALUE."
            )
        multiple = NETWORK_STRIDE * first
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple}, got {setup.size[0]} x {setup.size[1]}. "
                f"Change the size of the images."
            )

    def build_network(self) -> ReverseDistillationNet:
        """Return the untrained bottleneck and decoder."""
        return _build_network(self.settings, self._teacher.channels)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train bottleneck and decoder to restore the features of good images."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(
            self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr, betas=settings.betas
        )
        features = FrozenFeatures(self.extract, train, identity=self._teacher.identity, setup=self.setup)
        generator = Generator().manual_seed(self.setup.seed)
        for epoch in self.epochs(settings.epochs, network, training, generator):
            network.train()
            for stages in features.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                training.minimize(self.loss(network, stages), len(stages[0]))
            loss = training.epoch_loss()
            self.network = network.eval()
            progress(epoch, settings.epochs, loss)

    def loss(self, network: ReverseDistillationNet, stages: Sequence[Tensor]) -> Tensor:
        """Return the sum over stages of the mean cosine distance between teacher and restoration."""
        total = torch.zeros((), device=self.setup.device)
        for original, restored in zip(*self.restore_features(network, stages), strict=True):
            if self.settings.loss == "flattened":
                distances = cosine_distance(original.flatten(1), restored.flatten(1))  # (b,)
            else:
                distances = position_distances(original, restored)  # (b, h_i, w_i)
            total = total + distances.mean()
        return total

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed sum of the stages' cosine distances, and its maximum as the score."""
        maps = gaussian_filter(self.stage_maps(images).sum(dim=1), self.settings.smoothing)  # (b, H, W)
        return Prediction(image_score(maps, "max"), maps)

    def stage_maps(self, images: Tensor) -> Tensor:
        """Return the cosine distances of each stage in [0, 2], upsampled: (b, 3, H, W)."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        pairs = zip(*self.restore_features(network, self.extract(images)), strict=True)
        return torch.stack(
            [upsample(position_distances(*pair), self.setup.size, align_corners=True) for pair in pairs], dim=1
        )

    @cached_property
    def _inference_network(self) -> ReverseDistillationNet:
        return with_compiled_methods(self.network, self.setup, "forward")

    def restore_features(
        self, network: ReverseDistillationNet, stages: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's stages and their restorations, both float32.

        The stages are made contiguous: on a CPU, batch norm in training mode is inexact with channels last.
        """
        original = [stage.float().contiguous() for stage in stages]
        with autocast(self.setup):
            restored = network(original)
        return original, [stage.float() for stage in restored]

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the teacher's stages of (b, 3, H, W) images."""
        return list(self._teacher(images.to(self.setup.device)))

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the cosine distance of each stage before smoothing."""
        maps = self.stage_maps(images)
        return {f"cosine distance stage {stage}": maps[:, i] for i, stage in enumerate(self.settings.stages)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, cached features, and the activations of one step."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        with torch.device("meta"):
            network = _build_network(settings, channels)
        n_weights = sum(parameter.numel() for parameter in network.parameters())
        stage_bytes = sum(4 * c * (size[0] // s) * (size[1] // s) for c, s in zip(channels, strides, strict=True))
        n_maps = 3 * sum(settings.decoder_blocks)  # activations per block that are saved for the backward pass
        return 16 * n_weights + min(n_images * stage_bytes, MEMORY_BUDGET) + settings.batch_size * stage_bytes * n_maps


def position_distances(original: Tensor, restored: Tensor) -> Tensor:
    """Return 1 - cosine over the channels of two (b, c, h, w), in [0, 2]: (b, h, w)."""
    return cosine_distance(original.movedim(1, -1), restored.movedim(1, -1))


def _build_network(settings: Settings, channels: Sequence[int]) -> ReverseDistillationNet:
    blocks = settings.bottleneck_blocks, settings.decoder_blocks
    return ReverseDistillationNet(channels, settings.block, *blocks, settings.width_divisor, signed=settings.signed)


METHOD = RD4AD
