"""AMI-Net: adaptive mask inpainting network (Luo, Yao, Yu, Li; IEEE T-ASE 2024; https://arxiv.org/abs/2412.11802).

The frozen features of an image are cut into patches. A transformer restores all of them while some are hidden: random
ones in training; at test time those that are far from the cluster centers, which a second, small transformer finds in
the image itself. What cannot be restored is anomalous. The authors' code: https://github.com/luow23/AMI-Net at 3350be0.

    bench run --method aminet --dataset mvtec --profile code          # "Ours" without jitter
    bench run --method aminet_jitter --dataset mvtec --profile code   # "Ours" with the double dagger

The paper's means over 15 categories, each at its best epoch on the test set, are 98.5 image and 97.8 pixel AUROC
without jitter, 99.0 and 98.2 with it (Table I); all its numbers are in reports/published.

The settings in both profiles. [P] stated in the paper, [C] only in the authors' code, [R] our reading; where the paper
does not state a value, `paper` has that of the code. The defaults below are `code`.

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
    cosine_over         patch             patch           [C] the axis is not stated in the paper; the map's is place
    mse, cosine, intra  1, 5, 1           1, 5, 1         [P] weights of the losses
    inter_weight        0.1               0.1             [P]
    epochs              200               300             [P] [C]
    lr                  1e-3              1e-4            [P] [C] constant
    betas               0.9, 0.95         0.9, 0.95       [C]
    weight_decay        0.01              0.01            [C] PyTorch's default, on every parameter
    batch               8                 8               [P]; [C] unified 16, few-shot 1
    lambda_             0.5               0.5             [P]
    mask_at_test        adaptive          adaptive        [P]
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

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.method import Images, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.compile import with_compiled_methods
from .parts.decoder import Decoder
from .parts.features import MEMORY_BUDGET, FrozenFeatures, fused_patches
from .parts.inpainting import Inpainter, Restoration, inter_cluster_distance, jittered, released_state, token_grid
from .parts.maps import Score, gaussian_filter, image_score, upsample
from .parts.masks import Ratio, adaptive_mask, fixed_masks, random_mask
from .parts.onednn import with_onednn_linear
from .parts.precision import autocast
from .parts.similarity import cosine_distance
from .parts.transformer import unpatchify
from .parts.validation import check_at_least, check_image_size, check_setting

TITLE = "AMI-Net"
FAMILY = "mask-based"
PAPER = "Luo, Yao, Yu, Li: AMI-Net: Adaptive Mask Inpainting Network, IEEE T-ASE, https://arxiv.org/abs/2412.11802"
YEAR = 2024
ALIASES = {"aminet_jitter": {"title": "AMI-Net‡", "settings": {"jitter": True}}}  # the paper's mark for feature jitter
PROFILES = {
    "demo": {  # a backbone whose weights are installed with the package; the batch of the authors' few-shot code
        "backbone": "tf_efficientnet_lite0", "width": 128, "depth": 2, "heads": 2, "epochs": 60, "lr": 2e-3, "batch": 1,
    },
    "paper": {
        "lr": 1e-3, "epochs": 200, "average_pool": False, "cluster_reduction": "sum", "distance": "squared",
        "mask_token": "zero", "smoothing": 0.0, "map_order": "multiply_first", "map_difference": "norm",
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "width": 32, "depth": 1, "heads": 4, "clusters": 2, "epochs": 2,
        "batch": 4,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of AMI-Net. The defaults are the authors' code without jitter; the table above has every source."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # of the backbone, as timm counts them
    average_pool: bool = True  # 3 x 3 over each stage
    patch: int = 4  # side in features
    width: int = 768  # of a token
    heads: int = 12
    depth: int = 8  # inpainting blocks
    aggregation_depth: int = 1  # blocks that find the centers
    clusters: int = 8
    final_norm: bool = True  # LayerNorm after both stacks
    mask_token: Literal["learned", "zero"] = "learned"  # noqa: S105 - not a password
    mask_ratio: Ratio = "uniform"  # fraction hidden in training; a number fixes it for every image
    jitter: bool = False  # of the tokens in training: AMI-Net with the double dagger
    jitter_scale: float = 20.0
    distance: Literal["euclidean", "squared"] = "euclidean"  # of a token to a center, times 1 - cosine
    cluster_reduction: Literal["mean", "sum"] = "mean"
    cosine_over: Literal["patch", "place"] = "patch"  # vectors in the loss: patches (28,672 values) or places (1792)
    mse_weight: float = 1.0
    cosine_weight: float = 5.0
    intra_weight: float = 1.0
    inter_weight: float = 0.1
    epochs: int = 300
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    batch: int = 8
    lambda_: float = 0.5  # standard deviations above a cluster's mean distance from which a token is hidden
    mask_at_test: Literal["adaptive", "none", "random", "complementary"] = "adaptive"
    test_seed: int = 0  # ours, like the next three: of random and complementary masks, the same for every image
    test_ratio: float = 0.5  # fraction hidden by "random"
    test_cell: int = 2  # "complementary": side of a cell in tokens
    test_subsets: int = 3  # "complementary": passes, each of which hides another subset of the cells
    map_difference: Literal["mean_squared", "norm"] = "mean_squared"
    map_order: Literal["upsample_first", "multiply_first"] = "upsample_first"
    smoothing: float = 4.0  # sigma in pixels; 0 is none
    score: Score = "std"
    decoder_epochs: int = 0  # of a decoder that shows the restored features as a picture; no score depends on it

    def __post_init__(self) -> None:
        is_ratio = self.mask_ratio == "uniform" or 0 <= self.mask_ratio < 1
        check_setting(is_ratio, self, "mask_ratio", "must be 'uniform' or in [0, 1)")
        check_setting(0 <= self.test_ratio < 1, self, "test_ratio", "must be in [0, 1)")
        counts = ("patch", "width", "heads", "depth", "aggregation_depth", "clusters", "epochs", "batch", "test_cell")
        check_at_least(1, self, *counts)
        check_at_least(0, self, "lr", "jitter_scale", "weight_decay", "smoothing", "decoder_epochs")


class AMINet(Method):
    """Hides what is far from the cluster centers of its image and restores it; the map is the restoration error."""

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
        self._grid = token_grid(setup.size, self.backbone.strides[0], settings.patch)
        # Settings that contradict each other raise an error here, before fit.
        with torch.device("meta"):
            self.build_network()
        distances = torch.zeros(1, math.prod(self._grid))
        self._test_masks(distances, distances.long())

    def build_network(self) -> Inpainter:
        """Return the untrained network."""
        return _build_network(self.settings, self._grid, self._channels)

    def build_decoder(self) -> Decoder:
        """Return the untrained decoder."""
        return Decoder(self._channels, self.setup.size)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train to restore randomly masked features of good images and to find their clusters, in one loop."""
        settings, seed = self.settings, self.setup.seed
        network = self.initialize(self.build_network)
        training = self._training_step(network)
        features = FrozenFeatures(self.extract, train, identity=self.backbone.identity, setup=self.setup)
        shuffle, noise = Generator().manual_seed(seed), Generator(self.setup.device).manual_seed(seed)
        self.decoder = None

        for epoch in range(1, settings.epochs + 1):
            for stages in features.batches(settings.batch, torch.randperm(len(train), generator=shuffle)):
                patches = self.to_patches(stages)  # (b, n, k * k * c)
                mask = random_mask(*patches.shape[:2], ratio=settings.mask_ratio, generator=noise)
                training.minimize(self.losses(network, patches, mask, noise)["total"], len(patches))
            loss = training.epoch_loss()
            self.network = network
            progress(epoch, settings.epochs, loss)
        if settings.decoder_epochs:
            del training  # frees its moments before the next optimizer needs as much
            self._fit_decoder(network, train, features, progress)

    def _fit_decoder(self, network: Inpainter, train: Images, features: FrozenFeatures, progress: Progress) -> None:
        """Train a decoder to show what the fitted network restores of randomly masked, jittered features [C]."""
        settings, device, seed = self.settings, self.setup.device, self.setup.seed + 1
        decoder = self.initialize(self.build_decoder, seed)
        training = self._training_step(decoder)
        shuffle, noise = Generator().manual_seed(seed), Generator(device).manual_seed(seed)
        for epoch in range(1, settings.decoder_epochs + 1):
            order = torch.randperm(len(train), generator=shuffle)
            batches = train.batches(settings.batch, order), features.batches(settings.batch, order)
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
        settings, kind = self.settings, torch.optim.AdamW
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        return TrainingStep(self.setup, kind, module.parameters(), betas=settings.betas, **options)

    def losses(
        self, network: Inpainter, patches: Tensor, mask: Tensor, noise: Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the loss, "total", and its parts, named as their weights in the settings.

        Args:
            network: to train.
            patches: (b, n, k * k * c).
            mask: (b, n), True where hidden.
            noise: generator of the jitter, if the settings have it; None leaves it out.
        """
        settings = self.settings
        squared, mean = settings.distance == "squared", settings.cluster_reduction == "mean"
        restored, semantic, centers = self.forward(network, patches, mask, noise)
        distances = network.distances(semantic, centers, squared=squared).amin(dim=2)  # (b, n), without jitter
        inter = inter_cluster_distance(centers, squared=squared).mean()
        vectors = (patches, restored) if settings.cosine_over == "patch" else map(self._split, (patches, restored))
        parts = {
            "mse": F.mse_loss(restored, patches),
            "cosine": cosine_distance(*vectors).mean(),
            "intra": distances.mean() if mean else distances.sum(dim=1).mean(),
            "inter": inter / max(settings.clusters * (settings.clusters - 1), 1) if mean else inter,
        }
        restoration = settings.mse_weight * parts["mse"] + settings.cosine_weight * parts["cosine"]
        clustering = settings.intra_weight * parts["intra"] - settings.inter_weight * parts["inter"]
        return parts | {"total": restoration + clustering}

    def forward(
        self, network: Inpainter, patches: Tensor, mask: Tensor, noise: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return restored patches (b, n, k * k * c), tokens E2 (b, n, width) and centers (b, clusters, width)."""
        scale = self.settings.jitter_scale if self.settings.jitter and noise is not None else 0
        with autocast(self.setup):
            embedded, semantic = network.embed(patches)
        centers = network.centers(jittered(semantic.float(), scale=scale, generator=noise))
        with autocast(self.setup):
            restored = network.restore(jittered(network.hide(embedded, mask), scale=scale, generator=noise))
        return restored.float(), semantic.float(), centers

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Restore what is far from its cluster center, and return the difference from the original features."""
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
        """Hide tokens of images (b, 3, h, w) by the test masks and restore them."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        patches = self.to_patches(self.extract(images))
        with autocast(self.setup):
            embedded, semantic = network.embed(patches)
        centers = network.centers(semantic)
        squared = self.settings.distance == "squared"
        distances, clusters = network.distances(semantic, centers, squared=squared).min(dim=2)  # 2 times (b, n)
        masks = self._test_masks(distances, clusters)
        restored = patches
        for mask in masks:
            with autocast(self.setup):
                output = network.restore(network.hide(embedded, mask)).float()
            # Of one pass everything is used, of several what each one hid: together they hide everything once.
            restored = output if len(masks) == 1 else torch.where(mask[:, :, None], output, restored)
        return Restoration(patches, restored, distances, masks)

    @cached_property
    def _inference_network(self) -> Inpainter:
        network = with_onednn_linear(self.network.half_precision_copy(self.setup.precision), self.setup)
        return with_compiled_methods(network, self.setup, *Inpainter.INFERENCE_METHODS)

    def _test_masks(self, distances: Tensor, clusters: Tensor) -> Tensor:
        """Return what each pass hides, (passes, b, n)."""
        settings = self.settings
        if settings.mask_at_test == "adaptive":
            return adaptive_mask(distances, clusters, count=settings.clusters, lambda_=settings.lambda_)[None]
        masks = fixed_masks(
            settings.mask_at_test, self._grid, ratio=settings.test_ratio, cell=settings.test_cell,
            subsets=settings.test_subsets, seed=settings.test_seed,
        )  # fmt: skip
        return masks.to(distances.device)[:, None].expand(-1, *distances.shape)

    def extract(self, images: Tensor) -> list[Tensor]:
        """Return the stage maps of the backbone, each (b, c, h / stride, w / stride)."""
        return list(self.backbone(images.to(self.setup.device)))

    def to_patches(self, stages: list[Tensor]) -> Tensor:
        """Fuse the stage maps and cut them into patches (b, n, k * k * c)."""
        return fused_patches(stages, self.settings.patch, average_pool=self.settings.average_pool)

    def _split(self, patches: Tensor) -> Tensor:
        return patches.view(*patches.shape[:2], self.settings.patch**2, -1)  # (b, n, k * k, c)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return distances of tokens to their centers, the mask of the last pass (1: hidden), and decoded features."""
        restoration = self.restore_images(images)
        tokens = torch.stack([restoration.distances, restoration.masks[-1].float()])  # (2, b, n)
        distance, mask = F.interpolate(tokens.view(2, -1, *self._grid), self.setup.size)  # each (b, h, w)
        pictures = {"distance": distance, f"{self.settings.mask_at_test} mask": mask}
        if self.decoder:
            picture = self.decoder(unpatchify(restoration.restored, self.settings.patch, self._grid[0]))
            pictures["reconstruction"] = (picture * self.backbone.std + self.backbone.mean).clamp(0, 1)
        return pictures

    def info(self) -> dict[str, str | int | float]:
        """Return the sizes of the network (without the decoder) and of its input, and the backbone."""
        n_trainable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        sizes = {"trainable_parameters": n_trainable, "tokens": math.prod(self._grid)}
        return super().info() | sizes | {"feature_channels": self._channels}

    @classmethod
    def from_checkpoint(cls, path: Path, settings: Settings, setup: Setup) -> "AMINet":
        """Load the authors' `AMAE.pth`, which they trained with the default settings; no code in it is executed."""
        method = cls(settings, setup)
        method.restore({f"network.{name}": value for name, value in released_state(path).items()})
        return method

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights with gradients and moments, of the cached features, and of one step."""
        channels, strides = channels_and_strides(settings.backbone, settings.stages)
        with torch.device("meta"):
            network = _build_network(settings, token_grid(size, strides[0], settings.patch), sum(channels))
        features = sum(4 * c * size[0] * size[1] // s**2 for c, s in zip(channels, strides, strict=True)) * n_images
        batch = min(settings.batch, n_images)
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
