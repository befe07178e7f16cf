"""Write the table of all methods: `python benchmarks/methods_page.py > docs/methods/README.md`.

The facts come from the constants in the files of the methods, the numbers from `results/demo.csv`.
"""

from pathlib import Path

import pandas as pd

from bench.config.bench_toml import load_config
from bench.config.method_metadata import FAMILIES, method_metadata

HEAD = """# All methods

By family, as `bench list methods` prints them. "Needs" is what is not part of the installation. The numbers are image /
pixel AUROC in percent, means over the four categories of the demo data, **synthetic images**, from 4 training images,
profile `demo`, seed 0, one draw: `bench run --method NAME --protocol kshot --k 4 --threads 1 --no-time`. They show that
a method works here and nothing about its rank on real parts: the networks are small, and with four categories no two
methods can be distinguished. Seconds are clock times of a shared machine, one thread: of a fit per category, and of
the prediction of an image without metrics; they are upper bounds. "–" was not measured. The commit and the processor of
each value are in `benchmarks/results/demo.csv`; a trained method moves by several points between processors.

An interrupted fit continues from its last checkpoint if the method trains by epochs (column "checkpoints"); the others
start again from the beginning.

This page is generated: `python benchmarks/methods_page.py > docs/methods/README.md`.
"""


RESULTS = Path(__file__).resolve().parent / "results"


def demo_values() -> dict[str, tuple[str, str, str]]:
    """Return AUROCs, seconds of a fit and seconds per image, means over the four categories, by name."""
    records = pd.read_csv(RESULTS / "demo.csv", keep_default_na=False)
    is_selected = (records["protocol"] == "kshot") & (records["k"] == 4) & (records["seed"] == 0)
    values = {}
    for name, group in records[is_selected & (records["failure"] == "")].groupby("name"):
        if group["category"].nunique() == 4:
            means = group[["image_auroc", "pixel_auroc", "fit_seconds"]].astype(float).mean()
            seconds = group["predict_seconds"].sum() / group["test_images"].sum()
            aurocs = f"{means['image_auroc']:.1f} / {means['pixel_auroc']:.1f}"
            values[str(name)] = (aurocs, f"{means['fit_seconds']:.0f}", f"{seconds:.2f}")
    return values


def main() -> None:
    """Print the page."""
    measured = demo_values()
    print(HEAD)
    print("| family | method | name | year | needs | checkpoints | demo: image / pixel AUROC | fit, s | predict, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    methods = [(name, alias, method_metadata(alias.method)) for name, alias in load_config().aliases().items()]
    for family in FAMILIES:
        for name, alias, metadata in methods:
            if metadata.family != family:
                continue
            page = f"{alias.method}.md" if not alias.is_external else "../other-libraries.md"
            title = alias.title.replace("{model}", "models of the library")
            needs = ", ".join(metadata.needs) or "–"
            checkpoints = "yes" if metadata.has_checkpoints else "–"
            first = (family, f"[{title}]({page})", f"`{name}`", str(metadata.year or "–"), needs)
            row = (*first, checkpoints, *measured.get(name, ("–", "–", "–")))
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
