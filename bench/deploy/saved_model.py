"""Saved models: find the record of a run and load its fitted method, for `bench predict` and `bench export`."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import abspath, commonpath
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from bench import environment, registry
from bench.config.bench_toml import expand_user
from bench.config.settings import resolve
from bench.data.value_range import stored_value_range
from bench.errors import BenchError
from bench.execution.fit import check_prediction
from bench.execution.job import source_hash
from bench.files import files_below
from bench.method import Method, Precision, Prediction, Preprocessing, Setup
from bench.record import Record
from bench.store import Store, read_verified

_log = logging.getLogger(__name__)

MAX_NAMES = 3
"""Number of names of each kind of unused files that a warning lists."""

RECORD_DEPTH = 6
"""Number of levels of a record below its store: dataset, protocol, name, hash, seed, file."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A loaded method with the record of its run.

    Attributes:
        path: file of the record.
        record: the record.
        method: the fitted method.
    """

    path: Path
    record: Record
    method: Method

    def predict(self, images: Tensor) -> Prediction:
        """Return the checked prediction for (b, 3, h, w) images. Raises BenchError if the method raises any error."""
        images = images.to(self.method.setup.device)
        with registry.plugin_call("methods", self.record.run.method), torch.no_grad():
            prediction = self.method.predict(images)
            check_prediction(prediction, images)
        return prediction

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the run, with the range of values of its training images."""
        return stored_value_range(Preprocessing.from_record(self.record.run.preprocessing), self.record.data_report)


def find(run: str, runs: Path, category: str | None = None) -> Path:
    """Return the record of the saved model that `run` names.

    Args:
        run: the file of a record; a folder above it; or the end of such a path relative to `runs`, for example
            "demo/kshot-4/aminet" or, with the category, "demo/kshot-4/aminet/gear"; with a group hash of `bench list
            runs`, "demo/kshot-4/aminet/HASH" and "demo/kshot-4/aminet/HASH/gear".
        runs: folder of the records.
        category: the category, if `run` does not name it.

    Raises:
        BenchError: no saved model or several of them match.
    """
    folder, name = expand_user(run), category
    run = run.replace(":", "-")  # the folder of anomalib:Padim
    if not folder.exists():
        folder = runs / run
    if not folder.exists() and category is None and not _is_hash(folder.name):
        folder, name = folder.parent, folder.name
    group_hash = ""
    if not folder.exists() and _is_hash(folder.name):
        folder, group_hash = folder.parent, folder.name
    if not folder.exists():
        raise BenchError(
            f"RUN must be a record, a folder of records or a path below {runs}; {run} does not exist. "
            f"`bench list runs` lists the runs."
        )
    files = [folder] if folder.is_file() else files_below(folder, ".json")
    records = [path for path in files if path.suffix == ".json" and name in {None, path.stem}]
    if group_hash:
        store = Store(runs)
        of_group = {store.path_of(record) for record in store.records(folder) if record.run.group_hash == group_hash}
        records = [path for path in records if path in of_group]
    saved = [path for path in records if path.with_suffix(".safetensors").is_file()]
    if not saved:
        of_category = f" of category {name}" if name else ""
        if not records:
            raise BenchError(f"No record{of_category} in {folder}. `bench list runs` lists the runs.")
        raise BenchError(f"No saved model{of_category} in {folder}. Rerun with --keep-model.")
    if len(saved) > 1:
        paths = ", ".join(str(path) for path in saved[:6]) + (" ..." if len(saved) > 6 else "")
        raise BenchError(
            f"RUN must match one saved model; {run} matches {len(saved)}: {paths}. Add --category or name one."
        )
    return saved[0]


