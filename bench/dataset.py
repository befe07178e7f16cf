"""The contract of a data set: a list of samples, which are paths and labels. No image is opened here.

A `datasets/<name>.py` defines

    TITLE: str                                  # "MVTec AD", as tables print it
    SYNTHETIC: bool                             # True where the images are drawn, and every table says so
    ABOUT: str                                  # owner's page, licence, size, layout: told when the data is missing
    def samples(root: Path) -> list[Sample]     # BenchError where `root` does not hold it

and, where there are official counts, warns through `logging` when the disk disagrees with them.
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
        category: what is inspected, as "bottle"; one model a category in the one-for-one protocol.
        split: "train" or "test"; a data set's other splits are left out.
        defect: the kind of defect, or "good". The image's label comes from here, never from its mask.
        masks: files in which non-zero pixels are defects, united; none where the image is good or no mask exists.
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
