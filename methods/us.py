"""US, Uninformed Students: networks that imitate a teacher's descriptors of good patches, and fail on other ones.

Bergmann, Fauser, Sattlegger, Steger: Uninformed Students, CVPR 2020 (https://arxiv.org/abs/1911.02357). The authors
have released no code, and we could not read the paper. Re-implementations: [RL] LuyaooChen/uninformed-students-pytorch
at 3c5661e, MIT, "simple and incomplete" by its README; [RD] denguir/student-teacher-anomaly-detection at fc279ef.

[P] paper, [A] abstract, [C] authors' code, [R] public re-implementation, [M] from memory, not verified, [I] our choice

    setting                paper [M]    RL          RD           here, if not the paper's
    receptive_fields       17, 33, 65   one         one          sides in pixels of the patches, one ensemble each
    first_kernel           5            3           5            of the network for 33 pixels, whose field is then 30
    width, descriptor      128, 128     128, 128    128, 512     channels, and numbers per patch; RD: those decoded
    teacher_images         ImageNet     ImageNet    the category "categories" [I]: see below
    backbone, stage        resnet18, 4  resnet18    resnet18     timm's names; its features are averaged per patch
    metric_weight, margin  1, 1         0           0            triplets; a positive is a shifted, changed patch
    compactness_weight     1            0           1            squared correlations of each pair of "dimensions"; in
                                                                 RD of "samples"
    teacher_steps          50000        2 epochs    1000 epochs  of 64 patches, Adam with 2e-4, weight decay 1e-5
    zoom, color_jitter     -            -           -            [I] changes of patches for the teacher
    students               3            3           3
    epochs, batch_size     100, 1       20, 1       15, 1
    lr, weight_decay       1e-4, 1e-5   1e-4, 1e-5  1e-4, 1e-5   Adam
    crop, crops_per_image  -            512 pixels  -            [I] 0 trains on whole images
    border                 -            reflect     zeros        reflect [RL]
    error                  squared      norm        squared      error of the mean student
    validation_fraction    held out     0           0            0.1 [I], if there are 10 images; 0 takes training ones
    downsample             -            -           -            [I] average-pooling factor applied to the input

The map is the sum of the error of the mean student and of the students' variance, both standardized on good validation
images, averaged over receptive fields, without smoothing. The image score is not defined; here it is the maximum [I].

The teacher is the difference that matters. The paper's is distilled from ResNet18 on ImageNet, which is not part of
this project. Here it is distilled on random crops of the training images of the other categories, or of the category
itself if there are no others or with --set teacher_images=train [I]: hundreds of images instead of a million. With a
folder of ImageNet, the alias us_imagenet has the paper's form. `info` states what was used.

    bench run --method us_imagenet --set teacher_images=~/imagenet --profile code --dataset mvtec --protocol unified
    published mean image/pixel AUROC: 74.5/81.8 (Table III of AMI-Net, from UniAD; its epoch is not
    stated); the paper has only PRO, 91.4 [M]
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Preprocessing, Progress, Setup
from bench.training import TrainingStep

from .parts.backbone import Backbone, channels_and_strides
from .parts.checks import check_at_least, check_image_size, check_setting
from .parts.compile import with_compiled_methods
from .parts.dense_patch_network import Layer, PatchNetwork, networks_of, patch_layers, receptive_field
from .parts.descriptor_losses import squared_correlations, triplet_loss
from .parts.image_folder import ImageFolder
from .parts.inference_batches import passes_per_batch
from .parts.maps import image_score, upsample
from .parts.precision import autocast
from .parts.random_crops import PairSampler, Source, draw_images, random_windows
from .parts.statistics import channel_statistics
from .parts.train_validation_split import train_validation_split

_log = logging.getLogger(__name__)

TITLE = "US (teacher without ImageNet)"
FAMILY = "distillation"
PAPER = (
    "Bergmann, Fauser, Sattlegger, Steger: Uninformed Students: Student-Teacher Anomaly Detection with Discriminative "
    "Latent Embeddings, CVPR, https://arxiv.org/abs/1911.02357"
)
YEAR = 2020
NEEDS = ("a folder with images of ImageNet for us_imagenet",)
ALIASES = {"us_imagenet": {"title": "US", "settings": {"teacher_images": "imagenet"}}}
PROFILES = {
    "demo": {
        "receptive_fields": [33], "width": 32, "descriptor": 64, "students": 2, "downsample": 2, "crop": 64,
        "crops_per_image": 16, "backbone": "tf_efficientnet_lite0", "stage": 3, "teacher_steps": 200,
        "teacher_lr": 1e-3, "epochs": 5, "lr": 1e-3,
    },
    "check": {
        "receptive_fields": [17], "width": 4, "descriptor": 8, "students": 2, "backbone": "tf_efficientnet_lite0",
        "stage": 1, "teacher_steps": 2, "teacher_batch_size": 8, "crop": 16, "epochs": 2, "batch_size": 4,
    },
}  # fmt: skip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, with which [RL] normalizes images."""

