"""A file of a dataset that changes while a run is in progress fails the jobs that read it."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.execution.image_shipping import job_files, write_images
from bench.execution.job import run_job
from bench.execution.schedule import make_schedule, run_schedule
from bench.store import Store

FILES = {
    "a training image": "train/good/004.png",
    "a good test image": "test/good/000.png",
    "a defective test image": "test/spot/002.png",
    "a mask": "ground_truth/spot/001_mask.png",
}


def change(path: Path) -> None:
    """Change one pixel of an image; its size and its time stay the same, if the format permits it."""
    before = path.stat()
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels.flat[0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_changes_after_the_plan_fails_the_jobs_that_read_it_and_no_other(parts: Path, plan_parts) -> None:
    for number, (_, file) in enumerate(FILES.items()):
        plan = plan_parts(runs=f"runs{number}")
        schedule = make_schedule(plan)
        change(parts / "bolt" / file)
        bolt, plate = run_schedule(plan, schedule, lambda *_: None)
        assert bolt.failure == (
            f"The files of a dataset must not change during a run; bolt/{file} has changed. Run the command again."
        )
        assert not plate.failure
        jobs = make_schedule(plan).jobs  # the next call plans the new content
        assert [job.task.name for job in jobs] == ["bolt"]
        assert not any(record.failure for record in run_schedule(plan, make_schedule(plan), lambda *_: None))
        assert len(list(Store(plan.runs).records())) == 3


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_at_original_resolution_a_changed_file_fails_its_job(parts: Path, plan_parts, file: str) -> None:
    plan = plan_parts(category="bolt", resolution="original")
    schedule = make_schedule(plan)
    change(parts / "bolt" / file)
    (record,) = run_schedule(plan, schedule, lambda *_: None)
    assert f"{file} has changed" in record.failure


def test_an_image_of_more_than_8_bits_that_changes_fails_its_job(parts: Path, plan_parts) -> None:
    for path in (parts / "bolt").glob("t*/*/*.png"):
        with Image.open(path) as image:
            pixels = np.array(image)[..., 0].astype(np.uint16) * 16
        Image.fromarray(pixels).save(path)
    plan = plan_parts(category="bolt")
    schedule = make_schedule(plan)
    change(parts / "bolt" / FILES["a training image"])
    (record,) = run_schedule(plan, schedule, lambda *_: None)
    assert "has changed" in record.failure


@pytest.mark.usefixtures("plugin_methods")
def test_an_image_of_another_category_that_changes_fails_the_method_that_pretrains_on_it(
    parts: Path, plan_parts
) -> None:
    plan = plan_parts(method="pretraining", category="bolt")
    schedule = make_schedule(plan)
    change(parts / "plate" / FILES["a training image"])
    (record,) = run_schedule(plan, schedule, lambda *_: None)
    assert "plate/train/good/004.png has changed" in record.failure


def test_an_image_that_changes_back_before_it_is_read_changes_nothing(parts: Path, plan_parts) -> None:
    plan = plan_parts(category="bolt")
    schedule = make_schedule(plan)
    path = parts / "bolt" / FILES["a training image"]
    content = path.read_bytes()
    change(path)
    path.write_bytes(content)
    (record,) = run_schedule(plan, schedule, lambda *_: None)
    assert not record.failure


def test_a_damaged_shipped_image_is_written_again_and_a_changed_one_fails_its_job(
    parts: Path, plan_parts, tmp_path: Path
) -> None:
    job = make_schedule(plan_parts(category="bolt")).jobs[0]
    files = {str(path): path.read_bytes() for path in job_files(job)}
    moved = write_images(job, files)
    change(moved.task.train[0].image)
    (failed,) = run_job(write_images(job, {}), lambda *_: None)  # as on a node that has the images already
    assert "has changed" in failed.record.failure
    (outcome,) = run_job(write_images(job, files), lambda *_: None)
    assert not outcome.record.failure
    assert not list(tmp_path.rglob("*.maskbench-tmp"))


def test_a_plan_of_several_seeds_hashes_each_file_once(parts: Path, plan_parts) -> None:
    read: Callable[..., bytes] = Path.read_bytes
    counts: dict[Path, int] = {}

    def count(path: Path) -> bytes:
        counts[path] = counts.get(path, 0) + 1
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", count)
        first = make_schedule(plan_parts(protocol="kshot", k="1,2", seed="0,1,2"))
    assert {job.data_hash for job in first.jobs} == {job.data_hash for job in make_schedule(plan_parts()).jobs}
    assert max(counts[path] for path in parts.rglob("*.png")) == 2  # once for the fingerprint of the category