def _is_hash(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{12}", name) is not None


def load(path: Path, *, device: str, weights: Path | None, cache: Path) -> SavedModel:
    """Load the fitted method of a record.

    Args:
        path: file of the record; the model is the .safetensors file next to it.
        device: device, as for --device.
        weights: folder of backbone weights, or None.
        cache: folder for cached features.

    Raises:
        BenchError: the record or the model is unreadable, the model is not the one of the record, the backbone weights
            differ from those of the fit, or the model does not match the current source of the method.
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
    model = path.with_suffix(".safetensors")
    content = read_verified(model, record.artifacts.get("model_sha256"))
    with registry.plugin_call("methods", record.run.method):
        method = _restore_method(record, model, content, device=device, weights=weights, cache=cache)
    return SavedModel(path, record, method)


def _restore_method(
    record: Record, model: Path, content: bytes, *, device: str, weights: Path | None, cache: Path
) -> Method:
    """Return the fitted method whose state is the content of the file `model`."""
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
    size = Preprocessing.from_record(run.preprocessing).size
    method: Method = module.METHOD(settings, Setup(size, target, seed, weights, cache / "features", precision))
    try:
        method.load_state_dict(safetensors_torch.load(content))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(
            f"{model} must be a saved state of {run.method}: {reason}. Rerun with --keep-model."
        ) from error
    return method


def example_images(saved: SavedModel) -> list[Path]:
    """Return the preprocessed images that are stored with the record. Raises BenchError if there are none."""
    pictures = Store(saved.path.parents[RECORD_DEPTH - 1]).pictures(saved.record)
    paths = [path for name, path in pictures.items() if name.endswith(".image")]
    if not paths:
        raise BenchError(f"The comparison needs images; {saved.path} has no stored ones. Pass some with --images.")
    return paths


def list_images(paths: Sequence[Path], out: Path | None = None) -> list[tuple[Path, Path]]:
    """Return the images of files and folders, each with its path relative to their common folder.

    In folders, masks, files without an image extension, pipes and devices are skipped with a warning; hidden files and
    the results of earlier predictions without one. No two images have the same relative path.

    Args:
        paths: files and folders.
        out: folder of the results of this command, which is skipped as well.

    Raises:
        BenchError: a file or folder does not exist, or a folder has no image.
    """
    images_by_path: dict[Path, Path] = {}
    masks: dict[Path, str] = {}
    others: dict[Path, str] = {}
    for path in paths:
        if path.is_file():
            images_by_path.setdefault(_absolute(path), path)
            continue
        images, masks_of_folder, others_of_folder = _sort_folder(path, out)
        for image in images:
            images_by_path.setdefault(_absolute(image), image)
        masks |= {_absolute(file): file.relative_to(path).as_posix() for file in masks_of_folder}
        others |= {_absolute(file): file.relative_to(path).as_posix() for file in others_of_folder}
    _warn_unused_files(
        [name for path, name in masks.items() if path not in images_by_path],
        [name for path, name in others.items() if path not in images_by_path],
    )
    folders = [_absolute(path) if path.is_dir() else _absolute(path).parent for path in paths]
    try:
        common = Path(commonpath(folders))
    except ValueError:  # on several drives of Windows
        return [(image, Path(f"{index:06}_{image.name}")) for index, image in enumerate(images_by_path.values())]
    return [(image, absolute.relative_to(common)) for absolute, image in images_by_path.items()]


def _absolute(path: Path) -> Path:
    """Return the absolute path without "..", which in an output path would lead out of its folder."""
    return Path(abspath(path))  # noqa: PTH100  resolve() would give two links the name of one file


def _sort_folder(path: Path, out: Path | None) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the images, the masks and the other files of a folder, without the results of predictions."""
    if not path.is_dir():
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise BenchError(f"bench predict needs images or folders of images; {path} {reason}. Correct the path.")
    results = {file.parent for file in path.rglob("scores.csv") if (file.parent / "overlays").is_dir()}
    results |= {_absolute(out)} if out is not None else set()
    files = [file for file in files_below(path) if not results & {file.parent, *file.parents, *_absolute(file).parents}]
    images, masks, others = registry.load("datasets", "folder").sort_files(path, files)
    if not images:
        raise BenchError(f"bench predict needs folders with images; {path} has none. Correct the path.")
    return images, masks, others


def _warn_unused_files(masks: Sequence[str], others: Sequence[str]) -> None:
    """Log one warning with the number of masks and of other files in folders of images, and some of their names."""
    parts = []
    for one, several, names in (
        ("mask", "masks", masks),
        ("file that is not an image", "files that are not images", others),
    ):
        if names:
            examples = ", ".join([*names[:MAX_NAMES], *(["..."] if len(names) > MAX_NAMES else [])])
            parts.append(f"{len(names)} {one if len(names) == 1 else several} ({examples})")
    if parts:
        _log.warning("Not used: %s. To predict one of them, pass the file itself.", " and ".join(parts))
