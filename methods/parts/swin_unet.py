"""A U-Net of Swin transformer blocks, with blocks and patch merging of timm.

Source: from memory of Cao et al., Swin-Unet, 2021 (https://arxiv.org/abs/2105.05537), not verified.
"""

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from bench.errors import BenchError

from .transformer import unpatchify


class SwinUNet(nn.Module):
    """Maps images (b, 3, h, w) to the same shape; the output values are not limited.

    A strided convolution embeds patches. In the encoder each stage halves the grid and doubles the width; in the
    decoder patches are expanded, concatenated with the encoder's output at that size and reduced by a linear layer. At
    the default sizes of MSTUnet (256 x 256 pixels, width 96, two blocks per stage) it has 27,174,183 parameters.
    """

    def __init__(
        self, size: tuple[int, int], *, patch: int, width: int, depths: Sequence[int], heads: Sequence[int], window: int
    ) -> None:
        """Create the layers with random weights.

        Args:
            size: height and width of the images in pixels.
            patch: side of a patch in pixels.
            width: number of channels of the first stage; each stage has twice as many as the one before.
            depths: number of blocks of each stage of the encoder; the decoder has the same, without the last stage.
            heads: number of attention heads in each stage.
            window: side of an attention window in patches; every second block shifts it by one half.

        Raises:
            BenchError: if the size is not a multiple of the coarsest patch, or heads do not divide a width.
        """
        super().__init__()
        stages = len(depths)
        multiple = patch * 2 ** (stages - 1)
        if size[0] % multiple or size[1] % multiple:
            raise BenchError(
                f"Height and width must be multiples of {multiple} (patch {patch}, halved {stages - 1} times), got "
                f"{size[0]} x {size[1]}. Change the size of the images."
            )
        widths = [width * 2**stage for stage in range(stages)]
        if len(heads) != stages or any(channels % count for channels, count in zip(widths, heads, strict=False)):
            raise BenchError(
                f"There must be a number of heads per stage, each a divisor of its width {widths}, got {list(heads)}. "
                "Change heads or width."
            )
        grids = [(size[0] // patch // 2**stage, size[1] // patch // 2**stage) for stage in range(stages)]

        def blocks(stage: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    SwinTransformerBlock(
                        widths[stage], grids[stage], num_heads=heads[stage], window_size=window,
                        shift_size=window // 2 if number % 2 else 0,
                    )
                    for number in range(depths[stage])
                )
            )  # fmt: skip

        self.embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.embedding_norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(blocks(stage) for stage in range(stages))
        self.merging = nn.ModuleList(PatchMerging(channels) for channels in widths[:-1])
        self.expanding = nn.ModuleList(PatchExpanding(channels, 2, channels // 2) for channels in widths[:0:-1])
        self.reduction = nn.ModuleList(nn.Linear(2 * channels, channels) for channels in widths[-2::-1])
        self.decoder = nn.ModuleList(blocks(stage) for stage in range(stages - 2, -1, -1))
        self.norm = nn.LayerNorm(width)
        self.final_expanding = PatchExpanding(width, patch, width)
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to the same shape."""
        features = self.embedding_norm(self.embedding(images).permute(0, 2, 3, 1))  # (b, h / patch, w / patch, width)
        skips: list[Tensor] = []
        for blocks, merge in zip(self.encoder, self.merging, strict=False):
            features = blocks(features)
            skips.append(features)
            features = merge(features)
        features = self.encoder[-1](features)
        for expand, reduce, blocks in zip(self.expanding, self.reduction, self.decoder, strict=True):
            features = blocks(reduce(torch.cat([expand(features), skips.pop()], dim=3)))
        output: Tensor = self.head(self.final_expanding(self.norm(features)))  # (b, h, w, 3)
        return output.permute(0, 3, 1, 2)

    @staticmethod
    def activation_bytes(size: tuple[int, int], patch: int, width: int, depths: Sequence[int]) -> int:
        """Return the bytes in float32 that a forward pass of one image saves for the backward pass."""
        pixels = size[0] * size[1]
        # Each block saves 18 * width values per token, as in other transformers; a stage has 1 / 2^stage of the values
        # of the first one.
        blocks = sum(
            18 * depth * (2 if stage < len(depths) - 1 else 1) / 2**stage for stage, depth in enumerate(depths)
        )
        return int(4 * width * pixels * (blocks / patch**2 + 3))


class PatchExpanding(nn.Module):
    """Maps (b, h, w, before) to (b, factor * h, factor * w, after) by a linear layer and a LayerNorm."""

    def __init__(self, before: int, factor: int, after: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(before, factor**2 * after, bias=False)
        self.norm = nn.LayerNorm(after)

    def forward(self, features: Tensor) -> Tensor:
        """Expand each position to factor x factor positions."""
        expanded = unpatchify(self.expand(features).flatten(1, 2), self.factor, features.shape[1])  # (b, after, H, W)
        normalized: Tensor = self.norm(expanded.permute(0, 2, 3, 1))
        return normalized
