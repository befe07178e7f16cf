"""The contract of a data set: a list of samples, which are paths and labels. No image is opened here.

A `datasets/<name>.py` defines

    TITLE: str                                  # as tables print it: "MVTec AD"
    SYNTHETIC: bool                             # True if the images are generated; every table states it
    ABOUT: str                                  # page, license, size, layout; printed if the data is missing
    def samples(root: Path) -> list[Sample]     # raises BenchError if `root` does not hold the data set

and logs a warning if the files differ from the official counts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import normalize

Split = Literal["train", "test"]
GOOD = "good"

EXTENSIONS = frozenset({
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
    *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif"),
    *(".tiff", ".webp"),
})  # fmt: skip
"""The extensions of image files in lower case, for every data set and for bench predict."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set.

    Attributes:
        image: the file.
        category: the kind of object or texture: "bottle". One-for-one fits one model per category.
        split: "train" or "test"; other splits of a data set are not used.
        defect: the defect type, or "good". It decides the image's label; the mask never does.
        masks: files whose non-zero pixels are defects; their union is the mask. Empty if the image is good or if no
            mask exists.
        folder: the subfolder of the image within the folder of its defect type: "line1"; "" if there is none.
    """

    image: Path
    category: str
    split: Split
    defect: str = GOOD
    masks: tuple[Path, ...] = ()
    folder: str = ""

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD

    @property
    def id(self) -> str:
        """The name of the image in records and reports: "bottle/test/crack/003.png"; in composed Unicode (NFC)."""
        folder = f"{self.folder}/" if self.folder else ""
        return normalize("NFC", f"{self.category}/{self.split}/{self.defect}/{folder}{self.image.name}")
