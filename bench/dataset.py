"""The contract of a dataset: a list of samples, which are paths and labels. No image is opened here.

A `datasets/<name>.py` defines

    TITLE: str                                  # title in tables: "MVTec AD"
    SYNTHETIC: bool                             # True if the images are generated; every table states it
    ABOUT: str                                  # page, license, size, layout; printed if the data is missing
    def samples(root: Path) -> list[Sample]     # raises BenchError if `root` does not contain the dataset

and logs a warning if the files differ from the official counts. With

    DOWNLOAD: Download                          # optional

`bench data get <name>` downloads it. Nothing is downloaded otherwise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import normalize

SHA256_DIGITS = 64

Split = Literal["train", "test"]
GOOD = "good"

EXTENSIONS = frozenset({
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
    *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif"),
    *(".tiff", ".webp"),
})  # fmt: skip
"""The extensions of image files in lower case, for every dataset and for bench predict."""


@dataclass(frozen=True, slots=True)
class Download:
    """The archive of a dataset.

    Attributes:
        page: web page of the owner, where the archive can be downloaded by hand.
        license: name of the license: "CC BY-NC-SA 4.0".
        license_url: web page with the text of the license.
        url: http(s) address of the archive; "" if the page has no direct link.
        file: name of the archive, with the suffix .zip, .tar, .tar.gz or .tar.xz.
        sha256: sha256 of the archive in hexadecimal; "" if it is unknown.
        source: where the address and the sha256 come from.
        max_bytes: largest size of the archive; a longer download is stopped.
        max_unpacked_bytes: largest size of its files together.
    """

    page: str
    license: str
    license_url: str
    url: str
    file: str
    sha256: str
    source: str
    max_bytes: int
    max_unpacked_bytes: int

    def __post_init__(self) -> None:
        if self.sha256 and len(self.sha256) != SHA256_DIGITS:
            raise ValueError(f"sha256 must have {SHA256_DIGITS} hexadecimal digits, got {self.sha256!r}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset.

    Attributes:
        image: the file.
        category: the kind of object or texture: "bottle". One-for-one fits one model per category.
        split: "train" or "test"; other splits of a dataset are not used.
        defect: the defect type, or "good". The image label is derived from this field, never from the mask.
        masks: files whose non-zero pixels are defects; their union is the mask. Empty if the image is good or if no
            mask exists.
        saturations: for datasets with sPRO (saturated per-region overlap, MVTec LOCO), (pixel value, threshold, whether
            the threshold is a fraction of the region) of each type of region that a mask may have; else empty.
        folder: the subfolder of the image within the folder of its defect type: "line1"; "" if there is none.
        hashes: sha256 of the content of the image and of each mask; bench sets them when it plans a run.
    """

    image: Path
    category: str
    split: Split
    defect: str = GOOD
    masks: tuple[Path, ...] = ()
    folder: str = ""
    saturations: tuple[tuple[int, float, bool], ...] = ()
    hashes: tuple[str, ...] = ()

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD

    @property
    def id(self) -> str:
        """The name of the image in records and reports: "bottle/test/crack/003.png"; in composed Unicode (NFC)."""
        folder = f"{self.folder}/" if self.folder else ""
        return normalize("NFC", f"{self.category}/{self.split}/{self.defect}/{folder}{self.image.name}")
