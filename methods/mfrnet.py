"""MFRNet, our reading: multi-feature reconstruction by crossed-mask restoration (https://arxiv.org/abs/2404.13273).

Wang, Xu, Li, Gao, Cheng, Lu: Multi-feature Reconstruction Network using Crossed-mask Restoration for Unsupervised
Industrial Anomaly Detection, 2024. We could read no more of the paper than its abstract and what others quote of its
captions, and found no public code: this is NOT a reproduction, and tables must call it "MFRNet (our reading)".

The fused features of a frozen network are hidden in complementary random parts. A transformer restores each part from
the rest; joined, the restorations show what the image would be if it were normal. How far it is from that, in value and
in structure, is the loss of the training and the anomaly map of the test.

    bench run --method mfrnet --profile code --dataset mvtec --protocol one-for-one --preparation native

There is no number to expect: none of the paper's results could be had.

[A] the abstract says so, [F] the caption of a figure, [S] only other people's summaries, [I] our reading.

    what                                                                    known
    features of several scales, from a pre-trained network, as one map      [A]; a frozen VGG16, resized, joined [S]
    masks on the features, random, complementary, covering all              [A] [F]
    cells of k places and n subsets; the example has k = 2, n = 3           [F]
    several restorations in parallel, combined                              [A]
    a transformer restores; its unit is a "hybrid transformer block"        [A] [F]
    one hybrid loss, pixel and structural, for training and anomaly map     [A]
    input, layers, size of the map, normalisation, values of k and n,       [I]
    the network (`parts/hybrid.py`), the measure of structure, weights,
    optimiser, schedule, test-time masks, fusion, smoothing, image score

Where the paper is silent we take RIAD's habits (Zavrtanik et al., Pattern Recognition 2021), its nearest relative: the
optimiser with its schedule, training images held out to choose the epoch, several sizes of cells.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Preparation, Progress, Setup

from .parts.backbone import Backbone, find, layout
from .parts.features import BUDGET, FrozenFeatures, fuse
from .parts.holdout import held_out
from .parts.hybrid import RestorationNet
from .parts.maps import Score, gaussian, image_score, upsample
from .parts.masks import complementary_masks
from .parts.precision import autocast
from .parts.refusals import refuse_another_size, refuse_another_state, refuse_below, refuse_unless
from .parts.similarity import msgms, ssim


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen. Every default that the abstract or a caption doesn't give is our reading, [I]."""

    backbone: str = "vgg16.tv_in1k"  # [S] VGG16; [I] timm's tag of torchvision's weights
    stages: tuple[int, ...] = (0, 1, 2, 3)  # [I] of a VGG16 relu1_2, relu2_2, relu3_3, relu4_3; 1,2,3 leaves 896 of 960
    stride: int = 4  # [I] pixels a place of the common map: 64 x 64 places of 256 x 256 pixels; 2 or 8
    normalisation: Literal["standardise", "l2"] = "standardise"  # [I] by channel over the training set, or by place
    least_spread: float = 0.1  # [I] no channel counts as if it varied less than this part of its stage's mean spread
    subsets: int = 3  # n, [F] in the example
    cells: tuple[int, ...] = (2, 4, 8)  # k, [F] 2 in the example; [I] training draws one a step, the test averages all
    mask_token: Literal["zero", "learned"] = "zero"  # noqa: S105 - [I] zero: the channels' means, once standardised
    widths: tuple[int, ...] = (256, 320, 512)  # [I] of the U's levels, finest first; one width is a flat stack
    depth: int = 2  # [I] blocks a level on the way down
    decoder_depth: int = 0  # [I] and on the way up
    head_width: int = 64  # [I] channels of an attention head; 32
    pools: tuple[int, ...] = (16, 8, 4, 2)  # [I] sides of the grids that answer; 16 alone is attention to one grid
    feed_forward: Literal["convolution", "mlp"] = "convolution"  # [I] by the abstract of the Defect Transformer
    structure: Literal["ssim", "msgms", "both"] = "ssim"  # [A] structural; [I] which measure
    structure_weight: float = 1.0  # lambda, [I]
    data_range: float = 1.0  # [I] of the features, by which SSIM's constants scale
    epochs: int = 300  # [I] RIAD's, as all down to patience
    lr: float = 1e-4  # of Adam
    lr_drop: int = 250  # the epoch from which on it is a tenth
    weight_decay: float = 0.0
    batch: int = 8
    holdout: float = 0.2  # of the training images, if there are 10: the epoch that restores them best is kept; 0 none
    patience: int = 20  # epochs without a better one after which training ends
    test_seed: int = 0  # [I] of the masks at test, the same for every image
    map_merge: Literal["sum", "product"] = "sum"  # [I] of the pixel and the structural difference, as in the loss
    smoothing: float = 4.0  # [I] sigma in pixels; 0 is none
    score: Score = "max"  # [I]

    def __post_init__(self) -> None:
        refuse_below(1, "MFRNet", self, "stride", "depth", "head_width", "epochs", "batch", "patience")
        refuse_below(0, "MFRNet", self, "decoder_depth", "least_spread", "structure_weight", "smoothing")
        refuse_below(0, "MFRNet", self, "lr", "weight_decay")
        for name, several in {"cells": self.cells, "widths": self.widths, "pools": self.pools}.items():
            holds = bool(several) and min(several) >= 1
            refuse_unless(holds, f"MFRNet's {name} are one or more whole numbers from 1", several)
        refuse_unless(self.subsets >= 2, "MFRNet's subsets are at least 2, for a pass must see something", self.subsets)
        refuse_unless(self.data_range > 0, "MFRNet's data_range is above 0", self.data_range)
        refuse_unless(0 <= self.holdout < 1, "MFRNet's holdout is from 0 (none) to below 1", self.holdout)


