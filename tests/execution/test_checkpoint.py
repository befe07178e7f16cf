"""Released checkpoints are evaluated without training and marked; a missing file fails its category only."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.config.plan import Plan
from bench.errors import BenchError
from bench.evaluation.summary import groups, table_notes
from bench.execution.schedule import make_schedule
from bench.identity import run_hash
from bench.store import Store

FIXTURE = Path(__file__).resolve().parents[1] / "reference_data" / "aminet_released_form.pth"
SIZES = {"width": "48", "heads": "12", "depth": "2", "clusters": "4", "backbone": "tf_efficientnet_lite0"}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder with the layout of the authors' release, with a model for bolt only."""
    file = tmp_path / "released" / "bolt" / "AMAE.pth"
    file.parent.mkdir(parents=True)
    shutil.copy(FIXTURE, file)
    return tmp_path / "released"


@pytest.fixture
def plan_checkpoint(plan_parts) -> Callable[..., Plan]:
    """Return a function that plans AMI-Net at the sizes of the checkpoint, or at other `settings`."""

    def plan(checkpoint: Path | None, *, settings: dict[str, str] | None = None, **options: object) -> Plan:
        values = SIZES | (settings or {})
        defaults = {"method": "aminet_jitter", "profile": "code", "checkpoint": checkpoint, "settings": values}
        return plan_parts(**(defaults | options))

    return plan


def test_a_released_model_is_evaluated_without_training_and_marked(released: Path, plan_checkpoint, run_plan) -> None:
    plan = plan_checkpoint(released, selection="both")
    bolt, plate = run_plan(plan)
    assert bolt.metrics.keys() >= {"image_auroc", "pixel_auroc"}
    assert (bolt.selection, bolt.losses, bolt.train_files) == ("last", [], [])
    assert bolt.seconds.keys() == {"predict", "evaluate"}
    assert len(bolt.run.file_hashes["checkpoint"]) == 64
    assert bolt.origin["checkpoint"] == "--checkpoint"
    assert "plate/AMAE.pth does not exist" in plate.failure
    schedule = make_schedule(plan)
    assert [job.task.name for job in schedule.jobs] == ["plate"]
    assert schedule.existing == (bolt,)
    (group,) = groups(Store(plan.runs).records())  # one table, although each category has another file
    assert "released checkpoint, not trained here" in table_notes(group)
    shutil.copytree(released / "bolt", released / "plate")
    assert not run_plan(plan)[0].failure
    (group,) = groups(Store(plan.runs).records())
    assert (len(group.records), group.failed) == (2, ())


def test_a_trained_and_a_released_model_have_different_hashes(released: Path, plan_checkpoint) -> None:
    trained = make_schedule(plan_checkpoint(None, category="bolt")).jobs[0]
    loaded = make_schedule(plan_checkpoint(released, category="bolt")).jobs[0]
    assert trained.data_hash == loaded.data_hash
    assert run_hash(trained.run, trained.data_hash) != run_hash(loaded.run, loaded.data_hash)
    assert trained.run.group_hash != loaded.run.group_hash


def test_a_single_file_is_one_model(plan_checkpoint) -> None:
    schedule = make_schedule(plan_checkpoint(FIXTURE, protocol="unified"))
    assert [job.checkpoint for job in schedule.jobs] == [FIXTURE]
    with pytest.raises(BenchError, match=r"must be a folder if the plan has several models \(2 here\)"):
        make_schedule(plan_checkpoint(FIXTURE))


@pytest.mark.parametrize(
    ("settings", "detail"),
    [
        ({"width": "24"}, "[1, 4, 24]"),
        ({"depth": "3"}, "blocks.2"),
        ({"clusters": "8"}, "cluster_tokens"),
        ({"patch": "2"}, "size mismatch"),
    ],
)
def test_the_failure_for_other_settings_than_the_checkpoints_is_one_line(
    released: Path, plan_checkpoint, run_plan, settings: dict[str, str], detail: str
) -> None:
    (record,) = run_plan(plan_checkpoint(released, settings=settings, category="bolt"))
    assert "settings that it was fitted with" in record.failure
    assert detail in record.failure
    assert "\n" not in record.failure


def test_calibration_and_methods_without_checkpoints_are_errors(released: Path, plan_parts, plan_checkpoint) -> None:
    with pytest.raises(BenchError, match="may have been trained on the held-out images"):
        make_schedule(plan_checkpoint(released, calibrate="0.1"))
    with pytest.raises(BenchError, match=r"Mean map \(baseline\) cannot read released checkpoints"):
        make_schedule(plan_parts(checkpoint=released))


def test_a_folder_that_does_not_exist_is_an_error(parts: Path, plan_checkpoint) -> None:
    with pytest.raises(BenchError, match=r"a folder with <category>/AMAE\.pth; .*nowhere does not exist"):
        make_schedule(plan_checkpoint(parts / "nowhere"))
