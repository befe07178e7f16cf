"""Join the stores of several machines: `bench merge`.

The path of a record is the hash of everything that affects its metrics. So records of two stores with the same path are
the same computation, and must have the same numbers. If they do not, both are reported and none is overwritten. A
failed record is replaced by one with metrics.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import BenchError
from bench.files import files_below
from bench.identity import Difference, number_differences
from bench.store import Store


@dataclass(slots=True)
class MergeResult:
    """What a merge did.

    Attributes:
        added: number of records that were copied.
        replaced: number of failed records that were replaced by one with metrics.
        equal: number of records that the target has with the same numbers, or that failed while the target's did not.
        conflicts: path below the store, folder of the other store, and the differences of each record that the target
            has with other numbers.
        damaged: file and reason of each record that cannot be merged.
    """

    added: int = 0
    replaced: int = 0
    equal: int = 0
    conflicts: list[tuple[Path, Path, list[Difference]]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)


def merge_stores(sources: Iterable[Path], target: Path) -> MergeResult:
    """Copy the records of the sources, with their files, into the target, which is created if it does not exist.

    Each file is verified by its hash. A record keeps its `sequence`, which is its time of saving in microseconds: the
    merged records have the order in which they were saved.

    Args:
        sources: folders of records; if two have a record with different numbers, that of the first one is kept.
        target: folder of records.

    Raises:
        BenchError: a source is not a folder or is the target, or the target is not writable.
    """
    sources = list(sources)
    for folder in sources:
        if not folder.is_dir():
            raise BenchError(f"bench merge needs folders of records; {folder} is not a folder. Correct the path.")
        first, second = folder.resolve(), target.resolve()
        if first.is_relative_to(second) or second.is_relative_to(first):
            raise BenchError(
                f"bench merge needs a target apart from its sources, got {folder} and {target}. Remove the source, or "
                f"pass another --to."
            )
    result = MergeResult()
    for folder in sources:
        _merge_store(Store(folder), Store(target), result)
    return result


def _merge_store(source: Store, target: Store, result: MergeResult) -> None:
    for path in files_below(source.root, ".json"):
        record = next(source.records(path), None)
        if record is None:
            result.damaged.append(
                (path, "it is not a record of this version at its path; the warning gives the reason")
            )
            continue
        existing = target.get(record.run, record.data_hash, record.category, record.selection)
        if existing and (record.failure or not existing.failure):
            differences = [] if record.failure else number_differences(existing, record)
            if differences:
                result.conflicts.append((path.relative_to(source.root), source.root, differences))
            else:
                result.equal += 1
            continue
        try:
            files = source.files(record)
        except BenchError as error:
            result.damaged.append((path, str(error)))
            continue
        target.add(record, files)
        result.replaced += existing is not None
        result.added += existing is None
