"""anomalib's image models under our protocols, metrics and clocks: `--method anomalib:Padim`, `anomalib:Stfpm`, ...

anomalib (https://github.com/open-edge-platform/anomalib, Apache-2.0) is an extra: pip install 'maskbench[anomalib]'.
A model is the name of its class in anomalib.models.image. It is trained by its own training_step, optimizers and
schedules, and answers by its own forward; `docs/other-libraries.md` lists the models that work and why others don't.

Departures from a run by anomalib's own Engine:
(1) Images come as every method here gets them. The model's own normalisation is applied to them, its resize is not
    needed.
(2) Scores and maps are raw: anomalib's post-processor, which normalises by validation images, is left out.
(3) No validation images, no early stopping: `epochs` runs to its end.
(4) Backbone weights come from our own lookup wherever the model makes its backbone by timm; Cfa's, too, though it asks
    torchvision.
(5) A model without a map (Dfkde) gives its score to every pixel: its pixel metrics say nothing.

    setting    default  source
    model      none     the class
    backbone   ""       timm's tag, as "resnet18.tv_in1k"; "" is the model's own default
    epochs     0        0: what the model asks its trainer for, else 100 [ours]; a memory bank is filled in one anyway
    batch      32       [ours] anomalib's default of its data modules
    options    "{}"     a JSON object of other arguments of the class, as {"n_features": 100, "layers": ["layer1"]}
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
from bench.method import NOT_FITTED, Images, Method, Prediction, Progress, Setup

from .parts.backbone import fill, find
from .parts.maps import image_score, upsample
from .parts.options import parsed
from .parts.refusals import refuse_below

EPOCHS = 100
EXAMPLE = '{"n_features": 100}'  # of options


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen; the table above tells what it means."""

    model: str = ""
    backbone: str = ""
    epochs: int = 0
    batch: int = 32
    options: str = "{}"

    def __post_init__(self) -> None:
        refuse_below(1, "anomalib", self, "batch")
        refuse_below(0, "anomalib", self, "epochs")
        parsed(self.options, EXAMPLE)


