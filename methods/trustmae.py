"""TrustMAE (our reading): an autoencoder with a memory and trust regions (Tan, Chen, Chen, Chen; WACV 2021).

Each latent vector of an autoencoder is replaced by a sparse combination of memory slots, so that the decoder cannot
restore what the memory does not contain. Slots are updated only by latent vectors near them: defective images among
the training images then do not enter the memory. Defects are found by a perceptual distance between the image and its
reconstruction.

Paper: https://arxiv.org/abs/2012.14629. There is NO code, neither of the authors nor of others, and only abstract and
introduction could be read [A]. [M] is from memory of the paper, not verified; [I] is our choice. What follows is a
method that follows the abstract; its results are not results of TrustMAE.

    setting               default      source
    channels              64           [I] of a latent vector; [M] one vector per cell of a convolutional encoder
    n_slots               200          [I]; [M] some hundreds, trained
    n_nearest             3            [I] slots that are combined; sparse [A], softmax of minus squared distances [M]
    warmup_epochs         5            [I] epochs without memory, whose latent vectors the slots are chosen from
    trust_weight          0.01         [I]; the loss is [M]: near vectors attract, doubtful ones repel. A slot does not
                                       repel the encoder, which would increase all distances without limit [I]
    inner, outer          0.9, 0.98    [I] radii: quantiles of the distances of a batch; running means of them are used
    radius_momentum       0.99         [I] of these running means
    margin_weight         0.1          [I]; the loss is [M]: the second slot is 1 farther away than the first one
    mse_weight            1            [I]; [M] a weighted sum with unknown weights, also of GAN losses, which we omit
    ssim_weight           1            [I] of 1 - SSIM with a window of 11 pixels
    perceptual_weight     0.5          [I] of the mean perceptual distance
    backbone, stages      resnet18, 1-2   [I] of the perceptual distance [A]; VGG [M]
    perceptual_window     3            [I] side of the neighborhood of features that are averaged; neighborhoods are [M]
    distance              perceptual   [A]; "mse" and "ssim" of pixels are for comparison [I]
    epochs, batch_size    200, 8       [I]
    lr                    2e-4         [I] Adam
    smoothing             4            [I] sigma in pixels
    score                 max          [I] of the map
    downsample            1            [I] factor by which images are averaged first

    bench run --method trustmae --profile code --dataset mvtec --protocol one-for-one --preprocessing paper
    published mean image/pixel AUROC: 90.9/94.0 (Table I of AMI-Net; how it was selected is not known). It is a number
    of the authors' method and not an expected number of this one.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone
from .parts.checks import check_at_least, check_image_size, check_setting, check_smoothing
from .parts.compile import with_compiled_methods
from .parts.differentiable_features import differentiable_stages
from .parts.maps import Score, gaussian_filter, image_score, mean_filter, upsample
from .parts.memory_autoencoder import STRIDE, WIDTHS, MemoryAutoencoder, margin_loss, trust_region_loss
from .parts.precision import autocast
from .parts.similarity import cosine_distance, ssim

TITLE = "TrustMAE (our reading)"  # no code, and most of the paper was not available to us
FAMILY = "reconstruction"
PAPER = (
    "Tan, Chen, Chen, Chen: TrustMAE: A Noise-Resilient Defect Classification Framework using Memory-Augmented "
    "Auto-Encoders with Trust Regions, WACV, https://arxiv.org/abs/2012.14629"
)
YEAR = 2021
PROFILES = {
    "demo": {
        "backbone": "tf_efficientnet_lite0", "channels": 32, "n_slots": 60, "epochs": 200, "batch_size": 2,
        "lr": 1e-3, "downsample": 2,
    },
    "check": {
        "backbone": "tf_efficientnet_lite0", "channels": 8, "n_slots": 10, "epochs": 2, "warmup_epochs": 1,
        "batch_size": 4,
    },
}  # fmt: skip

BACKBONE_VALUES = 200
"""Per pixel, of the two images that the perceptual distance compares."""

MAX_LATENT_IMAGES = 64
"""Training images whose latent vectors the slots are chosen from."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of TrustMAE; the table above has the source of each."""

    channels: int = 64
    n_slots: int = 200
    n_nearest: int = 3
    warmup_epochs: int = 5
    trust_weight: float = 0.01
    inner: float = 0.9  # quantile
    outer: float = 0.98  # quantile
    radius_momentum: float = 0.99
    margin_weight: float = 0.1
    mse_weight: float = 1.0
    ssim_weight: float = 1.0
    perceptual_weight: float = 0.5
    backbone: str = "resnet18.tv_in1k"  # timm's tag
    stages: tuple[int, ...] = (1, 2)  # of the backbone, as timm counts them
    perceptual_window: int = 3  # features
    distance: Literal["perceptual", "mse", "ssim"] = "perceptual"
    epochs: int = 200
    batch_size: int = 8
    lr: float = 2e-4
    smoothing: float = 4.0  # sigma in pixels; 0 is none
    score: Score = "max"
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "channels", "n_nearest", "epochs", "batch_size", "downsample")
        weights = ("trust_weight", "margin_weight", "mse_weight", "ssim_weight", "perceptual_weight")
        check_at_least(0, self, *weights, "warmup_epochs", "lr")
        check_smoothing(self)
        check_setting(self.n_slots >= max(2, self.n_nearest), self, "n_slots", "must be >= n_nearest and >= 2")
        check_setting(self.outer <= 1, self, "outer", "must be <= 1, as a quantile")
        check_setting(0 < self.inner <= self.outer, self, "inner", f"must be in (0, outer = {self.outer}]")
        check_setting(0 <= self.radius_momentum < 1, self, "radius_momentum", "must be in [0, 1)")
        is_odd = self.perceptual_window >= 1 and self.perceptual_window % 2 == 1
        check_setting(is_odd, self, "perceptual_window", "must be an odd integer >= 1")
        check_setting(self.warmup_epochs < self.epochs, self, "warmup_epochs", f"must be < epochs = {self.epochs}")


