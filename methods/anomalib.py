"""anomalib's image models with our protocols, metrics and timing: `--method anomalib:Padim`, `anomalib:Stfpm`, ...

anomalib (https://github.com/open-edge-platform/anomalib, Apache-2.0) is an extra: pip install 'maskbench[anomalib]'.
A model is the name of its class in anomalib.models.image. It is trained by its own training_step, optimizers and
schedulers, and predicts by its own forward; `docs/other-libraries.md` lists the models that work and why others do not.

Differences from a run by anomalib's own Engine:
(1) Images are preprocessed as for every method here. The model's own normalization is applied, its resize is not.
(2) Scores and maps are raw: anomalib's post-processor, which normalizes by validation images, is left out.
(3) No validation images, no early stopping: all epochs are run.
(4) Backbone weights come from our own search if the model creates its backbone by timm; also those of Cfa, although it
    uses torchvision.
(5) With an EfficientNet-Lite, as in the profile demo, the blocks of the same stride replace the layers of a ResNet that
    are a model's defaults, and Padim keeps 100 features, as it does with a ResNet-18.
(6) A model without an anomaly map (Dfkde) gets its score at every pixel: its pixel metrics have no meaning.

    setting    default  source
    model      none     the class
    backbone   ""       timm's tag, for example "resnet18.tv_in1k"; "" is the model's own default
    epochs     0        0: the number in the model's trainer arguments, else 100 [I]; a memory bank always has one
    batch_size 32       [I] anomalib's default of its data modules
    options    "{}"     a JSON object of other arguments of the class: {"n_features": 100, "layers": ["layer1"]}
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import anomalib.models.image as library
import timm
import torch
from anomalib.models.components import AnomalibModule, MemoryBankMixin, TimmFeatureExtractor
from anomalib.models.image.cfa import torch_model as cfa
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from bench.errors import BenchError
from bench.method import Images, Info, Method, Prediction, Progress, Setup
from bench.weights import architecture_name, find_weights

from .parts.backbone import load_weights
from .parts.checks import check_at_least
from .parts.frozen import exclude_from_state
from .parts.json_options import parse_json_object
from .parts.maps import image_score, upsample

TITLE = "{model} (anomalib)"
FAMILY = "external"
NEEDS = ("the extra maskbench[anomalib]",)
PROFILES = {
    "demo": {"backbone": "tf_efficientnet_lite0", "epochs": 50},
    "check": {
        "model": "Padim",
        "backbone": "tf_efficientnet_lite0",
        "options": '{"layers": ["blocks.1", "blocks.2"], "n_features": 16}',
    },
}

DEMO_BACKBONE = "tf_efficientnet_lite0"
"""The backbone of the profile demo, whose weights are part of the installation."""

EPOCHS = 100
"""Number of epochs if neither the setting nor the model defines one."""

LITE_BLOCKS = {"layer1": "blocks.1", "layer2": "blocks.2", "layer3": "blocks.4", "layer4": "blocks.6"}
"""The blocks of an EfficientNet-Lite at the strides of a ResNet's layers: 4, 8, 16 and 32."""

EXAMPLE = '{"n_features": 100}'
"""Example of the setting `options` in error messages."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an external model; the table above explains them."""

    model: str = ""
    backbone: str = ""
    epochs: int = 0
    batch_size: int = 32
    options: str = "{}"

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size")
        check_at_least(0, self, "epochs")
        parse_json_object(self.options, EXAMPLE)


