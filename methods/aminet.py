"""AMI-Net: adaptive mask inpainting network (Luo, Yao, Yu, Li; IEEE T-ASE 2024; https://arxiv.org/abs/2412.11802).

The frozen features of an image are cut into patches. A transformer restores all of them while some are masked: random
ones in training; at test time those that are far from the cluster centers, which a second, small transformer computes
from the image itself. What cannot be restored is anomalous. The authors' code: https://github.com/luow23/AMI-Net at
3350be0.

    bench run --method aminet --dataset mvtec --profile code          # "Ours" without jitter
    bench run --method aminet_jitter --dataset mvtec --profile code   # "Ours" with the double dagger

The paper's means over 15 categories, each at its best epoch on the test set, are 98.5 image and 97.8 pixel AUROC
without jitter, 99.0 and 98.2 with it (Table I); all its numbers are in reports/published.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

The settings in both profiles: if the paper does not state a value, `paper` has that of the code. The defaults below are
`code`.

    setting             paper             code            source
    backbone, stages    wide_resnet50_2, layer1 to 3      [P] torchvision's first weights [C]
    average_pool        no                3 x 3           [P] has none, [C]
    patch               4                 4               [P]
    width, heads        768, 12           768, 12         [C]
    depth               8                 8               [P]
    aggregation_depth   1                 1               [P]
    clusters            8                 8               [P]
    final_norm          yes               yes             [C] after f_sem and f_in; not stated in the paper
    mask_token          zero              learned         [P] a constant, [C] a parameter that is initially zero
    mask_ratio          uniform           uniform         [C] U(0, 1), drawn for each image
    jitter              no / yes          no / yes        [P] two variants; [C] has only the one with jitter
    jitter_scale        20                20              [C] from UniAD
    distance            squared           euclidean       [P] a squared norm, [C] the norm; both times 1 - cosine
    cluster_reduction   sum               mean            [P] sums over tokens and pairs, [C] means
    cosine_over         patch             patch           [C] the paper does not state it; of the map: position
    mse, cosine, intra  1, 5, 1           1, 5, 1         [P] weights of the losses
    inter_weight        0.1               0.1             [P]
    epochs              200               300             [P] [C]
    lr                  1e-3              1e-4            [P] [C] constant
    betas               0.9, 0.95         0.9, 0.95       [C]
    weight_decay        0.01              0.01            [C] PyTorch's default, on every parameter
    batch_size          8                 8               [P]; [C] unified 16, few-shot 1
    lambda_             0.5               0.5             [P]
    mask_at_test        adaptive          adaptive        [P]
    test_ratio          0.5               0.5             [I] fraction of "random"
    test_cell, _subsets 2, 3              2, 3            [I] cells and passes of "complementary"
    map_difference      norm              mean_squared    [P] a norm, though it is called MSE, [C]
    map_order           multiply first    upsample first  [P] [C]
    smoothing           0                 4               [P] none, [C] a Gaussian on each factor
    score               std               std             [C] the paper defines none
    decoder_epochs      0                 0               [C] 300, separately and on demand

Differences from the code: gradients are zeroed at each step (the code never zeroes them, which its loss scaler hides:
its results are those of ordinary AdamW); no gradient is computed for the backbone; the last epoch is used, while the
code uses the best of 30 on the test set (`--selection oracle`); equal distances of all members of a cluster are
detected without rounding. Taken literally, the paper's summed and squared cluster loss is not bounded below.
"""

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts import inpainting
from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.decoder import Decoder
from .parts.features import MEMORY_BUDGET, FrozenFeatures, fused_patches
from .parts.inpainting import Inpainter, Restoration
from .parts.maps import Score, gaussian_filter, image_score, upsample
from .parts.masks import Ratio, adaptive_mask, fixed_masks, random_mask
from .parts.onednn import with_onednn_linear
from .parts.precision import autocast
from .parts.similarity import cosine_distance
from .parts.transformer import unpatchify

_log = logging.getLogger(__name__)

