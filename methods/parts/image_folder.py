"""Images of any folder, with the interface of training images: for methods that learn from images of other kinds."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bench.errors import BenchError
from bench.files import file_sha256

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # Pillow must not choose a reader, as Ghostscript, by the content


def list_files(folder: Path, setting: str, hint: str) -> list[Path]:
    """Return all images below a folder, sorted by name.

    Args:
        folder: folder with images, also in subfolders.
        setting: name of the method's setting that gave the folder.
        hint: sentence that says which folder is meant.

    Raises:
        BenchError: there is no image below the folder.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise BenchError(f"--set {setting}=DIR must be a folder with images, got {folder} with none. {hint}")
    return files


def hash_files(files: Iterable[Path]) -> str:
    """Return a hash of the contents of the files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()


def load_rgb(file: Path) -> Image.Image:
    """Return a decoded RGB image."""
    with Image.open(file, formats=FORMATS) as image:
        return image.convert("RGB")


class ImageFolder:
    """All images below a folder, resized so that they cover `size` and cropped around the center."""

    def __init__(self, folder: Path, size: tuple[int, int], setting: str) -> None:
        """List the files.

        Args:
            folder: folder with images, also in subfolders.
            size: height and width in pixels.
            setting: name of the method's setting that gave the folder, for the message of an error.

        Raises:
            BenchError: if there is no image below the folder.
        """
        self._files = list_files(folder, setting, "Pass another one.")
        self._size = size

    def __len__(self) -> int:
        return len(self._files)

    @property
    def content_hash(self) -> str:
        """Hash of the contents of all files in the order of their names; it reads all of them."""
        return hash_files(self._files)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """Yield (b, 3, h, w) RGB in [0, 1], b <= size; `order` (n,) holds indices, None is the order of names."""
        indices = torch.arange(len(self)) if order is None else order
        for batch_indices in indices.split(size):
            yield torch.stack([self._load(self._files[i]) for i in batch_indices.tolist()])

    def _load(self, file: Path) -> Tensor:
        fitted = ImageOps.fit(load_rgb(file), self._size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
