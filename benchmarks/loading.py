"""How fast images come: `python benchmarks/loading.py`.

A walk over PNG files as a method that is fitted makes it: the first decodes and resizes them, every later one takes
them as bytes from memory, where `bench.data.images` keeps up to 2 GiB a task (10,922 images of 256 x 256 pixels).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import compared, interleave, told, write
from PIL import Image, ImageFilter

from bench.data.images import FileImages
from bench.dataset import GOOD, Sample
from bench.method import Preprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=32, help="PNG files of 900 x 900 pixels (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn (default: 5)")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for number in range(options.images):
            noise = Image.fromarray(random.integers(0, 256, (900, 900, 3), dtype=np.uint8))
            path = Path(folder) / f"{number:03}.png"
            noise.filter(ImageFilter.GaussianBlur(2)).save(path)  # compresses about as a photograph does
            samples.append(Sample(path, "drawn", "train", GOOD))
        size = np.mean([sample.image.stat().st_size for sample in samples])
        kept = FileImages(samples, Preprocessing())

        def walk(images: FileImages) -> None:
            for _ in images.batches(8):
                pass

        calls = {
            "decoded anew": lambda: walk(FileImages(samples, Preprocessing())),
            "from the second walk on": lambda: walk(kept),
        }
        turns = interleave(calls, options.rounds)
    comparison: dict[str, Any] = compared(turns, "decoded anew")
    print(told(comparison))
    each = {name: one["cpu"]["median_seconds"] / options.images * 1000 for name, one in comparison.items()}
    what = f"{options.images} PNG files of 900 x 900 pixels, {size / 1e6:.2f} MB each, to 256 x 256"
    print(what, each)
    found = {"what": what, "comparison": comparison, "cpu_milliseconds_an_image": each}
    write("loading", found, "pillow", json_path=options.json)


if __name__ == "__main__":
    main()
