"""Textures for simulated defects: random images of a folder, or generated ones; and random augmentations of them.

The ten augmentations, photometric ones and a rotation, are those of DRAEM's code [C], with the default ranges of imgaug
0.4, which it uses (from memory, not verified); here they are Pillow's and torch's.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.method import Images

from .image_folder import hash_files, list_files, load_rgb
from .perlin import perlin_octaves

N_AUGMENTATIONS = 3
"""Different changes per texture."""


class TextureFolder:
    """All images below a folder."""

    def __init__(self, folder: Path) -> None:
        """List the files. Raises BenchError if there is no image below the folder."""
        hint = "Use the folder 'images' of the Describable Textures Dataset, or --set textures=generated."
        self._files = list_files(folder, "textures", hint)

    def sha256(self) -> str:
        """Return a hash of the contents of all files, in the order of their names."""
        return hash_files(self._files)

    def load(self, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
        """Return random images as (count, 3, h, w) in [0, 1], both sides resized."""
        file_indices = torch.randint(len(self._files), (count,), generator=generator)
        images = (load_rgb(self._files[index]) for index in file_indices.tolist())
        return torch.stack([_from_pillow(image.resize(size[::-1], Image.Resampling.BILINEAR)) for image in images])


def texture_folder(textures: str) -> TextureFolder | None:
    """Return the folder that the setting `textures` names; None for "generated"."""
    return None if textures == "generated" else TextureFolder(Path(textures).expanduser())


def draw_textures(sources: Tensor, generator: Generator) -> Tensor:
    """Return one generated texture per image of (b, 3, h, w) in [0, 1] [I].

    One half of them are random crops of the images, enlarged up to 4 times, with shuffled color channels. The others
    are sums of waves and Perlin noise in two random colors.
    """
    size = (sources.shape[2], sources.shape[3])
    textures = []
    for source in sources:
        if _uniform(generator, 0, 1) < 0.5:
            textures.append(_random_crop(source, generator)[torch.randperm(3, generator=generator)])
        else:
            colors = torch.rand(2, 3, 1, 1, generator=generator)
            textures.append(torch.lerp(colors[0], colors[1], _random_pattern(size, generator)))
    return torch.stack(textures)


def augment(textures: Tensor, generator: Generator) -> Tensor:
    """Apply three different random augmentations to each of (b, 3, h, w) in [0, 1], in random order."""
    changed = []
    for texture in textures:
        image = _to_pillow(texture)
        for index in torch.randperm(len(AUGMENTATIONS), generator=generator)[:N_AUGMENTATIONS].tolist():
            image = AUGMENTATIONS[index](image, generator)
        changed.append(_from_pillow(image))
    return torch.stack(changed)


def random_images(images: Images, batch: int, generator: Generator) -> Iterator[Tensor]:
    """Yield as many images as there are, sampled with replacement, in batches (b, 3, h, w)."""
    yield from images.batches(batch, torch.randint(len(images), (len(images),), generator=generator))


def _random_crop(image: Tensor, generator: Generator) -> Tensor:
    """Return a random part of (3, h, w), enlarged to the same shape by a factor of U(1, 4)."""
    height, width = image.shape[1:]
    zoom = _uniform(generator, 1, 4)
    rows, columns = max(1, round(height / zoom)), max(1, round(width / zoom))
    top = int(torch.randint(height - rows + 1, (), generator=generator))
    left = int(torch.randint(width - columns + 1, (), generator=generator))
    crop = image[None, :, top : top + rows, left : left + columns]
    return F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)[0]


def _random_pattern(size: tuple[int, int], generator: Generator) -> Tensor:
    """Return (h, w) in [0, 1]: the mean of a wave of random direction and length, and of Perlin octaves."""
    rows, columns = (torch.linspace(0, 1, side) for side in size)
    vertical, horizontal = (_uniform(generator, -60, 60) for _ in range(2))  # radians per image
    wave = torch.sin(vertical * rows[:, None] + horizontal * columns + _uniform(generator, 0, 6.28))
    return (perlin_octaves(size, (4, 8, 16), generator) + (wave + 1) / 2) / 2


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _gamma(image: Image.Image, generator: Generator) -> Image.Image:
    exponents = torch.tensor([_uniform(generator, 0.5, 2.0) for _ in range(3)])
    return _to_pillow(_from_pillow(image) ** exponents[:, None, None])


def _brightness(image: Image.Image, generator: Generator) -> Image.Image:
    factor, offset = _uniform(generator, 0.8, 1.2), _uniform(generator, -30, 30) / 255
    return _to_pillow(_from_pillow(image) * factor + offset)


def _sharpness(image: Image.Image, generator: Generator) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(_uniform(generator, 0.1, 1.9))


def _hue_and_saturation(image: Image.Image, generator: Generator) -> Image.Image:
    hsv = np.asarray(image.convert("HSV"), np.int16).copy()
    hsv[..., 0] = (hsv[..., 0] + round(_uniform(generator, -50, 50))) % 256
    hsv[..., 1] = (hsv[..., 1] + round(_uniform(generator, -50, 50))).clip(0, 255)
    return Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")


def _solarize(image: Image.Image, generator: Generator) -> Image.Image:
    threshold = round(_uniform(generator, 32, 128))
    return ImageOps.solarize(image, threshold) if _uniform(generator, 0, 1) < 0.5 else image


def _posterize(image: Image.Image, generator: Generator) -> Image.Image:
    return ImageOps.posterize(image, int(torch.randint(1, 9, (), generator=generator)))


def _invert(image: Image.Image, _generator: Generator) -> Image.Image:
    return ImageOps.invert(image)


def _autocontrast(image: Image.Image, generator: Generator) -> Image.Image:
    return ImageOps.autocontrast(image, _uniform(generator, 0, 20))


def _equalize(image: Image.Image, _generator: Generator) -> Image.Image:
    return ImageOps.equalize(image)


def _rotation(image: Image.Image, generator: Generator) -> Image.Image:
    return image.rotate(_uniform(generator, -45, 45), Image.Resampling.BILINEAR)


AUGMENTATIONS: tuple[Callable[[Image.Image, Generator], Image.Image], ...] = (
    _gamma, _brightness, _sharpness, _hue_and_saturation, _solarize, _posterize, _invert, _autocontrast, _equalize,
    _rotation,
)  # fmt: skip


def _to_pillow(image: Tensor) -> Image.Image:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
