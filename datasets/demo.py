"""Demo: four products drawn by a seeded generator, for a first run that needs no download. Synthetic, and said so.

Two textures (`fabric`, `steel`) and two objects (`gear`, `blister`), 256 x 256 pixels, each with 40 good images to
train on, 12 good ones to test on, and 4 kinds of defects in 7 images each with exact masks: 320 images, about 39 MB.
Every image is taken twice with the same random draws, with and without its defect; the mask is where the two differ
visibly, and outside of it they are equal to the bit. Many defects are faint or small on purpose.

Nobody owns the images; draw as many as you like. They lie under the given root in a folder named after `VERSION`,
which rises with every change of the drawing: an old drawing is never mistaken for a new one. Pixels are the same on
every machine, as far as numpy's generator keeps its streams; the files' bytes follow the compression library as well.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
ABOUT = "drawn at first use, in 10 to 40 seconds; 320 synthetic images of 256 x 256 pixels, 39 MB"

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
    """The samples, drawn into a folder under `root` if they are not there yet.

    Raises BenchError where `root` can't be written to, or where a drawn image has gone since.
    """
    folder = root / f"drawing-{VERSION}"
    if not folder.is_dir():
        _fill(root, folder)
    found = categories([folder / name for name in PRODUCTS], TITLE, f"Remove {folder}, and it is drawn anew.")
    expected = len(list(_shots()))
    if len(found) != expected:
        raise BenchError(
            f"The demo has {expected} images; {folder} holds {len(found)}. Remove it, and it is drawn anew."
        )
    return found


def shoot(product: str, split: Split, kind: str, index: int) -> tuple[Picture, Mask]:
    """One image (256, 256, 3) and the mask (256, 256) of its defect; `kind` is a defect or "good"."""
    good, bad, camera = twins(product, split, kind, index)
    return photograph(camera, good, bad)


def twins(product: str, split: Split, kind: str, index: int) -> tuple[Surface, Surface | None, Camera]:
    """The good surface, the same with its defect (None where `kind` is "good"), and the camera that takes both."""

    def stream(part: str) -> Generator:
        """Random draws of this image's own, whichever was drawn before it."""
        return default_rng(list(f"{product}/{split}/{kind}/{index}/{part}".encode()))

    draw, _ = PRODUCTS[product]
    good = draw(stream("item"), None, stream("flaw"))
    bad = None if kind == GOOD else draw(stream("item"), kind, stream("flaw"))
    return good, bad, Camera.draw(stream("camera"))


def _fill(root: Path, folder: Path) -> None:
    """Draws the whole set beside `folder` and renames it, so that no run, killed or parallel, leaves half a set."""
    log.info("Drawing the demo's images into %s, once.", folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".drawing-", dir=root) as workshop:
            drawn = Path(workshop) / folder.name
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy works outside Python's lock
                list(pool.map(lambda shot: _write(drawn, *shot), _shots()))
            try:
                drawn.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and drew the same
                    raise
    except OSError as error:
        raise BenchError(
            f"The demo draws its images into {root}, which failed ({error.strerror or error}). "
            "Name a folder that can be written to, with 60 MB of room."
        ) from error


def _shots() -> Iterator[tuple[str, Split, str, int]]:
    """Product, split, kind and index of each image of the set."""
    for product, (_, defects) in PRODUCTS.items():
        yield from ((product, "train", GOOD, index) for index in range(TRAIN))
        yield from ((product, "test", GOOD, index) for index in range(TEST_GOOD))
        yield from ((product, "test", defect, index) for defect in defects for index in range(TEST_DEFECT))


def _write(folder: Path, product: str, split: Split, kind: str, index: int) -> None:
    """One image and the mask of its defect, where the layout has them."""
    picture, mask = shoot(product, split, kind, index)
    files = {folder / product / split / kind / f"{index:03d}.png": Image.fromarray(picture)}
    if kind != GOOD:
        files[folder / product / "ground_truth" / kind / f"{index:03d}_mask.png"] = Image.fromarray(mask).convert("L")
    for path, image in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, compress_type=zlib.Z_HUFFMAN_ONLY)  # noise has no repeats worth a search
