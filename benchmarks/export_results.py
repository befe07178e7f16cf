"""Write the records of a store as a small CSV: `python benchmarks/export_results.py RUNS benchmarks/results/NAME.csv`.

One line per record: what was run, its metrics in percent, seconds, and the machine, versions, date and command. Failed
records have no metrics. A line of the file whose run is not in the store stays. `bench report --format csv` has every
field; this is what the tables of RESULTS.md need, small enough to be committed. Folders in commands become DATA and
WEIGHTS, and the folder of the records is left out.
"""

import csv
import shlex
import sys
from pathlib import Path

from bench.evaluation.reproduction import without_options
from bench.record import Record
from bench.store import Store

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro_30")
DIAGNOSTICS = ("clusters_used", "masked_fraction")  # of AMI-Net
IDENTITY = ("dataset", "protocol", "limit", "k", "name", "sweep", "profile", "seed", "category", "selection")
PLACEHOLDERS = {"--data": "DATA", "--weights": "WEIGHTS"}


def row(record: Record) -> dict[str, object]:
    """Return one line of the CSV."""
    run, environment = record.run, record.environment
    return {
        "dataset": run.dataset,
        "synthetic": run.synthetic,
        "protocol": run.protocol,
        "k": run.k,
        "limit": run.options["tasks"]["limit"],
        "seed": run.seed,
        "profile": run.profile,
        "name": run.name,
        "title": run.title,
        "sweep": " ".join(f"{key}={run.settings[key]}" for key in run.sweep_keys),
        "category": record.category,
        "selection": record.selection,
        "epoch": record.epoch,
        **{name: round(100 * record.metrics[name], 4) if name in record.metrics else "" for name in METRICS},
        "train_images": len(record.train_files),
        "test_images": len(record.test_files),
        **{name: record.method_info.get(name, "") for name in DIAGNOSTICS},
        "fit_seconds": round(record.seconds.get("fit", 0), 1),
        "predict_seconds": round(record.seconds.get("predict", 0), 1),
        "latency_ms": round(record.latency["median_ms"], 2) if record.latency else "",
        "device": environment.get("device", ""),
        "threads": environment.get("threads", ""),
        "torch": environment.get("torch", ""),
        "date": record.started[:10],
        "commit": record.commit[:7],
        "command": public_command(record.command),
        "failure": record.failure.strip().rpartition("\n")[2],
    }


def public_command(command: str) -> str:
    """Return a command without private folders."""
    words = without_options(shlex.split(command), {"--runs": True})
    for option, placeholder in PLACEHOLDERS.items():
        if any(word == option or word.startswith(f"{option}=") for word in words):
            words = [*without_options(words, {option: True}), option, placeholder]
    return shlex.join(words)


def main() -> None:
    """Write the CSV, sorted so that a repeated export changes only the lines that changed."""
    runs, path = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [{name: str(value) for name, value in row(record).items()} for record in Store(runs).records()]
    if not rows:
        raise SystemExit(f"{runs} must have records.")
    earlier: list[dict[str, str]] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            earlier = list(csv.DictReader(file))
    lines = {identity(line): line for line in [*earlier, *rows]}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[key] for key in sorted(lines))
    print(f"{len(rows)} records of {len(lines)} in {path.name}", file=sys.stderr)


def identity(line: dict[str, str]) -> tuple[str, ...]:
    """Return what distinguishes the lines of a file."""
    return tuple(line[name] for name in IDENTITY)


if __name__ == "__main__":
    main()