class MFRNet(Method):
    """Hides crossed parts of fused features, restores them, and marks where the restoration differs."""

    native: ClassVar[Preparation] = Preparation(256, 256)
    compiles: ClassVar[bool] = True  # the backbone
    iterative: ClassVar[bool] = True
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._backbone = Backbone.of(settings.backbone, settings.stages, setup)
        self._channels = sum(self._backbone.channels)
        self._grid = _grid(settings, setup.size)
        self._scales = min(4, min(self._grid).bit_length())  # of MSGMS: the coarsest has at least one place
        self._network: RestorationNet | None = None
        self._mean = self._std = torch.empty(0)  # (c,) of the features of the training set
        self._kept_epoch = 0
        # What contradicts itself is refused now, not after hours of fitting.
        self._meta = _network(settings, self._channels, "meta")
        drawn = Generator().manual_seed(settings.test_seed)
        self._test_masks = [self._masks(cell, drawn) for cell in settings.cells]  # each (n, h, w), for every image

    def fit(self, train: Images, progress: Progress) -> None:
        """Learns to restore what crossed masks hide of good images' features; keeps the epoch best at held-out ones."""
        settings, device = self.settings, self.setup.device
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
            torch.default_generator.manual_seed(self.setup.seed)
            network = _network(settings, self._channels, "cpu").to(device)
        fused = device.type in {"cpu", "cuda"}
        optimizer = torch.optim.Adam(network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=fused)
        scaler = torch.amp.GradScaler(device.type, enabled=self.setup.precision == "float16")
        identity = f"{self._backbone.identity} {self._grid}"
        features = FrozenFeatures(self._extract, train, identity=identity, setup=self.setup)
        self._mean, self._std = self._statistics(features, len(train))
        drawn = Generator().manual_seed(self.setup.seed)
        held, learned = held_out(len(train), settings.holdout, drawn)
        best = math.inf

        for epoch in range(1, settings.epochs + 1):
            if epoch == settings.lr_drop:
                optimizer.param_groups[0]["lr"] = settings.lr / 10
            total = torch.zeros((), device=device)
            for stages in features.batches(settings.batch, learned[torch.randperm(len(learned), generator=drawn)]):
                maps = self._normalised(stages)  # (b, c, h, w)
                loss = self.losses(network, maps, self._crossed(drawn))["total"]
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach() * len(maps)
            mean = float(total) / len(learned)  # the only wait for the device in an epoch, but for the held-out loss
            judged = self._held_loss(network, features, held) if len(held) else mean
            if not math.isfinite(mean + judged):
                came = f"{mean + judged} in epoch {epoch}"
                raise BenchError(f"A loss must be finite; MFRNet's is {came}. Try a lower lr.")
            if judged < best or not len(held):
                self._network, self._kept_epoch, best = deepcopy(network) if len(held) else network, epoch, judged
            stop = epoch - self._kept_epoch >= settings.patience
            progress(epoch, epoch if stop else settings.epochs, mean)
            if stop:
                break

    def losses(self, network: RestorationNet, features: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The loss, "total", and its parts: features (b, c, h, w), masks (n, h, w) that are True where a pass hides."""
        restored = self._restored(network, features, masks)
        pixel, structure = (difference.mean() for difference in self._differences(features, restored))
        return {"pixel": pixel, "structure": structure, "total": pixel + self.settings.structure_weight * structure}

    @torch.no_grad()
    def _held_loss(self, network: RestorationNet, features: FrozenFeatures, held: Tensor) -> float:
        """The mean loss over the held-out images, under masks that are the same after every epoch."""
        drawn, total = Generator().manual_seed(self.setup.seed), torch.zeros((), device=self.setup.device)
        for stages in features.batches(self.settings.batch, held):
            maps = self._normalised(stages)
            total += self.losses(network, maps, self._crossed(drawn))["total"] * len(maps)
        return float(total) / len(held)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Everything is restored once for each size of cells; the map is the mean of what each of them tells."""
        told = [self._differences(features, restored) for features, restored, _ in self._restorations(images)]
        places = torch.stack([self._merged(*factors) for factors in told]).mean(dim=0)  # (b, h, w)
        maps = upsample(places, self.setup.size, align_corners=False)  # (b, H, W) in pixels
        maps = gaussian(maps, self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """For each size of cells the pass that hid each place; both differences; all features in false colours."""
        pictures: dict[str, Tensor] = {}
        differences = []
        for cell, (features, restored, masks) in zip(self.settings.cells, self._restorations(images), strict=True):
            hid = (masks.int().argmax(dim=0) + 1) / len(masks)  # (h, w) in (0, 1]
            pictures[f"masks, cells of {cell}"] = hid.expand(len(images), 1, -1, -1)
            pictures["features"], pictures[f"restored, cells of {cell}"] = _false_colours(features, restored)
            differences.append(torch.stack(self._differences(features, restored), dim=1))  # (b, 2, h, w)
        pixel, structure = torch.stack(differences).mean(dim=0).split(1, dim=1)  # 2 times (b, 1, h, w)
        pictures |= {"pixel difference": pixel, "structural difference": structure}
        shown = {name: F.interpolate(picture, self.setup.size) for name, picture in pictures.items()}
        return {name: picture[:, 0] if picture.shape[1] == 1 else picture for name, picture in shown.items()}

    def _restorations(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each size of cells the features and their restoration, each (b, c, h, w), and the masks (n, h, w)."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        refuse_another_size(images, self.setup.size, "MFRNet")
        features = self._normalised(self._extract(images))
        for masks in self._test_masks:
            yield features, self._restored(self._network, features, masks), masks

    def _restored(self, network: RestorationNet, features: Tensor, masks: Tensor) -> Tensor:
        with autocast(self.setup):
            restored: Tensor = network(features, masks)
        return restored.float()

    def _differences(self, features: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """How far (b, c, h, w) and (b, c, h, w) are apart at each place, in value and in structure: each (b, h, w)."""
        pixel = (features - restored).square().mean(dim=1)
        one, other = ((maps / self.settings.data_range).contiguous() for maps in (features, restored))
        structure = torch.zeros_like(pixel)
        if self.settings.structure != "msgms":
            structure = structure + 1 - ssim(one, other).mean(dim=1)
        if self.settings.structure != "ssim":
            structure = structure + 1 - msgms(one, other, self._scales).mean(dim=1)
        return pixel, structure

    def _merged(self, pixel: Tensor, structure: Tensor) -> Tensor:
        if self.settings.map_merge == "product":
            return pixel * structure
        return pixel + self.settings.structure_weight * structure

    def _crossed(self, drawn: Generator) -> Tensor:
        """A step's masks (n, h, w), of cells of a random size; drawn on the CPU: the same on every device."""
        cell = self.settings.cells[int(torch.randint(len(self.settings.cells), (), generator=drawn))]
        return self._masks(cell, drawn)

    def _masks(self, cell: int, drawn: Generator) -> Tensor:
        masks = complementary_masks(*self._grid, cell=cell, subsets=self.settings.subsets, generator=drawn)
        return masks.to(self.setup.device, non_blocking=True)

    def _extract(self, images: Tensor) -> list[Tensor]:
        """The stages, those finer than the common grid averaged down to it; the first one is brought to it anyway."""
        stages: list[Tensor] = self._backbone(images.to(self.setup.device))
        rows, columns = self._grid
        small = [F.adaptive_avg_pool2d(s.float(), (min(rows, s.shape[2]), min(columns, s.shape[3]))) for s in stages]
        if small[0].shape[2:] != self._grid:
            small[0] = upsample(small[0], self._grid, align_corners=True)
        return small

    def _normalised(self, stages: list[Tensor]) -> Tensor:
        """The stages on the common grid, as one map (b, c, h, w)."""
        maps = fuse(stages)
        if self.settings.normalisation == "l2":  # to a root mean square of 1 over the channels of each place
            return F.normalize(maps, dim=1) * math.sqrt(maps.shape[1])
        return (maps - self._mean[:, None, None]) / self._std[:, None, None]

    @torch.no_grad()
    def _statistics(self, features: FrozenFeatures, images: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (c,) of each channel over all places of all training images, in one walk.

        Moments are taken about the first batch's mean, so the difference of squares does not cancel.
        """
        about, moments = None, torch.zeros(2, self._channels, device=self.setup.device)
        for stages in features.batches(self.settings.batch):
            maps = fuse(stages)
            about = maps.mean(dim=(0, 2, 3)) if about is None else about
            apart = maps - about[:, None, None]
            moments += torch.stack([apart.sum(dim=(0, 2, 3)), apart.square().sum(dim=(0, 2, 3))])
        first, second = moments / (images * math.prod(self._grid))
        std = (second - first.square()).clamp(min=0).sqrt()
        stages = std.split(self._backbone.channels)
        std = torch.cat([one.maximum(self.settings.least_spread * one.mean()) for one in stages])
        return about + first, std.clamp(min=1e-6)

    def facts(self) -> dict[str, str | int | float]:
        """The sizes of the network and of its input, the epoch that was kept, and the backbone."""
        learned = sum(parameter.numel() for parameter in self._meta.parameters() if parameter.requires_grad)
        sizes = {"trainable_parameters": learned, "places": math.prod(self._grid), "feature_channels": self._channels}
        kept = {"kept_epoch": self._kept_epoch} if self._kept_epoch else {}
        return {**sizes, **kept, **self._backbone.facts()}

    def state(self) -> dict[str, Tensor]:
        """The tensors of the network and the statistics of the features, copied to the CPU."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        told = torch.tensor(self._kept_epoch)
        tensors = {**self._network.state_dict(), "mean": self._mean, "std": self._std, "kept_epoch": told}
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the tensors that `state` gave. Raises BenchError where they don't fit the settings."""
        tensors = {name: value.to(self.setup.device, copy=True) for name, value in state.items()}
        network = _network(self.settings, self._channels, "meta")
        with refuse_another_state("MFRNet"):
            mean, std, epoch = (tensors.pop(name) for name in ("mean", "std", "kept_epoch"))
            network.load_state_dict(tensors, assign=True)
        self._network, self._mean, self._std, self._kept_epoch = network, mean, std, int(epoch)

    @classmethod
    def inputs(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """The backbone's sha256."""
        return {"backbone": find(settings.backbone, weights).sha256}

    @classmethod
    def memory(cls, settings: Settings, size: tuple[int, int], images: int) -> int:
        """Bytes of weights with gradients and moments, of the features kept, and of what one step remembers."""
        channels = sum(layout(settings.backbone, settings.stages)[0])
        grid, batch = _grid(settings, size), min(settings.batch, images)
        maps = 4 * channels * math.prod(grid)  # bytes of an image's features; no more are kept of it
        network = _network(settings, channels, "meta").training_bytes(batch * settings.subsets, grid)
        return network + 30 * batch * maps + min(images * maps, BUDGET)  # some 30 copies for the loss and its gradient


METHOD = MFRNet


def _grid(settings: Settings, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of places of the common map."""
    return -(-size[0] // settings.stride), -(-size[1] // settings.stride)


def _network(settings: Settings, channels: int, device: str) -> RestorationNet:
    """The network that the settings ask for; on "meta" it has shapes but takes no memory."""
    with torch.device(device):
        return RestorationNet(
            channels, widths=settings.widths, depth=settings.depth, decoder_depth=settings.decoder_depth,
            head_width=settings.head_width, pools=settings.pools, convolution=settings.feed_forward == "convolution",
            learn_token=settings.mask_token == "learned",  # noqa: S105 - no password
        )  # fmt: skip


def _false_colours(features: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    """(b, c, h, w) twice -> (b, 3, h, w) twice in [0, 1]: the three mixtures of channels that vary most in an image.

    Both are shown along the principal axes of `features`, so what was restored as it was has the same colour.
    """
    middle = features.mean(dim=(2, 3), keepdim=True)  # (b, c, 1, 1)
    places = (features - middle).flatten(2)  # (b, c, h * w)
    axes = torch.linalg.eigh(places @ places.mT).eigenvectors[:, :, -3:]  # (b, c, 3)
    axes = axes * axes.sum(dim=1, keepdim=True).sign()  # else a colour might turn into its opposite between images
    told = [torch.einsum("bcx,bchw->bxhw", axes, maps - middle) for maps in (features, restored)]
    low, high = told[0].amin(dim=(2, 3), keepdim=True), told[0].amax(dim=(2, 3), keepdim=True)
    first, second = (((one - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) for one in told)
    return first, second
