"""A method that pretrains gets the good training images of all other categories, and the record names them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.errors import BenchError
from bench.execution.image_shipping import check_local_files, job_files, write_images
from bench.execution.job import Job
from bench.execution.schedule import make_schedule
from bench.identity import run_hash

pytestmark = pytest.mark.usefixtures("plugin_methods")

GOOD = [f"{i:03}.png" for i in range(5)]


@pytest.fixture
def nut(parts: Path) -> Path:
    """A third category of `parts`: the files of plate, brighter by 40."""
    for path in sorted((parts / "plate").rglob("*.png")):
        copy = parts / "nut" / path.relative_to(parts / "plate")
        copy.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path))
        Image.fromarray(pixels if "ground_truth" in path.parts else np.minimum(pixels, 200) + np.uint8(40)).save(copy)
    return parts / "nut"


@pytest.fixture
def jobs(plan_parts) -> Callable[..., dict[str, Job]]:
    """Return a function of a call's options that returns the jobs of the method by category."""

    def make(**options: object) -> dict[str, Job]:
        schedule = make_schedule(plan_parts(**({"method": "pretraining"} | options)), force=True)
        return {job.task.name: job for job in schedule.jobs}

    return make


def pixel_sum(folder: Path, names: list[str] = GOOD) -> float:
    """Return the sum of the training images' values in [0, 1]; they have the size of the network's input."""
    return sum(np.asarray(Image.open(folder / "train" / "good" / name)).sum() / 255 for name in names)


def file_ids(category: str) -> list[str]:
    return [f"{category}/train/good/{name}" for name in GOOD]


def change_image(path: Path) -> None:
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)


@pytest.mark.usefixtures("nut")
@pytest.mark.parametrize(("options", "n_train"), [({}, 5), ({"protocol": "kshot", "k": 2}, 2)], ids=["all", "k-shot"])
def test_pretrain_gets_all_good_training_images_of_the_other_categories(
    parts: Path, plan_parts, run_plan, options: dict, n_train: int
) -> None:
    records = {record.category: record for record in run_plan(plan_parts(method="pretraining", **options))}
    for category, others in {"bolt": ["nut", "plate"], "nut": ["bolt", "plate"], "plate": ["bolt", "nut"]}.items():
        record = records[category]
        assert record.pretrain_files == [*file_ids(others[0]), *file_ids(others[1])]
        assert len(record.train_files) == n_train
        assert all(name.startswith(f"{category}/train/good/") for name in record.train_files)
        fitted_names = [name.rpartition("/")[2] for name in record.train_files]
        expected = {f"pretrained on {other}": pixel_sum(parts / other) for other in others}
        expected["fitted"] = pixel_sum(parts / category, fitted_names)
        sums = {key: value for key, value in record.method_info.items() if key != "trainable_parameters"}
        assert sums == pytest.approx(expected, rel=1e-6)
        assert record.seconds.keys() == {"pretrain", "fit", "predict", "evaluate"}


def test_the_digest_and_the_run_hash_change_with_the_images_of_the_other_categories(nut: Path, jobs) -> None:
    before, before_meanmap = jobs(), jobs(method="meanmap")
    change_image(nut / "test" / "good" / "000.png")  # no training image
    after_test_image = jobs()
    assert after_test_image["bolt"].data_hash == before["bolt"].data_hash
    assert after_test_image["nut"].data_hash != before["nut"].data_hash
    change_image(nut / "train" / "good" / "000.png")
    after = jobs()
    for category in ("bolt", "plate"):
        assert after[category].data_hash != before[category].data_hash
        hashes = {run_hash(job.run, job.data_hash) for job in (before[category], after[category])}
        assert len(hashes) == 2
        assert jobs(method="meanmap")[category].data_hash == before_meanmap[category].data_hash


@pytest.mark.usefixtures("nut")
def test_the_selected_categories_do_not_change_what_is_pretrained_on(jobs) -> None:
    job = jobs(category="bolt")["bolt"]
    assert list(job.task.others) == ["nut", "plate"]
    assert job == replace(jobs()["bolt"], origin=job.origin)


@pytest.mark.usefixtures("nut")
def test_a_limit_applies_to_the_images_of_the_other_categories(jobs) -> None:
    assert {name: len(images) for name, images in jobs(limit=2)["bolt"].task.others.items()} == {"nut": 2, "plate": 2}


@pytest.mark.parametrize("options", [{}, {"protocol": "kshot", "k": 2}, {"protocol": "unified"}], ids=str)
def test_without_other_categories_pretrain_is_not_called(
    parts: Path, plan_parts, run_plan, jobs, options: dict
) -> None:
    if options.get("protocol") != "unified":  # one model for both categories has no others
        (parts / "plate").rename(parts.parent / "plate")
    record = run_plan(plan_parts(method="pretraining", **options))[0]
    assert not record.failure
    assert record.pretrain_files == []
    assert record.method_info.keys() == {"trainable_parameters", "fitted"}
    assert record.seconds.keys() == {"fit", "predict", "evaluate"}
    (job,) = jobs(method="meanmap", **options).values()
    assert record.data_hash == job.data_hash


def test_a_method_that_does_not_pretrain_with_its_settings_has_no_files_of_other_categories(jobs) -> None:
    assert jobs(method="regad")["bolt"].task.others
    assert not jobs(method="regad_unregistered")["bolt"].task.others


def test_an_unreadable_image_skips_only_the_tasks_that_need_it(nut: Path, plan_parts) -> None:
    image = nut / "train" / "good" / "000.png"
    image.unlink()
    image.symlink_to(nut / "missing.png")
    schedule = make_schedule(plan_parts(method="meanmap,pretraining"))
    labels = {(job.run.name, job.task.name) for job in schedule.jobs}
    assert labels == {("meanmap", "bolt"), ("meanmap", "plate")}
    assert schedule.skipped.keys() == {"nut", "pretraining bolt", "pretraining plate"}
    assert "000.png" in schedule.skipped["pretraining bolt"]


@pytest.mark.usefixtures("nut")
def test_shipped_images_include_those_of_the_other_categories(parts: Path, jobs) -> None:
    job = jobs()["bolt"]
    shipped = write_images(job, {str(path): path.read_bytes() for path in job_files(job)})
    assert {name: [sample.id for sample in images] for name, images in shipped.task.others.items()} == {
        "nut": file_ids("nut"),
        "plate": file_ids("plate"),
    }
    parts.rename(parts.parent / "moved")
    assert check_local_files(shipped) is shipped
    with pytest.raises(BenchError, match="this node has no"):
        check_local_files(job)
