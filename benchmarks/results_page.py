"""Write RESULTS.md from the files in results/: `python benchmarks/results_page.py > benchmarks/RESULTS.md`.

Tables of AUROC come from CSV files (`export_results.py`, `auroc_tables.py`), the others from JSON files of the other
scripts. Only the introductions and remarks are written here; they contain no measured values.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from auroc_tables import (
    METRICS,
    RESULTS,
    cluster_study,
    few_shot,
    four_images,
    latencies,
    mask_based,
    paper_size,
    real_one_for_one,
    table,
    two_processors,
    unified,
)

HEAD = """# Measured results

This page is generated from [results/](results): `python benchmarks/results_page.py > benchmarks/RESULTS.md`. Values are
in percent, from raw scores, at the last epoch unless stated otherwise. Each line of a CSV has the command, seed, date,
commit, processor and versions of its values; commands have DATA and WEIGHTS in place of folders. `bench run` with such
a command repeats a value, and `python benchmarks/export_results.py RUNS results/NAME.csv` writes the file.

The real images are copies with 256 pixels on the shorter side: `bottle`, `capsule` (15 of its 23 good test images) and
`grid` of MVTec AD, the color images of MVTec 3D-AD `tire`, and the magnetic tiles of Huang et al. They are not part of
this repository. The synthetic images are drawn by `datasets/demo.py`: **they show that a method works here, and nothing
about its rank on real parts.** With one draw and four categories, no two methods can be distinguished.

The records come from two types of processor, which each line of a CSV names. Small trained networks give other values
on another one; a table below shows by how much.

Seconds of fits were measured while other work used the machine, so they are upper bounds. Ratios are of candidates that
run alternately in one process, each on one thread unless stated.
"""


def load(name: str) -> dict[str, Any]:
    """Return the content of a JSON file."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def source(name: str) -> str:
    """Return a line with the file, command, date, machine and load of a measurement, below its table."""
    result = load(name)
    machine = result.get("machine", result.get("processor"))
    return (
        f"\n`results/{name}.json`: `{result['command']}`, {result['date'][:10]}, {machine}, "
        f"{result['threads']} thread(s), load {result['load'][0]:g}.\n"
    )


def speed_lines(
    name: str, comparison: dict[str, Any], description: str, result: dict[str, Any], target: float | None
) -> list[list[str]]:
    """Return the lines of all candidates except the reference, whose speedup is 1."""
    lines = []
    for candidate, clocks in comparison.items():
        if all(clocks[clock]["range"] == [1.0, 1.0] for clock in ("wall", "cpu")):
            continue
        cells = [
            f"{clocks[clock]['speedup']:.2f} ({clocks[clock]['range'][0]:.2f} to {clocks[clock]['range'][1]:.2f})"
            for clock in ("wall", "cpu")
        ]
        is_missed = target is not None and clocks["cpu"]["speedup"] < target
        goal = "–" if target is None else f"{target:g}, **missed**" if is_missed else f"{target:g}"
        threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
        machine = f"{result['machine']}, {threads}, load {result['load'][0]:g}"
        lines.append([description, candidate, *cells, goal, machine, result["date"][:10], f"`{name}`"])
    return lines


SPEED: tuple[tuple[str, str, float | None], ...] = (
    ("aminet_predict", "AMI-Net predict, batch 1, paper's size, float32, compared with a plain port", 1.5),
    ("aminet_predict_epyc", "the same on another processor", 1.5),
    ("aminet_predict_2_threads", "the same, two threads", 1.5),
    ("aminet_predict_bfloat16", "the same, bfloat16, compared with the plain port in float32", None),
    ("aminet_fit", "AMI-Net training step, batch 8, paper's size, compared with a plain port", 2),
    ("patchcore_coreset", "PatchCore coreset, 10 % of 163,856 patches, compared with the authors' loop", 8),
    ("patchcore_score", "PatchCore search, synthetic features, compared with exact faiss", 1),
    ("patchcore_score_epyc", "the same on another processor", 1),
    ("patchcore_score_bottle", "PatchCore search, features of bottle, compared with exact faiss", 1),
    ("patchcore_score_bottle_2_threads", "the same, two threads", 1),
    ("patchcore_score_capsule", "PatchCore search, features of capsule, compared with exact faiss", 1),
    ("loading", "images from the cache, compared with decoding PNG", 40),
)
"""Name of the file, description, and the speedup that was aimed at before the measurement."""


