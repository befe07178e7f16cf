"""Every trained method must exceed the mean map by a margin in pixel AUROC (demo profile, synthetic fabric)."""

import pytest

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.execution import schedule

MARGINS = {"ae": 15, "ae_ssim": 7, "riad": 7, "mfrnet": 20, "aminet": 15, "aminet_jitter": 8, "patchcore": 20}


@pytest.fixture(scope="module")
def pixel_auroc(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Pixel AUROC in percent by method; at most a minute per method on an idle core."""
    options = {"method": ("meanmap", *MARGINS), "category": ("fabric",), "threads": 1, "time": False, "maps": "none"}
    runs = tmp_path_factory.mktemp("runs")
    plan = make_plan(load_config(), registry.names("methods"), options=options, profile="demo", paths={"runs": runs})
    records = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    return {record.run.name: 100 * record.metrics["pixel_auroc"] for record in records}


@pytest.mark.slow
@pytest.mark.parametrize("name", MARGINS)
def test_it_exceeds_the_mean_map_by_its_margin(name: str, pixel_auroc: dict[str, float]) -> None:
    assert pixel_auroc[name] > pixel_auroc["meanmap"] + MARGINS[name]