class AnomalibMethod(Method):
    """A model of anomalib with the interface of a method."""

    learned = ("model",)
    iterative: ClassVar[bool] = True
    settings: Settings
    model: nn.Module

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        if setup.precision != "float32":
            raise BenchError(
                f"The precision of anomalib's models must be float32, got {setup.precision}. Leave it out."
            )
        self._class = _model_class(settings)
        self._tag = _backbone_tag(settings, self._class)
        self._pre_processor = self._class.configure_pre_processor(setup.size)

    def build_model(self) -> nn.Module:
        """Return the untrained torch model."""
        model: nn.Module = self._create_module().model
        return model

    def fit(self, train: Images, progress: Progress) -> None:
        """Train by the model's own steps; a memory bank is completed after its only epoch, as in anomalib."""
        module = self._create_module()
        has_memory_bank = isinstance(module, MemoryBankMixin)
        trainer_arguments = module.trainer_arguments
        epochs = 1 if has_memory_bank else self.settings.epochs or trainer_arguments.get("max_epochs", EPOCHS)
        try:
            optimizers, schedulers = _optimizers_and_schedulers(module.configure_optimizers())
        except RuntimeError as error:
            raise self._explained(error) from error
        generator = torch.Generator().manual_seed(self.setup.seed)
        if isinstance(module.model, cfa.CfaModel):  # otherwise it would use the data module of its trainer
            batches = [self._normalize(images) for images in train.batches(self.settings.batch_size)]
            module.model.initialize_centroid([SimpleNamespace(image=images) for images in batches])
        for epoch in self.epochs(epochs, module, *optimizers, *schedulers, generator):
            module.train()
            total = torch.zeros((), device=self.setup.device)
            order = torch.randperm(len(train), generator=generator)
            for number, images in enumerate(train.batches(self.settings.batch_size, order)):
                loss = self._loss(module, images, number)
                if optimizers and loss is not None:
                    _optimizer_step(module, loss, optimizers, trainer_arguments.get("gradient_clip_val") or 0.0)
                total += 0 if loss is None else loss.detach() * len(images)
            for scheduler in schedulers:
                scheduler.step()
            module.eval()
            if has_memory_bank:
                module.fit()
            self.model = module.model
            progress(epoch, epochs, float(total) / len(train) if optimizers else None)

    def _loss(self, module: AnomalibModule, images: Tensor, number: int) -> Tensor | None:
        try:
            step: Any = module.training_step(SimpleNamespace(image=self._normalize(images)), number)
        except RuntimeError as error:
            raise self._explained(error) from error
        loss: Tensor | None = step["loss"] if isinstance(step, Mapping) else step
        return loss

    def _explained(self, error: RuntimeError) -> Exception:
        """Return the error of a model that needs a trainer, or else the same error."""
        return self._trainer_error() if "Trainer" in str(error) else error

    def _trainer_error(self) -> BenchError:
        return BenchError(
            f"anomalib's {self.settings.model} works only with a Lightning trainer, which is not available here. "
            f"docs/other-libraries.md lists the models that work."
        )

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return the model's raw scores and maps."""
        output: Any = self.model(self._normalize(images))
        size = (images.shape[2], images.shape[3])
        if output.anomaly_map is None:
            scores = output.pred_score.float().view(len(images))
            return Prediction(scores, scores[:, None, None].expand(-1, *size).contiguous())
        maps = output.anomaly_map.float().view(len(images), *output.anomaly_map.shape[-2:]).clone()
        if maps.shape[1:] != size:
            maps = upsample(maps, size, align_corners=False)
        has_score = output.pred_score is not None
        scores = output.pred_score.float().view(len(images)) if has_score else image_score(maps, "max")
        return Prediction(scores.clone(), maps)

    def info(self) -> Info:
        """Return the library, the backbone, and the number of trainable parameters."""
        return super().info() | {"library": f"anomalib {version('anomalib')}", "backbone": self._tag}

    @classmethod
    def file_hashes(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """Return the sha256 of the backbone's weights, for models that get a backbone by name."""
        tag = _backbone_tag(settings, _model_class(settings))
        return {"backbone": find_weights(tag, weights).sha256} if tag else {}

    def _create_module(self) -> AnomalibModule:
        """Return the untrained Lightning module on its device, with backbone weights from our search."""
        options = parse_json_object(self.settings.options, EXAMPLE)
        if self._tag:
            options = _options_of_backbone(self._class, self._tag) | options
            options["backbone"] = architecture_name(self._tag)
        options |= {"evaluator": False, "visualizer": False, "post_processor": False}
        try:
            with _use_own_weights(self._tag, self.setup.weights):
                module = self._class(pre_processor=self._pre_processor, **options)
        except BenchError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]:.200}"
            if isinstance(error, OSError):
                raise BenchError(
                    f"anomalib's {self.settings.model} reads or downloads files when it is created, which failed "
                    f"({reason}). Run it once with a connection, or choose another model."
                ) from error
            raise BenchError(
                f"anomalib's {self.settings.model} cannot be created with these options ({reason}). Correct them with "
                f"--set options=JSON and --set backbone=TAG."
            ) from error
        if not module.automatic_optimization:
            raise self._trainer_error()
        module.log = lambda *_, **__: None  # no trainer with a logger exists
        for submodule in module.model.modules():
            if isinstance(submodule, TimmFeatureExtractor) and not submodule.requires_grad:
                exclude_from_state(submodule)
        on_device: AnomalibModule = module.to(self.setup.device)
        return on_device

    def _normalize(self, images: Tensor) -> Tensor:
        images = images.to(self.setup.device)
        normalized: Tensor = self._pre_processor.transform(images) if self._pre_processor else images
        return normalized


