"""Regional features of DFR: many feature maps of a frozen network, averaged over the cells of one grid.

A VGG gives the output of every ReLU, with reflection padding instead of zeros; any other backbone its stages.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.method import Setup
from bench.weights import architecture_name

from .backbone import Backbone
from .compile import with_compiled_methods


class ReflectedVGG(nn.Module):
    """A VGG whose convolutions pad by reflection, and that returns the output of each ReLU of some blocks.

    The authors' code pads in place, so an output that another convolution of its block reads is returned with its
    padding, two features larger along each axis [C]. The last one of a block is returned without.
    """

    def __init__(self, layers: Sequence[nn.Module], blocks: Sequence[int]) -> None:
        """Wrap the layers of a VGG.

        Args:
            layers: convolutions, ReLUs and max pools in order; each pool begins the next block.
            blocks: indices of the blocks whose outputs are returned, from 0.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.channels: list[int] = []
        self._returned: list[int] = []  # indices of the layers whose outputs are returned
        block, channels = 0, 0
        for index, layer in enumerate(self.layers):
            block += isinstance(layer, nn.MaxPool2d)
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
            if isinstance(layer, nn.ReLU) and block in blocks:
                self._returned.append(index)
                self.channels.append(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalized images (b, 3, h, w) to one map (b, c, h_i, w_i) per ReLU."""
        x, outputs = _pad(images), []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, nn.Conv2d):
                x = F.conv2d(x, layer.weight, layer.bias)  # without the layer's own padding
            else:
                x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
                if index + 1 < len(self.layers) and isinstance(self.layers[index + 1], nn.Conv2d):
                    x = _pad(x)
            if index in self._returned:
                outputs.append(x)
        return outputs


def _pad(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


def tapped_backbone(tag: str, stages: Sequence[int], setup: Setup) -> Backbone:
    """Return a backbone that returns the taps of a VGG's blocks `stages`, or the stages of another network."""
    backbone = Backbone.from_setup(tag, stages, setup)
    if architecture_name(tag).startswith("vgg"):
        network = ReflectedVGG(list(backbone.network.children()), stages)
        backbone.channels = tuple(network.channels)
        backbone.network = with_compiled_methods(network, setup, "forward").eval()
        backbone.identity += " reflected taps"
    return backbone


def regional_features(outputs: Sequence[Tensor], size: tuple[int, int], cell: int) -> Tensor:
    """Map taps (b, c_i, h_i, w_i) to (b, sum of c_i, height / cell, width / cell) in float32.

    Each tap is resized bilinearly to the size (align_corners=True) and averaged over cells of cell x cell. Both are
    linear and separable, so they are two small matrix products, and the resized map is never stored.
    """
    parts = []
    for tap in outputs:
        by_rows, by_columns = (
            _cell_matrix(n, target, cell, tap.device) for n, target in zip(tap.shape[2:], size, strict=True)
        )
        parts.append(by_rows @ (tap.float() @ by_columns.T))
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=64)
def _cell_matrix(n: int, target: int, cell: int, device: torch.device) -> Tensor:
    """Return (target / cell, n): linear interpolation of n values to `target`, and the mean of each cell."""
    with torch.inference_mode(mode=False):  # cached for later calls, which may record gradients
        identity = torch.eye(n, dtype=torch.float64)[:, None]  # (n, 1, n)
        resized = F.interpolate(identity, target, mode="linear", align_corners=True)  # (n, 1, target)
        return F.avg_pool1d(resized, cell)[:, 0].T.float().contiguous().to(device)
