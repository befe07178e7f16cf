"""The trainable networks of RD4AD: a bottleneck that joins the teacher's stages, and a decoder that restores them.

Both are ResNets; the decoder upsamples where a ResNet downsamples. Attributes are in the order of the authors' state
dict, so its tensors can be mapped in order.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BlockType = Literal["bottleneck", "basic"]
"""Residual block: "basic" has two 3 x 3 convolutions, "bottleneck" one 3 x 3 between two 1 x 1 of fewer channels."""


class Residual(nn.Module):
    """A residual block of a ResNet; it keeps the resolution, halves it ("down") or doubles it ("up")."""

    def __init__(
        self,
        block_type: BlockType,
        inputs: int,
        outputs: int,
        divisor: int,
        resample: Literal["", "down", "up"] = "",
        *,
        signed: bool = False,
    ) -> None:
        super().__init__()
        self.signed = signed
        if block_type == "basic":
            layers = [_resampling(inputs, outputs, resample), _conv(outputs, outputs, 3)]
        else:
            width = outputs // divisor
            layers = [_conv(inputs, width, 1), _resampling(width, width, resample), _conv(width, outputs, 1)]
        self.layers = nn.ModuleList(layers)
        self.shortcut: nn.Sequential | None = None
        if resample == "down":
            self.shortcut = _conv(inputs, outputs, 1, stride=2)
        elif resample == "up":
            self.shortcut = _resampling(inputs, outputs, "up")

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, outputs, h', w'), at least 0 unless the block is signed."""
        identity = self.shortcut(x) if self.shortcut is not None else x
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        outputs: Tensor = self.layers[-1](x) + identity
        return outputs if self.signed else F.relu(outputs)


class Bottleneck(nn.Module):
    """Joins three stages at the resolution of the deepest one and compresses them: "OCBE" in the paper."""

    def __init__(self, channels: Sequence[int], block_type: BlockType, blocks: int, divisor: int) -> None:
        super().__init__()
        first, second, third = channels
        concatenated, outputs = 3 * third, 2 * third
        rest = [Residual(block_type, outputs, outputs, divisor) for _ in range(blocks - 1)]
        self.compress = nn.Sequential(Residual(block_type, concatenated, outputs, divisor, "down"), *rest)
        self.down1 = nn.Sequential(_conv(first, second, 3, stride=2), nn.ReLU(), _conv(second, third, 3, stride=2))
        self.down2 = _conv(second, third, 3, stride=2)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Map three stages (b, c_i, h / 2^i, w / 2^i) to (b, 2 c_2, h / 8, w / 8)."""
        first, second = F.relu(self.down1(stages[0])), F.relu(self.down2(stages[1]))
        embedding: Tensor = self.compress(torch.cat([first, second, stages[2]], dim=1))
        return embedding


class Decoder(nn.Module):
    """Restores three stages from the embedding, the deepest one first."""

    def __init__(
        self, channels: Sequence[int], block_type: BlockType, blocks: Sequence[int], divisor: int, *, signed: bool
    ) -> None:
        super().__init__()
        self.signed = signed
        widths = [2 * channels[2], *reversed(channels)]
        self.stages = nn.ModuleList()
        for (inputs, outputs), count in zip(pairwise(widths), blocks, strict=True):
            layers = [
                Residual(
                    block_type,
                    outputs if i else inputs,
                    outputs,
                    divisor,
                    "" if i else "up",
                    signed=signed and i == count - 1,
                )
                for i in range(count)
            ]
            self.stages.append(nn.Sequential(*layers))

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Map (b, 2 c_2, h / 8, w / 8) to the three stages, in the order of the teacher."""
        restored = []
        for stage in self.stages:
            restored.append(stage(embedding))
            embedding = F.relu(restored[-1]) if self.signed else restored[-1]
        return restored[::-1]


class ReverseDistillationNet(nn.Module):
    """Bottleneck and decoder: restores the stages of its input."""

    def __init__(
        self,
        channels: Sequence[int],
        block_type: BlockType,
        bottleneck_blocks: int,
        decoder_blocks: Sequence[int],
        divisor: int,
        *,
        signed: bool = False,
    ) -> None:
        """Create the networks; convolutions have Kaiming-normal weights (fan_out), transposed ones PyTorch's default.

        Args:
            channels: channels of the teacher's three stages.
            block_type: type of the residual blocks.
            bottleneck_blocks: number of residual blocks in the bottleneck.
            decoder_blocks: number of residual blocks in each stage of the decoder, the deepest one first.
            divisor: divisor of the channels in a block of type "bottleneck".
            signed: whether restored features can be negative; False ends each stage with a ReLU, as a ResNet does.
        """
        super().__init__()
        self.bottleneck = Bottleneck(channels, block_type, bottleneck_blocks, divisor)
        self.decoder = Decoder(channels, block_type, decoder_blocks, divisor, signed=signed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Map the teacher's stages to their restorations, of the same shapes."""
        restored: list[Tensor] = self.decoder(self.bottleneck(stages))
        return restored


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _resampling(inputs: int, outputs: int, resample: Literal["", "down", "up"]) -> nn.Sequential:
    if resample == "up":
        return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.BatchNorm2d(outputs))
    return _conv(inputs, outputs, 3, stride=2 if resample == "down" else 1)
