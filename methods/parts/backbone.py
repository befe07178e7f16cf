"""Frozen ImageNet backbones: feature maps of a timm network with weights from `bench.weights`."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bench.errors import BenchError
from bench.method import Precision, Setup
from bench.weights import RANDOM, Weights, architecture_name, find_weights, pretrained_cfg, read_tensors

from .compile import with_compiled_methods
from .frozen import exclude_from_state


def channels_and_strides(tag: str, stages: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the channels and the strides (input pixels per feature) of the stages; loads no weights."""
    with torch.device("meta"):
        info = _create_network(architecture_name(tag), tuple(stages), seed=0).feature_info
    return tuple(info.channels()), tuple(info.reduction())


class Backbone(nn.Module):
    """A frozen feature extractor, always in eval mode; it normalizes images as its weights require.

    Its parameters require no gradient, and no gradient flows through it. Its batch norms are fused into the
    convolutions before them, and its feature maps are channels last in memory. The tensors are left out of the state
    of a module that contains it.

    Attributes:
        weights: source and hash of the weights.
        channels, strides: channels and strides of each stage; strides in input pixels per feature.
        mean, std: (1, 3, 1, 1) mean and standard deviation of the normalization.
        identity: key of a cache of features; equal keys give equal features of the same images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tag: str,
        stages: Sequence[int],
        folder: Path | None,
        *,
        seed: int,
        precision: Precision = "float32",
        size: tuple[int, int] | None = None,
    ) -> None:
        """Create the network and load its weights.

        Args:
            tag: timm's name of architecture and weights, for example "wide_resnet50_2.tv_in1k".
            stages: indices of the feature maps, ascending, as timm counts them; in a ResNet 0 is the stem, and 1 to 4
                are layer1 to layer4.
            folder: folder of the user's own weights, searched first; or None.
            seed: seed of random weights.
            precision: precision of weights and features; images are normalized in float32 in any case.
            size: height and width of the images, for networks of a fixed input size such as ViT; None: that size.
        """
        super().__init__()
        self.weights = find_weights(tag, folder)
        architecture = architecture_name(tag)
        self.network = _create_network(architecture, tuple(stages), seed, size)
        self._has_channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"  # Swin
        self.channels: tuple[int, ...] = tuple(self.network.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.network.feature_info.reduction())
        is_random = self.weights.source == "random"
        if not is_random:
            load_weights(self.network, self.weights)
        self._dtype: torch.dtype = getattr(torch, precision)
        self.network = fuse_batch_norm(self.network.eval()).to(self._dtype)
        random_seed = seed if is_random else None
        self.identity = f"{architecture} {tuple(stages)} {self.weights.sha256} {random_seed} {precision}"
        cfg = pretrained_cfg(tag.removeprefix(RANDOM)) or pretrained_cfg(architecture)
        self.register_buffer("mean", torch.tensor(cfg.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(cfg.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False)
        self.to(memory_format=torch.channels_last)  # 1.3 to 1.6 times as fast on a CPU
        self.eval()
        exclude_from_state(self)

    @classmethod
    def from_setup(cls, tag: str, stages: Sequence[int], setup: Setup) -> "Backbone":
        """Create a backbone with weights folder, seed, precision, device and compilation of the setup."""
        backbone = cls(tag, stages, setup.weights, seed=setup.seed, precision=setup.precision, size=setup.size)
        backbone = backbone.to(setup.device)
        backbone.network = with_compiled_methods(backbone.network, setup, "forward")
        backbone.identity += " compiled" if setup.compile else ""  # which rounds differently
        return backbone

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002
        """Stay in eval mode: the running statistics of a frozen network never change."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features (b, c, h / stride, w / stride) of each stage for (b, 3, h, w) RGB in [0, 1]."""
        normalized = (images.float() - self.mean) / self.std
        features: list[Tensor] = self.network(normalized.to(self._dtype, memory_format=torch.channels_last))
        if self._has_channels_last:
            return [stage.permute(0, 3, 1, 2) for stage in features]  # (b, h, w, c) -> (b, c, h, w)
        return features


def load_weights(network: nn.Module, weights: Weights) -> None:
    """Load the weights into the network; tensors that it does not have (classifier, later layers) are left out.

    Raises:
        BenchError: if the file has no tensor for a parameter of the network, or one of another shape.
    """
    tensors = read_tensors(weights)
    if weights.source.startswith("package"):
        tensors = _rename_efficientnet(tensors)
    tensors = {re.sub(r"^features\.(\d+)", r"features_\1", key): value for key, value in tensors.items()}  # VGG
    if type(network).__name__ == "FeatureGetterNet":  # timm wraps networks without a feature pyramid
        tensors = {f"model.{key}": value for key, value in tensors.items()}
    state = network.state_dict()
    counters = {key for key in state if key.endswith("num_batches_tracked")}  # not in old files; eval needs none
    missing = sorted(state.keys() - tensors.keys() - counters)
    mismatched = sorted(key for key in state.keys() & tensors.keys() if state[key].shape != tensors[key].shape)
    if missing or mismatched:
        raise BenchError(
            f"The weights must contain all {len(state)} tensors of the backbone; {weights.source} lacks {len(missing)}"
            f"{f' (for example {missing[0]})' if missing else ''} and {len(mismatched)} have another shape"
            f"{f' (for example {mismatched[0]})' if mismatched else ''}. Use a file of the whole architecture."
        )
    network.load_state_dict({key: tensors.get(key, state[key]) for key in state})
    if weights.path and weights.path.name.startswith("resnet50.keras_in1k"):
        for name, layer in network.named_children():  # Keras' ResNet50 has the stride in a stage's first convolution
            if name in ("layer2", "layer3", "layer4"):
                first: Any = layer.get_submodule("0")
                first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)


