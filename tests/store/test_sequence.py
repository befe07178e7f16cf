"""The order in which records were saved does not depend on the wall clock."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bench.evaluation.summary import groups
from bench.record import Record
from bench.store import SEQUENCE_FILE, Store

YEAR = 365 * 24 * 3600 * 10**9


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that moves the wall clock by a number of nanoseconds."""
    now = time.time_ns()
    return lambda offset: monkeypatch.setattr(time, "time_ns", lambda: now + offset)


def test_after_a_step_back_of_the_clock_the_new_result_is_shown(
    store: Store, record: Record, set_clock: Callable[[int], None]
) -> None:
    started = ("2031-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00", "2029-01-01T00:00:00+00:00")
    for number, start in enumerate(started):  # the images change between the runs, so each has another record
        set_clock(-number * YEAR)
        store.save(replace(record, data_hash=f"d{number}", metrics={"image_auroc": number / 10}, started=start), None)
        (group,) = groups(store.records())
        assert [each.metrics["image_auroc"] for each in group.records.values()] == [number / 10]
    sequences = sorted(each.sequence for each in store.records())
    assert sequences[1:] == [sequences[0] + 1, sequences[0] + 2]


def test_after_a_step_back_of_the_clock_a_new_failure_is_shown(
    store: Store, record: Record, set_clock: Callable[[int], None]
) -> None:
    store.save(record, None)
    set_clock(-YEAR)
    store.save(replace(record, data_hash="d2", failure="no memory", metrics={}), None)
    (group,) = groups(store.records())
    assert [each.failure for each in group.failed] == ["no memory"]


@pytest.mark.parametrize("content", [None, "", "12", "no number"])
def test_a_lost_or_damaged_sequence_file_is_replaced_by_the_largest_number_of_the_records(
    store: Store, record: Record, set_clock: Callable[[int], None], content: str | None
) -> None:
    first = store.save(record, None)
    file = store.root / SEQUENCE_FILE
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    set_clock(-YEAR)
    assert store.save(replace(record, category="tile"), None).sequence > first.sequence


def test_parallel_saves_have_different_numbers(store: Store, record: Record, set_clock: Callable[[int], None]) -> None:
    set_clock(0)
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda i: store.save(replace(record, category=f"c{i}"), None), range(40)))
    assert len({each.sequence for each in saved}) == 40


def test_new_times_of_a_record_keep_its_place_in_the_order(store: Store, record: Record) -> None:
    first = store.save(record, None)
    store.save(replace(record, category="tile"), None)
    assert store.update(replace(first, latency={"median_ms": 1.0})).sequence == first.sequence