METHOD = AnomalibMethod


def _model_class(settings: Settings) -> type[AnomalibModule]:
    classes = {name: cls for name, cls in vars(library).items() if inspect.isclass(cls) and name != "AnomalibModule"}
    models = sorted(name for name, cls in classes.items() if issubclass(cls, AnomalibModule))
    if settings.model not in models:
        raise BenchError(
            f"anomalib needs the name of a model, for example anomalib:Padim, got '{settings.model}'. "
            f"There are: {', '.join(models)}."
        )
    model_class: type[AnomalibModule] = classes[settings.model]
    return model_class


def _backbone_tag(settings: Settings, model_class: type[AnomalibModule]) -> str:
    """Return timm's tag of the backbone; "" if the model gets none by name."""
    parameter = inspect.signature(model_class.__init__).parameters.get("backbone")
    if parameter is None:
        if settings.backbone not in {"", DEMO_BACKBONE}:  # the profile sets it for all models
            raise BenchError(
                f"anomalib's {settings.model} has no backbone option, got backbone = {settings.backbone}. Leave it out."
            )
        return ""
    return settings.backbone or str(parameter.default)


def _options_of_backbone(model_class: type[AnomalibModule], tag: str) -> dict[str, Any]:
    """Return the options that replace defaults for a ResNet, if the backbone is an EfficientNet-Lite."""
    if not architecture_name(tag).startswith("tf_efficientnet_lite"):
        return {}
    parameters = inspect.signature(model_class.__init__).parameters
    options: dict[str, Any] = {}
    for name in {"layer", "layers"} & parameters.keys():
        default = parameters[name].default
        names = [default] if isinstance(default, str) else list(default or ())
        if names and LITE_BLOCKS.keys() >= set(names):
            blocks = [LITE_BLOCKS[each] for each in names]
            options[name] = blocks[0] if isinstance(default, str) else blocks
    if "n_features" in parameters and parameters["n_features"].default is None:
        options["n_features"] = 100
    return options


@contextmanager
def _use_own_weights(tag: str, folder: Path | None) -> Iterator[None]:
    """While a model is constructed, replace pretrained networks of timm by networks with weights from our search."""
    timm_create_model = timm.create_model

    def create_model(name: str, *, pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:  # noqa: ARG001
        network: nn.Module = timm_create_model(name, pretrained=False, **options)
        if pretrained:
            weights = find_weights(tag if architecture_name(tag) == name else name, folder)
            if weights.source != "random":
                load_weights(network, weights)
        return network

    def get_feature_extractor(backbone: str, return_nodes: list[str]) -> nn.Module:
        network = create_model(backbone, pretrained=True, features_only=True, out_indices=(1, 2, 3))
        extractor: nn.Module = create_feature_extractor(network, return_nodes=return_nodes).eval()
        return extractor

    with (
        patch.object(timm, "create_model", create_model),
        patch.object(cfa, "get_feature_extractor", get_feature_extractor),
    ):
        yield


def _optimizers_and_schedulers(configured: Any) -> tuple[list[torch.optim.Optimizer], list[Any]]:
    """Return optimizers and schedulers (one step per epoch) from the formats that Lightning accepts."""
    if configured is None:
        return [], []
    if isinstance(configured, torch.optim.Optimizer):
        return [configured], []
    if isinstance(configured, Mapping):
        configured = ([configured["optimizer"]], [configured["lr_scheduler"]] if "lr_scheduler" in configured else [])
    optimizers, schedulers = configured
    plain_schedulers = [entry["scheduler"] if isinstance(entry, Mapping) else entry for entry in schedulers]
    return list(optimizers), plain_schedulers


def _optimizer_step(
    module: AnomalibModule, loss: Tensor, optimizers: list[torch.optim.Optimizer], max_norm: float
) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    module.backward(loss)
    for optimizer in optimizers:
        if max_norm:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
        optimizer.step()
