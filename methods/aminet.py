"""AMI-Net: adaptive mask inpainting network (Luo, Yao, Yu, Li; IEEE T-ASE 2024; https://arxiv.org/abs/2412.11802).

The frozen features of an image are cut into patches. A transformer restores all of them while some are hidden: random
ones in training; at test those far from the centres that a second, small transformer finds in the image itself. What
can't be restored is anomalous. The authors' code: https://github.com/luow23/AMI-Net at 3350be0.

    bench run --method aminet --dataset mvtec --profile code          # "Ours" without jitter
    bench run --method aminet_jitter --dataset mvtec --profile code   # "Ours" with the double dagger

The paper's means of 15 categories, each at its best epoch on the test set, are 98.5 image and 97.8 pixel AUROC without
jitter, 99.0 and 98.2 with it (Table I); all its numbers lie in reports/published.

Every setting under the two profiles. [P] the paper says so, [C] only the authors' code does, [R] our reading; where the
paper is silent, `paper` follows the code. The defaults below are `code`.

    setting             paper             code            source
    backbone, stages    wide_resnet50_2, layer1 to 3      [P] torchvision's first weights [C]
    average_pool        no                3 x 3           [P] has none, [C]
    patch               4                 4               [P]
    width, heads        768, 12           768, 12         [C]
    depth               8                 8               [P]
    aggregation_depth   1                 1               [P]
    clusters            8                 8               [P]
    final_norm          yes               yes             [C] after f_sem and f_in; the paper is silent
    mask_token          zero              learned         [P] a constant, [C] a parameter that begins at zero
    mask_ratio          uniform           uniform         [C] U(0, 1), drawn for each image
    jitter              no / yes          no / yes        [P] two variants; [C] has only the one with jitter
    jitter_scale        20                20              [C] from UniAD
    distance            squared           euclidean       [P] a squared norm, [C] the norm; both times 1 - cosine
    cluster_reduction   sum               mean            [P] sums over tokens and pairs, [C] means
    cosine_over         patch             patch           [C] the paper leaves the axis open; the map's is by place
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
    decoder_epochs      0                 0               [C] 300, apart and on demand

Departures from the code: gradients are set to zero at each step (the code never does, which its loss scaler hides: its
results are ordinary AdamW's); no gradient is computed for the backbone; the last epoch is kept, the code keeps the best
of 30 on the test set (`--selection oracle`); whether all members of a cluster tie is told without rounding.
Taken literally, the paper's summed and squared cluster loss can fall without bound: watch it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Preparation, Progress, Setup

from .parts.backbone import Backbone, find, layout
from .parts.compiled import compiled
from .parts.decoder import Decoder
from .parts.features import BUDGET, FrozenFeatures, fused_patches
from .parts.inpainting import Inpainter, jittered, released_state, separation, token_grid, turn
from .parts.maps import Score, gaussian, image_score, upsample
from .parts.masks import Ratio, adaptive_mask, complementary_masks, random_mask
from .parts.onednn import by_onednn
from .parts.precision import autocast
from .parts.refusals import refuse_another_size, refuse_another_state, refuse_below, refuse_unless
from .parts.transformer import unpatchify


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen. The defaults are the authors' code without jitter; the table above tells every source."""

    backbone: str = "wide_resnet50_2.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2, 3)  # of the backbone, as timm counts them
    average_pool: bool = True  # 3 x 3 over each stage
    patch: int = 4  # places of the feature map on a side
    width: int = 768  # of a token
    heads: int = 12
    depth: int = 8  # blocks that inpaint
    aggregation_depth: int = 1  # blocks that find the centres
    clusters: int = 8
    final_norm: bool = True  # LayerNorm behind both stacks
    mask_token: Literal["learned", "zero"] = "learned"  # noqa: S105 - no password
    mask_ratio: Ratio = "uniform"  # hidden in training; a number fixes it for every image
    jitter: bool = False  # of the tokens in training: AMI-Net with the double dagger
    jitter_scale: float = 20.0
    distance: Literal["euclidean", "squared"] = "euclidean"  # of a token to a centre, times 1 - cosine
    cluster_reduction: Literal["mean", "sum"] = "mean"
    cosine_over: Literal["patch", "place"] = "patch"  # the vectors that the loss compares: 28,672 or 1792 numbers
    mse_weight: float = 1.0
    cosine_weight: float = 5.0
    intra_weight: float = 1.0
    inter_weight: float = 0.1
    epochs: int = 300
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    batch: int = 8
    lambda_: float = 0.5  # standard deviations beyond a cluster's mean distance at which a token is hidden
    mask_at_test: Literal["adaptive", "none", "random", "complementary"] = "adaptive"
    test_seed: int = 0  # ours, as the next three: of the random and complementary masks, the same for every image
    test_ratio: float = 0.5  # hidden by "random"
    test_cell: int = 2  # "complementary": tokens on a side of a cell
    test_subsets: int = 3  # "complementary": passes, each of which hides another subset of the cells
    map_difference: Literal["mean_squared", "norm"] = "mean_squared"
    map_order: Literal["upsample_first", "multiply_first"] = "upsample_first"
    smoothing: float = 4.0  # sigma in pixels; 0 is none
    score: Score = "std"
    decoder_epochs: int = 0  # of a decoder that shows the restored features as a picture; no score depends on it

    def __post_init__(self) -> None:
        holds = self.mask_ratio == "uniform" or 0 <= self.mask_ratio < 1
        refuse_unless(holds, "AMI-Net's mask_ratio is 'uniform' or a fraction from 0 to below 1", self.mask_ratio)
        refuse_unless(0 <= self.test_ratio < 1, "AMI-Net's test_ratio is a fraction from 0 to below 1", self.test_ratio)
        counts = ("patch", "width", "heads", "depth", "aggregation_depth", "clusters", "epochs", "batch", "test_cell")
        refuse_below(1, "AMI-Net", self, *counts)
        refuse_below(0, "AMI-Net", self, "lr", "jitter_scale", "weight_decay", "smoothing", "decoder_epochs")


