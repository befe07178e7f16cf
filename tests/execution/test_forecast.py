"""What a plan will take, by hand from two records that tell of the like."""

from dataclasses import replace
from pathlib import Path

from bench.data.protocol import Task
from bench.execution import schedule
from bench.execution.forecast import Forecast, forecast
from bench.record import Record

from .test_campaign import planned


def test_times_go_by_images_and_the_median_counts(parts: Path) -> None:
    (job,) = schedule.make_schedule(planned(parts, category="bolt")).jobs
    five, six = job.task.train, job.task.tests["bolt"]
    alike = Record(
        run=job.run,
        category="x",
        data_digest="d",
        train_files=["a"] * 10,
        test_files=["b"] * 2,
        epoch=4,
        memory={"host": 7},
    )
    records = [
        replace(alike, seconds={"fit": 20.0, "predict": 1.0, "judge": 1.0}),  # 2 s a training, 1 s a test image
        replace(alike, seconds={"fit": 40.0, "predict": 4.0, "judge": 2.0}),  # 4 s and 3 s
        replace(alike, seconds={"fit": 90.0, "predict": 4.0, "judge": 2.0}, environment={"cuda": "13"}),  # on a GPU
        replace(alike, seconds={"fit": 90.0, "predict": 9.0, "judge": 9.0}, selection="oracle"),
        replace(alike, seconds={"fit": 90.0, "predict": 9.0, "judge": 9.0}, run=replace(job.run, settings={})),
        replace(alike, failure="it fell"),
    ]
    assert (len(five), len(six)) == (5, 6)
    assert forecast([job], records, gpu=False) == Forecast(3.0 * 5 + 2.0 * 6, 0, {"meanmap": 7})
    assert forecast([job], records, gpu=True) == Forecast(9.0 * 5 + 3.0 * 6, 0, {"meanmap": 7})
    # The oracle looks after epochs 2 and 4, each time at all test images; the last answer is asked besides.
    oracle = replace(job, selection="both", eval_every=2)
    assert forecast([oracle], records, gpu=False).seconds == 3.0 * 5 + 2.0 * 6 * 3
    more = replace(job, task=Task("bolt", five[:1], {"bolt": six}))
    other = replace(job, run=replace(job.run, settings={"smoothing": 9.0}))
    assert forecast([job, more, other], records, gpu=False) == Forecast(27.0 + 15.0, 1, {"meanmap": 7})
    assert forecast([job], [], gpu=False) == Forecast(0.0, 1, {})