def speed() -> str:
    """Return one table of all comparisons with plain ports and other libraries."""
    lines = []
    for name, description, target in SPEED:
        result = load(name)
        lines += speed_lines(name, result["comparison"], description, result, target)
    passes = load("batched_passes")
    for method, measured in passes["results"].items():
        highest = measured["comparison"]["plain loop"]["cpu"]["median_seconds"] / measured["bound_seconds"]
        description = (
            f"{method}, {measured['passes_per_image']} passes per image, compared with one pass per call (at most "
            f"{highest:.1f} at the speed of a matrix product)"
        )
        lines += speed_lines("batched_passes", measured["comparison"], description, passes, 2)
    for name in ("compared", "compared_draem"):
        compared = load(name)
        for method, measured in compared["results"].items():
            for phase, comparison in measured["comparison"].items():
                description = f"{method}, {phase}, {compared['size']} pixels, compared with anomalib's"
                lines += speed_lines(name, comparison, description, compared, 1)
    header = ["measurement", "candidate", "speedup, clock (range)", "speedup, CPU (range)", "target, CPU"]
    return table([*header, "machine", "date", "file"], lines)


def overhead() -> str:
    """Return what `bench run` adds to fit and predict, and how long commands take to start."""
    result = load("overhead")
    added = 100 * result["overhead"]["wall"]
    lines = [["bench run, more than fit and predict alone", f"{added:.1f} %", target_text(added, 3, " %")]]
    for command, rounds in result["startup"].items():
        seconds = statistics.median(times["wall"] for times in rounds)
        lines.append([f"`{command}`", f"{seconds:.2f} s", target_text(seconds, 0.5, " s")])
    return table(["measurement", "median", "target, at most"], lines) + source("overhead")


def target_text(value: float, target: float, unit: str) -> str:
    """Return the largest value that was aimed at, and whether it is missed."""
    return f"{target:g}{unit}, **missed**" if value > target else f"{target:g}{unit}"


def metrics() -> str:
    """Return the speed and memory of the pixel metrics."""
    lines = []
    result = load("metrics")
    for measured in result["measurements"]:
        for candidate, clocks in measured["comparison"].items():
            peak, size = measured["peak_bytes"][candidate] / 1e6, measured["input_bytes"] / 1e6
            seconds = f"{clocks['cpu']['median_seconds']:.2f}"
            cells = [candidate, seconds, f"{clocks['cpu']['speedup']:.1f}", f"{peak:.0f} MB of {size:.0f} MB"]
            lines.append([f"{measured['images']}", *cells])
    header = ["maps of 256 x 256", "candidate", "CPU, s", "speedup, CPU", "peak extra memory, of the input"]
    return table(header, lines) + source("metrics")


def precision() -> str:
    """Return the effect of half precision on metrics."""
    lines = []
    for path in sorted(RESULTS.glob("*float16_aminet_*.json")):
        result = load(path.stem)
        points = result["difference_points"]
        differences = [f"{points[name]:+.2f}" for name in METRICS]
        masks = f"{result['masks_differ_percent']['adaptive mask']:.1f} %"
        machine = f"{result['machine']}, load {result['load'][0]:g}"
        precision_name = path.stem.partition("_")[0]
        lines.append([precision_name, result["description"], *differences, masks, machine, result["date"][:10]])
    names = ("image AUROC", "pixel AUROC", "AUPRO@0.3")
    return table(["precision", "model, images", *names, "tokens whose mask differs", "machine", "date"], lines)


def scaling() -> str:
    """Return the measured exponents."""
    growth = load("scaling")["growth"]
    lines = [
        [description, f"{values['exponent']:.2f}", str(values["theory"])]
        for description, values in growth.items()
        if "exponent" in values
    ]
    return table(["what grows", "exponent", "expected"], lines) + source("scaling")


