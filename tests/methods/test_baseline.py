"""The mean map, and the margin in pixel AUROC by which every trained method must exceed it (demo profile, fabric)."""

import pytest
import torch

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.errors import BenchError
from bench.execution import schedule
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup
from bench.methods import meanmap

MARGINS = {"ae": 15, "ae_ssim": 7, "riad": 7, "mfrnet": 20, "aminet": 15, "aminet_jitter": 8, "patchcore": 20}


@pytest.fixture(scope="module")
def pixel_auroc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Pixel AUROC in percent by method; at most a minute per method on an idle core."""
    options = {
        "method": ("meanmap", *MARGINS),
        "category": ("fabric",),
        "threads": 1,
        "time": False,
        "map_precision": "none",
    }
    runs = tmp_path_factory.mktemp("runs")
    plan = make_plan(load_config(), registry.names("methods"), options=options, profile="demo", paths={"runs": runs})
    records = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    return {record.run.name: 100 * record.metrics["pixel_auroc"] for record in records}


@pytest.mark.slow
@pytest.mark.parametrize("name", MARGINS)
def test_it_exceeds_the_mean_map_by_its_margin(name: str, pixel_auroc: dict[str, float]) -> None:
    assert pixel_auroc[name] > pixel_auroc["meanmap"] + MARGINS[name]


def test_images_of_another_size_than_in_training_are_an_error() -> None:
    method = meanmap.METHOD(meanmap.Settings(), Setup((64, 64), torch.device("cpu"), 0))
    method.fit(SyntheticImages(), lambda *_: None)
    with pytest.raises(BenchError, match="Images must be 64 x 64 pixels as in training, got 32 x 64"):
        method.predict(torch.zeros(1, 3, 32, 64))