class Hosted(Method):
    """A model of anomalib's, asked as any other method."""

    iterative: ClassVar[bool] = True
    settings: Settings

    def __init__(self, settings: Settings, setup: Setup) -> None:
        super().__init__(settings, setup)
        if setup.precision != "float32":
            raise BenchError(f"anomalib's models compute in float32; {setup.precision} came. Leave --precision out.")
        self._kind = _kind(settings)
        self._tag = _tag(settings, self._kind)
        self._fitted: AnomalibModule | None = None

    def fit(self, train: Images, progress: Progress) -> None:
        """Trains by the model's own steps; a memory bank is closed behind its last epoch, as anomalib does."""
        module = self._made()
        asked = module.trainer_arguments
        filled = isinstance(module, MemoryBankMixin)
        epochs = 1 if filled else self.settings.epochs or asked.get("max_epochs", EPOCHS)
        made = module.configure_optimizers()
        optimizers, schedules = _optimizers(made)
        draws = torch.Generator().manual_seed(self.setup.seed)
        if isinstance(module.model, cfa.CfaModel):  # which would ask its trainer's data module for them
            whole = [self._normalised(module, images) for images in train.batches(self.settings.batch)]
            module.model.initialize_centroid([SimpleNamespace(image=images) for images in whole])
        for epoch in range(1, epochs + 1):
            module.train()
            total = torch.zeros((), device=self.setup.device)
            order = torch.randperm(len(train), generator=draws)
            for number, images in enumerate(train.batches(self.settings.batch, order)):
                loss = self._loss(module, images, number)
                if optimizers and loss is not None:
                    _descend(module, loss, optimizers, asked.get("gradient_clip_val") or 0.0)
                total += 0 if loss is None else loss.detach() * len(images)
            for schedule in schedules:
                schedule.step()
            module.eval()
            if filled:
                module.fit()
            self._fitted = module
            progress(epoch, epochs, float(total) / len(train) if optimizers else None)

    def _loss(self, module: AnomalibModule, images: Tensor, number: int) -> Tensor | None:
        try:
            step: Any = module.training_step(SimpleNamespace(image=self._normalised(module, images)), number)
        except RuntimeError as error:
            if "Trainer" not in str(error):
                raise
            raise BenchError(self._needs_a_trainer()) from error
        loss: Tensor | None = step["loss"] if isinstance(step, Mapping) else step
        return loss

    def _needs_a_trainer(self) -> str:
        return (
            f"anomalib's {self.settings.model} works only inside a Lightning trainer, which is not to be had here. "
            f"docs/other-libraries.md lists the models that work."
        )

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """The model's raw scores and maps."""
        if self._fitted is None:
            raise BenchError(NOT_FITTED)
        found = self._fitted.model(self._normalised(self._fitted, images))
        size = (images.shape[2], images.shape[3])
        if found.anomaly_map is None:
            scores = found.pred_score.float().view(len(images))
            return Prediction(scores, scores[:, None, None].expand(-1, *size).contiguous())
        maps = found.anomaly_map.float().view(len(images), *found.anomaly_map.shape[-2:]).clone()
        if maps.shape[1:] != size:
            maps = upsample(maps, size, align_corners=False)
        scores = image_score(maps, "max") if found.pred_score is None else found.pred_score.float().view(len(images))
        return Prediction(scores.clone(), maps)

    def facts(self) -> dict[str, str | int | float]:
        """Which library, which backbone, and how many numbers the model learned or kept."""
        told: dict[str, str | int | float] = {"library": f"anomalib {version('anomalib')}", "backbone": self._tag}
        if self._fitted is not None:
            parameters = self._fitted.model.parameters()
            told["trainable_parameters"] = sum(each.numel() for each in parameters if each.requires_grad)
        return told

    def state(self) -> dict[str, Tensor]:
        """The model's tensors without its frozen backbones."""
        if self._fitted is None:
            raise BenchError(NOT_FITTED)
        frozen = _frozen(self._fitted.model)
        tensors = self._fitted.model.state_dict().items()
        return {name: value.detach().cpu().clone() for name, value in tensors if not name.startswith(frozen)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes the tensors that `state` gave. Raises BenchError where they don't fit the settings."""
        module = self._made()
        frozen = _frozen(module.model)
        own = {name: value for name, value in module.model.state_dict().items() if name.startswith(frozen)}
        try:
            module.model.load_state_dict(own | {name: value.to(self.setup.device) for name, value in state.items()})
        except RuntimeError as error:
            why = " ".join(str(error).split("\n\t")[1:2])
            raise BenchError(f"A fitted {self.settings.model} needs the settings it was fitted with. {why}") from error
        self._fitted = module.eval()

    @classmethod
    def inputs(cls, settings: Settings, weights: Path | None) -> dict[str, str]:
        """The hash of the backbone's weights, for the models that take a backbone by name."""
        tag = _tag(settings, _kind(settings))
        return {"backbone": find(tag, weights).sha256} if tag else {}

    def _made(self) -> AnomalibModule:
        """The untrained model on its device, its backbone filled from our lookup."""
        options = parsed(self.settings.options, EXAMPLE)
        if self._tag:
            options["backbone"] = _architecture(self._tag)
        given = {"evaluator": False, "visualizer": False, "post_processor": False}
        pre_processor = self._kind.configure_pre_processor(self.setup.size)
        try:
            with _weights_of_ours(self._tag, self.setup.weights):
                module = self._kind(pre_processor=pre_processor, **given, **options)
        except BenchError:
            raise
        except Exception as error:
            raise BenchError(f"anomalib's {self.settings.model} can't be made so: {error}. Look at options.") from error
        if not module.automatic_optimization:
            raise BenchError(self._needs_a_trainer())
        module.log = lambda *_, **__: None  # there is no trainer to log to
        placed: AnomalibModule = module.to(self.setup.device)
        return placed

    def _normalised(self, module: AnomalibModule, images: Tensor) -> Tensor:
        images = images.to(self.setup.device)
        normalised: Tensor = module.pre_processor.transform(images) if module.pre_processor else images
        return normalised


METHOD = Hosted


def _kind(settings: Settings) -> type[AnomalibModule]:
    kinds = {name: kind for name, kind in vars(library).items() if inspect.isclass(kind) and name != "AnomalibModule"}
    models = sorted(name for name, kind in kinds.items() if issubclass(kind, AnomalibModule))
    if settings.model not in models:
        raise BenchError(
            f"anomalib hosts many models, and one is named, as anomalib:Padim; '{settings.model}' is none. "
            f"There are: {', '.join(models)}."
        )
    found: type[AnomalibModule] = kinds[settings.model]
    return found


def _tag(settings: Settings, kind: type[AnomalibModule]) -> str:
    """Timm's tag of the backbone; "" where the model takes none by name."""
    parameter = inspect.signature(kind.__init__).parameters.get("backbone")
    if parameter is None:
        if settings.backbone:
            raise BenchError(f"anomalib's {settings.model} takes no backbone by name; '{settings.backbone}' came.")
        return ""
    return settings.backbone or str(parameter.default)


def _architecture(tag: str) -> str:
    return tag.removeprefix("random:").split(".")[0]


@contextmanager
def _weights_of_ours(tag: str, folder: Path | None) -> Iterator[None]:
    """While a model is made, whoever asks timm for a pre-trained network gets one that our own lookup has filled."""
    make = timm.create_model

    def made(name: str, *, pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:  # noqa: ARG001
        network: nn.Module = make(name, pretrained=False, **options)
        if pretrained:
            weights = find(tag if _architecture(tag) == name else name, folder)
            if weights.source != "random":
                fill(network, weights)
        return network

    def traced(backbone: str, nodes: list[str]) -> nn.Module:
        network = made(backbone, pretrained=True, features_only=True, out_indices=(1, 2, 3))
        extractor: nn.Module = create_feature_extractor(network, return_nodes=nodes).eval()
        return extractor

    with patch.object(timm, "create_model", made), patch.object(cfa, "get_feature_extractor", traced):
        yield


def _frozen(model: nn.Module) -> tuple[str, ...]:
    """The beginnings of the names of the tensors that nothing learns."""
    extractors = ((name, part) for name, part in model.named_modules() if isinstance(part, TimmFeatureExtractor))
    return tuple(f"{name}." for name, part in extractors if not part.requires_grad)


def _optimizers(made: Any) -> tuple[list[torch.optim.Optimizer], list[Any]]:
    """The optimizers and the schedules (a step an epoch) in the forms that Lightning lets a model give them."""
    if made is None:
        return [], []
    if isinstance(made, torch.optim.Optimizer):
        return [made], []
    if isinstance(made, Mapping):
        made = ([made["optimizer"]], [made["lr_scheduler"]] if "lr_scheduler" in made else [])
    optimizers, schedules = made
    plain = [each["scheduler"] if isinstance(each, Mapping) else each for each in schedules]
    return list(optimizers), plain


def _descend(module: AnomalibModule, loss: Tensor, optimizers: list[torch.optim.Optimizer], clip: float) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    module.backward(loss)
    for optimizer in optimizers:
        if clip:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        optimizer.step()
