"""How an image file becomes the input of a method; a part of the contract of methods that needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from bench.errors import BenchError
from bench.json_types import matches_type

Resample = Literal["bilinear", "bicubic", "lanczos", "nearest"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image file becomes an input tensor; its mask is resized in the same way by nearest neighbor.

    Attributes:
        height: height of the input in pixels.
        width: width of the input in pixels.
        resample: filter of the resize.
        keep_aspect: True resizes the shorter side and crops the center; False resizes both sides independently.
        crop: side in pixels of a square cropped from the center after the resize, or None. PatchCore: 256, then 224.
        black, white: the values that become 0 and 255 in files with more than 8 bits per channel; None: determined
            from the training images of a fit. Files with 8 bits are not scaled.
        page: number of the page to read, from 1, in files with several pages; 0 accepts only files with one page.
        allow_large: whether files of more than 89 million pixels are read.
    """

    height: int = 256
    width: int = 256
    resample: Resample = "bilinear"
    keep_aspect: bool = False
    crop: int | None = None
    black: float | None = None
    white: float | None = None
    page: int = 0
    allow_large: bool = False

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            BenchError: a size is below 1, or the crop is larger than the resized image.
        """
        if min(self.size) < 1 or self.size[0] > self.height or self.size[1] > self.width:
            raise BenchError(
                f"Preprocessing must have height, width and crop >= 1, and a crop within height and width; got height "
                f"{self.height}, width {self.width}, crop {self.crop}. Change one of them."
            )

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that a record holds. Raises BenchError if a value has a wrong name or type."""
        hints = get_type_hints(cls)
        for name, value in values.items():
            if name not in hints or not matches_type(value, hints[name]):
                raise BenchError(
                    f"The preprocessing of a record must have the fields of this version, got {name}={value!r:.80}. "
                    f"Rerun with --force."
                )
        return cls(**values)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input tensor in pixels."""
        return (self.height, self.width) if self.crop is None else (self.crop, self.crop)