POOL, POOL_STEPS = 512, 500
"""Images in memory from which a teacher draws patches, and steps after which they are drawn again."""

SOURCES = ("training images", "other categories", "folder")
"""Of the teacher's images."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of US; the table above has the source of each."""

    receptive_fields: tuple[int, ...] = (17, 33, 65)
    first_kernel: int = 5
    width: int = 128
    descriptor: int = 128
    teacher_images: str = "categories"  # or "train", or a folder
    backbone: str = "resnet18.tv_in1k"  # timm's tag
    stage: int = 4  # of the backbone, as timm counts them
    metric_weight: float = 1.0
    margin: float = 1.0
    compactness_weight: float = 1.0
    compactness: Literal["dimensions", "samples"] = "dimensions"
    teacher_steps: int = 50_000
    teacher_batch_size: int = 64
    teacher_lr: float = 2e-4
    zoom: tuple[float, float] = (0.5, 4.0)
    color_jitter: float = 0.2  # largest change of brightness, and relative one of each channel
    students: int = 3
    epochs: int = 100
    batch_size: int = 1
    lr: float = 1e-4
    weight_decay: float = 1e-5
    crop: int = 0  # side in pixels after `downsample`
    crops_per_image: int = 1
    border: Literal["reflect", "zeros"] = "reflect"
    error: Literal["squared", "norm"] = "squared"
    validation_fraction: float = 0.1
    downsample: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, self, "first_kernel", "width", "descriptor", "teacher_steps", "students", "epochs")
        check_at_least(1, self, "batch_size", "crops_per_image", "downsample")
        check_at_least(2, self, "teacher_batch_size")
        check_at_least(0, self, "metric_weight", "margin", "compactness_weight", "teacher_lr", "color_jitter")
        check_at_least(0, self, "lr", "weight_decay", "crop")
        fields = self.receptive_fields
        is_known = bool(fields) and set(fields) <= {17, 33, 65} and len(set(fields)) == len(fields)
        check_setting(is_known, self, "receptive_fields", "must be different ones of 17, 33 and 65")
        check_setting(0 < self.zoom[0] <= self.zoom[1], self, "zoom", "must be a range of positive factors")
        check_setting(0 <= self.validation_fraction < 1, self, "validation_fraction", "must be in [0, 1)")
        check_setting(bool(self.teacher_images), self, "teacher_images", "must be 'categories', 'train' or a folder")


