"""VT-ADL: the likelihood of a vision transformer's tokens under a mixture of Gaussians that depends on the token.

Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: A Vision Transformer Network for Image Anomaly Detection and
Localization, ISIE 2021 (https://arxiv.org/abs/2104.10036), which also introduced BTAD. The authors'
code: https://github.com/pankajmishra000/VT-ADL at 20b58e2, MIT. We could not read the paper.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting                paper [M]    code [C]             here, if not the code's
    patch                  64           64                   sides of 512 pixels: 64 tokens
    width, depth           512, 6       512, 6
    heads, hidden          8, 1024      8, 1024
    noise                  0.2          0.2                  sigma of the noise on the tokens in training
    components             150          10                   Gaussians
    density                mixture      weighted             "mixture" is the negative log-likelihood of the mixture
    decoder_width          -            8                    channels of the last layer but one, others are multiples
    reconstruction_weight  5            5                    weight of the squared error; with both 0, nothing is
    decoded ssim_weight            0.5          0.5                  11 x 11 pixels, zeros beyond the border
    epochs, batch_size     400, 8       400, 8
    lr, weight_decay       1e-4, 1e-4   1e-4, 1e-4           Adam
    keep                   -            best                 the epoch of the lowest TRAINING loss, or "last"
    score                  both terms   code                 error + SSIM + largest value of a token; or "map": its max
    smoothing              -            4                    sigma in pixels

The tokens are decoded to the image through one "capsule" of 512 numbers, and a mixture density network predicts from
each token the Gaussians that should contain it. The map is the negative log-likelihood of the tokens, upsampled.

Published details that matter: attention is scaled by 512^-0.5 instead of the width of a head; the three rounds of
routing change nothing, because there is one output capsule; negative tokens are cut off before the density network; the
loss is a weighted sum of the components' negative log-likelihoods, with variances of 1 or more and log 2 pi counted
once per token. It is about 1e5 times as large as the other terms. In the image score of the code, similarity raises the
score; the likelihood dominates it. What its script prints as PRO is the pixel AUROC.

Not reproduced: the code never zeroes the gradients of the density network, so that they accumulate over all steps.
Images of other sizes than 512 pixels are possible [I]: the decoded image is then resized.

    bench run --method vtadl --profile code --dataset btad --protocol one-for-one --preprocessing paper
    published image/pixel AUROC on BTAD: 97.6/99.0, 71.0/94.0, 82.6/77.0, mean 83.7/90.0 (Table II of AMI-Net); nothing
    is selected on the test set
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.maps import gaussian_filter, image_score, upsample
from .parts.precision import autocast
from .parts.similarity import ssim
from .parts.token_density import (
    CODE,
    DECODED,
    CapsuleDecoder,
    MixtureDensity,
    TokenEncoder,
    component_nll,
    mixture_nll,
    weighted_nll,
)

TITLE = "VT-ADL"
FAMILY = "reconstruction"
PAPER = (
    "Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: A Vision Transformer Network for Image Anomaly Detection "
    "and Localization, ISIE, https://arxiv.org/abs/2104.10036"
)
YEAR = 2021
PROFILES = {
    "demo": {  # without decoding, which takes most of the time; its losses hardly change the tokens
        "patch": 32, "width": 256, "depth": 2, "hidden": 512, "reconstruction_weight": 0.0, "ssim_weight": 0.0,
        "score": "map", "epochs": 200, "batch_size": 2, "lr": 1e-3,
    },
    "paper": {"components": 150, "density": "mixture"},
    "check": {
        "patch": 16, "width": 16, "depth": 1, "heads": 2, "hidden": 16, "components": 2, "decoder_width": 1,
        "epochs": 2, "reconstruction_weight": 0.0, "ssim_weight": 0.0, "score": "map",  # without decoding
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of VT-ADL; the table above has the source of each."""

    patch: int = 64  # pixels
    width: int = 512
    depth: int = 6
    heads: int = 8
    hidden: int = 1024
    noise: float = 0.2
    components: int = 10
    density: Literal["weighted", "mixture"] = "weighted"
    decoder_width: int = 8
    reconstruction_weight: float = 5.0
    ssim_weight: float = 0.5
    epochs: int = 400
    batch_size: int = 8
    lr: float = 1e-4
    weight_decay: float = 1e-4
    keep: Literal["best", "last"] = "best"
    score: Literal["code", "map"] = "code"
    smoothing: float = 4.0  # sigma in pixels; 0 is none

    def __post_init__(self) -> None:
        check_at_least(1, self, "patch", "width", "depth", "heads", "hidden", "components", "decoder_width", "epochs")
        check_at_least(1, self, "batch_size")
        check_at_least(0, self, "noise", "reconstruction_weight", "ssim_weight", "lr", "weight_decay")
        check_smoothing(self)
        check_setting(self.width % self.heads == 0, self, "width", f"must be a multiple of heads = {self.heads}")
        is_decoder_trained = bool(self.reconstruction_weight or self.ssim_weight)
        check_setting(is_decoder_trained or self.score == "map", self, "score", "must be map if no decoder is trained")


