"""BTAD, the beanTech Anomaly Detection data set: three industrial products, good and defective body and surface.

Owner: beanTech and the University of Udine (Mishra et al., VT-ADL, ISIE 2021), https://github.com/pankajmishra000/VT-ADL.
Licence CC BY-NC-SA 4.0. 2540 images of 1600 x 1600 (01), 600 x 600 (02) and 800 x 600 (03) pixels.

Layout, as unpacked from `BTech_Dataset_transformed`: `<01|02|03>/train/ok/`, `<..>/test/{ok,ko}/` and
`<..>/ground_truth/ko/`. Images are .bmp and .png, mixed; masks are .png in 01 and 02 and .bmp in 03, with the image's
stem [C: the AMI-Net authors' loader]. `ok` becomes "good"; the one kind of defect is called "ko".
"""

from pathlib import Path

from bench.dataset import Sample

from .parts.layout import Counts, official

TITLE = "BTAD"
SYNTHETIC = False
ABOUT = (
    "BTAD, CC BY-NC-SA 4.0, from https://github.com/pankajmishra000/VT-ADL; unpacked, BTech_Dataset_transformed/ has "
    "folders as 01/train/ok/, 01/test/ko/ and 01/ground_truth/ko/"
)

# Train, test ok, test ko. [M] By category from recollection; their sums 1799, 451 and 290 are those that the AMI-Net
# paper gives for the whole, so a warning from here is a hint rather than a verdict.
COUNTS = {"01": Counts(400, 21, 49), "02": Counts(399, 30, 200), "03": Counts(1000, 400, 41)}


def samples(root: Path) -> list[Sample]:
    """The categories 01 to 03 found in `root`, or the one that `root` is; BenchError where there is none.

    Warns where categories are absent and where counts differ from the usual ones.
    """
    return official(root, TITLE, COUNTS, f"Unpack it there or say where with --data DIR ({ABOUT}).", good="ok")
