"""The student of MKD: a thin VGG whose outputs have the shapes of the teacher's, with guided backpropagation.

Source: the authors' code of MKD, https://github.com/rohban-lab/Knowledge_Distillation_AD at 0c574ae.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


class Cloner(nn.Module):
    """Maps images (b, 3, h, w) to one map (b, channels_i, h / stride_i, w / stride_i) per stage of the teacher.

    It consists of blocks of two convolutions (the first two blocks) or three, each block with a max-pool at its end, as
    VGG16. The last convolution of a block has the channels of the teacher's stage at that stride, and no batch norm;
    the others have `width` channels. With the strides 4, 8, 16, 32 and the channels 128, 256, 512, 512 of VGG16's
    pools, and a width of 16, it has 343,984 parameters.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        """Create the network.

        Args:
            channels: channels of the teacher's stages.
            strides: strides of the teacher's stages, ascending powers of 2.
            width: number of channels of all other convolutions; 0 gives each block the channels of its stage.
        """
        super().__init__()
        self.strides = tuple(strides)
        by_stride = dict(zip(strides, channels, strict=True))
        self.blocks = nn.ModuleList()
        before, stride = 3, 1
        while stride < strides[-1]:
            stride *= 2
            after = by_stride.get(stride, width or min(channels) // 2)
            inner = [width or after] * (1 if stride <= 4 else 2)
            self.blocks.append(Block([before, *inner, after]))
            before = after

    def forward(self, images: Tensor, activation: Activation = F.relu) -> list[Tensor]:
        """Return the stages; `activation` is applied after each convolution."""
        features, stages = images, []
        for position, block in enumerate(self.blocks, start=1):
            features = block(features, activation)
            if 2**position in self.strides:
                stages.append(features)
        return stages


class Block(nn.Module):
    """3 x 3 convolutions without bias, each but the last with a batch norm, and a 2 x 2 max-pool."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        *inner, last = pairwise(channels)
        self.inner = nn.ModuleList(nn.Sequential(_convolution(*pair), nn.BatchNorm2d(pair[1])) for pair in inner)
        self.last = _convolution(*last)

    def forward(self, features: Tensor, activation: Activation) -> Tensor:
        """Map (b, c, h, w) to (b, c', h / 2, w / 2)."""
        for layer in self.inner:
            features = activation(layer(features))
        return F.max_pool2d(activation(self.last(features)), 2)


class GuidedReLU(torch.autograd.Function):
    """ReLU whose backward pass also sets negative gradients to 0: guided backpropagation."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return max(values, 0)."""
        ctx.save_for_backward(values)
        return values.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient if it is positive and the value was positive, else 0."""
        (values,) = ctx.saved_tensors
        gradient: Tensor = gradients[0].clamp(min=0) * (values > 0)
        return gradient


def guided_relu(values: Tensor) -> Tensor:
    """Apply `GuidedReLU`."""
    output: Tensor = GuidedReLU.apply(values)
    return output


def _convolution(before: int, after: int) -> nn.Conv2d:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return convolution
