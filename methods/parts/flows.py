"""Normalizing flows: invertible coupling blocks with their log-determinants, and the likelihood of what they map.

A block maps values (b, ...) to values of the same shape and to the logarithm of the absolute determinant of its
Jacobian, (b,). A `Flow` is a chain of blocks. Only the direction from data to latent values is implemented, since
anomaly detection needs no other.

Sources: FrEIA's AllInOneBlock with a hard permutation, https://github.com/vislearn/FrEIA (FastFlow), and the authors'
code of DifferNet, https://github.com/marco-rudolph/differnet at 9bdf026.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLAMP_2D = 2.0
"""Bound of |log scale| in `CouplingBlock2d`, FrEIA's default."""

CONDITIONER_SCALE = 0.1
"""Factor of the conditioner's output in `CouplingBlock2d`, so that a block starts close to the identity."""

CLAMP = 3.0
"""Bound of |log scale| in `CouplingBlock`, times `ATAN_SCALE` times pi / 2: about 3."""

ATAN_SCALE = 0.636
"""About 2 / pi."""

LIMIT = 1e6
"""Bound of the absolute values that `CouplingBlock` returns."""

INITIAL_LOG_SCALE = 2 * torch.log(torch.expm1(torch.tensor(5.0, dtype=torch.float64))).item()
"""Parameter at which the global scale of `CouplingBlock2d`, 0.1 softplus_0.5, is 1."""


class Flow(nn.Sequential):
    """A chain of blocks; its log-determinant is the sum of theirs."""

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Map values (b, ...) to the same shape, and return the log-determinant (b,)."""
        log_determinant = values.new_zeros(len(values))
        for block in self:
            values, part = block(values)
            log_determinant = log_determinant + part
        return values, log_determinant


class CouplingBlock2d(nn.Module):
    """One-sided affine coupling of maps (b, channels, h, w), a global affine map per channel, and a permutation.

    The second half of the channels is scaled and shifted by the output of a small convolutional network for the first
    half. The permutation is random and fixed; it is stored with the weights.
    """

    permutation: Tensor

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        """Sample the permutation and the initial weights.

        Args:
            channels: number of channels; the first half has one more if it is odd.
            hidden: number of channels inside the conditioner.
            kernel: odd side of its two convolutions.
        """
        super().__init__()
        self.sizes = (channels - channels // 2, channels // 2)
        self.global_scale = nn.Parameter(torch.full((channels, 1, 1), INITIAL_LOG_SCALE))
        self.global_offset = nn.Parameter(torch.zeros(channels, 1, 1))
        self.conditioner = nn.Sequential(
            nn.Conv2d(self.sizes[0], hidden, kernel, padding="same"),
            nn.ReLU(),
            nn.Conv2d(hidden, 2 * self.sizes[1], kernel, padding="same"),
        )
        self.register_buffer("permutation", torch.randperm(channels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, channels, h, w) to the same shape, and return the log-determinant (b,)."""
        first, second = features.split(self.sizes, dim=1)
        log_scale, shift = (CONDITIONER_SCALE * self.conditioner(first).float()).chunk(2, dim=1)
        log_scale = CLAMP_2D * log_scale.tanh()  # (b, channels / 2, h, w)
        scale = CONDITIONER_SCALE * F.softplus(self.global_scale, beta=0.5)  # (channels, 1, 1)
        coupled = torch.cat([first, second * log_scale.exp() + shift], dim=1)
        log_determinant = log_scale.sum(dim=(1, 2, 3)) + features.shape[2] * features.shape[3] * scale.log().sum()
        return (coupled * scale + self.global_offset)[:, self.permutation], log_determinant


class CouplingBlock(nn.Module):
    """A fixed permutation and a two-sided affine coupling of vectors (b, dimensions).

    The first half is scaled and shifted by the output of a network for the second half, then the second half by the
    output of another network for the result.
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor, hidden: int) -> None:
        """Create the block.

        Args:
            permutation: (dimensions,) integers; component i of the result is component permutation[i].
            hidden: width of the three hidden layers of each network.
        """
        super().__init__()
        dimensions = len(permutation)
        self.sizes = (dimensions // 2, dimensions - dimensions // 2)
        self.conditioner1 = _fully_connected(self.sizes[0], hidden, 2 * self.sizes[1])
        self.conditioner2 = _fully_connected(self.sizes[1], hidden, 2 * self.sizes[0])
        self.register_buffer("permutation", permutation, persistent=False)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, dimensions) to the same shape, and return the log-determinant (b,)."""
        first, second = values[:, self.permutation].split(self.sizes, dim=1)
        log_scale, shift = _soft_clamped(self.conditioner2(second))
        first = log_scale.exp() * first + shift
        log_determinant = log_scale.sum(dim=1)
        log_scale, shift = _soft_clamped(self.conditioner1(first))
        second = log_scale.exp() * second + shift
        coupled = torch.cat([first, second], dim=1).clamp(-LIMIT, LIMIT)
        return coupled, log_determinant + log_scale.sum(dim=1)


def negative_log_likelihood(latent: Tensor, log_determinant: Tensor) -> Tensor:
    """Return -log p of each item, without the constant of the Gaussian: (b, ...) and (b,) to (b,)."""
    return 0.5 * latent.square().flatten(1).sum(dim=1) - log_determinant


def _soft_clamped(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split a conditioner's output (b, 2 * d) into the log scale, limited softly, and the shift."""
    raw, shift = output.float().chunk(2, dim=1)
    return CLAMP * ATAN_SCALE * torch.atan(raw / CLAMP), shift


def _fully_connected(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip
