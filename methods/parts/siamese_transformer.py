"""ST-MAE's network: each half of an image's patches is restored from the other half.

Source: the re-implementation TSTB-dev/ST-MAE at a8afa00. Our differences from it: queries, keys and values have a
bias, and the output has one bias per value of a patch instead of one per channel.
"""

import torch
from torch import Generator, Tensor, nn

from .masks import random_mask
from .transformer import Block


class SiameseTransformer(nn.Module):
    """Encodes two halves of the patches with the same weights, and restores each half from the latents of the other.

    `halves` (b, 2, n / 2) contains the positions of the patches of each half, ascending. The latents of one half, with
    the positions of the other half added, represent the other half: this is the "transition". Slot s of the decoder's
    output belongs to position `halves.flatten(1)[:, s]`.

    With R's base size, `SiameseTransformer(15360, 256, width=768, depth=12, heads=12, decoder_width=512,
    decoder_depth=8, decoder_heads=16)`, it has 130,542,336 parameters.
    """

    def __init__(
        self,
        patch_dim: int,
        tokens: int,
        *,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        joint: bool = False,
        slot_order: bool = False,
        shared_norm: bool = False,
    ) -> None:
        """Create the layers with random weights.

        Args:
            patch_dim: number of values per patch.
            tokens: number of patches per image, even.
            width: embedding dimension of the encoder.
            depth: number of blocks of the encoder.
            heads: number of heads of its attention; must divide `width`.
            decoder_width: embedding dimension of the decoder.
            decoder_depth: number of blocks of the decoder.
            decoder_heads: number of heads of its attention; must divide `decoder_width`.
            joint: the decoder's attention covers both halves; False decodes them separately.
            slot_order: slots stay in their order instead of being moved to their positions (re-implementation).
            shared_norm: the blocks of each stack share one LayerNorm (re-implementation).

        Raises:
            BenchError: if a number of heads does not divide its width.
        """
        super().__init__()
        self.joint, self.slot_order = joint, slot_order
        self.embedding = nn.Linear(patch_dim, width)
        self.pos_embed = nn.Parameter(torch.randn(tokens, width))
        self.token_norm = nn.LayerNorm(width)
        self.encoder = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.decoder_embedding = nn.Linear(width, decoder_width)
        self.decoder = nn.Sequential(*(Block(decoder_width, decoder_heads) for _ in range(decoder_depth)))
        self.prediction = nn.Linear(decoder_width, patch_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if shared_norm:
            _share_norm(self.encoder)
            _share_norm(self.decoder)

    def forward(self, patches: Tensor, halves: Tensor) -> Tensor:
        """Restore all patches (b, n, patch_dim), each from the other half."""
        decoded = self.decode(self.encode(self.embed(patches), halves), halves)
        restored: Tensor = self.prediction(decoded if self.slot_order else _to_positions(decoded, halves))
        return restored

    def embed(self, patches: Tensor) -> Tensor:
        """Map (b, n, patch_dim) to tokens with positions (b, n, width)."""
        tokens: Tensor = self.token_norm(self.embedding(patches) + self.pos_embed)
        return tokens

    def encode(self, tokens: Tensor, halves: Tensor) -> Tensor:
        """Map tokens (b, n, width) to the latents of both halves (b, 2, n / 2, width), each half separately."""
        index = halves.flatten(1)[:, :, None].expand_as(tokens)  # (b, n, width)
        parts = tokens.gather(1, index).view(-1, halves.shape[2], tokens.shape[2])  # (2 * b, n / 2, width)
        latents: Tensor = self.encoder(parts)  # (2 * b, n / 2, width)
        return latents.view(*halves.shape, -1)

    def decode(self, latents: Tensor, halves: Tensor) -> Tensor:
        """Map latents (b, 2, n / 2, width) to the decoder's output by slot, (b, n, decoder_width)."""
        transitioned = latents.flip(1) + self.pos_embed[halves]  # (b, 2, n / 2, width)
        tokens = transitioned.flatten(1, 2) if self.joint else transitioned.flatten(0, 1)
        decoded: Tensor = self.decoder(self.decoder_embedding(tokens))
        return decoded.view(len(halves), -1, decoded.shape[2])

    def estimate_training_memory(self, batch: int) -> int:
        """Return the estimated bytes in float32 of weights, gradients, Adam moments and one step on `batch` images."""
        n_weights = sum(parameter.numel() for parameter in self.parameters())
        # Each token saves about 6 copies of its patch, and 18 * width values per block, as in AMI-Net's network.
        widths = self.embedding.out_features * len(self.encoder) + self.prediction.in_features * len(self.decoder)
        return 4 * (4 * n_weights + batch * len(self.pos_embed) * (6 * self.prediction.out_features + 18 * widths))


def random_halves(count: int, tokens: int, generator: Generator) -> Tensor:
    """Return the positions of two random halves for each of `count` images: (count, 2, tokens / 2), ascending."""
    return halves_of(random_mask(count, tokens, ratio=0.5, generator=generator))


def halves_of(mask: Tensor) -> Tensor:
    """Return the positions of a mask (b, n) where half is True: (b, 2, n / 2), first False, then True, ascending."""
    return mask.int().argsort(dim=1, stable=True).view(len(mask), 2, -1)


def _to_positions(decoded: Tensor, halves: Tensor) -> Tensor:
    slots = halves.flatten(1).argsort(dim=1)  # slot of each position, (b, n)
    return decoded.gather(1, slots[:, :, None].expand_as(decoded))


def _share_norm(blocks: nn.Sequential) -> None:
    for block in blocks:
        block.norm1 = block.norm2 = blocks[0].norm1
