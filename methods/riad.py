"""RIAD: reconstruction by inpainting (Zavrtanik, Kristan, Skočaj; Pattern Recognition 112, 2021, 107706).

The squares of a grid are cut into three random sets. A U-Net sees the image three times, each time without one of the
sets, and paints it in; put together, every pixel comes from a pass in which it was hidden. The grid has cells of 2, 4,
8 or 16 pixels: one size a step in training, all of them at test. What can't be painted in again is anomalous.

The authors have released no code and the paper was not to be had. [R] two public re-implementations agree
(plutoyuxie/Reconstruction-by-inpainting-for-visual-anomaly-detection at 7c0aaf9, "PY"; taikiinoue45/RIAD at 36139f9,
"TI"), [PY] or [TI] one of them says so, [M] recollection of the paper, to be verified, [O] ours.

    setting               default       source
    width                 64            [PY] channels of the first stage; 128, 256, 512, 512 follow
    cells                 2, 4, 8, 16   [R] pixels on a side; one drawn for each step in training
    subsets               3             [R]
    epochs, batch         300, 4        [R]; the paper's batch is 8 [M]
    lr, lr_drop           1e-4, 250     [PY] Adam, a tenth from that epoch on; TI has no drop in effect
    weight_decay          1e-5          [R]
    gms_weight            1             [R] alpha, and [M]
    ssim_weight           1             [R] beta, and [M]
    grey                  no            [TI] gradients of each colour; [PY] yes, of their mean
    holdout, patience     0.2, 20       [PY] fraction of the images that is held out, epochs without a better loss there
    mean_filter           21            [TI] [M] pixels on a side; [PY] has a Gaussian of sigma 7 instead
    test_seed             0             [O] of the masks at test, which are the same for every image
    reduce                1             [O] images are averaged over so many pixels a side first; 1 is as published

Departures from both: the three passes of a step are one batch, so batch norm sees them together; the same masks judge
the held-out images after every epoch, so epochs compare; fewer than 10 images hold none out, and all epochs run. From
PY: no median blur before the gradients, the four cell sizes count alike, no scaling over the test set. From TI: the
cosine schedule with restarts, which holds the rate nearly still.

    bench run --method riad --profile code --dataset mvtec --protocol one-for-one --preparation native
    expect mean image/pixel AUROC 91.7/94.2 (the paper); TI's own mean image AUROC is 89.0, so several points of spread

To see how far the random masks move a result, run it with --set test_seed=0, 1, 2 and so on.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Preparation, Progress, Setup

from .parts.compiled import compiled
from .parts.holdout import held_out
from .parts.maps import image_score, mean_filter, upsample
from .parts.masks import complementary_masks
from .parts.precision import autocast
from .parts.refusals import refuse_another_size, refuse_another_state, refuse_below, refuse_unless
from .parts.similarity import msgms, ssim
from .parts.unet import UNet


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen; the table above tells every source."""

    width: int = 64
    cells: tuple[int, ...] = (2, 4, 8, 16)
    subsets: int = 3
    epochs: int = 300
    batch: int = 4
    lr: float = 1e-4
    lr_drop: int = 250
    weight_decay: float = 1e-5
    gms_weight: float = 1.0
    ssim_weight: float = 1.0
    grey: bool = False
    holdout: float = 0.2
    patience: int = 20
    mean_filter: int = 21
    test_seed: int = 0
    reduce: int = 1

    def __post_init__(self) -> None:
        refuse_below(1, "RIAD", self, "width", "epochs", "batch", "patience", "reduce")
        refuse_below(0, "RIAD", self, "lr", "weight_decay")
        holds = bool(self.cells) and min(self.cells) >= 1
        refuse_unless(holds, "RIAD's cells are one or more sides of at least 1 pixel", self.cells)
        refuse_unless(self.subsets >= 2, "RIAD's subsets are at least 2, for a pass must see something", self.subsets)
        refuse_unless(0 <= self.holdout < 1, "RIAD's holdout is from 0 (none) to below 1", self.holdout)
        odd = self.mean_filter >= 1 and self.mean_filter % 2 == 1
        refuse_unless(odd, "RIAD's mean_filter is odd, so that it has a middle", self.mean_filter)


