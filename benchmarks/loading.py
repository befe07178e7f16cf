"""Speed of image loading: `python benchmarks/loading.py`.

A pass over PNG files as in a fit: the first pass decodes and resizes them, later passes read bytes from the cache of
`bench.data.images`, which stores up to 2 GiB per task (10,922 images of 256 x 256 pixels).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import compare, format_comparison, run_interleaved, write_result
from PIL import Image, ImageFilter

from bench.data.images import FileImages
from bench.dataset import GOOD, Sample
from bench.method import Preprocessing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=32, help="number of PNG files of 900 x 900 pixels (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for number in range(options.images):
            noise = Image.fromarray(rng.integers(0, 256, (900, 900, 3), dtype=np.uint8))
            path = Path(folder) / f"{number:03}.png"
            noise.filter(ImageFilter.GaussianBlur(2)).save(path)  # compresses about as well as a photograph
            samples.append(Sample(path, "synthetic", "train", GOOD))
        size = np.mean([sample.image.stat().st_size for sample in samples])
        cached = FileImages(samples, Preprocessing())

        def read_all(images: FileImages) -> None:
            for _ in images.batches(8):
                pass

        candidates = {
            "decoded": lambda: read_all(FileImages(samples, Preprocessing())),
            "cached": lambda: read_all(cached),
        }
        timings = run_interleaved(candidates, options.rounds)
    comparison: dict[str, Any] = compare(timings, "decoded")
    print(format_comparison(comparison))
    per_image = {name: values["cpu"]["median_seconds"] / options.images * 1000 for name, values in comparison.items()}
    description = f"{options.images} PNG files of 900 x 900 pixels, {size / 1e6:.2f} MB each, to 256 x 256"
    print(description, per_image)
    measurement = {"description": description, "comparison": comparison, "cpu_milliseconds_per_image": per_image}
    write_result("loading", measurement, "pillow", json_path=options.json)


if __name__ == "__main__":
    main()