TITLE = "AMI-Net"
FAMILY = "mask-based"
PAPER = "Luo, Yao, Yu, Li: AMI-Net: Adaptive Mask Inpainting Network, IEEE T-ASE, https://arxiv.org/abs/2412.11802"
YEAR = 2024
ALIASES = {"aminet_jitter": {"title": "AMI-Net‡", "settings": {"jitter": True}}}  # the paper's mark for feature jitter
PROFILES = {
    "demo": {  # a backbone whose weights are installed with the package; the batch of the authors' few-shot code
        "backbone": "tf_efficientnet_lite0", "width": 128, "depth": 2, "heads": 2, "epochs": 150, "lr": 1e-3,
        "batch_size": 1,
    },
    "paper": {
        "lr": 1e-3, "epochs": 200, "average_pool": False, "cluster_reduction": "sum", "distance": "squared",
        "mask_token": "zero", "smoothing": 0.0, "map_order": "multiply_first", "map_difference": "norm",
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "width": 32, "depth": 1, "heads": 4, "clusters": 2, "epochs": 2,
        "batch_size": 4,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of AMI-Net. The defaults are the authors' code without jitter; the table above has every source."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # stages of the backbone, as timm counts them
    average_pool: bool = True  # 3 x 3 over each stage
    patch: int = 4  # side in features
    width: int = 768  # embedding dimension
    heads: int = 12
    depth: int = 8  # number of inpainting blocks
    aggregation_depth: int = 1  # number of blocks that compute the centers
    clusters: int = 8
    final_norm: bool = True  # LayerNorm after both stacks
    mask_token: Literal["learned", "zero"] = "learned"  # noqa: S105 - not a password
    mask_ratio: Ratio = "uniform"  # fraction masked in training; a number fixes it for every image
    jitter: bool = False  # noise on the tokens in training: AMI-Net with the double dagger
    jitter_scale: float = 20.0
    distance: Literal["euclidean", "squared"] = "euclidean"  # distance of a token to a center, times 1 - cosine
    cluster_reduction: Literal["mean", "sum"] = "mean"
    cosine_over: Literal["patch", "position"] = "patch"  # vectors in the loss: of 28,672 or of 1792 values
    mse_weight: float = 1.0
    cosine_weight: float = 5.0
    intra_weight: float = 1.0
    inter_weight: float = 0.1
    epochs: int = 300
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    batch_size: int = 8
    lambda_: float = 0.5  # standard deviations above a cluster's mean distance from which a token is masked
    mask_at_test: Literal["adaptive", "none", "random", "complementary"] = "adaptive"
    test_seed: int = 0  # of random and complementary masks, the same for every image; this and the next three [I]
    test_ratio: float = 0.5  # fraction masked by "random"
    test_cell: int = 2  # "complementary": side of a cell in tokens
    test_subsets: int = 3  # "complementary": number of passes, each of which masks another subset of the cells
    map_difference: Literal["mean_squared", "norm"] = "mean_squared"
    map_order: Literal["upsample_first", "multiply_first"] = "upsample_first"
    smoothing: float = 4.0  # sigma in pixels; 0 is none
    score: Score = "std"
    decoder_epochs: int = 0  # epochs of a decoder that visualizes the restored features; no score depends on it

    def __post_init__(self) -> None:
        if self.mask_ratio != "uniform":
            check_setting(0 <= self.mask_ratio < 1, self, "mask_ratio", "must be 'uniform' or in [0, 1)")
        check_setting(0 <= self.test_ratio < 1, self, "test_ratio", "must be in [0, 1)")
        check_at_least(1, self, "patch", "width", "heads", "depth", "aggregation_depth", "clusters", "epochs")
        check_at_least(1, self, "batch_size", "test_cell")
        check_at_least(0, self, "lr", "jitter_scale", "weight_decay", "decoder_epochs")
        check_smoothing(self)


class AMINet(Method):
    """Masks tokens that are far from the cluster centers of their image; the anomaly map is the restoration error."""

    learned = ("network", "decoder")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256, resample="lanczos")
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    checkpoint: ClassVar[str] = "AMAE.pth"
    settings: Settings
    network: Inpainter
    decoder: Decoder | None = None

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        self._channels = sum(self.backbone.channels)
        self._grid = inpainting.token_grid(setup.size, self.backbone.strides[0], settings.patch)
        # Inconsistent settings raise an error here, before fit.
        with torch.device("meta"):
            self.build_network()
        self._fit_info: Info = {}
        distances = torch.zeros(1, math.prod(self._grid))
        self._test_masks(distances, distances.long())

    def build_network(self) -> Inpainter:
        """Return the untrained network."""
        return _build_network(self.settings, self._grid, self._channels)

    def build_decoder(self) -> Decoder:
        """Return the untrained decoder."""
        return Decoder(self._channels, self.setup.size)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to restore randomly masked features of good images and to learn their clusters, in one loop."""
        settings, seed = self.settings, self.setup.seed
        network = self.initialize(self.build_network)
        training = self._training_step(network)
        features = FrozenFeatures(self.extract, train, identity=self.backbone.identity, setup=self.setup)
        shuffle, noise = Generator().manual_seed(seed), Generator(self.setup.device).manual_seed(seed)
        self.decoder = None

        is_last = not settings.decoder_epochs
        for epoch in self.epochs(settings.epochs, network, training, shuffle, noise, is_last=is_last):
            for stages in features.batches(settings.batch_size, torch.randperm(len(train), generator=shuffle)):
                patches = self.to_patches(stages)  # (b, n, k * k * c)
                mask = random_mask(*patches.shape[:2], ratio=settings.mask_ratio, generator=noise)
                losses = self.losses(network, patches, mask, noise)
                training.minimize(losses.pop("total"), len(patches), losses)
            loss = training.epoch_loss()
            self.network = network
            progress(epoch, settings.epochs, loss)
        self._fit_info = self._mask_info(features) | {f"loss_{name}": term for name, term in training.terms.items()}
        if settings.decoder_epochs:
            del training  # frees its Adam moments before the next optimizer allocates as many
            self._fit_decoder(network, train, features, progress)

    @torch.no_grad()
    def _mask_info(self, features: FrozenFeatures) -> Info:
        batches = (self.to_patches(stages) for stages in features.batches(self.settings.batch_size))
        statistics = inpainting.mask_statistics(map(self._restore_patches, batches), self.settings.clusters)
        if statistics["clusters_used"] == 1 < self.settings.clusters:
            _log.warning("The tokens of each training image are in 1 of %d clusters only.", self.settings.clusters)
        return {**statistics}

    def _fit_decoder(self, network: Inpainter, train: Images, features: FrozenFeatures, progress: Progress) -> None:
        """Train a decoder to map the restored features of randomly masked, jittered inputs to images [C]."""
        settings, device, seed = self.settings, self.setup.device, self.setup.seed + 1
        decoder = self.initialize(self.build_decoder, seed)
        training = self._training_step(decoder)
        shuffle, noise = Generator().manual_seed(seed), Generator(device).manual_seed(seed)
        for epoch in self.epochs(settings.decoder_epochs, decoder, training, shuffle, noise):
            order = torch.randperm(len(train), generator=shuffle)
            batches = train.batches(settings.batch_size, order), features.batches(settings.batch_size, order)
            for images, stages in zip(*batches, strict=True):
                patches = self.to_patches(stages)
                mask = random_mask(*patches.shape[:2], ratio=settings.mask_ratio, generator=noise)
                with torch.no_grad():
                    restored, _, _ = self.forward(network, patches, mask, noise)
                target = (images.to(device) - self.backbone.mean) / self.backbone.std  # (b, 3, h, w)
                output = decoder(unpatchify(restored, settings.patch, self._grid[0]))
                training.minimize(F.mse_loss(output, target), len(images))
            training.epoch_loss()
            self.decoder = decoder
            progress(settings.epochs + epoch, settings.epochs + settings.decoder_epochs, None)

    def _training_step(self, module: nn.Module) -> TrainingStep:
        options = {name: getattr(self.settings, name) for name in ("lr", "betas", "weight_decay")}
        return TrainingStep(self.setup, torch.optim.AdamW, module.parameters(), **options)

    def losses(
        self, network: Inpainter, patches: Tensor, mask: Tensor, noise: Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the loss, "total", and its terms, named as their weights in the settings.

        patches: (b, n, k * k * c) original ones. mask: (b, n), True for masked tokens. noise: None adds no jitter.
        """
        settings = self.settings
        squared, mean = settings.distance == "squared", settings.cluster_reduction == "mean"
        restored, semantic, centers = self.forward(network, patches, mask, noise)
        distances = network.distances(semantic, centers, squared=squared).amin(dim=2)  # (b, n), without jitter
        inter = inpainting.inter_cluster_distance(centers, squared=squared).mean()
        vectors = (patches, restored) if settings.cosine_over == "patch" else map(self._split, (patches, restored))
        terms = {
            "mse": F.mse_loss(restored, patches),
            "cosine": cosine_distance(*vectors).mean(),
            "intra": distances.mean() if mean else distances.sum(dim=1).mean(),
            "inter": inter / max(settings.clusters * (settings.clusters - 1), 1) if mean else inter,
        }
        restoration = settings.mse_weight * terms["mse"] + settings.cosine_weight * terms["cosine"]
        clustering = settings.intra_weight * terms["intra"] - settings.inter_weight * terms["inter"]
        return terms | {"total": restoration + clustering}

    def forward(
        self, network: Inpainter, patches: Tensor, mask: Tensor, noise: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return restored patches (b, n, k * k * c), tokens E2 (b, n, width) and centers (b, clusters, width)."""
        scale = self.settings.jitter_scale if self.settings.jitter and noise is not None else 0
        with autocast(self.setup):
            embedded, semantic = network.embed(patches)
        centers = network.centers(inpainting.jittered(semantic.float(), scale=scale, generator=noise))
        with autocast(self.setup):
            restored = network.restore(
                inpainting.jittered(network.mask_tokens(embedded, mask), scale=scale, generator=noise)
            )
        return restored.float(), semantic.float(), centers

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return scores and anomaly maps: the difference between the original and the restored features."""
        restoration = self.restore_images(images)
        original, restored = self._split(restoration.patches), self._split(restoration.restored)  # (b, n, k * k, c)
        norm = torch.linalg.vector_norm(original - restored, dim=3)  # (b, n, k * k)
        difference = norm if self.settings.map_difference == "norm" else norm.square() / self._channels
        factors = torch.cat([difference, cosine_distance(original, restored)])  # (2 * b, n, k * k)
        factors = unpatchify(factors, self.settings.patch, self._grid[0])[:, 0]  # (2 * b, h / 4, w / 4)
        if self.settings.map_order == "multiply_first":
            factors = factors[: len(images)] * factors[len(images) :]
        maps = gaussian_filter(upsample(factors, self.setup.size, align_corners=True), self.settings.smoothing)
        if self.settings.map_order == "upsample_first":
            maps = maps[: len(images)] * maps[len(images) :]  # (b, h, w)
        return Prediction(image_score(maps, self.settings.score), maps)

    def restore_images(self, images: Tensor) -> Restoration:
        """Mask tokens of images (b, 3, h, w) by the test masks and restore them."""
        check_image_size(images, self.setup.size)
        return self._restore_patches(self.to_patches(self.extract(images)))

    def _restore_patches(self, patches: Tensor) -> Restoration:
        network = self._inference_network
        with autocast(self.setup):
            embedded, semantic = network.embed(patches)
        centers = network.centers(semantic)
        squared = self.settings.distance == "squared"
        distances, clusters = network.distances(semantic, centers, squared=squared).min(dim=2)  # each (b, n)
        masks = self._test_masks(distances, clusters)
        restored = patches
        for mask in masks:
            with autocast(self.setup):
                output = network.restore(network.mask_tokens(embedded, mask)).float()
            # A single pass gives all patches. Of several passes, each gives the patches that it masked; each patch is
            # masked once.
            restored = output if len(masks) == 1 else torch.where(mask[:, :, None], output, restored)
        return Restoration(patches, restored, distances, clusters, masks)

    @cached_property
    def _inference_network(self) -> Inpainter:
        network = with_onednn_linear(self.network.half_precision_copy(self.setup.precision), self.setup)
        return with_compiled_methods(network, self.setup, *Inpainter.INFERENCE_METHODS)

    def _test_masks(self, distances: Tensor, clusters: Tensor) -> Tensor:
        """Return (passes, b, n), True for the tokens that a pass masks."""
        settings = self.settings
        if settings.mask_at_test == "adaptive":
            return adaptive_mask(distances, clusters, count=settings.clusters, lambda_=settings.lambda_)[None]
        masks = fixed_masks(
            settings.mask_at_test, self._grid, ratio=settings.test_ratio, cell=settings.test_cell,
            subsets=settings.test_subsets, seed=settings.test_seed,
        )  # fmt: skip
        return masks.to(distances.device)[:, None].expand(-1, *distances.shape)

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the features of each stage of the backbone, (b, c, h / stride, w / stride)."""
        return list(self.backbone(images.to(self.setup.device)))

    def to_patches(self, stages: list[Tensor]) -> Tensor:
        """Fuse the features of the stages and cut them into patches (b, n, k * k * c)."""
        return fused_patches(stages, self.settings.patch, average_pool=self.settings.average_pool)

    def _split(self, patches: Tensor) -> Tensor:
        return patches.view(*patches.shape[:2], self.settings.patch**2, -1)  # (b, n, k * k, c)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return distances of tokens to their centers, the mask of the last pass (1: masked), and decoded features."""
        restoration = self.restore_images(images)
        tokens = torch.stack([restoration.distances, restoration.masks[-1].float()])  # (2, b, n)
        distance, mask = F.interpolate(tokens.view(2, -1, *self._grid), self.setup.size)  # each (b, h, w)
        pictures = {"distance": distance, "mask": mask}
        if self.decoder:
            picture = self.decoder(unpatchify(restoration.restored, self.settings.patch, self._grid[0]))
            pictures["reconstruction"] = (picture * self.backbone.std + self.backbone.mean).clamp(0, 1)
        return pictures

    def info(self) -> Info:
        """Return sizes, the use of the clusters on the training images, and the unweighted loss terms by epoch."""
        n_trainable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        sizes: Info = {"trainable_parameters": n_trainable, "tokens": math.prod(self._grid)}
        return super().info() | sizes | {"feature_channels": self._channels} | self._fit_info

    @classmethod
    def from_checkpoint(cls, path: Path, settings: Settings, setup: Setup) -> "AMINet":
        """Load the authors' `AMAE.pth`, which they trained with the default settings; no code in it is executed."""
        method = cls(settings, setup)
        method.load_state_dict({f"network.{name}": value for name, value in inpainting.released_state(path).items()})
        return method

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients and Adam moments, of the cached features, and of one step."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        with torch.device("meta"):
            network = _build_network(settings, inpainting.token_grid(size, strides[0], settings.patch), sum(channels))
        features = sum(4 * c * size[0] * size[1] // s**2 for c, s in zip(channels, strides, strict=True)) * n_images
        batch = min(settings.batch_size, n_images)
        decoder = Decoder.estimate_training_memory(sum(channels), size, batch) if settings.decoder_epochs else 0
        # While the decoder is trained, the weights and last gradients of the network stay in memory.
        training = max(network.estimate_training_memory(batch), decoder + network.estimate_training_memory(0) // 2)
        return training + min(features, MEMORY_BUDGET)


METHOD = AMINet


def _build_network(settings: Settings, grid: tuple[int, int], channels: int) -> Inpainter:
    return Inpainter(
        channels * settings.patch**2, grid, width=settings.width, depth=settings.depth, heads=settings.heads,
        aggregation_depth=settings.aggregation_depth, clusters=settings.clusters,
        learn_mask_token=settings.mask_token != "zero", final_norm=settings.final_norm,  # noqa: S105
    )  # fmt: skip