class RIAD(Method):
    """Paints every part of an image from the rest, and marks where the gradients of the two differ."""

    native: ClassVar[Preparation] = Preparation(256, 256, resample="lanczos")  # [PY]
    iterative: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        side = UNet.STRIDE * settings.reduce
        if setup.size[0] % side or setup.size[1] % side:
            raise BenchError(
                f"RIAD's U-Net halves an image four times, so {side} divides its height and width (reduce is "
                f"{settings.reduce}); {setup.size[0]} x {setup.size[1]} came. Choose multiples of {side}."
            )
        self._size = (setup.size[0] // settings.reduce, setup.size[1] // settings.reduce)
        self._network: UNet | None = None  # in eval mode: what predicts
        self._asked: UNet | None = None  # what answers for it
        self._kept = 0  # the epoch that it is of
        draws = Generator().manual_seed(settings.test_seed)  # on the CPU: the same masks on every device
        masks = [
            complementary_masks(*self._size, cell=cell, subsets=settings.subsets, generator=draws)
            for cell in settings.cells  # those too large for the image are refused now, not after hours of fitting
        ]
        self._test_masks = torch.stack(masks).to(setup.device)  # (cells, subsets, h, w), the same for every image

    def fit(self, train: Images, progress: Progress) -> None:
        """Learns to paint in. Where images are held out, the epoch that does best on them is kept."""
        settings, device = self.settings, self.setup.device
        network, optimizer = self._untrained()
        scaler = torch.amp.GradScaler(device.type, enabled=self.setup.precision == "float16")
        draws = Generator().manual_seed(self.setup.seed)  # on the CPU: the same masks on every device
        held, learned = held_out(len(train), settings.holdout, draws)
        best = math.inf

        for epoch in range(1, settings.epochs + 1):
            if epoch == settings.lr_drop:
                optimizer.param_groups[0]["lr"] = settings.lr / 10
            network.train()
            total = torch.zeros((), device=device)
            for images in train.batches(settings.batch, learned[torch.randperm(len(learned), generator=draws)]):
                loss = self._loss(network, images, draws)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach() * len(images)
            network.eval()
            mean = float(total) / len(learned)  # the only wait for the device in an epoch, but for the held-out loss
            judged = self._held_loss(network, train, held) if len(held) else mean
            if not math.isfinite(mean + judged):
                raise BenchError(f"A loss must be finite; RIAD's is {mean + judged} in epoch {epoch}. Try a lower lr.")
            if judged < best or not len(held):
                self._network, self._asked = deepcopy(network) if len(held) else network, None
                self._kept, best = epoch, judged
            stop = epoch - self._kept >= settings.patience
            progress(epoch, epoch if stop else settings.epochs, mean)
            if stop:
                break

    def _untrained(self) -> tuple[UNet, torch.optim.Adam]:
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
            torch.default_generator.manual_seed(self.setup.seed)
            network = UNet(self.settings.width)
        device = self.setup.device
        network = network.to(device).to(memory_format=torch.channels_last)  # faster, on CPUs above all
        settings, fused = self.settings, device.type in {"cpu", "cuda"}
        optimizer = torch.optim.Adam(network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=fused)
        return network, optimizer

    @torch.no_grad()
    def _held_loss(self, network: UNet, train: Images, held: Tensor) -> float:
        """The mean loss over the held-out images, under masks that are the same after every epoch."""
        draws, total = Generator().manual_seed(self.setup.seed), torch.zeros((), device=self.setup.device)
        for images in train.batches(self.settings.batch, held):
            total += self._loss(network, images, draws) * len(images)
        return float(total) / len(held)

    def _loss(self, network: UNet, images: Tensor, draws: Generator) -> Tensor:
        """The loss of (b, 3, h, w) images in [0, 1] under masks of one cell size, both drawn."""
        settings = self.settings
        wanted = self._scaled(images.to(self.setup.device))
        cell = settings.cells[int(torch.randint(len(settings.cells), (), generator=draws))]
        masks = complementary_masks(*self._size, cell=cell, subsets=settings.subsets, generator=draws)
        painted = self._painted(network, wanted, masks[None].to(wanted.device), len(masks) * len(wanted))[0]
        unlike = self._unlike(wanted, painted).mean()
        loss = F.mse_loss(painted, wanted) + settings.gms_weight * unlike
        return loss + settings.ssim_weight * (1 - ssim(wanted, painted).mean())

    def _painted(self, network: UNet, images: Tensor, masks: Tensor, at_once: int) -> Tensor:
        """Images (b, 3, h, w) in [-1, 1] put together from passes: (cells, b, 3, h, w), each pixel from where it hid.

        masks: (cells, subsets, h, w), True where a pass hides; it is 0, mid-grey, there.  at_once: passes in a batch.
        """
        hidden = masks[:, :, None, None]  # (cells, subsets, 1, 1, h, w)
        shown = (images * ~hidden).flatten(0, 2)  # (cells * subsets * b, 3, h, w)
        with autocast(self.setup):
            passes = [network(some.contiguous(memory_format=torch.channels_last)) for some in shown.split(at_once)]
        restored = torch.cat(passes).float().contiguous()
        return (restored.view(*masks.shape[:2], *images.shape) * hidden).sum(dim=1)

    def _unlike(self, images: Tensor, painted: Tensor) -> Tensor:
        """(b, 3, h, w) twice -> (b, h, w): 1 - MSGMS, the mean over colours or that of their mean."""
        if self.settings.grey:
            images, painted = images.mean(dim=1, keepdim=True), painted.mean(dim=1, keepdim=True)
        return 1 - msgms(images, painted).mean(dim=1)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """The mean over cell sizes of how unlike gradients are, smoothed; the largest value is the score."""
        wanted, painted = self._restored(images)
        unlike = torch.stack([self._unlike(wanted, one) for one in painted]).mean(dim=0)  # (b, h, w)
        if self.settings.reduce > 1:
            unlike = upsample(unlike, self.setup.size, align_corners=False)
        maps = mean_filter(unlike, self.settings.mean_filter)
        return Prediction(image_score(maps, "max"), maps)

    def _restored(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images as the network is shown them, (b, 3, h, w), and as it paints them, (cells, b, 3, h, w)."""
        network = self._answering()
        refuse_another_size(images, self.setup.size, "RIAD")
        wanted = self._scaled(images)
        at_once = max(1, 3 * room(wanted.device) // UNet.remembered(self.settings.width, self._size))
        return wanted, self._painted(network, wanted, self._test_masks, at_once)

    def _answering(self) -> UNet:
        """The fitted network, or what is compiled from it once and not at each predict."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        self._asked = self._asked or compiled(self._network, self.setup, "forward")
        return self._asked

    def _scaled(self, images: Tensor) -> Tensor:
        """[0, 1] -> [-1, 1], at the size that the network works at."""
        return F.avg_pool2d(images, self.settings.reduce) * 2 - 1

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """For each cell size what was painted, what one pass was not shown, and how unlike the gradients are."""
        wanted, painted = self._restored(images)
        told = {}
        for cell, masks, one in zip(self.settings.cells, self._test_masks, painted, strict=True):
            told[f"reconstruction, cells of {cell}"] = (one + 1) / 2
            told[f"mask, cells of {cell}"] = masks[0].float().expand(len(images), -1, -1)
            told[f"gradient difference, cells of {cell}"] = self._unlike(wanted, one)
        if self.settings.reduce > 1:
            told = {name: upsample(picture, self.setup.size, align_corners=False) for name, picture in told.items()}
        return told

    def facts(self) -> dict[str, str | int | float]:
        """The size of the network, how often it looks at an image, and the epoch that was kept."""
        passes = len(self.settings.cells) * self.settings.subsets
        kept = {"kept_epoch": self._kept} if self._kept else {}
        return {"trainable_parameters": _weights(self.settings.width), "passes": passes, **kept}

    def state(self) -> dict[str, Tensor]:
        """Weights and running statistics of the network, copied to the CPU."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        tensors = self._network.state_dict().items()
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the tensors that `state` gave. Raises BenchError where they don't fit the settings."""
        network = UNet(self.settings.width)
        with refuse_another_state("RIAD"):
            network.load_state_dict(state)
        self._network = network.to(self.setup.device).to(memory_format=torch.channels_last).eval()
        self._asked = None

    @classmethod
    def memory(cls, settings: Settings, size: tuple[int, int], images: int) -> int:
        """Bytes of weights with gradients and moments, and of what the passes of one step keep for their gradients."""
        seen = (size[0] // settings.reduce, size[1] // settings.reduce)
        passes = settings.subsets * min(settings.batch, images)
        return 16 * _weights(settings.width) + passes * UNet.remembered(settings.width, seen)


def room(device: torch.device) -> int:
    """Bytes that the passes of one batch may take at test: half of a GPU's memory; a CPU gains nothing from more."""
    return torch.cuda.get_device_properties(device).total_memory // 2 if device.type == "cuda" else 2**29


def _weights(width: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(width).parameters())


METHOD = RIAD