def mask_seeds(*names: str) -> str:
    """Return means of the metrics by masks at test time, and their ranges over the seeds of random masks."""
    lines = []
    results = {run: categories for name in names for run, categories in load(name)["results"].items()}
    for run, categories in results.items():
        measured = list(categories.values())
        means = [statistics.fmean(np.ravel([each["percent_by_seed"][name] for each in measured])) for name in METRICS]
        changes = [each["relative_score_change"] for each in measured]
        if None in changes:  # masks without a seed
            ranges_and_change = ["–", "–", "–"]
        else:
            ranges = [[each["range"][name] for each in measured] for name in METRICS[:2]]
            ranges_and_change = [f"{min(values):.1f} to {max(values):.1f}" for values in ranges]
            ranges_and_change.append(f"{100 * min(changes):.0f} to {100 * max(changes):.0f} %")
        lines.append([run, str(len(measured)), *(f"{mean:.1f}" for mean in means), *ranges_and_change])
    metrics = ["image AUROC", "pixel AUROC", "AUPRO@0.3"]
    ranges_and_change = ["range over seeds, image AUROC", "range, pixel AUROC", "change of an image's score"]
    return table(["run, masks", "categories", *metrics, *ranges_and_change], lines) + "".join(map(source, names))


def score_variants() -> str:
    """Return the image AUROC of several image scores of AMI-Net's maps."""
    results: dict[str, dict[str, float]] = load("score_variants")["results"]
    names = list(next(iter(results.values()), {}))
    lines = [[label, *(f"{values[name]:.1f}" for name in names)] for label, values in results.items()]
    return table(["run", *names], lines) + source("score_variants")


def exports(name: str) -> str:
    """Return the differences of exported models."""
    lines = []
    for label, result in load(name)["results"].items():
        if "error" in result:
            lines.append([label, "–", "–", result["error"].partition(". ")[0]])
        else:
            cells = [f"{result[key]:.1e}" for key in ("network_difference", "total_difference")]
            lines.append([label, *cells, f"{result['megabytes']:g} MB"])
    header = ["model", "network", "with the resize", "size, or why there is no export"]
    return table(header, lines) + source(name)


def reports() -> str:
    """Return time and memory of reports."""
    result = load("report")
    lines = []
    for name, measured in result["formats"].items():
        cells = [f"{measured[key]:.1f}" for key in ("seconds", "cpu_seconds")]
        target = target_text(measured["seconds"], 30, " s") if name == "html" else "–"
        lines.append([name, *cells, f"{measured['peak_mib']:.0f}", target])
    return table(["format", "clock, s", "CPU, s", "peak memory, MiB", "target, at most"], lines) + source("report")


PAPER_SIZE = """Width 768, 8 blocks, profile `code`, 300 epochs, but ResNet50 instead of WideResNet50-2, whose weights
are not available here; official categories of MVTec AD; evaluated every 75 epochs; `results/paper.csv`. Table IV has
averages over 15 categories only, so a category cannot be compared with it."""

MASKS = """The same stored models with each value of `mask_at_test` and, where the masks are random, five values of
`test_seed`; profile `demo`, from 4 synthetic images, and AMI-Net at the paper's size on `capsule` of MVTec AD, from 2
images. Means over categories and seeds. The ranges over seeds are in
points, the smallest and the largest of the categories; the change is that of an image's score from one seed to another,
in percent of the standard deviation of the scores over images."""

EXPORTS = """Stored models on 20 real images of bottle and grid: largest differences relative to the largest value.
First profile `demo`; then profile `check`, far too small to evaluate a method, for methods whose demo models were not
kept; then AMI-Net at the paper's size, from 2 images, with random weights of WideResNet50-2 and one epoch."""

PRECISION_INTRODUCTION = """The same model, fitted in float32, evaluated in both; differences in points. **The target
of 0.1 points is missed** in image AUROC on all synthetic categories, where so small a network is uncertain, and in
pixel AUROC on two of them."""

SPEED_INTRODUCTION = """The outputs of the candidates are compared in each script except `compared.py`, whose networks
have random weights. The port's coreset is extrapolated from its first selections. Targets were set before the
measurements."""