class TrustMAE(Method):
    """Restores an image from memory slots; the map is the perceptual distance to the restored image."""

    learned = ("network",)
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)  # [I]
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    settings: Settings
    network: MemoryAutoencoder

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        multiple = STRIDE * settings.downsample
        if setup.size[0] % multiple or setup.size[1] % multiple:
            raise BenchError(
                f"trustmae: height and width must be multiples of {multiple} (16 of the encoder, times downsample = "
                f"{settings.downsample}), got {setup.size[0]} x {setup.size[1]}. Change the size of the images."
            )
        self.backbone = Backbone.from_setup(settings.backbone, settings.stages, setup)
        self._size = (setup.size[0] // settings.downsample, setup.size[1] // settings.downsample)

    def build_network(self) -> MemoryAutoencoder:
        """Return the untrained autoencoder."""
        return MemoryAutoencoder(self.settings.channels, self.settings.n_slots, self.settings.n_nearest)

    def fit(self, train: Images, progress: Progress) -> None:
        """Train the autoencoder without memory, choose the slots, and train it with memory."""
        settings = self.settings
        network = self.initialize(self.build_network)
        training = TrainingStep(self.setup, torch.optim.Adam, network.parameters(), lr=settings.lr)
        generator = Generator().manual_seed(self.setup.seed)
        if not settings.warmup_epochs:
            self._choose_slots(network, train)
        running: dict[str, Tensor] = {}  # "radii": (2,) inner and outer
        for epoch in self.epochs(settings.epochs, network, training, generator, running):
            network.train()
            is_warmup = epoch <= settings.warmup_epochs
            for batch in train.batches(settings.batch_size, torch.randperm(len(train), generator=generator)):
                images = self._resize(batch.to(self.setup.device))
                with autocast(self.setup):
                    latent = network.encode(images)
                if is_warmup:
                    loss = self.reconstruction_loss(images, self._decode(network, latent.float()))
                else:
                    address = network.address(latent.float())
                    radii = running["radii"] = self.update_radii(running.get("radii"), address.squared[:, 0].detach())
                    loss = self.reconstruction_loss(images, self._decode(network, address.combined))
                    nearest = network.slots[address.indices[:, 0]]
                    loss = loss + settings.trust_weight * trust_region_loss(latent.float(), nearest, radii[0], radii[1])
                    loss = loss + settings.margin_weight * margin_loss(address.squared)
                training.minimize(loss, len(images))
            loss_of_epoch = training.epoch_loss()
            if is_warmup:
                self._choose_slots(network, train)
            self.network = network.eval()
            progress(epoch, settings.epochs, loss_of_epoch)

    def update_radii(self, radii: Tensor | None, squared: Tensor) -> Tensor:
        """Return the running means (2,) of the two quantiles of squared distances (q,)."""
        quantiles = squared.quantile(torch.tensor([self.settings.inner, self.settings.outer], device=squared.device))
        return quantiles if radii is None else torch.lerp(quantiles, radii, self.settings.radius_momentum)

    @torch.no_grad()
    def _choose_slots(self, network: MemoryAutoencoder, train: Images) -> None:
        """Set the slots to latent vectors of training images that are far from each other (k-means++)."""
        from sklearn.cluster import kmeans_plusplus  # takes a second to import

        settings = self.settings
        network.eval()
        order = torch.arange(min(len(train), MAX_LATENT_IMAGES))
        latent = torch.cat(
            [
                network.encode(self._resize(images.to(self.setup.device)))
                for images in train.batches(settings.batch_size, order)
            ]
        )
        if len(latent) < settings.n_slots:
            raise BenchError(
                f"trustmae: n_slots must be <= {len(latent)}, the latent vectors of the training images, got "
                f"{settings.n_slots}. Use more or larger images, or a lower --set n_slots=VALUE."
            )
        centers, _ = kmeans_plusplus(latent.cpu().numpy(), settings.n_slots, random_state=self.setup.seed)
        network.slots.copy_(torch.from_numpy(centers))

    def reconstruction_loss(self, images: Tensor, restored: Tensor) -> Tensor:
        """Return the weighted sum of squared error, 1 - SSIM and perceptual distance, of (b, 3, h, w) images each."""
        settings = self.settings
        loss = settings.mse_weight * F.mse_loss(restored, images)
        if settings.ssim_weight:
            loss = loss + settings.ssim_weight * (1 - ssim(restored, images).mean())
        if settings.perceptual_weight:
            distances = self.perceptual_distances(images, restored)
            loss = loss + settings.perceptual_weight * torch.stack([maps.mean() for maps in distances]).mean()
        return loss

    def perceptual_distances(self, images: Tensor, restored: Tensor) -> list[Tensor]:
        """Return 1 - cosine of the features of (b, 3, h, w) images, averaged over neighborhoods: (b, h_i, w_i) each.

        Features are divided by their norm at each position before they are averaged.
        """
        inputs = (torch.cat([images, restored]) - self.backbone.mean) / self.backbone.std
        distances = []
        for stage in differentiable_stages(self.backbone, inputs):
            features = F.normalize(stage.contiguous(), dim=1)  # (2 b, c, h, w)
            features = mean_filter(features, self.settings.perceptual_window).permute(0, 2, 3, 1)
            distances.append(cosine_distance(*features.chunk(2)))
        return distances

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the smoothed distance between images and restored images, and its score."""
        original, restored, _ = self.reconstruct(images)
        maps = gaussian_filter(self.distance_map(original, restored), self.settings.smoothing)
        return Prediction(image_score(maps, self.settings.score), maps)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the images at the size of the network, the restored ones, and distances (b, h, w) to nearest slots."""
        network = self._inference_network
        check_image_size(images, self.setup.size)
        original = self._resize(images)
        with autocast(self.setup):
            restored, squared = network(original)
        return original, restored.float(), squared.float().sqrt()

    def distance_map(self, images: Tensor, restored: Tensor) -> Tensor:
        """Return the distance chosen by the settings at each pixel, (b, H, W)."""
        if self.settings.distance == "perceptual":
            stages = self.perceptual_distances(images, restored)
        elif self.settings.distance == "mse":
            stages = [(images - restored).square().mean(dim=1)]
        else:
            stages = [1 - ssim(restored, images).mean(dim=1)]
        return torch.stack([upsample(maps, self.setup.size, align_corners=False) for maps in stages]).mean(dim=0)

    @cached_property
    def _inference_network(self) -> MemoryAutoencoder:
        return with_compiled_methods(self.network, self.setup, "forward")

    def _decode(self, network: MemoryAutoencoder, vectors: Tensor) -> Tensor:
        with autocast(self.setup):
            restored = network.decode(vectors, self._size)
        return restored.float()

    def _resize(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.settings.downsample) if self.settings.downsample > 1 else images

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the restored image, its absolute error, and the distance of each latent vector to its nearest slot."""
        original, restored, nearest = self.reconstruct(images)
        error = upsample((original - restored).abs().mean(dim=1), self.setup.size, align_corners=False)
        return {
            "reconstruction": upsample(restored, self.setup.size, align_corners=False).clamp(0, 1),
            "reconstruction error": error,
            "distance to the nearest slot": F.interpolate(nearest[:, None], self.setup.size)[:, 0],
        }

    def info(self) -> Info:
        """Return the size of the network, the slots, and the backbone of the perceptual distance."""
        return super().info() | {"slots": self.settings.n_slots}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of a training step: activations of the autoencoder and of the backbone, and the weights."""
        with torch.device("meta"):
            network = MemoryAutoencoder(settings.channels, settings.n_slots, settings.n_nearest)
        n_weights = sum(parameter.numel() for parameter in network.parameters())
        # Per pixel: the outputs of convolution, norm and activation, and enlarged maps, of all stages; the backbone.
        values = sum(3 * width / 4 ** (i + 1) + 4 * width / 4**i for i, width in enumerate(WIDTHS)) + BACKBONE_VALUES
        pixels = size[0] * size[1] // settings.downsample**2
        return 16 * n_weights + int(4 * min(settings.batch_size, n_images) * pixels * values)


METHOD = TrustMAE
