"""The estimated cost of a plan, computed by hand from two similar records."""

from dataclasses import replace

from bench.data.protocol import Task
from bench.execution.forecast import Forecast, forecast
from bench.execution.schedule import make_schedule


def test_times_are_proportional_to_the_numbers_of_images_and_the_median_is_used(plan_parts, make_record) -> None:
    (job,) = make_schedule(plan_parts(category="bolt")).jobs
    train, tests = job.task.train, job.task.tests["bolt"]
    similar = make_record(job.run, train_files=["a"] * 10, test_files=["b"] * 2, epoch=4, memory={"host": 7})
    ninety = {"fit": 90.0, "predict": 9.0, "evaluate": 9.0}  # 9 s per image
    records = [
        replace(
            similar, seconds={"fit": 20.0, "predict": 1.0, "evaluate": 1.0}
        ),  # 2 s per training image, 1 s per test
        replace(similar, seconds={"fit": 40.0, "predict": 4.0, "evaluate": 2.0}),  # 4 s and 3 s
        replace(similar, seconds=ninety, environment={"cuda": "13"}),  # on a GPU
        replace(similar, seconds=ninety, selection="oracle"),
        replace(similar, seconds=ninety, run=replace(job.run, settings={})),
        replace(similar, seconds={}, failure="out of memory"),
    ]
    assert (len(train), len(tests)) == (5, 6)
    assert forecast([job], records, gpu=False) == Forecast(3.0 * 5 + 2.0 * 6, 0, {"meanmap": 7})
    assert forecast([job], records, gpu=True) == Forecast(9.0 * 5 + 9.0 * 6, 0, {"meanmap": 7})
    # The oracle predicts all test images after epochs 2 and 4, and the last epoch is predicted too.
    oracle = replace(job, evaluation=replace(job.evaluation, selection="both", eval_every=2))
    assert forecast([oracle], records, gpu=False).seconds == 3.0 * 5 + 2.0 * 6 * 3
    one_shot = replace(job, task=Task("bolt", train[:1], {"bolt": tests}))  # 3 + 12 s
    unknown = replace(job, run=replace(job.run, settings={"smoothing": 9.0}))
    assert forecast([job, one_shot, unknown], records, gpu=False) == Forecast(27.0 + 15.0, 1, {"meanmap": 7})
    assert forecast([job], [], gpu=False) == Forecast(0.0, 1, {})
