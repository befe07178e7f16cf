"""An autoencoder whose latent vectors are replaced by combinations of memory slots, and the losses of the memory."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

STRIDE = 16
"""Pixels per latent vector."""

WIDTHS = (32, 64, 128, 128)
"""Channels of the encoder's stages [I]."""


class Address(NamedTuple):
    """Where the memory is read for q latent vectors.

    Attributes:
        combined: (q, c) the weighted sums of slots that replace the latent vectors.
        squared: (q, k) squared distances to the k nearest slots, nearest first.
        indices: (q, k) of these slots.
        weights: (q, k) their softmax of minus the squared distance.
    """

    combined: Tensor
    squared: Tensor
    indices: Tensor
    weights: Tensor


class MemoryAutoencoder(nn.Module):
    """Encoder, memory and decoder; images have sides that are multiples of 16.

    Attributes:
        slots: (m, c).
    """

    def __init__(self, channels: int, n_slots: int, n_nearest: int) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            encoder += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        decoder: list[nn.Module] = [nn.Conv2d(channels, WIDTHS[-1], 1)]
        for before, after in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], WIDTHS[0]), strict=True):
            decoder += [
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2),
            ]  # fmt: skip
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(WIDTHS[-1], channels, 1))
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(WIDTHS[0], 3, 3, padding=1), nn.Sigmoid())
        self.slots = nn.Parameter(torch.randn(n_slots, channels))
        self._n_nearest = n_nearest

    def encode(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to the latent vectors (b * h / 16 * w / 16, c), row by row."""
        latent: Tensor = self.encoder(images)  # (b, c, h / 16, w / 16)
        return latent.permute(0, 2, 3, 1).flatten(0, 2)

    def decode(self, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        """Map latent vectors or sums of slots to images (b, 3, *size) in [0, 1]."""
        rows, columns = size[0] // STRIDE, size[1] // STRIDE
        restored: Tensor = self.decoder(vectors.view(-1, rows, columns, vectors.shape[1]).permute(0, 3, 1, 2))
        return restored

    def address(self, latent: Tensor) -> Address:
        """Read the memory for latent vectors (q, c); gradients flow to them and to the slots."""
        with torch.no_grad():
            indices = torch.cdist(latent, self.slots).topk(max(2, self._n_nearest), largest=False).indices
        nearest = self.slots[indices]  # (q, k, c)
        squared = (latent[:, None] - nearest).square().sum(dim=2)  # (q, k)
        weights = squared[:, : self._n_nearest].neg().softmax(dim=1)
        combined = (weights[:, :, None] * nearest[:, : self._n_nearest]).sum(dim=1)  # (q, c)
        return Address(combined, squared, indices, weights)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return restored images (b, 3, h, w), and squared distances to the nearest slot (b, h / 16, w / 16)."""
        size = (images.shape[2], images.shape[3])
        address = self.address(self.encode(images).float())
        nearest = address.squared[:, 0].view(len(images), size[0] // STRIDE, size[1] // STRIDE)
        return self.decode(address.combined, size), nearest


def trust_region_loss(latent: Tensor, slots: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Return the mean of r(d) d for squared distances d: r is 1 up to `inner`, -1 up to `outer`, and 0 beyond.

    Near latent vectors and their slots attract each other. Doubtful ones repel their slot, but the slot does not repel
    them: an encoder could increase all distances without end. Far ones have no effect.

    Args:
        latent: (q, c).
        slots: (q, c) the slot nearest to each latent vector.
        inner: () radius, a squared distance.
        outer: () radius, at least `inner`.
    """
    near = (latent - slots).square().sum(dim=1)
    doubtful = (latent.detach() - slots).square().sum(dim=1)
    signed = torch.where(near <= inner, near, torch.where(near <= outer, -doubtful, torch.zeros_like(near)))
    return signed.mean()


def margin_loss(squared: Tensor) -> Tensor:
    """Return the mean of max(0, d1 - d2 + 1) of squared distances (q, k >= 2), nearest first: it separates slots."""
    return (squared[:, 0] - squared[:, 1] + 1).clamp(min=0).mean()
