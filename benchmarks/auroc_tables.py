"""Tables of AUROC for `results_page.py`, from the CSV files in results/ that `export_results.py` writes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bench.config.bench_toml import load_config
from bench.config.method_metadata import method_metadata
from bench.reports.parts.published import published_timings

RESULTS = Path(__file__).resolve().parent / "results"
METRICS = ("image_auroc", "pixel_auroc", "aupro_30")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def read(name: str) -> pd.DataFrame:
    """Return the records of a CSV that did not fail."""
    records = pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False)
    records = records[records["failure"] == ""]
    return records.assign(**{column: pd.to_numeric(records[column]) for column in METRICS})


def kshot(name: str) -> pd.DataFrame:
    """Return the k-shot records of a CSV."""
    records = read(name)
    return records[records["protocol"] == "kshot"]


def pair(records: pd.DataFrame) -> str:
    """Return the mean image and pixel AUROC, with the standard deviation over seeds if there are several."""
    texts = []
    for column in METRICS[:2]:
        by_seed = records.groupby("seed")[column].mean()
        std_text = f" ± {by_seed.std():.1f}" if len(by_seed) > 1 else ""
        texts.append(f"{by_seed.mean():.1f}{std_text}")
    return " / ".join(texts)


def by_category(records: pd.DataFrame) -> str:
    """Return image / pixel AUROC of each method and category, and the means with AUPRO, best mean first."""
    categories = sorted(records["category"].unique())
    rows = []
    for _, group in records.groupby("name", sort=False):
        parts = [group[group["category"] == category] for category in categories]
        is_complete = all(set(part["seed"]) == set(group["seed"]) for part in parts)
        mean = f"{pair(group)} ({group['aupro_30'].mean():.1f})" if is_complete else "–"
        seconds = pd.to_numeric(group["fit_seconds"])
        time = f"{seconds.min():.0f} to {seconds.max():.0f}"
        line = [group["title"].iloc[0], *(pair(part) if len(part) else "–" for part in parts), mean, time]
        rows.append((group["image_auroc"].mean() if is_complete else 0.0, line))
    lines = [line for _, line in sorted(rows, key=lambda row: -row[0])]
    return table(["method", *categories, "mean (AUPRO@0.3)", "fit, s"], lines)


def real_one_for_one() -> str:
    """Return the table of the real images with one model per category."""
    records = read("real")
    return by_category(records[records["protocol"] == "one-for-one"])


def four_images(name: str) -> str:
    """Return the table of the methods from 4 images per category, seed 0."""
    return by_category(four_images_records(name))


def four_images_records(name: str) -> pd.DataFrame:
    """Return the records of a CSV from 4 images per category, seed 0."""
    records = kshot(name)
    return records[(records["k"] == 4) & (records["seed"] == 0)]


def few_shot(name: str, categories: Sequence[str]) -> str:
    """Return the mean over categories by number of training images, with the deviation over draws."""
    records = kshot(name)
    records = records[records["category"].isin(categories)]
    sizes = sorted(records["k"].unique())
    lines = []
    for _, group in records.groupby("name"):
        by_k = {k: part for k, part in group.groupby("k") if is_complete(part, categories, seeds=3)}
        if len(by_k) == len(sizes):
            lines.append([group["title"].iloc[0], *(pair(by_k[k]) for k in sizes)])
    return table(["method", *(f"k = {k}" for k in sizes)], lines)


def is_complete(records: pd.DataFrame, categories: Sequence[str], seeds: int) -> bool:
    """Return whether there is a record of every category with each of so many seeds."""
    counts = records.groupby("category")["seed"].nunique()
    return list(counts.index) == sorted(categories) and bool((counts == seeds).all())


def unified(name: str) -> str:
    """Return image / pixel AUROC of one model per category and of one model for all, with the difference."""
    records = read(name)
    lines = []
    for _, group in records[records["protocol"] != "kshot"].groupby("name"):
        by_protocol = dict(list(group.groupby("protocol")))
        if set(by_protocol) == {"one-for-one", "unified"}:
            parts = [by_protocol["one-for-one"], by_protocol["unified"]]
            means = [part[list(METRICS[:2])].mean() for part in parts]
            drop = " / ".join(f"{value:+.1f}" for value in means[1] - means[0])
            lines.append((means[1].iloc[0], [group["title"].iloc[0], *map(pair, parts), drop]))
    return table(
        ["method", "one model per category", "one model for all", "difference"],
        [line for _, line in sorted(lines, key=lambda line: -line[0])],
    )


def mask_based() -> str:
    """Return image / pixel AUROC of all methods with masks under three protocols, and on two real categories.

    UniAD is of another family, but its attention is masked; the mean map is the baseline.
    """
    demo, real, categories = read("demo"), four_images_records("real"), ("blister", "fabric", "gear", "steel")
    columns = {
        "k = 4": (four_images_records("demo"), categories),
        "one-for-one, 8 images": (demo[demo["protocol"] == "one-for-one"], categories),
        "one model for all, 8 images each": (demo[demo["protocol"] == "unified"], categories),
        "bottle, k = 4": (real[real["category"] == "bottle"], ("bottle",)),
        "capsule, k = 4": (real[real["category"] == "capsule"], ("capsule",)),
    }
    lines = []
    for name, alias in load_config().aliases().items():
        parts = [(records[records["name"] == name], wanted) for records, wanted in columns.values()]
        texts = [pair(part) if is_complete(part, wanted, seeds=1) else "–" for part, wanted in parts]
        is_included = name in {"uniad", "meanmap"} or method_metadata(alias.method).family == "mask-based"
        if is_included and set(texts) != {"–"}:
            lines.append([alias.title, *texts])
    return table(["method", *columns], lines)


def latencies() -> str:
    """Return latency and image AUROC of all methods, fastest first, with the points of Fig. 8 that the paper gives."""
    records = read("figure8")
    records = records.assign(latency_ms=pd.to_numeric(records["latency_ms"])).sort_values("latency_ms")
    measured = [
        [record.title, "measured", f"{record.latency_ms:.1f}", f"{record.image_auroc:.1f}"]
        for record in records.itertuples()
    ]
    published = [
        [point.method, "published", f"{point.latency_ms:.1f}", f"{point.image_auroc:.1f}"]
        for point in published_timings()
    ]
    return table(["method", "source", "latency, ms", "image AUROC"], [*published, *measured])


def paper_size() -> str:
    """Return AMI-Net at the paper's size: the last epoch, and the best one on the test set."""
    lines = []
    for (category, seed), group in read("paper").groupby(["category", "seed"]):
        by_selection = {selection: pair(part) for selection, part in group.groupby("selection")}
        last = group[group["selection"] == "last"].iloc[0]
        cells = [by_selection.get("last", "–"), by_selection.get("oracle", "–")]
        facts = [
            str(last["k"]),
            str(seed),
            f"{float(last['clusters_used']):.1f}",
            f"{float(last['fit_seconds']) / 60:.0f}",
        ]
        lines.append([category, *facts[:2], *cells, *facts[2:]])
    header = ["category", "k", "seed", "last epoch", "best epoch on the test set", "clusters used, of 8", "fit, min"]
    return table(header, lines)


def cluster_study() -> str:
    """Return clusters used and AUROCs of AMI-Net with other weights and distances."""
    lines = []
    for _, record in read("study").iterrows():
        variant = record["sweep"] or record["title"]
        facts = [f"{float(record['clusters_used']):.1f}", f"{float(record['masked_fraction']):.2f}"]
        lines.append(
            [variant, record["category"], *facts, f"{record['image_auroc']:.1f} / {record['pixel_auroc']:.1f}"]
        )
    return table(["variant", "category", "clusters used, of 8", "tokens masked", "image / pixel AUROC"], lines)


def two_processors() -> str:
    """Return the means of the methods that were measured with the same command on two types of processor."""
    intel = read("demo_intel")
    amd = four_images_records("demo")
    lines = []
    for name, first in intel.groupby("name"):
        second = amd[amd["name"] == name]
        changes = second.set_index("category")[list(METRICS[:2])] - first.set_index("category")[list(METRICS[:2])]
        largest = " / ".join(f"{changes[column].abs().max():.1f}" for column in METRICS[:2])
        lines.append([first["title"].iloc[0], pair(first), pair(second), largest])
    return table(["method", "Intel Xeon", "AMD EPYC", "largest change of a category"], lines)
