"""The published numbers that figures show as points."""

import csv
from importlib.resources import files


def timing() -> list[tuple[str, float, float]]:
    """Method, milliseconds an image and image AUROC in percent, as the text on Fig. 8 of the AMI-Net paper has them."""
    return [(row["method"], float(row["inference_ms"]), float(row["image_auroc"])) for row in _rows("fig8_timing.csv")]


def few_shot() -> dict[str, list[tuple[int, float]]]:
    """Of each method in Table IV of the AMI-Net paper: k and mean image AUROC in percent."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in _rows("table4_mvtec_fewshot.csv"):
        found.setdefault(row["method"], []).append((int(row["k"]), float(row["image_auroc"])))
    return found


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("bench.reports") / "published" / name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))