class Inpainting(NamedTuple):
    """What became of b images at test: n patches each, of k * k places with c channels."""

    patches: Tensor  # (b, n, k * k * c) of the frozen features
    restored: Tensor  # (b, n, k * k * c)
    distances: Tensor  # (b, n) of each token to its nearest centre
    masks: Tensor  # (passes, b, n), True where a pass hid the token


class AMINet(Method):
    """Hides what lies far from the centres of its image, restores it from the rest, and marks where that fails."""

    native: ClassVar[Preparation] = Preparation(256, 256, resample="lanczos")
    iterative: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    checkpoint: ClassVar[str] = "AMAE.pth"
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._backbone = Backbone.of(settings.backbone, settings.stages, setup)
        self._channels = sum(self._backbone.channels)
        self._grid = token_grid(setup.size, self._backbone.strides[0], settings.patch)
        self._network: Inpainter | None = None
        self._asked: Inpainter | None = None  # what answers for it
        self._decoder: Decoder | None = None
        # What contradicts itself is refused now, not after hours of fitting.
        self._meta = _network(settings, self._grid, self._channels, "meta")
        nothing = torch.zeros(1, math.prod(self._grid))
        self._test_masks(nothing, nothing.long())

    def fit(self, train: Images, progress: Progress) -> None:
        """Restores randomly masked features of good images and learns to find their clusters, both in one loop."""
        settings, device = self.settings, self.setup.device
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
            torch.default_generator.manual_seed(self.setup.seed)
            network = _network(settings, self._grid, self._channels, "cpu").to(device)
        optimizer = self._optimizer(network)
        scaler = torch.amp.GradScaler(device.type, enabled=self.setup.precision == "float16")
        features = FrozenFeatures(self._extract, train, identity=self._backbone.identity, setup=self.setup)
        shuffler, noise = Generator().manual_seed(self.setup.seed), Generator(device).manual_seed(self.setup.seed)
        self._decoder = None

        for epoch in range(1, settings.epochs + 1):
            total = torch.zeros((), device=device)
            for stages in features.batches(settings.batch, torch.randperm(len(train), generator=shuffler)):
                patches = self._patches(stages)  # (b, n, k * k * c)
                mask = random_mask(*patches.shape[:2], ratio=settings.mask_ratio, generator=noise)
                loss = self.losses(network, patches, mask, noise)["total"]
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach() * len(patches)
            mean = float(total) / len(train)  # the only wait for the device in an epoch
            if not math.isfinite(mean):
                raise BenchError(f"A loss must be finite; AMI-Net's is {mean} in epoch {epoch}. Try a lower lr.")
            self._network, self._asked = network, None
            progress(epoch, settings.epochs, mean)
        if settings.decoder_epochs:
            del optimizer  # and its moments, before another one needs as much
            self._fit_decoder(network, train, features, progress)

    def _fit_decoder(self, network: Inpainter, train: Images, features: FrozenFeatures, progress: Progress) -> None:
        """Learns to show what the fitted network makes of randomly masked, jittered features, as in the code."""
        settings, device, seed = self.settings, self.setup.device, self.setup.seed + 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            decoder = Decoder(self._channels, self.setup.size).to(device)
        optimizer = self._optimizer(decoder)
        shuffler, noise = Generator().manual_seed(seed), Generator(device).manual_seed(seed)
        for epoch in range(1, settings.decoder_epochs + 1):
            order = torch.randperm(len(train), generator=shuffler)
            walks = train.batches(settings.batch, order), features.batches(settings.batch, order)
            for images, stages in zip(*walks, strict=True):
                patches = self._patches(stages)
                mask = random_mask(*patches.shape[:2], ratio=settings.mask_ratio, generator=noise)
                with torch.no_grad():
                    restored, _, _ = self._pass(network, patches, mask, noise)
                wanted = (images.to(device) - self._backbone.mean) / self._backbone.std  # (b, 3, h, w)
                optimizer.zero_grad(set_to_none=True)
                F.mse_loss(decoder(unpatchify(restored, settings.patch, self._grid[0])), wanted).backward()
                optimizer.step()
            self._decoder = decoder
            progress(settings.epochs + epoch, settings.epochs + settings.decoder_epochs, None)

    def _optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        """AdamW over all that is learned, in one fused kernel where this device has it."""
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        fused, settings = self.setup.device.type in {"cpu", "cuda"}, self.settings
        return torch.optim.AdamW(learned, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=fused)

    def losses(
        self, network: Inpainter, patches: Tensor, mask: Tensor, noise: Generator | None = None
    ) -> dict[str, Tensor]:
        """The loss, "total", and its parts, named as their weights in the settings.

        patches: (b, n, k * k * c).  mask: (b, n), True where hidden.  noise: draws the jitter that the settings ask
        for; None leaves it out.
        """
        settings = self.settings
        squared, mean = settings.distance == "squared", settings.cluster_reduction == "mean"
        restored, semantic, centres = self._pass(network, patches, mask, noise)
        distances = network.distances(semantic, centres, squared=squared).amin(dim=2)  # (b, n), of clean tokens
        apart = separation(centres, squared=squared).mean()
        vectors = (patches, restored) if settings.cosine_over == "patch" else map(self._places, (patches, restored))
        parts = {
            "mse": F.mse_loss(restored, patches),
            "cosine": turn(*vectors).mean(),
            "intra": distances.mean() if mean else distances.sum(dim=1).mean(),
            "inter": apart / max(settings.clusters * (settings.clusters - 1), 1) if mean else apart,
        }
        rebuilt = settings.mse_weight * parts["mse"] + settings.cosine_weight * parts["cosine"]
        clustered = settings.intra_weight * parts["intra"] - settings.inter_weight * parts["inter"]
        return parts | {"total": rebuilt + clustered}

    def _pass(
        self, network: Inpainter, patches: Tensor, mask: Tensor, noise: Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """In training: restored patches (b, n, k * k * c), tokens E2 (b, n, width), centres (b, clusters, width)."""
        scale = self.settings.jitter_scale if self.settings.jitter and noise is not None else 0
        with autocast(self.setup):
            embedded, semantic = network.embed(patches)
        centres = network.centres(jittered(semantic.float(), scale=scale, generator=noise))
        with autocast(self.setup):
            restored = network.restore(jittered(network.hide(embedded, mask), scale=scale, generator=noise))
        return restored.float(), semantic.float(), centres

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """What is far from its cluster is hidden, restored in one pass, and compared with what was there."""
        found = self._inpainted(images)
        before, after = self._places(found.patches), self._places(found.restored)  # (b, n, k * k, c)
        apart = torch.linalg.vector_norm(before - after, dim=3)  # (b, n, k * k)
        difference = apart if self.settings.map_difference == "norm" else apart.square() / self._channels
        factors = torch.cat([difference, turn(before, after)])  # (2 * b, n, k * k)
        factors = unpatchify(factors, self.settings.patch, self._grid[0])[:, 0]  # (2 * b, h / 4, w / 4)
        if self.settings.map_order == "multiply_first":
            factors = factors[: len(images)] * factors[len(images) :]
        maps = gaussian(upsample(factors, self.setup.size, align_corners=True), self.settings.smoothing)
        if self.settings.map_order == "upsample_first":
            maps = maps[: len(images)] * maps[len(images) :]  # (b, h, w)
        return Prediction(image_score(maps, self.settings.score), maps)

    def _inpainted(self, images: Tensor) -> Inpainting:
        network = self._answering()
        refuse_another_size(images, self.setup.size, "AMI-Net")
        patches = self._patches(self._extract(images))
        with autocast(self.setup):
            embedded, semantic = network.embed(patches)
        centres = network.centres(semantic)
        squared = self.settings.distance == "squared"
        distances, clusters = network.distances(semantic, centres, squared=squared).min(dim=2)  # 2 times (b, n)
        masks = self._test_masks(distances, clusters)
        restored = patches
        for mask in masks:
            with autocast(self.setup):
                passed = network.restore(network.hide(embedded, mask)).float()
            # Of one pass all is taken, of several what each one hid: together they hide everything once.
            restored = passed if len(masks) == 1 else torch.where(mask[:, :, None], passed, restored)
        return Inpainting(patches, restored, distances, masks)

    def _answering(self) -> Inpainter:
        """What is made of the fitted network once and not at each predict: in half precision, by oneDNN, compiled."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        if self._asked is None:
            quick = by_onednn(self._network.halved(self.setup.precision), self.setup)
            self._asked = compiled(quick, self.setup, *Inpainter.ASKED)
        return self._asked

    def _test_masks(self, distances: Tensor, clusters: Tensor) -> Tensor:
        """(passes, b, n): what each pass hides. Random masks are drawn from `test_seed`, the same for every image."""
        settings, (rows, columns) = self.settings, self._grid
        drawn = Generator().manual_seed(settings.test_seed)  # on the CPU: the same masks on every device
        match settings.mask_at_test:
            case "adaptive":
                return adaptive_mask(distances, clusters, count=settings.clusters, lambda_=settings.lambda_)[None]
            case "none":
                masks = torch.zeros(1, rows * columns, dtype=torch.bool)
            case "random":
                masks = random_mask(1, rows * columns, ratio=settings.test_ratio, generator=drawn)
            case "complementary":
                cell, subsets = settings.test_cell, settings.test_subsets
                masks = complementary_masks(rows, columns, cell=cell, subsets=subsets, generator=drawn).flatten(1)
        return masks.to(distances.device)[:, None].expand(-1, *distances.shape)

    def _extract(self, images: Tensor) -> list[Tensor]:
        return list(self._backbone(images.to(self.setup.device)))

    def _patches(self, stages: list[Tensor]) -> Tensor:
        return fused_patches(stages, self.settings.patch, average_pool=self.settings.average_pool)

    def _places(self, patches: Tensor) -> Tensor:
        return patches.view(*patches.shape[:2], self.settings.patch**2, -1)  # (b, n, k * k, c)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Distances of tokens to their centres, 1 where the last pass hid them, and what a decoder makes of it all."""
        found = self._inpainted(images)
        tokens = torch.stack([found.distances, found.masks[-1].float()])  # (2, b, n)
        distance, mask = F.interpolate(tokens.view(2, -1, *self._grid), self.setup.size)  # each (b, h, w)
        told = {"distance": distance, f"{self.settings.mask_at_test} mask": mask}
        if self._decoder:
            picture = self._decoder(unpatchify(found.restored, self.settings.patch, self._grid[0]))
            told["reconstruction"] = (picture * self._backbone.std + self._backbone.mean).clamp(0, 1)
        return told

    def facts(self) -> dict[str, str | int | float]:
        """The sizes of the network and of its input, and the backbone."""
        learned = sum(parameter.numel() for parameter in self._meta.parameters() if parameter.requires_grad)
        sizes = {"trainable_parameters": learned, "tokens": math.prod(self._grid), "feature_channels": self._channels}
        return {**sizes, **self._backbone.facts()}

    def state(self) -> dict[str, Tensor]:
        """The tensors of the network, and of the decoder where there is one, copied to the CPU."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        tensors = self._network.state_dict()
        if self._decoder:
            tensors |= {f"decoder.{name}": value for name, value in self._decoder.state_dict().items()}
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the tensors that `state` gave. Raises BenchError where they don't fit the settings."""
        tensors = {name: value.to(self.setup.device, copy=True) for name, value in state.items()}
        shown = {name.removeprefix("decoder."): tensors.pop(name) for name in state if name.startswith("decoder.")}
        network = _network(self.settings, self._grid, self._channels, "meta")
        with torch.device("meta"):
            decoder = Decoder(self._channels, self.setup.size) if shown else None
        with refuse_another_state("AMI-Net"):
            network.load_state_dict(tensors, assign=True)
            if decoder:
                decoder.load_state_dict(shown, assign=True)
        self._network, self._asked, self._decoder = network, None, decoder

    @classmethod
    def from_checkpoint(cls, path: Path, settings: Settings, setup: Setup) -> "AMINet":
        """From the authors' `AMAE.pth`, which they trained with the default settings; no code in it is run."""
        method = cls(settings, setup)
        method.restore(released_state(path))
        return method

    @classmethod
    def inputs(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """The backbone's sha256."""
        return {"backbone": find(settings.backbone, weights).sha256}

    @classmethod
    def memory(cls, settings: Settings, size: tuple[int, int], images: int) -> int:
        """Bytes of weights with gradients and moments, of the features kept, and of what one step remembers."""
        channels, strides = layout(settings.backbone, settings.stages)
        network = _network(settings, token_grid(size, strides[0], settings.patch), sum(channels), "meta")
        features = sum(4 * c * size[0] * size[1] // s**2 for c, s in zip(channels, strides, strict=True)) * images
        batch = min(settings.batch, images)
        shown = Decoder.training_bytes(sum(channels), size, batch) if settings.decoder_epochs else 0
        # While the decoder learns, the network's weights and last gradients stay.
        return max(network.training_bytes(batch), shown + network.training_bytes(0) // 2) + min(features, BUDGET)


METHOD = AMINet
from_released_checkpoint = AMINet.from_checkpoint


def _network(settings: Settings, grid: tuple[int, int], channels: int, device: str) -> Inpainter:
    """The network that the settings ask for; on "meta" it has shapes but takes no memory."""
    with torch.device(device):
        return Inpainter(
            channels * settings.patch**2, grid, width=settings.width, depth=settings.depth, heads=settings.heads,
            aggregation_depth=settings.aggregation_depth, clusters=settings.clusters,
            learn_mask_token=settings.mask_token != "zero", final_norm=settings.final_norm,  # noqa: S105
        )  # fmt: skip
