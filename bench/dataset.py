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

Split = Literal["train", "test"]
GOOD = "good"


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
    """

    image: Path
    category: str
    split: Split
    defect: str = GOOD
    masks: tuple[Path, ...] = ()

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD

    @property
    def id(self) -> str:
        """The name of the image in records and reports: "bottle/test/crack/003.png"."""
        return f"{self.category}/{self.split}/{self.defect}/{self.image.name}"