class US(Method):
    """An ensemble of students per receptive field; the map is its standardized error and variance."""

    learned = ("teachers", "teacher_source", "teacher_mean", "teacher_std", "students", "calibration")
    paper_preprocessing: ClassVar[Preprocessing] = Preprocessing(256, 256)
    iterative: ClassVar[bool] = True
    supports_compile: ClassVar[bool] = True
    pretrains: ClassVar[bool] = True
    settings: Settings
    teachers: nn.ModuleList  # a PatchNetwork per receptive field
    teacher_source: Tensor  # index into SOURCES
    teacher_mean: Tensor  # (s, d) over all positions of good images, for each of s receptive fields
    teacher_std: Tensor  # (s, d)
    students: nn.ModuleList  # those of a receptive field are adjacent
    calibration: Tensor  # (s, 2, 2): of error and variance, their mean and standard deviation on good images

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self._size = (setup.size[0] // settings.downsample, setup.size[1] // settings.downsample)
        largest, side = max(settings.receptive_fields), min(self._size)
        if setup.size != tuple(settings.downsample * n for n in self._size) or side <= max(largest // 2, settings.crop):
            raise BenchError(
                f"us: height and width must be multiples of downsample = {settings.downsample} and, divided by it, "
                f"larger than crop = {settings.crop} and than half of the largest receptive field, {largest // 2}; got "
                f"{setup.size[0]} x {setup.size[1]}. Use other images or settings."
            )
        folder = settings.teacher_images
        is_folder = folder not in {"categories", "train"}
        self._folder = ImageFolder(Path(folder).expanduser(), setup.size, "teacher_images") if is_folder else None
        self._mean, self._std = (torch.tensor(values, device=setup.device).view(3, 1, 1) for values in (MEAN, STD))

    def layers(self, field: int) -> tuple[Layer, ...]:
        """Return the layers of the networks of a receptive field."""
        settings = self.settings
        first_kernel = settings.first_kernel if field == 33 else None
        return patch_layers(field, settings.width, settings.descriptor, first_kernel)

    def build_teachers(self) -> nn.ModuleList:
        """Return the untrained teachers."""
        return nn.ModuleList(PatchNetwork(self.layers(field)) for field in self.settings.receptive_fields)

    def build_students(self) -> nn.ModuleList:
        """Return the untrained students, those of one receptive field after those of another."""
        fields, count = self.settings.receptive_fields, self.settings.students
        return nn.ModuleList(PatchNetwork(self.layers(field)) for field in fields for _ in range(count))

    def pretrain(self, others: Mapping[str, Images], progress: Progress) -> None:
        """Distill the teachers on images of the other categories, with teacher_images = categories."""
        if self.settings.teacher_images == "categories":
            self.distill(list(others.values()), progress)
            self.teacher_source = torch.tensor(1)

    def distill(self, sources: Sequence[Source], progress: Progress) -> None:
        """Train the teachers to predict the backbone's features of random patches."""
        settings = self.settings
        teachers = self.initialize(self.build_teachers)
        backbone = Backbone.from_setup(settings.backbone, (settings.stage,), self.setup)
        sampler = PairSampler(settings.zoom, settings.color_jitter)
        generator = Generator().manual_seed(self.setup.seed)
        starts = range(0, settings.teacher_steps, POOL_STEPS)

        for i, (field, teacher) in enumerate(zip(settings.receptive_fields, networks_of(teachers), strict=True)):
            decoder = self.initialize(lambda: nn.Linear(settings.descriptor, backbone.channels[0]))
            parameters = [*teacher.parameters(), *decoder.parameters()]
            options = {"lr": settings.teacher_lr, "weight_decay": settings.weight_decay}
            training = TrainingStep(self.setup, torch.optim.Adam, parameters, **options)
            for pool in self.epochs(len(starts), teacher, decoder, training, generator, is_last=False):
                images = draw_images(sources, POOL, settings.downsample, generator).to(self.setup.device)
                for _ in range(starts[pool - 1], min(starts[pool - 1] + POOL_STEPS, settings.teacher_steps)):
                    patches, positives = sampler.draw(images, settings.teacher_batch_size, field, generator)
                    targets = backbone(patches)[0].float().mean(dim=(2, 3))  # (b, c)
                    training.minimize(self.teacher_loss(teacher, decoder, patches, positives, targets), len(patches))
                progress(i * len(starts) + pool, len(starts) * len(teachers), training.epoch_loss())
        self.teachers = teachers.eval()

    def teacher_loss(
        self, teacher: PatchNetwork, decoder: nn.Linear, patches: Tensor, positives: Tensor, targets: Tensor
    ) -> Tensor:
        """Return the weighted sum of distillation, metric learning and compactness.

        `patches` and `positives` are (b, 3, p, p) in [0, 1]; `targets` are the features of the backbone, (b, c).
        """
        settings, count = self.settings, len(patches)
        inputs = torch.cat([patches, positives]) if settings.metric_weight else patches
        with autocast(self.setup):
            described = teacher.describe_patches(self._normalize(inputs))
            decoded = decoder(described[:count]).float()  # (b, c)
        descriptors = described.float()
        loss: Tensor = (decoded - targets).square().sum(dim=1).mean()
        if settings.metric_weight:
            triplets = triplet_loss(descriptors[:count], descriptors[count:], settings.margin)
            loss = loss + settings.metric_weight * triplets
        if settings.compactness_weight:
            vectors = descriptors[:count].T if settings.compactness == "dimensions" else decoded
            loss = loss + settings.compactness_weight * squared_correlations(vectors)
        return loss

    def fit(self, train: Images, progress: Progress) -> None:
        """Distill the teachers if `pretrain` has not, and train the students on good images."""
        settings = self.settings
        if "teachers" not in vars(self):
            if settings.teacher_images == "categories":
                _log.warning("US distills its teacher on the training images: there are no other categories.")
            self.distill([self._folder or train], lambda *_: None)
            self.teacher_source = torch.tensor(2 if self._folder else 0)
        self.teacher_mean, self.teacher_std = self._teacher_statistics(train)
        students = self.initialize(self.build_students, self.setup.seed + 1)
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        trainings = [TrainingStep(self.setup, torch.optim.Adam, one.parameters(), **options) for one in students]
        generator = Generator().manual_seed(self.setup.seed)
        indices, validation = train_validation_split(len(train), settings.validation_fraction, generator)
        good = validation if len(validation) else indices

        for epoch in self.epochs(settings.epochs, students, *trainings, generator):
            order = indices[torch.randperm(len(indices), generator=generator)]
            for images in train.batches(settings.batch_size, order):
                for i, field in enumerate(settings.receptive_fields):
                    ensemble = slice(i * settings.students, (i + 1) * settings.students)
                    for inputs in self._parts(self._pad(images, field), field, generator):
                        targets = self._describe(self.teachers[i], inputs, i)
                        for student, training in zip(students[ensemble], trainings[ensemble], strict=True):
                            training.minimize(F.mse_loss(self._apply(student, inputs), targets), len(images))
            losses = [training.epoch_loss() for training in trainings]
            self.students = students.eval()
            self.calibration = self._calibrate(train, good)
            progress(epoch, settings.epochs, sum(losses) / len(losses))

    def _pad(self, images: Tensor, field: int) -> Tensor:
        """Average, normalize and pad images (b, 3, H, W), for an output of the networks at each pixel (h, w)."""
        inputs = self._normalize(F.avg_pool2d(images.to(self.setup.device), self.settings.downsample))
        mode = "reflect" if self.settings.border == "reflect" else "constant"
        padded = F.pad(inputs, (field // 2,) * 4, mode=mode)  # (b, 3, h + p - 1, w + p - 1)
        rows, columns = (side + receptive_field(self.layers(field)) - 1 for side in self._size)
        return padded[:, :, :rows, :columns]

    def _parts(self, padded: Tensor, field: int, generator: Generator) -> Iterator[Tensor]:
        """Yield the padded images, or `crops_per_image` random parts of each, one after the other."""
        side = self.settings.crop + receptive_field(self.layers(field)) - 1
        for _ in range(self.settings.crops_per_image if self.settings.crop else 1):
            yield random_windows(padded, side, generator) if self.settings.crop else padded

    def _apply(self, network: nn.Module, inputs: Tensor) -> Tensor:
        with autocast(self.setup):
            output: Tensor = network(inputs)
        return output.float()

    @torch.no_grad()
    def _describe(self, teacher: nn.Module, inputs: Tensor, i: int) -> Tensor:
        """Return the standardized descriptors of the teacher of the i-th receptive field, (b, d, h, w)."""
        mean, std = (values[i][:, None, None] for values in (self.teacher_mean, self.teacher_std))
        return (self._apply(teacher, inputs) - mean) / std

    @torch.no_grad()
    def _teacher_statistics(self, train: Images) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the teachers' descriptors over all positions, (s, d) each."""
        statistics = []
        for field, teacher in zip(self.settings.receptive_fields, self.teachers, strict=True):
            padded = (self._pad(images, field) for images in train.batches(1))
            statistics.append(channel_statistics(map(partial(self._apply, teacher), padded)))
        means, stds = zip(*statistics, strict=True)
        return torch.stack(means), torch.stack(stds).clamp(min=1e-6)

    @torch.no_grad()
    def _calibrate(self, train: Images, good: Tensor) -> Tensor:
        """Return mean and standard deviation of error and variance over all pixels of good images, (s, 2, 2)."""
        moments = []
        for i in range(len(self.settings.receptive_fields)):
            maps = (torch.stack(self.errors(images, i), dim=1) for images in train.batches(1, good))
            moments.append(torch.stack(channel_statistics(maps), dim=1))
        return torch.stack(moments)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the mean of the receptive fields' standardized maps, and its maximum as the score."""
        calibration = self.calibration
        check_image_size(images, self.setup.size)
        per_pass = 4 * 12 * self.settings.width * self._size[0] * self._size[1]
        maps = []
        for batch in images.split(passes_per_batch(self.setup.device, per_pass)):
            fields = [standardize(self.errors(batch, i), moments) for i, moments in enumerate(calibration)]
            maps.append(torch.stack(fields).sum(dim=1).mean(dim=0))  # (b, h, w)
        joined = torch.cat(maps)
        if self.settings.downsample > 1:
            joined = upsample(joined, self.setup.size, align_corners=False)  # (b, H, W)
        return Prediction(image_score(joined, "max"), joined)

    def errors(self, images: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Return the error of the mean student and the variance of the students of a receptive field, (b, h, w)."""
        teacher, *ensemble = self._inference_networks[i]
        padded = self._pad(images, self.settings.receptive_fields[i])
        outputs = torch.stack([self._apply(student, padded) for student in ensemble])  # (m, b, d, h, w)
        mean = outputs.mean(dim=0)
        error = (mean - self._describe(teacher, padded, i)).square().sum(dim=1)
        variance = (outputs - mean).square().sum(dim=2).mean(dim=0)
        return error if self.settings.error == "squared" else error.sqrt(), variance

    @cached_property
    def _inference_networks(self) -> list[list[PatchNetwork]]:
        """The teacher and its students, by receptive field."""
        teachers, students, count = networks_of(self.teachers), networks_of(self.students), self.settings.students
        ensembles = ([teacher, *students[i * count : (i + 1) * count]] for i, teacher in enumerate(teachers))
        return [[with_compiled_methods(one, self.setup, "forward") for one in ensemble] for ensemble in ensembles]

    def _normalize(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Return the standardized error and variance of each receptive field."""
        pictures = {}
        for i, field in enumerate(self.settings.receptive_fields):
            maps = standardize(self.errors(images, i), self.calibration[i])
            for name, picture in zip(("error of the students", "variance of the students"), maps, strict=True):
                pictures[f"{name} {field} pixels"] = upsample(picture, self.setup.size, align_corners=False)
        return pictures

    def info(self) -> Info:
        """Return the networks, and which images the teacher was distilled on."""
        return super().info() | {"teacher_distilled_on": SOURCES[int(self.teacher_source)]}

    @classmethod
    def file_hashes(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """Return the sha256 of the backbone, and a hash of the teacher's folder, if there is one."""
        hashes = super().file_hashes(settings, weights)
        if settings.teacher_images in {"categories", "train"}:
            return hashes
        folder = ImageFolder(Path(settings.teacher_images).expanduser(), (1, 1), "teacher_images")
        return hashes | {"teacher_images": folder.content_hash}

    @classmethod
    def estimate_memory(cls, settings: Settings, size: tuple[int, int], n_images: int) -> int:
        """Return the bytes of weights, gradients, Adam moments, and the activations of one step of a student."""
        height, width = (settings.crop or side // settings.downsample for side in size)
        crops = min(settings.batch_size, n_images) * (settings.crops_per_image if settings.crop else 1)
        n_weights, activations = 0, 0
        for field in settings.receptive_fields:
            layers = patch_layers(field, settings.width, settings.descriptor)
            with torch.device("meta"):
                n_weights += (settings.students + 1) * sum(p.numel() for p in PatchNetwork(layers).parameters())
            values = 3 * sum(channels for _, channels, _ in layers)  # per pixel: convolution, activation and pooling
            activations = max(activations, values * crops * (height + field) * (width + field))
        features = channels_and_strides(settings.backbone, (settings.stage,))[0][0]
        return 16 * (n_weights + settings.descriptor * features) + 4 * activations + POOL * 3 * size[0] * size[1]


def standardize(maps: Sequence[Tensor], moments: Tensor) -> Tensor:
    """Return (2, b, h, w): error and variance minus their mean, over their standard deviation, (2, 2)."""
    mean, std = moments[:, 0], moments[:, 1].clamp(min=1e-8)
    return (torch.stack(list(maps)) - mean[:, None, None, None]) / std[:, None, None, None]


METHOD = US
