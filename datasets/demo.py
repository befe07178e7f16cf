"""Demo: four products drawn by a seeded generator, for a first run that needs no download. Synthetic, and said so.

Two textures (`fabric`, `steel`) and two objects (`gear`, `blister`), 256 x 256 pixels, each with 40 good images to
train on, 12 good ones to test on, and 4 kinds of defects in 7 images each with exact masks: 320 images, about 42 MB.
Every image is taken twice with the same random draws, with and without its defect; the mask is where the two differ
visibly, and outside of it they are equal to the bit. Many defects are faint or small on purpose.

Nobody owns the images; draw as many as you like. They lie under the given root in a folder named after `VERSION`,
which rises with every change of the drawing: an old drawing is never mistaken for a new one. Pixels are the same on
every machine, as far as numpy's generator keeps its streams; the files' bytes follow the compression library as well.
"""

import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from numpy.random import Generator, default_rng
from PIL import Image

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError

from .parts import blister, fabric, gear, steel
from .parts.layout import categories
from .parts.surface import Camera, Mask, Picture, Surface, photograph

TITLE = "Demo"
SYNTHETIC = True
ABOUT = "drawn at first use, in about 15 seconds; 320 synthetic images of 256 x 256 pixels, 42 MB"

VERSION = 1
"""Of the drawing. Raise it with every change that moves a pixel."""

TRAIN, TEST_GOOD, TEST_DEFECT = 40, 12, 7
"""Images a category: to train on, good ones to test on, and of each kind of defect."""

Draw = Callable[[Generator, str | None, Generator], Surface]
PRODUCTS: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "blister": (blister.draw, blister.DEFECTS),
    "fabric": (fabric.draw, fabric.DEFECTS),
    "gear": (gear.draw, gear.DEFECTS),
    "steel": (steel.draw, steel.DEFECTS),
}

log = logging.getLogger(__name__)


def samples(root: Path) -> list[Sample]:
    """The samples, drawn into a folder under `root` if they are not there yet; BenchError where that can't be written."""
    folder = root / f"drawing-{VERSION}"
    if not folder.is_dir():
        _fill(root, folder)
    found = categories([folder / name for name in PRODUCTS], TITLE, f"Remove {folder}; it is drawn anew.")
    expected = sum(TRAIN + TEST_GOOD + TEST_DEFECT * len(defects) for _, defects in PRODUCTS.values())
    if len(found) != expected:
        raise BenchError(f"The demo has {expected} images; {folder} holds {len(found)}. Remove it; it is drawn anew.")
    return found


def shoot(product: str, split: Split, kind: str, index: int) -> tuple[Picture, Mask]:
    """One image (256, 256, 3) and the mask (256, 256) of its defect; `kind` is a defect or "good"."""
    good, bad, camera = twins(product, split, kind, index)
    return photograph(camera, good, bad)


def twins(product: str, split: Split, kind: str, index: int) -> tuple[Surface, Surface | None, Camera]:
    """The good surface, the same with its defect (None where `kind` is "good"), and the camera that takes both."""
    draw, _ = PRODUCTS[product]
    good = draw(_stream(product, split, kind, index, "item"), None, _stream(product, split, kind, index, "flaw"))
    camera = Camera.draw(_stream(product, split, kind, index, "camera"))
    if kind == GOOD:
        return good, None, camera
    bad = draw(_stream(product, split, kind, index, "item"), kind, _stream(product, split, kind, index, "flaw"))
    return good, bad, camera


def _stream(*key: str | int) -> Generator:
    """Random draws of their own for whatever the key names, whichever image was drawn before."""
    return default_rng(list("/".join(map(str, key)).encode()))


def _fill(root: Path, folder: Path) -> None:
    """Draws the whole set beside `folder` and renames it, so that no run, killed or parallel, leaves half a set."""
    log.info("Drawing the demo's images into %s, once.", folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".drawing-", dir=root) as workshop:
            drawn = Path(workshop) / folder.name
            for product, (_, defects) in PRODUCTS.items():
                draw_product(drawn / product, product, {("train", GOOD): TRAIN, ("test", GOOD): TEST_GOOD}
                             | {("test", defect): TEST_DEFECT for defect in defects})  # fmt: skip
            try:
                drawn.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and drew the same
                    raise
    except OSError as error:
        raise BenchError(
            f"The demo draws its images into {root}, which failed ({error.strerror}). "
            "Give a folder that can be written, with 60 MB of room."
        ) from error


def draw_product(folder: Path, product: str, counts: dict[tuple[Split, str], int]) -> None:
    """Writes `counts` images of a product, and their masks, by split and kind."""
    for (split, kind), count in counts.items():
        images, masks = folder / split / kind, folder / "ground_truth" / kind
        for index in range(count):
            picture, mask = shoot(product, split, kind, index)
            _write(images / f"{index:03d}.png", Image.fromarray(picture))
            if kind != GOOD:
                _write(masks / f"{index:03d}_mask.png", Image.fromarray(mask).convert("L"))


def _write(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_type=zlib.Z_HUFFMAN_ONLY)  # noise has no repeats worth the search
