"""Speed of PatchCore's coreset and scoring: `python benchmarks/patchcore.py coreset|score`.

`coreset` selects 10 % of the patches of 209 images and compares with the authors' loop in a plain port. The port would
take minutes, so its first selections are timed, each of which takes the same time, and multiplied (as stated there).
`score` searches the nearest row of a memory bank for all patches of an image and compares with exact faiss (pip install
faiss-cpu). The features are synthetic: low-dimensional with much noise, clipped at zero like the output of a ReLU, so
that a few dimensions do not explain most of their variance. `score --data FOLDER --weights FOLDER` uses features of
real images (the dataset "folder").
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import compare, format_comparison, run_interleaved, write_result
from reference.patchcore import greedy_coreset as plain_coreset
from torch import Tensor

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import FileImages
from bench.execution.job import build_method
from bench.execution.schedule import make_schedule
from bench.methods.parts.bank import MemoryBank, nearest_neighbors
from bench.methods.patchcore import PatchCore, greedy_coreset


def synthetic_features(rows: int, dimensions: int, seed: int) -> Tensor:
    """Return features (rows, dimensions) near a subspace of 24 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(24, dimensions, generator=torch.Generator().manual_seed(0))
    features = torch.randn(rows, 24, generator=generator) @ basis
    return features.add_(torch.randn(rows, dimensions, generator=generator), alpha=2).relu_()


def coreset(options: argparse.Namespace) -> dict[str, Any]:
    """Select 10 % of the rows in 128 dimensions."""
    projection = torch.empty(128, 1024).uniform_(-1 / 32, 1 / 32, generator=torch.Generator().manual_seed(1))
    starts = range(0, options.rows, 8192)
    chunks = [synthetic_features(min(8192, options.rows - start), 1024, start) for start in starts]
    features = torch.cat([chunk @ projection.T for chunk in chunks])
    features -= features.mean(dim=0)
    count, starting_points = options.rows // 10, torch.arange(10) * (options.rows // 10)
    n_port = min(options.picks, count)
    selections: dict[str, Tensor] = {}

    def select_with_port() -> None:
        selections["port"] = plain_coreset(features, n_port, starting_points)

    def select_with_maskbench() -> None:
        selections["maskbench"] = greedy_coreset(features, count, starting_points)

    candidates: dict[str, Callable[[], Any]] = {
        f"plain port, {n_port} picks": select_with_port,
        f"maskbench, {count} picks": select_with_maskbench,
    }
    port, maskbench = run_interleaved(candidates, options.rounds, warmups=0).values()
    factor = count / n_port
    timings = {
        "plain port, all picks (extrapolated)": [(wall * factor, cpu * factor) for wall, cpu in port],
        "maskbench": maskbench,
    }
    return {
        "description": f"PatchCore coreset, {options.rows} x 1024 by 128 dimensions, 10 %",
        "comparison": compare(timings, next(iter(timings))),
        "n_picks_of_port": n_port,
        "n_equal_picks": int((selections["port"] == selections["maskbench"][:n_port]).sum()),
    }


def real_features(options: argparse.Namespace) -> tuple[Tensor, list[Tensor]]:
    """Return the memory bank of all training images at 10 % and the patches of 8 test images of all kinds."""
    plan = make_plan(
        load_config(),
        registry.names("methods"),
        options={"method": ("patchcore",), "category": (options.category,), "dataset": "folder", "device": "cpu"},
        settings={"backbone": options.backbone},
        profile="code",
        paths={"data": options.data, "weights": options.weights},
    )
    (job,) = make_schedule(plan, force=True).jobs
    _, method = build_method(job)
    assert isinstance(method, PatchCore)
    method.fit(FileImages(job.task.train, job.preprocessing), lambda *_: None)
    samples = job.task.tests[options.category]
    images = FileImages(samples[:: len(samples) // 8][:8], job.preprocessing)
    with torch.no_grad():
        return method.bank, [method.extract_patches(image)[0] - method.center for image in images.batches(1)]


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Search the nearest rows for the patches of one image at a time."""
    import faiss

    if options.data:
        rows, queries = real_features(options)
    else:
        rows, queries = synthetic_features(options.bank, 1024, 1), [synthetic_features(784, 1024, 2)]
    center = rows.mean(dim=0)
    rows, queries = rows - center, [patches - center for patches in queries]
    bank = MemoryBank.from_rows(rows, center)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(1024)
    index.add(rows.numpy())
    candidates: dict[str, Callable[[], Any]] = {
        "exact faiss": lambda: [index.search(patches.numpy(), 1) for patches in queries],
        "maskbench, float32": lambda: [nearest_neighbors(patches, bank, 1) for patches in queries],
    }
    if options.half:
        half_precision = MemoryBank.from_rows(rows, center, "bfloat16")
        candidates["maskbench, bfloat16"] = lambda: [
            nearest_neighbors(patches, half_precision, 1) for patches in queries
        ]
    comparison = compare(run_interleaved(candidates, options.rounds, warmups=2), "exact faiss")
    all_queries = torch.cat(queries)
    exact_distances = torch.cdist(all_queries.double(), rows.double()).square().min(dim=1).values
    faiss_squared, faiss_rows = (torch.from_numpy(values)[:, 0] for values in index.search(all_queries.numpy(), 1))
    squared, nearest_rows = (values[:, 0] for values in nearest_neighbors(all_queries, bank, 1))
    distances = {"exact faiss": faiss_squared, "maskbench, float32": squared}
    return {
        "description": f"PatchCore scoring, {len(queries)} times {len(queries[0])} patches against {len(rows)} x 1024",
        "features": f"{options.backbone} on {options.category}" if options.data else "synthetic",
        "uses_projection": bank.projected is not None,
        "comparison": comparison,
        "equal_neighbors": float((faiss_rows == nearest_rows).float().mean()),
        "largest_relative_error": {  # relative to double precision
            name: float(((values - exact_distances).abs() / exact_distances).max())
            for name, values in distances.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("coreset", "score"))
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--rows", type=int, default=163_856, help="coreset: patches (default: 163856, 209 images)")
    parser.add_argument("--picks", type=int, default=40, help="coreset: timed selections of the port (default: 40)")
    parser.add_argument("--bank", type=int, default=16_385, help="score: rows of the memory bank (default: 16385)")
    parser.add_argument("--data", type=Path, help="score: a folder of real images instead of synthetic features")
    parser.add_argument("--category", default="bottle", help="score --data: category (default: bottle)")
    parser.add_argument("--backbone", default="resnet18.tv_in1k", help="score --data: (default: resnet18.tv_in1k)")
    parser.add_argument("--weights", type=Path, help="score --data: folder of backbone weights")
    parser.add_argument("--half", action="store_true", help="score: also bfloat16, if the processor supports it")
    parser.add_argument("--json", type=Path, help="file of the result (default: in benchmarks/results/)")
    options = parser.parse_args()
    measurement = {"coreset": coreset, "score": score}[options.what](options)
    print(format_comparison(measurement["comparison"]))
    print({key: value for key, value in measurement.items() if key not in {"comparison", "description"}})
    packages = ["faiss-cpu"] if options.what == "score" else []
    name = f"patchcore_{options.what}" + (f"_{options.category}" if options.data else "")
    write_result(name, measurement, *packages, json_path=options.json)


if __name__ == "__main__":
    main()
