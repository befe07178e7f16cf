"""The raw answers behind a record, where they are still there."""

import logging

from bench.errors import BenchError
from bench.record import Predictions, Record
from bench.store import Store

_log = logging.getLogger(__name__)


def answers(store: Store, record: Record, *, maps: bool = True) -> Predictions | None:
    """The raw answers of a record; None where none were kept, or where they can't be read, which is told."""
    if "sha256" not in record.artifacts:
        return None
    try:
        return store.predictions(record, maps=maps)
    except BenchError as error:
        _log.warning("%s", error)
        return None