def _create_network(architecture: str, stages: tuple[int, ...], seed: int, size: tuple[int, int] | None = None) -> Any:
    """Return timm's feature extractor with random weights from `seed`; the global generator is left unchanged.

    A network of a fixed input size (ViT, DeiT, EVA-02, Swin, Mixer) is created for images of `size`, if possible with
    the weights of its original size: position embeddings are then interpolated.

    Raises:
        BenchError: timm has no such stages, gives no feature maps of the architecture, or not at that size.
    """
    if not stages or stages[0] < 0 or list(stages) != sorted(set(stages)):
        raise BenchError(f"The stages of a backbone must be one or more ascending integers >= 0, got {stages}.")
    variants: tuple[dict[str, Any], ...] = ({},)
    if size is not None and getattr(pretrained_cfg(architecture), "fixed_input_size", False):
        variants = ({"dynamic_img_size": True}, {"img_size": size}, {})
    errors: list[Exception] = []
    for variant in variants:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                network: Any = timm.create_model(architecture, features_only=True, out_indices=stages, **variant)
                if size is not None and len(variants) > 1:
                    _check_features(network.eval(), size)
                break
            except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                errors.append(error)
    else:
        reason = " ".join(str(max(errors, key=lambda error: not isinstance(error, TypeError))).split())
        of_size = f" for images of {size[0]} x {size[1]}" if size is not None and len(variants) > 1 else ""
        raise BenchError(
            f"timm must have the stages {stages} of '{architecture}' as feature maps{of_size}; it does not: "
            f"{reason.rstrip('.')}. Choose other stages or another size, or a network such as wide_resnet50_2.tv_in1k, "
            f"vit_small_patch16_224.augreg_in21k or swin_tiny_patch4_window7_224.ms_in1k."
        ) from errors[-1]
    last_module, _, last = network.feature_info.module_name()[-1].partition(".")
    if (
        last_module == "blocks" and last.isdigit() and hasattr(network, "blocks")
    ):  # EfficientNets would also compute the blocks after the last stage
        network.blocks = network.blocks[: int(last) + 1]
    return network


@torch.no_grad()
def _check_features(network: Any, size: tuple[int, int]) -> None:
    """Raise an error unless the network gives a map of its channels per stage for images of `size`."""
    features = network(torch.zeros(1, 3, *size))
    is_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    shapes = [tuple(stage.shape) for stage in features]
    channels = [shape[-1 if is_last else 1] for shape in shapes if len(shape) == 4]
    if channels != list(network.feature_info.channels()):
        raise RuntimeError(f"its stages have the shapes {', '.join(map(str, shapes))}, not (1, channels, h, w)")


@torch.no_grad()
def fuse_batch_norm(network: Any) -> Any:
    """Return the network in eval mode with each batch norm fused into the convolution before it.

    Pairs of convolution and norm are detected by a forward pass of a small image. If the outputs of the fused network
    differ, or if it does not accept so small an image, the network itself is returned.
    """
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not norms:
        return network
    outputs: list[tuple[Tensor, str]] = []  # outputs of convolutions, with their names
    pairs: list[tuple[str, str]] = []  # names of a convolution and its norm

    def record_as(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if name in norms:
                pairs.extend((convolution, name) for tensor, convolution in outputs if tensor is inputs[0])
            else:
                outputs.append((output, name))

        return record

    fused = deepcopy(network)
    handles = [
        module.register_forward_hook(record_as(name))
        for name, module in fused.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    image = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    try:
        expected = fused(image)
    except (AssertionError, RuntimeError):  # an architecture of one fixed input size
        return network
    finally:
        for handle in handles:
            handle.remove()
    for convolution_name, norm_name in pairs:
        convolution, norm = fused.get_submodule(convolution_name), fused.get_submodule(norm_name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias,
            norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias,
        )  # fmt: skip
        fused.set_submodule(norm_name, getattr(norm, "act", nn.Identity()))  # timm's batch norms include an activation
    stages = zip(fused(image), expected, strict=True)
    equal = all((stage - reference).abs().max() <= 1e-4 * reference.abs().max() for stage, reference in stages)
    return fused if equal else network


def _rename_efficientnet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of EfficientNet-PyTorch to timm's; a stage begins where the output channels change."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                 "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    positions: dict[str, str] = {}  # number of a block -> its stage and index there
    stage, index, channels = -1, 0, 0
    for block in range(sum(key.endswith("_project_conv.weight") for key in tensors)):
        out_channels = tensors[f"_blocks.{block}._project_conv.weight"].shape[0]
        stage, index = (stage, index + 1) if out_channels == channels else (stage + 1, 0)
        channels = out_channels
        positions[str(block)] = f"{stage}.{index}"
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match key.split("."):
            case ["_blocks", number, module, leaf]:
                names = expanding if f"_blocks.{number}._expand_conv.weight" in tensors else plain
                renamed[f"blocks.{positions[number]}.{names[module]}.{leaf}"] = value
            case [module, leaf] if module in outer:
                renamed[f"{outer[module]}.{leaf}"] = value
    return renamed
