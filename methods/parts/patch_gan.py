"""Patch GANs of the scales of an image pyramid (SinGAN, TDG): networks of five 3 x 3 convolutions without padding."""

import torch
from torch import Generator as RandomGenerator
from torch import Tensor, nn
from torch.nn import functional as F

from .image_pyramid import ImagePyramid

BORDER = 5
"""Pixels by which each side of the output is smaller: a patch of 11 x 11 pixels gives one output."""


class PatchNetwork(nn.Sequential):
    """Maps (b, c, h, w) to (b, k, h - 10, w - 10): four blocks of convolution, batch norm, LeakyReLU; a convolution."""

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for before in (channels, width, width, width):
            layers += [nn.Conv2d(before, width, 3), nn.BatchNorm2d(width), nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers, nn.Conv2d(width, outputs, 3))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


class Generator(nn.Module):
    """Adds details to an image of the previous scale; it also gets the number of the training image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = PatchNetwork(4, width, 3)

    def forward(self, noise: Tensor, previous: Tensor, numbers: Tensor) -> Tensor:
        """Return images (b, 3, h, w).

        Args:
            noise: (b, 3, h, w), times its amplitude.
            previous: (b, 3, h, w), the image of the previous scale, enlarged; 0 at the first scale.
            numbers: (b,) of training images.
        """
        b, _, h, w = previous.shape
        padded = F.pad(noise + previous, (BORDER,) * 4)  # (b, 3, h + 10, w + 10)
        number = numbers.to(padded)[:, None, None, None].expand(b, 1, h + 2 * BORDER, w + 2 * BORDER)
        details = torch.tanh(self.network(torch.cat([padded, number], dim=1)))
        return details + previous


class GeneratorChain:
    """The generators of all scales; images of a scale start from random images of the scale before.

    Attributes:
        generators: generators of all scales.
        amplitudes: amplitudes of the noise, (n, 1, 1, 1) for the n training images, per started scale.
        reconstructions: (n, 3, side, side), of the training images at the scale that was started last, before its
            generator: the last ones of the scale before, enlarged.
        fixed_noise: (n, 3, side, side) from which the generator of this scale restores the training images.
    """

    def __init__(self, generators: nn.ModuleList, pyramid: ImagePyramid, random: RandomGenerator) -> None:
        self.generators = generators
        self.amplitudes: list[Tensor] = []
        self.reconstructions: Tensor
        self.fixed_noise: Tensor
        self._pyramid, self._random = pyramid, random

    @property
    def generator(self) -> nn.Module:
        """The generator of the scale that was started last."""
        return self.generators[len(self.amplitudes) - 1]

    def begin(self, real: Tensor, noise: float) -> None:
        """Begin the next scale, with real images (n, 3, side, side) and the amplitude of its noise.

        The amplitude is relative to the mean error of the reconstructions; it is 1 at the first scale.
        """
        scale = len(self.amplitudes)
        if scale:
            finished = self.generator.eval()
            with torch.no_grad():
                restored = finished(self.fixed_noise, self.reconstructions, torch.arange(len(real)))
            self.reconstructions = self._pyramid.enlarge(restored, scale)
            self.amplitudes.append(noise * (real - self.reconstructions).abs().mean(dim=(1, 2, 3), keepdim=True))
        else:
            self.reconstructions = torch.zeros_like(real)
            self.amplitudes.append(torch.ones_like(real[:, :1, :1, :1]))
        shape = (len(real), 1, *real.shape[2:])
        self.fixed_noise = self.amplitudes[scale] * self._normal(shape, real.device).expand(-1, 3, -1, -1)

    def fixed_inputs(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise and images from which the generator started last restores the training images `numbers`."""
        return self.fixed_noise[numbers], self.reconstructions[numbers]

    def draw(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return random noise and images of the scale before: the input of the last generator, (b, 3, h, h) each.

        Args:
            numbers: (b,) of the training images that the generators get.
        """
        sides, device = self._pyramid.sides, self.reconstructions.device
        previous = torch.zeros(len(numbers), 3, sides[0], sides[0], device=device)
        noise = self.amplitudes[0][numbers] * self._normal((len(numbers), 1, sides[0], sides[0]), device)
        noise = noise.expand_as(previous)
        for scale in range(1, len(self.amplitudes)):
            with torch.no_grad():
                previous = self._pyramid.enlarge(self.generators[scale - 1](noise, previous, numbers), scale)
            noise = self.amplitudes[scale][numbers] * self._normal(tuple(previous.shape), device)
        return noise, previous

    def _normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Draw on the CPU, so that the numbers are the same on every device."""
        return torch.randn(shape, generator=self._random).to(device)