FIGURE_8 = """Published: the two points of Fig. 8 that the text of the paper gives (MVTec AD, RTX 4090). Measured:
profile `demo`, category `fabric` of the synthetic data, k = 4, seed 0, batch size 1, one CPU thread. The networks are
small, so neither latencies nor AUROCs are comparable with the published ones; two processes of low priority ran beside
them. `results/figure8.csv`:
`bench run --method all --protocol kshot --category fabric --time --threads 1`.

![Latency and image AUROC of all methods on fabric of the synthetic data](results/figure8.svg)"""

SECTIONS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    (
        "Real images, one model per category",
        "PatchCore with ResNet18 and a 1 % coreset; seeds 0 to 2; `results/real.csv`.",
        real_one_for_one,
    ),
    (
        "Real images, from 4 images per category",
        "Profile `demo`: reduced networks; seed 0; `results/real.csv`.",
        lambda: four_images("real"),
    ),
    (
        "AMI-Net at the paper's size, from 2 images",
        PAPER_SIZE,
        paper_size,
    ),
    (
        "Methods, from 4 synthetic images per category",
        "Profile `demo`, seed 0; image / pixel AUROC; `results/demo.csv`.",
        lambda: four_images("demo"),
    ),
    (
        "The same commands on two processors",
        "Profile `demo`, k = 4, seed 0, means over the four synthetic categories; `demo_intel.csv` and `demo.csv`.",
        two_processors,
    ),
    (
        "From 1 to 8 images, three draws",
        "Profile `demo`, synthetic images, seeds 0 to 2: mean over the four categories; `results/demo.csv`.",
        lambda: few_shot("demo", ("blister", "fabric", "gear", "steel")),
    ),
    (
        "From 1 to 8 real images, three draws",
        "Profile `demo`, bottle and capsule, seeds 0 to 2: mean over both; `results/real.csv`.",
        lambda: few_shot("real", ("bottle", "capsule")),
    ),
    (
        "One model for all categories, synthetic images",
        "Profile `demo`, `--limit 8`: 8 training images per category, the four categories; `results/demo.csv`.",
        lambda: unified("demo"),
    ),
    (
        "One model for all categories, real images",
        "Profile `demo`, `--limit 20`; bottle, capsule, tire and magnetic tiles (our split); `results/four.csv`.",
        lambda: unified("four"),
    ),
    (
        "Mask-based methods under three protocols",
        "Profile `demo`, seed 0; means over the four synthetic categories, and two real ones; `demo.csv`, `real.csv`.",
        mask_based,
    ),
    (
        "Speed against image AUROC (Fig. 8), all methods",
        FIGURE_8,
        latencies,
    ),
    (
        "Masks at test time",
        MASKS,
        lambda: mask_seeds("mask_seeds", "mask_seeds_riad", "mask_seeds_paper"),
    ),
    (
        "Clusters of AMI-Net",
        "Profile `demo`, k = 4, seed 0, synthetic images; one setting differs from the default; `results/study.csv`.",
        cluster_study,
    ),
    (
        "Image scores of AMI-Net",
        "Image AUROC of the same stored maps with other image scores; the paper's is the standard deviation.",
        score_variants,
    ),
    (
        "Speed",
        SPEED_INTRODUCTION,
        speed,
    ),
    (
        "Overhead",
        "What `bench run` adds to fit and predict, for AMI-Net on fabric; and start-up times.",
        overhead,
    ),
    (
        "Reports",
        "15 categories x 6 methods x 3 seeds, simulated records with maps of 115 images; target of HTML: 30 s, 1 GiB.",
        reports,
    ),
    (
        "Pixel metrics",
        "All metrics in one call, and three functions of scikit-learn and a sorted AUPRO; `np.sort`: all pixels.",
        metrics,
    ),
    (
        "Half precision",
        PRECISION_INTRODUCTION,
        precision,
    ),
    (
        "ONNX export",
        EXPORTS,
        lambda: "\n".join(map(exports, ("export_models", "export_models_check", "export_models_size"))),
    ),
    (
        "Scaling",
        "The slope of CPU time at 1, 4 and 16 times the size in a log-log plot; `results/scaling.json`.",
        scaling,
    ),
)


def main() -> None:
    """Print the page."""
    print(HEAD)
    for title, introduction, content in SECTIONS:
        print(f"## {title}\n\n{introduction}\n\n{content()}")


if __name__ == "__main__":
    main()