class Autoencoder(nn.Module):
    """The encoder of patches and the decoder of all their tokens."""

    def __init__(self, n_tokens: int, settings: Settings) -> None:
        super().__init__()
        self.encoder = TokenEncoder(
            n_tokens, settings.patch, settings.width, settings.depth, settings.heads, settings.hidden
        )
        self.decoder = CapsuleDecoder(n_tokens, settings.width, settings.decoder_width)


class VTADL(Method):
    """Tokens of patches that are decoded to the image; the map is their negative log-likelihood."""

    learned = ("network", "density", "best_epoch")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(550, 550, crop=512)  # [C]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: Autoencoder
    density: MixtureDensity
    best_epoch: Tensor

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        height, width = setup.size
        if height % settings.patch or width % settings.patch:
            raise BenchError(
                f"vtadl: height and width must be multiples of patch = {settings.patch}, got {height} x {width}. "
                f"Change the images or --set patch=VALUE."
            )
        self._grid = (height // settings.patch, width // settings.patch)

    def build_network(self) -> Autoencoder:
        """Return the untrained autoencoder."""
        return Autoencoder(self._grid[0] * self._grid[1], self.settings)

    def build_density(self) -> MixtureDensity:
        """Return the untrained density network."""
        return MixtureDensity(self.settings.width, self.settings.components)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train both networks on good images; keep the epoch of the lowest training loss."""
        settings = self.settings
        network = self.initialize(self.build_network)
        density = self.initialize(self.build_density, self.setup.seed + 1)
        training = TrainingStep(
            self.setup, torch.optim.Adam, chain(network.parameters(), density.parameters()), lr=settings.lr,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        generator = Generator().manual_seed(self.setup.seed)  # on the CPU: the same noise on every device
        best = {"loss": float("inf")}
        for epoch in self.epochs(settings.epochs, network, density, training, generator, best):
            network.train()
            for images in train.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                shape = (len(images), self._grid[0] * self._grid[1], settings.width)
                noise = settings.noise * torch.randn(shape, generator=generator)
                losses = self.losses(network, density, images.to(self.setup.device), noise.to(self.setup.device))
                training.minimize(losses[-1], len(images))
            loss = training.epoch_loss()
            if loss <= best["loss"] or settings.keep == "last":
                best["loss"] = loss
                self._keep(network, density, epoch)
            progress(epoch, settings.epochs, loss)

    def _keep(self, network: Autoencoder, density: MixtureDensity, epoch: int) -> None:
        """Copy the networks into those of predictions."""
        if "network" not in vars(self):
            self.network, self.density = self.initialize(self.build_network), self.initialize(self.build_density)
        self.network.load_state_dict(network.state_dict())
        self.density.load_state_dict(density.state_dict())
        self.network.eval()
        self.best_epoch = torch.tensor(epoch)

    def losses(
        self, network: Autoencoder, density: MixtureDensity, images: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return squared error, mean SSIM, the sum of the tokens' values per image, and the weighted total.

        Args:
            network: the network, in train mode.
            density: the density network to train.
            images: (b, 3, h, w).
            noise: (b, n, width), added to the tokens.
        """
        settings = self.settings
        with autocast(self.setup):
            tokens = network.encoder(images) + noise
        nll = self.token_nll(density, tokens.float()).sum(dim=1).mean()
        error = similarity = torch.zeros_like(nll)
        if settings.reconstruction_weight or settings.ssim_weight:
            restored = self._decode(network.decoder, tokens)
            error, similarity = (restored - images).square().mean(), ssim(images, restored, "zeros").mean()
        total = settings.reconstruction_weight * error - settings.ssim_weight * similarity + nll
        return error, similarity, nll, total

    def token_nll(self, density: nn.Module, tokens: Tensor) -> Tensor:
        """Return the value of each token (b, n, width) under the density that is predicted from it, (b, n)."""
        log_weights, means, log_variances = density(tokens)
        nll = component_nll(tokens, means, log_variances)
        return (weighted_nll if self.settings.density == "weighted" else mixture_nll)(log_weights, nll)

    def _decode(self, decoder: nn.Module, tokens: Tensor) -> Tensor:
        """Return the decoded images of tokens (b, n, width), resized to the size of the images: (b, 3, h, w)."""
        with autocast(self.setup):
            decoded: Tensor = decoder(tokens)  # (b, 3, 512, 512)
        is_resized = self.setup.size != (DECODED, DECODED)
        return upsample(decoded.float(), self.setup.size, align_corners=False) if is_resized else decoded.float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed map of the tokens' values, and the score of an image."""
        tokens, nll = self.encode(images)
        maps = upsample(nll.unflatten(1, self._grid), self.setup.size, align_corners=True)  # (b, h, w)
        maps = gaussian_filter(maps, self.settings.smoothing)
        if self.settings.score == "map":
            return Prediction(image_score(maps, "max"), maps)
        restored = self._decode(self._inference_networks[1], tokens)
        error = (restored - images).square().mean(dim=(1, 2, 3))
        similarity = ssim(images, restored, "zeros").mean(dim=(1, 2, 3))
        return Prediction(error + similarity + nll.amax(dim=1), maps)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens (b, n, width) of images, and their values (b, n)."""
        encoder, _ = self._inference_networks
        check_image_size(images, self.setup.size)
        with autocast(self.setup):
            tokens = encoder(images).float()
        return tokens, self.token_nll(self.density, tokens)

    @cached_property
    def _inference_networks(self) -> tuple[nn.Module, nn.Module]:
        network = self.network
        return (
            with_compiled_methods(network.encoder, self.setup, "forward"),
            with_compiled_methods(network.decoder, self.setup, "forward"),
        )

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the values of the tokens before smoothing and, if it was trained, the decoded image and its error."""
        tokens, nll = self.encode(images)
        cells = nll.unflatten(1, self._grid)  # (b, rows, columns)
        for axis in (1, 2):
            cells = cells.repeat_interleave(self.settings.patch, dim=axis)  # at last (b, h, w)
        pictures = {"value of a token": cells}
        if self.settings.reconstruction_weight or self.settings.ssim_weight:
            restored = self._decode(self._inference_networks[1], tokens)
            pictures["decoded image"] = restored.clamp(0, 1)
            pictures["error of the decoded image"] = (restored - images).abs().mean(dim=1)
        return pictures

    def info(self) -> Info:
        """Return the size of the networks, and the epoch that was kept."""
        return super().info() | {"kept_epoch": int(self.best_epoch)}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, a copy of the weights, and one batch's activations."""
        n_tokens = size[0] * size[1] // settings.patch**2
        with torch.device("meta"):
            networks = Autoencoder(n_tokens, settings), MixtureDensity(settings.width, settings.components)
        n_weights = sum(parameter.numel() for network in networks for parameter in network.parameters())
        decoded = 3 * (7 * settings.decoder_width + 3) * DECODED**2 + 9 * CODE**3  # the last three layers
        density = 6 * n_tokens * settings.width * settings.components
        return 20 * n_weights + 4 * min(settings.batch_size, n_images) * (decoded + density)


METHOD = VTADL
