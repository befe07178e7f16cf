"""How fast PatchCore chooses its coreset and scores: `python benchmarks/patchcore.py coreset|score`.

`coreset` picks 10 % of the patches of 209 images beside the authors' loop in a plain port. The port would take minutes,
so it is timed for its first picks, each of which costs the same, and the whole is those times all picks (told as such
in the result). `score` seeks the nearest of a bank's rows for all patches of an image beside exact faiss (pip install
faiss-cpu). Features are drawn: a low-dimensional crowd with much noise, cut at zero as a ReLU does, so that few
dimensions don't tell of all. `score --data FOLDER --weights FOLDER` takes those of real images (the data set "folder").
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from interleaved import compared, interleave, told, write
from reference.patchcore import greedy_coreset as plain_coreset
from torch import Tensor

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.data.images import FileImages
from bench.execution import schedule
from bench.execution.job import build_method
from bench.method import Preprocessing
from bench.methods.parts.bank import Bank, nearest
from bench.methods.patchcore import PatchCore, greedy_coreset


def drawn(rows: int, dimensions: int, seed: int) -> Tensor:
    """(rows, dimensions) of features that lie near a surface of 24 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    surface = torch.randn(24, dimensions, generator=torch.Generator().manual_seed(0))
    features = torch.randn(rows, 24, generator=generator) @ surface
    return features.add_(torch.randn(rows, dimensions, generator=generator), alpha=2).relu_()


def coreset(options: argparse.Namespace) -> dict[str, Any]:
    """10 % of the rows, chosen in 128 dimensions."""
    projection = torch.empty(128, 1024).uniform_(-1 / 32, 1 / 32, generator=torch.Generator().manual_seed(1))
    parts = [drawn(min(8192, options.rows - start), 1024, start) for start in range(0, options.rows, 8192)]
    features = torch.cat([part @ projection.T for part in parts])
    features -= features.mean(dim=0)
    count, starts = options.rows // 10, torch.arange(10) * (options.rows // 10)
    picks: dict[str, Tensor] = {}

    def keep(name: str, found: Tensor) -> None:
        picks[name] = found

    few = min(options.picks, count)
    calls: dict[str, Callable[[], Any]] = {
        f"plain port, {few} picks": lambda: keep("plain", plain_coreset(features, few, starts)),
        f"maskbench, {count} picks": lambda: keep("ours", greedy_coreset(features, count, starts)),
    }
    turns = interleave(calls, options.rounds, warmups=0)
    plain, ours = turns.values()
    whole = {"plain port, all picks (extrapolated)": [(a * count / few, b * count / few) for a, b in plain]}
    return {
        "what": f"PatchCore coreset, {options.rows} x 1024 by 128 dimensions, 10 %",
        "comparison": compared({**whole, "maskbench": ours}, next(iter(whole))),
        "picks_of_the_port": few,
        "equal_among_the_first": int((picks["plain"] == picks["ours"][:few]).sum()),
    }


def real(options: argparse.Namespace) -> tuple[Tensor, list[Tensor]]:
    """The rows that PatchCore keeps of all training images, 10 %, and the patches of 8 test images of all kinds."""
    said = {"method": ("patchcore",), "category": (options.category,), "dataset": "folder"}
    plan = make_plan(
        load_config(),
        registry.names("methods"),
        options=said,
        settings={"backbone": options.backbone},
        profile="code",
        paths={"data": options.data, "weights": options.weights},
    )
    (job,) = schedule.make_schedule(plan, force=True).jobs
    method, preprocessing = build_method(replace(job, device="cpu"))[2](), Preprocessing(**job.run.preprocessing)
    assert isinstance(method, PatchCore)
    method.fit(FileImages(job.task.train, preprocessing), lambda *_: None)
    bank, samples = method._fitted(), job.task.tests[options.category]
    tested = FileImages(samples[:: len(samples) // 8][:8], preprocessing)
    with torch.no_grad():
        return bank.rows, [method._patches(image)[0] - bank.centre for image in tested.batches(1)]


def score(options: argparse.Namespace) -> dict[str, Any]:
    """The patches of one image against a bank."""
    import faiss

    rows, asked = real(options) if options.data else (drawn(options.bank, 1024, 1), [drawn(784, 1024, 2)])
    centre = rows.mean(dim=0)
    rows, asked = rows - centre, [queries - centre for queries in asked]
    bank = Bank.of(rows, centre)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(1024)
    index.add(rows.numpy())
    calls: dict[str, Callable[[], Any]] = {
        "exact faiss": lambda: [index.search(queries.numpy(), 1) for queries in asked],
        "maskbench, float32": lambda: [nearest(queries, bank, 1) for queries in asked],
    }
    if options.half:
        half = Bank.of(rows, centre, "bfloat16")
        calls["maskbench, bfloat16"] = lambda: [nearest(queries, half, 1) for queries in asked]
    comparison = compared(interleave(calls, options.rounds, warmups=2), "exact faiss")
    queries = torch.cat(asked)
    exact = torch.cdist(queries.double(), rows.double()).square().min(dim=1)
    theirs, places = (torch.from_numpy(found)[:, 0] for found in index.search(queries.numpy(), 1))
    squared, found = (ours[:, 0] for ours in nearest(queries, bank, 1))
    wrong = {"exact faiss": theirs, "maskbench, float32": squared}
    return {
        "what": f"PatchCore scoring, {len(asked)} times {len(asked[0])} patches against {len(rows)} x 1024",
        "features": f"{options.backbone} on {options.category}" if options.data else "drawn",
        "sought_in_few_dimensions_first": bank.few is not None,
        "comparison": comparison,
        "equal_neighbours": float((places == found).float().mean()),
        "largest_relative_error": {  # beside double precision
            name: float(((one - exact.values).abs() / exact.values).max()) for name, one in wrong.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("coreset", "score"))
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn (default: 5)")
    parser.add_argument("--rows", type=int, default=163_856, help="coreset: patches (default: 163856, 209 images)")
    parser.add_argument("--picks", type=int, default=40, help="coreset: picks of the timed port (default: 40)")
    parser.add_argument("--bank", type=int, default=16_385, help="score: rows of the bank (default: 16385)")
    parser.add_argument("--data", type=Path, help="score: a folder of real images instead of drawn features")
    parser.add_argument("--category", default="bottle", help="score --data: of that folder (default: bottle)")
    parser.add_argument("--backbone", default="resnet18.tv_in1k", help="score --data: (default: resnet18.tv_in1k)")
    parser.add_argument("--weights", type=Path, help="score --data: where the backbone's weights lie")
    parser.add_argument("--half", action="store_true", help="score: also bfloat16, where the processor has it")
    parser.add_argument("--json", type=Path, help="where to write the result (default: benchmarks/results/)")
    options = parser.parse_args()
    found = {"coreset": coreset, "score": score}[options.what](options)
    print(told(found["comparison"]))
    print({key: value for key, value in found.items() if key not in {"comparison", "what"}})
    packages = ["faiss-cpu"] if options.what == "score" else []
    name = f"patchcore_{options.what}" + (f"_{options.category}" if options.data else "")
    write(name, found, *packages, json_path=options.json)


if __name__ == "__main__":
    main()
