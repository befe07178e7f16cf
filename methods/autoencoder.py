"""AE (L2) and AE-SSIM: an image is squeezed through a few numbers, and compared with what comes out.

Bergmann, Löwe, Fauser, Sattlegger, Steger: Improving Unsupervised Defect Segmentation by Applying Structural Similarity
to Autoencoders, VISAPP 2019 (https://arxiv.org/abs/1807.02011), and how Bergmann, Fauser, Sattlegger, Steger: MVTec AD,
CVPR 2019, use it. The authors have released no code and neither text was to be had: [M] is recollection, to be
verified; [R] the re-implementation plutoyuxie/AutoEncoder-SSIM-for-unsupervised-anomaly-detection-, whose layers
others share; [O] ours.

Two modes. "object" takes images whole. "texture" learns random patches of them, puts an image together from
overlapping ones at test, and averages where they overlap; `bench.toml` says which categories are textures. The map is
the same measure as the loss: the squared error, or 1 - SSIM, averaged over the colours.

    setting          default   source
    loss             l2        [M] "l2": squared errors, or "ssim": 1 - SSIM, both papers
    mode             object    [M]
    latent           100       [M] 500 for nanofibres; 128 in the journal's MVTec AD of 2021
    patch            128       [M] pixels on a side, in texture mode
    stride           30        [M]; [R] 32. From patch to patch at test; the last ones end at the border [O]
    samples          10000     [M] images or patches an epoch; drawn anew for each [O]
    epochs, batch    200, 128  [M], [R]
    lr               2e-4      [M] [R] Adam
    weight_decay     1e-5      [M]
    rotation         5         [O] degrees at most either way; [M] has rotations and shifts of objects, of unknown size,
    translation      0.05      [O] pixels at most, over the side; texture mode needs none: its patches lie anywhere
    flips            no        [R] both ways, for textures
    chance           1         [O] that an image is turned, shifted, flipped each way; [R] 0.3
    output           sigmoid   [R] the papers' is not known
    smoothing        0         [O] sigma in pixels of a Gaussian over the map; the papers have none [M]
    reduce           1         [O] images are averaged over so many pixels a side first; 1 is as published

Both losses are summed over an image's pixels [O]. The papers average 1 - SSIM [M], but so small a gradient loses to
the weight decay: such networks stay grey. Initial weights are He's, which let a network leave the grey within hundreds
of steps; the papers' are not known [O].

The score is the largest value of the map [O]: the papers define none. Further departures: colour images, where the
first paper's are grey; textures at the size that all images come in (512 x 512 in MVTec AD [M], [R] 256 x 256);
padding by mirror images in SSIM and in what a turn lets in; neither [R]'s validation images nor its paler borders.

    bench run --method ae,ae_ssim --profile code --dataset mvtec --protocol one-for-one --preparation native
    expect a mean pixel AUROC of 81.7 by L2 [M] and 86.9 by SSIM (15 categories in the AMI-Net paper's Table I)

What that table calls the image AUROC of AE-SSIM is no AUROC: each of its values is the rounded mean of the two rates
of right answers in the MVTec AD paper. A real one has not been published there.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Method, Prediction, Preparation, Progress, Setup

from .parts.compiled import compiled
from .parts.features import BUDGET, FrozenFeatures
from .parts.maps import gaussian, image_score, upsample
from .parts.precision import autocast
from .parts.refusals import refuse_another_size, refuse_another_state, refuse_below, refuse_unless
from .parts.similarity import ssim

SLOPE = 0.2  # of the leaky ReLUs
WINDOWS = 64  # patches in a batch at test


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen; the table above tells every source."""

    loss: Literal["l2", "ssim"] = "l2"
    mode: Literal["object", "texture"] = "object"
    latent: int = 100
    patch: int = 128
    stride: int = 30
    samples: int = 10_000
    epochs: int = 200
    batch: int = 128
    lr: float = 2e-4
    weight_decay: float = 1e-5
    rotation: float = 5.0
    translation: float = 0.05
    flips: bool = False
    chance: float = 1.0
    output: Literal["sigmoid", "linear"] = "sigmoid"
    smoothing: float = 0.0
    reduce: int = 1

    def __post_init__(self) -> None:
        refuse_below(1, "The autoencoder", self, "latent", "stride", "samples", "epochs", "batch", "reduce")
        refuse_below(0, "The autoencoder", self, "lr", "weight_decay", "smoothing")
        holds = self.stride <= self.patch  # so that patches cover all
        refuse_unless(holds, f"The autoencoder's stride is at most its patch, {self.patch}", self.stride)
        refuse_unless(0 <= self.rotation <= 180, "The autoencoder's rotation is 0 to 180 degrees", self.rotation)
        refuse_unless(0 <= self.translation < 1, "The autoencoder's translation is from 0 to below 1", self.translation)
        refuse_unless(0 <= self.chance <= 1, "The autoencoder's chance is from 0 to 1", self.chance)


