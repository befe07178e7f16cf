"""What learns must beat the floor: the demo's own settings, 4 images of its fabric, by points of pixel AUROC."""

import pytest

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import make_plan
from bench.execution import schedule

MARGINS = {"ae": 15, "ae_ssim": 7, "riad": 7, "mfrnet": 20, "aminet": 15, "aminet_jitter": 8, "patchcore": 20}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Pixel AUROC in percent by method; a minute or less a method on an idle core."""
    said = {"method": ("meanmap", *MARGINS), "category": ("fabric",), "threads": 1, "time": False, "maps": "none"}
    runs = tmp_path_factory.mktemp("runs")
    plan = make_plan(load_config(), registry.names("methods"), options=said, profile="demo", paths={"runs": runs})
    records = schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None)
    return {record.run.name: 100 * record.metrics["pixel_auroc"] for record in records}


@pytest.mark.slow
@pytest.mark.parametrize("name", MARGINS)
def test_it_beats_the_floor_by_its_margin(name: str, found: dict[str, float]) -> None:
    assert found[name] > found["meanmap"] + MARGINS[name]
