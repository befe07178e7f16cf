"""Write the gallery of methods: `python benchmarks/gallery.py RUNS` writes docs/methods/gallery.md and its pictures.

RUNS is a folder of records on the demo data, kshot with k = 4, category gear, with their pictures. Each picture is the
example sheet of `bench report`, scaled. A method without a record is not in the gallery.
"""

import io
import sys
from pathlib import Path

from PIL import Image

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.method_metadata import FAMILIES, method_metadata
from bench.store import Store

DOCS = Path(__file__).resolve().parent.parent / "docs"
CATEGORY = "gear"
WIDTH = 640  # pixels

HEAD = f"""# Gallery

Each method on the category {CATEGORY} of the demo data, **synthetic images**, from 4 training images with the reduced
sizes of profile `demo`, seed 0. The examples are chosen by a fixed rule: the defective images with the highest, median
and lowest score, and the good image with the highest score. So failures are shown as well as successes.
[All methods](README.md) has their numbers.

The pictures are the example sheets of `bench report`; this page is generated: `python benchmarks/gallery.py RUNS`. A
method is missing if it was not run when the gallery was made.
"""


def main(runs: Path) -> None:
    """Write the page and one picture per method."""
    store = Store(runs)
    records = [record for record in store.records() if record.category == CATEGORY and not record.failure]
    sheets = {
        figure.title.removesuffix(f" on {CATEGORY}"): figure.files["jpg"]
        for figure in registry.report_content().draw_figures(records, store, "")
        if figure.kind == "examples"
    }
    lines = [HEAD]
    aliases = load_config().aliases()
    run_names = {record.run.name for record in records}
    for family in FAMILIES:
        for name, alias in aliases.items():
            if name in run_names and alias.title in sheets and method_metadata(alias.method).family == family:
                file = DOCS / "images" / "gallery" / f"{name}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(scaled(sheets[alias.title]))
                lines.append(f"## {alias.title}\n\n{family}: [{alias.title}]({alias.method}.md)\n")
                text = f"Best, median, worst and a good image of {CATEGORY} with ground truth and anomaly map"
                lines.append(f"![{text}, {alias.title}](../images/gallery/{name}.jpg)\n")
    (DOCS / "methods" / "gallery.md").write_text("\n".join(lines), "utf-8")


def scaled(content: bytes) -> bytes:
    """Return a JPEG of at most WIDTH pixels."""
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        size = (min(WIDTH, image.width), round(image.height * min(1, WIDTH / image.width)))
        file = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=72, optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
