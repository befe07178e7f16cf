"""Released checkpoints: judged without training, told as such, and each missing file its own category's failure."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.plan import Plan, make_plan
from bench.errors import BenchError
from bench.evaluation.summary import groups, table_notes
from bench.execution import schedule
from bench.record import Record
from bench.store import Store

FIXTURE = Path(__file__).resolve().parents[1] / "reference_data" / "aminet_released_form.pth"
SIZES = {"width": "48", "heads": "12", "depth": "2", "clusters": "4", "backbone": "tf_efficientnet_lite0"}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder as the authors release theirs; only bolt's model is there."""
    place = tmp_path / "released" / "bolt" / "AMAE.pth"
    place.parent.mkdir(parents=True)
    shutil.copy(FIXTURE, place)
    return tmp_path / "released"


def planned(parts: Path, checkpoint: Path | None, *, set_: dict[str, str] | None = None, **said: Any) -> Plan:
    given = {"dataset": "folder", "protocol": "one-for-one", "method": "aminet_jitter", "threads": 1, "time": False}
    paths = {"data": parts, "runs": parts.parent / "runs", "cache": parts.parent / "cache", "checkpoint": checkpoint}
    settings = SIZES | (set_ or {})
    names = registry.names("methods")
    return make_plan(load_config(), names, options=given | said, settings=settings, profile="code", paths=paths)


def ran(plan: Plan) -> list[Record]:
    return list(schedule.run_schedule(plan, schedule.make_schedule(plan), lambda *_: None))


def test_a_released_model_is_judged_untrained_and_says_so(parts: Path, released: Path) -> None:
    plan = planned(parts, released, selection="both")
    bolt, plate = ran(plan)
    assert bolt.metrics.keys() >= {"image_auroc", "pixel_auroc"}
    assert (bolt.selection, bolt.losses, bolt.train_files) == ("last", [], [])
    assert bolt.seconds.keys() == {"predict", "judge"}
    assert len(bolt.run.file_hashes["checkpoint"]) == 64
    assert bolt.origin["checkpoint"] == "--checkpoint"
    assert "plate/AMAE.pth is not there" in plate.failure
    again = schedule.make_schedule(plan)
    assert [job.task.name for job in again.jobs] == ["plate"]
    assert again.existing == (bolt,)
    (group,) = groups(Store(plan.runs).records())  # one table: a file tells runs apart, the folder tables
    assert "released checkpoint, not trained here" in table_notes(group)
    shutil.copytree(released / "bolt", released / "plate")
    assert not ran(plan)[0].failure
    (group,) = groups(Store(plan.runs).records())
    assert (len(group.records), group.failed) == (2, ())


def test_what_is_trained_and_what_is_released_never_share_a_place(parts: Path, released: Path) -> None:
    trained = schedule.make_schedule(planned(parts, None, category="bolt")).jobs[0]
    loaded = schedule.make_schedule(planned(parts, released, category="bolt")).jobs[0]
    assert trained.run.key(trained.data_digest) != loaded.run.key(loaded.data_digest)
    assert trained.run.group_hash != loaded.run.group_hash


def test_a_single_file_is_one_model(parts: Path) -> None:
    found = schedule.make_schedule(planned(parts, FIXTURE, protocol="unified"))
    assert [job.checkpoint for job in found.jobs] == [FIXTURE]
    with pytest.raises(BenchError, match=r"is one model; this plan has 2\. Give a folder"):
        schedule.make_schedule(planned(parts, FIXTURE))


@pytest.mark.parametrize(
    ("set_", "told"),
    [
        ({"width": "24"}, "[1, 4, 24]"),
        ({"depth": "3"}, "blocks.2"),
        ({"clusters": "8"}, "cluster_tokens"),
        ({"patch": "2"}, "size mismatch"),
    ],
)
def test_settings_that_are_not_the_models_are_told_in_one_line(
    parts: Path, released: Path, set_: dict[str, str], told: str
) -> None:
    (record,) = ran(planned(parts, released, set_=set_, category="bolt"))
    assert "settings that it was fitted with" in record.failure
    assert told in record.failure
    assert "\n" not in record.failure


def test_what_can_not_be_had_of_a_checkpoint_is_refused_before_any_run(parts: Path, released: Path) -> None:
    with pytest.raises(BenchError, match="held out of a released checkpoint's training"):
        schedule.make_schedule(planned(parts, released, calibrate="0.1"))
    said, paths = {"dataset": "folder", "protocol": "one-for-one", "method": "meanmap"}, {"checkpoint": released}
    plan = make_plan(load_config(), registry.names("methods"), options=said, paths=paths | {"data": parts})
    with pytest.raises(BenchError, match=r"Mean map \(floor\) reads no released checkpoint"):
        schedule.make_schedule(plan)


def test_a_folder_that_is_not_there_is_refused(parts: Path) -> None:
    with pytest.raises(BenchError, match=r"a folder with <category>/AMAE\.pth; .*nowhere is neither"):
        schedule.make_schedule(planned(parts, parts / "nowhere"))
