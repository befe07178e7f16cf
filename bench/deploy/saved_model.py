"""Saved models: find the record of a run and restore its fitted method, for `bench predict` and `bench export`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import abspath, commonpath
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from bench import environment, registry
from bench.config.settings import resolve
from bench.data.value_range import stored_value_range
from bench.dataset import EXTENSIONS
from bench.errors import BenchError
from bench.execution.job import source_hash
from bench.method import Method, Precision, Preprocessing, Setup
from bench.record import Record
from bench.store import Store

_log = logging.getLogger(__name__)

RECORD_DEPTH = 6
"""Number of levels of a record below its store: data set, protocol, name, hash, seed, file."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A restored method with the record of its run.

    Attributes:
        path: file of the record.
        record: the record.
        method: the fitted method.
    """

    path: Path
    record: Record
    method: Method

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the run, with the range of values of its training images."""
        return stored_value_range(Preprocessing(**self.record.run.preprocessing), self.record.data_report)


def find(run: str, runs: Path, category: str | None = None) -> Path:
    """Return the record of the saved model that `run` names.

    Args:
        run: the file of a record; a folder above it; or the end of such a path relative to `runs`, for example
            "demo/kshot-4/aminet" or, with the category, "demo/kshot-4/aminet/gear".
        runs: folder of the records.
        category: the category, if `run` does not name it.

    Raises:
        BenchError: no saved model or several of them match.
    """
    place, name = Path(run).expanduser(), category
    if not place.exists():
        place = runs / run
    if not place.exists() and category is None:
        place, name = place.parent, place.name
    if not place.exists():
        raise BenchError(
            f"RUN must be a record, a folder of records or a path below {runs}; {run} does not exist. "
            f"`bench list runs` lists the runs."
        )
    files = [place] if place.is_file() else sorted(place.rglob("*.json"))
    records = [path for path in files if path.suffix == ".json" and name in {None, path.stem}]
    saved = [path for path in records if path.with_suffix(".safetensors").is_file()]
    if not saved:
        of_category = f" of category {name}" if name else ""
        if not records:
            raise BenchError(f"No record{of_category} in {place}. `bench list runs` lists the runs.")
        raise BenchError(f"No saved model{of_category} in {place}. Rerun with --keep-model.")
    if len(saved) > 1:
        paths = ", ".join(str(path) for path in saved[:6]) + (" ..." if len(saved) > 6 else "")
        raise BenchError(
            f"RUN must match one saved model; {run} matches {len(saved)}: {paths}. Add --category or name one."
        )
    return saved[0]


def load(path: Path, *, device: str, weights: Path | None, cache: Path) -> SavedModel:
    """Restore the fitted method of a record.

    Args:
        path: file of the record; the model is the .safetensors file beside it.
        device: as for --device.
        weights: folder of backbone weights, or None.
        cache: folder for cached features.

    Raises:
        BenchError: the record or the model is unreadable, the backbone weights differ from those of the fit, or the
            model does not match the current source of the method.
    """
    path = path.resolve()
    if len(path.parents) < RECORD_DEPTH:
        raise BenchError(
            f"A record must be {RECORD_DEPTH} levels below its store; {path} is not. Name one below runs/."
        )
    records = list(Store(path.parents[RECORD_DEPTH - 1]).records(path))
    if not records:
        raise BenchError(f"{path} is not a readable record; the warning above gives the reason. Rerun with --force.")
    (record,) = records
    run, target = record.run, environment.device(device)
    module = registry.load("methods", run.method)
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in run.settings.items()}, run.name)
    current = module.METHOD.file_hashes(settings, weights)
    fitted = {name: value for name, value in run.file_hashes.items() if name != "checkpoint"}  # part of the saved model
    if current != fitted:
        raise BenchError(
            f"The weight files must be those of the fit; {run.name} was fitted with {fitted}, found {current}. "
            f"Pass their folder with --weights."
        )
    if record.source_hash != source_hash(module):
        _log.warning("The source of %s has changed since this run; its predictions may differ.", run.method)
    precision: Precision = run.precision  # type: ignore[assignment]  # checked when the run was planned
    seed = environment.derive_seed(run.seed, "all" if run.protocol == "unified" else record.category)
    environment.seed_everything(seed)
    size = Preprocessing(**run.preprocessing).size
    method: Method = module.METHOD(settings, Setup(size, target, seed, weights, cache / "features", precision))
    model = path.with_suffix(".safetensors")
    try:
        method.restore(load_file(model))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(
            f"{model} must be a saved state of {run.method}: {reason}. Rerun with --keep-model."
        ) from error
    return SavedModel(path, record, method)


def example_images(saved: SavedModel) -> list[Path]:
    """Return the preprocessed images that are stored with the record. Raises BenchError if there are none."""
    views = Store(saved.path.parents[RECORD_DEPTH - 1]).views(saved.record)
    paths = [path for name, path in views.items() if name.endswith(".image")]
    if not paths:
        raise BenchError(f"The comparison needs images; {saved.path} has no stored ones. Pass some with --images.")
    return paths


def list_images(places: Sequence[Path], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Return the images of files and folders, each with its path relative to their common folder.

    In folders, hidden files, files without an image extension and the results of earlier predictions are skipped. No
    two images have the same relative path.

    Args:
        places: files and folders.
        out: the folder of the results of this call, which is skipped as well.

    Raises:
        BenchError: a file or folder does not exist, or a folder has no image.
    """
    paths = {_absolute(path): path for place in places for path in _images_of(place, out)}
    folders = [_absolute(place) if place.is_dir() else _absolute(place).parent for place in places]
    try:
        common = Path(commonpath(folders))
    except ValueError:  # on several drives of Windows
        return [(path, Path(f"{index:06}_{path.name}")) for index, path in enumerate(paths.values())]
    return [(path, absolute.relative_to(common)) for absolute, path in paths.items()]


def _absolute(path: Path) -> Path:
    """Return the absolute path without "..", which in an output path would lead out of its folder."""
    return Path(abspath(path))  # noqa: PTH100  resolve() would give two links the name of one file


def _images_of(place: Path, out: Path | None) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise BenchError(f"bench predict needs images or folders of images; {place} does not exist. Correct the path.")
    paths = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in EXTENSIONS and path.is_file()]
    results = {path.parent for path in place.rglob("scores.csv") if (path.parent / "overlays").is_dir()}
    results |= {_absolute(out)} if out is not None else set()
    visible = [
        path
        for path in paths
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(place).parts)
        and not results & {path.parent, *path.parents, *_absolute(path).parents}
    ]
    if not visible:
        raise BenchError(f"bench predict needs folders with images; {place} has none. Correct the path.")
    return visible
