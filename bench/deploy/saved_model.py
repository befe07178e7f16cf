"""A kept run, found by what a person calls it and made ready to be asked: for `bench predict` and `bench export`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from bench import environment, registry
from bench.config.settings import resolve
from bench.errors import BenchError
from bench.execution.job import source_hash
from bench.method import Method, Precision, Preprocessing, Setup
from bench.record import Record
from bench.store import Store

_log = logging.getLogger(__name__)

RECORD_DEPTH = 6
"""A record lies so many levels below its store: data set, protocol, name, hash, seed, file."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A fitted method and the record of its run; `path` is the record's."""

    path: Path
    record: Record
    method: Method

    @property
    def preprocessing(self) -> Preprocessing:
        """How a file becomes an input of the method."""
        return Preprocessing(**self.record.run.preprocessing)


def find(run: str, runs: Path, category: str | None = None) -> Path:
    """The record of the one kept run that `run` means.

    run: a record's file; its folder or any folder above; or the end of one below `runs`, as "demo/kshot-4/aminet". The
    category may follow, as "demo/kshot-4/aminet/gear". Raises BenchError where no kept run fits, or several do.
    """
    below, wanted = Path(run).expanduser(), category
    if not below.exists():
        below = runs / run
    if not below.exists() and category is None:
        below, wanted = below.parent, below.name
    if not below.exists():
        raise BenchError(f"A run is a record, its folder, or where it lies below {runs}; {run} is none. "
                         "bench list runs tells what there is.")  # fmt: skip
    files = [below] if below.is_file() else sorted(below.rglob("*.json"))
    found = [path for path in files if path.suffix == ".json" and wanted in {None, path.stem}]
    kept = [path for path in found if path.with_suffix(".safetensors").is_file()]
    if not kept:
        why = "none of its models was kept; run it again with --keep-model" if found else "there is no such record"
        asked = f" of {wanted}" if wanted else ""
        raise BenchError(f"A run is asked by its kept model; {below} has none{asked}: {why}.")
    if len(kept) > 1:
        listed = ", ".join(str(path) for path in kept[:6]) + (" ..." if len(kept) > 6 else "")
        raise BenchError(f"One run is asked; {run} means {len(kept)}: {listed}. Name one, or give --category.")
    return kept[0]


def load(path: Path, *, device: str, weights: Path | None, cache: Path) -> SavedModel:
    """The fitted method whose record lies at `path`.

    Raises BenchError where the record or the model can't be read, where backbone weights are not those of the fit, or
    where the method's file has changed so that the model does not fit it any more.
    """
    path = path.resolve()
    if len(path.parents) < RECORD_DEPTH:
        raise BenchError(f"A record lies {RECORD_DEPTH} levels below its store; {path} does not. Name one below runs/.")
    records = list(Store(path.parents[RECORD_DEPTH - 1]).records(path))
    if not records:
        raise BenchError(f"{path} is no record that can be read; the line above says why. Run it again with --force.")
    (record,) = records
    run, on = record.run, environment.device(device)
    module = registry.load("methods", run.method)
    settings, _ = resolve(module.Settings, {key: (value, "") for key, value in run.settings.items()}, run.name)
    inputs = module.METHOD.file_hashes(settings, weights)
    had = {
        name: value for name, value in run.file_hashes.items() if name != "checkpoint"
    }  # which the kept model replaces
    if inputs != had:
        raise BenchError(
            f"A kept model goes with the weights of its fit; {run.name} had {had}, here are {inputs}. "
            "Name the folder that holds them with --weights."
        )
    if record.source_hash != source_hash(module):
        _log.warning("The file of %s has changed since this run; its answers may differ.", run.method)
    precision: Precision = run.precision  # type: ignore[assignment]  # the config has checked it
    seed = environment.derive_seed(run.seed, "all" if run.protocol == "unified" else record.category)
    environment.seed_everything(seed)
    method: Method = module.METHOD(
        settings, Setup(Preprocessing(**run.preprocessing).size, on, seed, weights, cache / "features", precision)
    )
    model = path.with_suffix(".safetensors")
    try:
        method.restore(load_file(model))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise BenchError(f"{model} must be what {run.method} restores; it is not: {told}. Run it again.") from error
    return SavedModel(path, record, method)


def pictures(kept: SavedModel) -> list[Path]:
    """The prepared images that were stored with the record. Raises BenchError where there are none."""
    views = Store(kept.path.parents[RECORD_DEPTH - 1]).views(kept.record)
    found = [path for name, path in views.items() if name.endswith(".image")]
    if not found:
        raise BenchError(f"Answers are compared on images; none lie beside {kept.path}. Name some with --images.")
    return found


def images(places: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The images that files and folders name, each with its place below the folder that all of them share.

    Hidden files, and files in folders that have no image's extension, are passed over. Raises BenchError where a place
    does not exist or holds no image.
    """
    found = {path.absolute(): path for place in places for path in _images(place)}
    shared = commonpath([place.absolute() if place.is_dir() else place.absolute().parent for place in places])
    return [(path, absolute.relative_to(shared)) for absolute, path in found.items()]


def _images(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise BenchError(f"bench predict takes images and folders of them; {place} is neither. Mend the path.")
    extensions = Image.registered_extensions()
    found = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in extensions and path.is_file()]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(place).parts)]
    if not shown:
        raise BenchError(f"A folder to judge holds images; {place} holds none. Mend the path.")
    return shown
