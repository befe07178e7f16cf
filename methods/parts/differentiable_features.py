"""Features of a frozen network with gradients for its input, from which methods compute anomaly maps."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.errors import BenchError
from bench.files import file_sha256
from bench.method import Setup
from bench.weights import Weights, find_weights

from .backbone import Backbone

ALEXNET = "alexnet"
"""Name of torchvision's AlexNet, which timm does not have."""

ALEXNET_SHA256 = "7be5be79"
"""First digits of the sha256 of torchvision's file alexnet-owt-7be5be79.pth."""


def differentiable_stages(backbone: Backbone, inputs: Tensor) -> list[Tensor]:
    """Return the stages of the backbone in float32, with gradients for its input but not for its weights.

    Args:
        backbone: a frozen backbone.
        inputs: (b, 3, h, w), normalized as the weights require; the backbone's own forward normalizes its input, this
            function does not.
    """
    dtype = next(backbone.parameters()).dtype
    stages = backbone.network(inputs.to(dtype, memory_format=torch.channels_last))
    return [stage.float() for stage in stages]


class AlexNet(nn.Module):
    """The convolutions of torchvision's AlexNet, frozen: (b, 3, h, w), normalized, to (b, 256, h / 32, w / 32).

    The tensors have torchvision's names. Images must have 63 pixels or more at each side.
    """

    CHANNELS = 256

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the last pooling."""
        output: Tensor = self.features(inputs)
        return output


class PooledFeatures:
    """The mean over positions of the last feature map of AlexNet or of a timm network, with gradients for the input.

    Attributes:
        mean, std: (1, 3, 1, 1) mean and standard deviation of the normalization.
        channels: number of channels of the features.
        identity: key of a cache of features; equal keys give equal features of the same images.
    """

    def __init__(self, tag: str, stage: int, setup: Setup) -> None:
        """Load the network.

        Args:
            tag: "alexnet", or timm's name of architecture and weights.
            stage: stage of the timm network, as timm counts them; AlexNet has only one.
            setup: setup with folder of weights, device, seed and precision.
        """
        if tag == ALEXNET:
            weights = find_feature_weights(tag, setup.weights)
            self._alexnet: AlexNet | None = load_alexnet(weights).to(setup.device)
            self.mean = torch.tensor([0.485, 0.456, 0.406], device=setup.device).view(1, 3, 1, 1)  # of ImageNet
            self.std = torch.tensor([0.229, 0.224, 0.225], device=setup.device).view(1, 3, 1, 1)
            self.channels, self.identity = AlexNet.CHANNELS, f"alexnet {weights.sha256}"
        else:
            self._alexnet, self._backbone = None, Backbone.from_setup(tag, (stage,), setup)
            self.mean, self.std = self._backbone.mean, self._backbone.std
            self.channels, self.identity = self._backbone.channels[0], self._backbone.identity

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map normalized images (b, 3, h, w) to (b, channels) in float32."""
        features = self._alexnet(inputs) if self._alexnet else differentiable_stages(self._backbone, inputs)[0]
        return features.mean(dim=(2, 3))


def find_feature_weights(tag: str, folder: Path | None) -> Weights:
    """Find the weights of AlexNet in the folder, or those of a timm network as `bench.weights` does.

    Raises:
        BenchError: if there are none.
    """
    if tag != ALEXNET:
        return find_weights(tag, folder)
    files = (
        sorted(file for file in folder.glob("alexnet*") if file.suffix in (".pth", ".safetensors")) if folder else []
    )
    if len(files) != 1:
        raise BenchError(
            f"The weights of 'alexnet' must be one file in the weights folder, got {len(files)} in {folder or 'none'}. "
            f"Put torchvision's alexnet-owt-{ALEXNET_SHA256}.pth there and pass --weights DIR, or choose another "
            "network, as --set backbone=tf_efficientnet_lite0, whose weights are installed with the package."
        )
    digest = file_sha256(files[0])
    if files[0].suffix == ".pth" and not digest.startswith(ALEXNET_SHA256):
        raise BenchError(
            f"The sha256 of {files[0].name} must begin with {ALEXNET_SHA256}, got {digest[:8]}. Download it again."
        )
    return Weights(tag, f"file {files[0].name}", files[0], digest)


def load_alexnet(weights: Weights) -> AlexNet:
    """Return AlexNet with the weights of the file, with torchvision's names; its classifier is left out."""
    assert weights.path is not None
    is_safe = weights.path.suffix == ".safetensors"
    tensors = load_file(weights.path) if is_safe else torch.load(weights.path, "cpu", weights_only=True)
    network = AlexNet()
    missing = [name for name in network.state_dict() if name not in tensors]
    if missing:
        raise BenchError(f"{weights.path.name} must have torchvision's tensors, but lacks {missing[0]}. Replace it.")
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network