class Autoencoder(Method):
    """Squeezes images or patches through a few numbers, and marks where what comes out is not what went in."""

    native: ClassVar[Preparation] = Preparation(256, 256)
    iterative: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._seen = _seen(settings, setup.size)
        self._meta = _network(settings, setup.size, "meta")  # what contradicts itself is refused now, not in fit
        self._network: nn.Sequential | None = None
        self._asked: nn.Sequential | None = None  # what answers for it

    def fit(self, train: Images, progress: Progress) -> None:
        """Learns to give back randomly turned, shifted or cut out parts of good images."""
        settings, device = self.settings, self.setup.device
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
            torch.default_generator.manual_seed(self.setup.seed)
            network = _network(settings, self.setup.size, "cpu").to(device)
        network = network.to(memory_format=torch.channels_last)  # faster, on CPUs above all
        fused = device.type in {"cpu", "cuda"}
        optimizer = torch.optim.Adam(network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=fused)
        scaler = torch.amp.GradScaler(device.type, enabled=self.setup.precision == "float16")
        draws = Generator().manual_seed(self.setup.seed)  # on the CPU: the same views on every device
        pictures = FrozenFeatures(lambda images: [self._reduced(images.to(device))], train, setup=self.setup)

        self._asked = None
        for epoch in range(1, settings.epochs + 1):
            total = torch.zeros((), device=device)
            for (images,) in pictures.batches(settings.batch, _walk(len(train), settings.samples, draws)):
                wanted = self._augmented(images, draws)
                loss = self._unlike(wanted, self._pass(network, wanted)).sum(dim=(1, 2)).mean()
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach() * len(images)
            mean = float(total) / settings.samples  # the only wait for the device in an epoch
            if not math.isfinite(mean):
                raise BenchError(f"A loss must be finite; the autoencoder's is {mean} in epoch {epoch}. Lower lr.")
            self._network = network
            progress(epoch, settings.epochs, mean)

    def _unlike(self, wanted: Tensor, restored: Tensor) -> Tensor:
        """(b, 3, h, w) twice -> (b, h, w): the mean over colours of the squared error or of 1 - SSIM."""
        unlike = (wanted - restored).square() if self.settings.loss == "l2" else 1 - ssim(wanted, restored)
        return unlike.mean(dim=1)

    def _pass(self, network: nn.Sequential, images: Tensor) -> Tensor:
        with autocast(self.setup):
            restored: Tensor = network(images.contiguous(memory_format=torch.channels_last))
        return restored.float().contiguous()

    def _augmented(self, images: Tensor, draws: Generator) -> Tensor:
        """(b, 3, H, W) -> (b, 3, h, w): a random view of each, as large as what the network sees.

        A view is turned about its own middle, which lies whole pixels from where it may, so that one that isn't turned
        is sharp. What it takes in from beyond the image is mirrored.
        """
        settings, b = self.settings, len(images)
        image, view = (torch.tensor(size[::-1]) for size in (images.shape[2:], self._seen))  # (2,): across, down
        chosen = torch.rand(b, 4, generator=draws) < settings.chance  # turned, shifted, flipped twice
        turns = (torch.rand(b, generator=draws) * 2 - 1) * chosen[:, 0] * math.radians(settings.rotation)
        room = image - view if settings.mode == "texture" else 2 * (settings.translation * image).floor()
        shifts = (torch.rand(b, 2, generator=draws) * (room + 1)).floor() - room / 2  # (b, 2) pixels from the middle
        if settings.mode == "object":
            shifts = shifts * chosen[:, 1:2]
        flips = torch.where(chosen[:, 2:] & settings.flips, -1.0, 1.0)  # (b, 2)
        cosine, sine = turns.cos(), turns.sin()
        turned = torch.stack([cosine, -sine, sine, cosine], dim=1).view(b, 2, 2) * flips[:, None]
        # From a view's own coordinates, -1 to 1 between its edges, to those of the image.
        affine = torch.cat([turned * view / image[:, None], 2 * (shifts / image)[:, :, None]], dim=2)  # (b, 2, 3)
        grid = F.affine_grid(affine.to(images.device), [b, 3, *self._seen], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """How unlike the image and what is given back are; the largest value is the score."""
        maps = gaussian(self._compared(images)[1], self.settings.smoothing)
        return Prediction(image_score(maps, "max"), maps)

    def _compared(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) -> what the network gives back of it, (b, 3, h, w), and how unlike the two are, (b, h, w)."""
        network = self._answering()
        refuse_another_size(images, self.setup.size, "autoencoder")
        wanted = self._reduced(images)
        given_back = self._pass if self.settings.mode == "object" else self._joined
        restored = given_back(network, wanted)
        unlike = self._unlike(wanted, restored)
        if self.settings.reduce > 1:
            height, width = self.setup.size
            given = (restored, unlike)
            restored, unlike = (upsample(maps, (height, width), align_corners=False) for maps in given)
        return restored, unlike

    def _answering(self) -> nn.Sequential:
        """The fitted network, or what is compiled from it once and not at each predict."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        self._asked = self._asked or compiled(self._network, self.setup, "forward")
        return self._asked

    def _reduced(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.settings.reduce)

    def _joined(self, network: nn.Sequential, images: Tensor) -> Tensor:
        """(b, 3, h, w) put together from patches that overlap: each pixel is the mean of what they say."""
        patch, stride = self.settings.patch, self.settings.stride
        tops, lefts = (_starts(side, patch, stride) for side in images.shape[2:])
        places = [(slice(top, top + patch), slice(left, left + patch)) for top in tops for left in lefts]
        at_once = max(1, WINDOWS // len(images))
        total, count = torch.zeros_like(images), torch.zeros_like(images[0, 0])
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            windows = torch.cat([images[:, :, rows, columns] for rows, columns in some])  # (some * b, 3, patch, patch)
            given = torch.split(self._pass(network, windows), len(images))
            for (rows, columns), restored in zip(some, given, strict=True):
                total[:, :, rows, columns] += restored
                count[rows, columns] += 1
        return total / count

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """What the network gives back, and how unlike the image it is, before smoothing."""
        restored, unlike = self._compared(images)
        return {"reconstruction": restored.clamp(0, 1), "difference": unlike}

    def facts(self) -> dict[str, str | int | float]:
        """The size of the network and of what it sees."""
        learned = sum(parameter.numel() for parameter in self._meta.parameters())
        return {"trainable_parameters": learned, "mode": self.settings.mode, "seen_pixels": math.prod(self._seen)}

    def state(self) -> dict[str, Tensor]:
        """The tensors of the network, copied to the CPU."""
        if self._network is None:
            raise BenchError(NOT_FITTED)
        tensors = self._network.state_dict().items()
        return {name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the tensors that `state` gave. Raises BenchError where they don't fit the settings."""
        network = _network(self.settings, self.setup.size, "cpu")
        with refuse_another_state("autoencoder"):
            network.load_state_dict(state)
        self._network = network.to(self.setup.device).to(memory_format=torch.channels_last)
        self._asked = None

    @classmethod
    def memory(cls, settings: Settings, size: tuple[int, int], images: int) -> int:
        """Bytes of the images, of weights with gradients and moments, and of what one batch keeps for its gradients."""
        network, (height, width) = _network(settings, size, "meta"), _seen(settings, size)
        weights = sum(parameter.numel() for parameter in network.parameters())
        maps, kept = torch.empty(1, 3, height, width, device="meta"), 60 * height * width  # views, moments of SSIM
        for layer in network:
            maps = layer(maps)
            kept += 0 if isinstance(layer, nn.LeakyReLU) else maps.numel()  # which writes over what it is given
        image = 12 * math.prod(size) // settings.reduce**2
        batch = min(settings.batch, settings.samples) * (image + 4 * kept)
        return min(images * image, BUDGET) + 16 * weights + batch


METHOD = Autoencoder


def _network(settings: Settings, size: tuple[int, int], device: str) -> nn.Sequential:
    """Encoder and decoder for what the settings see of images of (h, w) pixels; on "meta" it takes no memory.

    As many convolutions halve what it sees as leave 8 to 15 places on the shorter side: four of them at 128 pixels, one
    more, behind the second [R], each time that doubles. Below 128 four leave fewer [O]. The grid that is left becomes
    `latent` numbers at once. Raises BenchError where a halving doesn't come out even.
    """
    height, width = _seen(settings, size)
    extra = max(0, (min(height, width) // 128).bit_length() - 1)
    side = 16 * 2**extra
    if height % side or width % side:
        raise BenchError(
            f"The autoencoder halves what it sees {4 + extra} times, so {side} divides height and width; {height} x "
            f"{width} can't be halved so often. Choose multiples of {side}."
        )
    grid = (height // side, width // side)
    channels = (3, 32, 32, *(32,) * extra, 32, 64, 64, 128, 64, 32)
    kernels = (4, 4, *(4,) * extra, 3, 4, 3, 4, 3, 3)  # those of 4 halve, those of 3 keep the size
    steps = list(zip(channels, channels[1:], kernels, strict=False))
    layers: list[nn.Module] = []
    with torch.device(device):
        for before, after, kernel in steps:
            layers += [nn.Conv2d(before, after, kernel, 2 if kernel == 4 else 1, 1), nn.LeakyReLU(SLOPE, inplace=True)]
        layers += [nn.Conv2d(32, settings.latent, grid), nn.ConvTranspose2d(settings.latent, 32, grid, grid)]
        for before, after, kernel in reversed(steps):
            mirror = nn.ConvTranspose2d(after, before, 4, 2, 1) if kernel == 4 else nn.Conv2d(after, before, 3, 1, 1)
            layers += [nn.LeakyReLU(SLOPE, inplace=True), mirror]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # He et al. 2015, so that values vary as much behind a layer as before it. What mirrors a stride writes each
            # number that it gets to a whole kernel, of which the strides lie apart: each that it gives gets fewer.
            apart = math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else 1
            got = layer.in_channels * math.prod(layer.kernel_size) / apart
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (1 + SLOPE**2) / got))
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.Sigmoid() if settings.output == "sigmoid" else nn.Identity())


def _seen(settings: Settings, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of what the network is given at a time. Raises BenchError where there is no such."""
    height, width = size[0] // settings.reduce, size[1] // settings.reduce
    if settings.mode == "object":
        return height, width
    if settings.patch > min(height, width):
        raise BenchError(
            f"In texture mode patches lie within the image; {settings.patch} x {settings.patch} pixels don't in "
            f"{height} x {width}. Lower patch, or enlarge the images."
        )
    return settings.patch, settings.patch


def _walk(images: int, samples: int, draws: Generator) -> Tensor:
    """(samples,) indices of images in random order, each as often as any other but for one."""
    return torch.cat([torch.randperm(images, generator=draws) for _ in range(-(-samples // images))])[:samples]


def _starts(side: int, patch: int, stride: int) -> list[int]:
    """Where patches begin along a side, so that they cover all of it and the last one ends where it ends."""
    return [*range(0, side - patch, stride), side - patch]
