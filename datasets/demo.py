"""Demo: synthetic images of four products from a seeded generator, for a first run without a download.

Two textures (`fabric`, `steel`) and two objects (`gear`, `blister`), 256 x 256 pixels, each with 40 good training
images, 12 good test images and 7 images of each of 4 defect types with exact masks: 320 images, about 39 MB. A
defective image is rendered twice with the same random draws, with and without its defect; the mask contains the visible
differences, and outside the mask both renderings are equal. Many defects are faint or small on purpose.

The images have no license and are written into a folder below the root that is named after `VERSION`,
which increases with every change of the generator, so images of different versions are never mixed. The pixels are
equal on all machines as long as NumPy's generator keeps its streams; the bytes of the files also depend on the
compression library.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from numpy.random import Generator, default_rng
from PIL import Image

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError
from bench.files import remove_abandoned, temporary_folder

from .parts import blister, fabric, gear, steel
from .parts.layout import Folders, list_categories
from .parts.surface import Camera, Mask, Pixels, Surface, render

TITLE = "Demo"
SYNTHETIC = True
ABOUT = "generated at first use, in 10 to 40 seconds; 320 synthetic images of 256 x 256 pixels, 39 MB"

VERSION = 1
"""Version of the generator. Increase it with every change that changes a pixel."""

N_TRAIN, N_TEST_GOOD, N_TEST_DEFECT = 40, 12, 7
"""Images per category: training, good test, and test images of each defect type."""

Draw = Callable[[Generator, str | None, Generator], Surface]
"""Function of (generator of the product, defect or None, generator of the defect)."""

PRODUCTS: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "blister": (blister.draw, blister.DEFECTS),
    "fabric": (fabric.draw, fabric.DEFECTS),
    "gear": (gear.draw, gear.DEFECTS),
    "steel": (steel.draw, steel.DEFECTS),
}

log = logging.getLogger(__name__)


def samples(root: Path) -> list[Sample]:
    """List the samples; generate them below `root` if they do not exist.

    Raises:
        BenchError: `root` cannot be written to, or a generated image is missing.
    """
    folder = root / f"drawing-{VERSION}"
    remove_abandoned(root)
    hint = f"Remove {folder}; the next run generates it again."
    if not folder.is_dir():
        _generate(root, folder)
    generated = list_categories([folder / name for name in PRODUCTS], TITLE, hint, Folders())
    n_expected = len(list(image_keys()))
    if len(generated) != n_expected:
        raise BenchError(f"The demo must have {n_expected} images; {folder} has {len(generated)}. {hint}")
    return generated


def draw_image(product: str, split: Split, defect_type: str, index: int) -> tuple[Pixels, Mask]:
    """Return one image (256, 256, 3) and its mask (256, 256); `defect_type` may be "good"."""
    good, defective, camera = surfaces_and_camera(product, split, defect_type, index)
    return render(camera, good, defective)


def surfaces_and_camera(
    product: str, split: Split, defect_type: str, index: int
) -> tuple[Surface, Surface | None, Camera]:
    """Return the good surface, the same surface with its defect (None if it is "good"), and the camera."""

    def generator(component: str) -> Generator:
        """Return a generator that depends on this image and component only, not on the order of the images."""
        return default_rng(list(f"{product}/{split}/{defect_type}/{index}/{component}".encode()))

    draw, _ = PRODUCTS[product]
    good = draw(generator("item"), None, generator("flaw"))
    defective = None if defect_type == GOOD else draw(generator("item"), defect_type, generator("flaw"))
    return good, defective, Camera.sample(generator("camera"))


def image_keys() -> Iterator[tuple[str, Split, str, int]]:
    """Yield product, split, defect type and index of each image."""
    for product, (_, defects) in PRODUCTS.items():
        yield from ((product, "train", GOOD, index) for index in range(N_TRAIN))
        yield from ((product, "test", GOOD, index) for index in range(N_TEST_GOOD))
        yield from ((product, "test", defect, index) for defect in defects for index in range(N_TEST_DEFECT))


def _generate(root: Path, folder: Path) -> None:
    """Write all images into a temporary folder and rename it, so `folder` is complete even after an interruption."""
    log.info("Generating the demo images in %s.", folder)
    try:
        with temporary_folder(folder) as target:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy releases Python's global lock
                list(pool.map(lambda key: _write(target, *key), image_keys()))
            try:
                target.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process has written the same images
                    raise
    except OSError as error:
        raise BenchError(
            f"The folder of the demo must be writable, with 60 MB of free space; {root} is not "
            f"({error.strerror or error}). Pass another with --data DIR."
        ) from error


def _write(folder: Path, product: str, split: Split, defect_type: str, index: int) -> None:
    """Write one image and the mask of its defect in the MVTec AD layout."""
    pixels, mask = draw_image(product, split, defect_type, index)
    files = {folder / product / split / defect_type / f"{index:03d}.png": Image.fromarray(pixels)}
    if defect_type != GOOD:
        files[folder / product / "ground_truth" / defect_type / f"{index:03d}_mask.png"] = Image.fromarray(
            mask
        ).convert("L")
    for path, image in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(
            path, compress_type=zlib.Z_HUFFMAN_ONLY
        )  # noise does not repeat, so a search for repetitions only takes time
