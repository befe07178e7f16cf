"""The folder of results: records with their predictions, models and pictures.

    runs/<dataset>/<protocol>[-k]/<name>/<run hash>/seed<s>/<category>[.oracle].json   the record
                                                        <category>[.oracle].npz    the predictions
                                                        <category>.safetensors     the fitted method, with --keep-model
                                                        pictures/<category>/*.png  pictures for reports
                                                        <task>.<n>.checkpoint      the state of an interrupted fit

All files of a record are written under temporary names and then renamed. The record is renamed last, so its presence
implies that the other files exist. It holds the hash of each of them, and a file is used only if its hash is that one.
"""

import io
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.errors import BenchError
from bench.files import files_below, folder_lock, read_regular_file, remove_abandoned, write_files
from bench.identity import run_hash
from bench.predictions_file import pack, unpack
from bench.record import MAX_BYTES, MapPrecision, Predictions, Record, Run, Selection

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

SEQUENCE_FILE = ".sequence"
"""File in the folder of a store with the largest `Record.sequence` so far."""


_PICTURE_NAME = re.compile(r"(?!\.)[\w+. -]{1,60}")


class Store:
    """A folder of records, which only this class writes; `FitCheckpoints` writes checkpoints beside them.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run: Run, data_hash: str, category: str, selection: Selection) -> Path:
        """Return the path of that record, whether or not it exists."""
        folder = self.root / run.store_name / run_hash(run, data_hash) / f"seed{run.seed}"
        return folder / (f"{category}.oracle.json" if selection == "oracle" else f"{category}.json")

    def path_of(self, record: Record) -> Path:
        """Return the path of a record."""
        return self.path(record.run, record.data_hash, record.category, record.selection)

    def checkpoint_path(self, run: Run, data_hash: str, task: str, number: int) -> Path:
        """Return the path of a checkpoint of a fit, whether or not it exists; `number` is that of a loop in it."""
        return self.path(run, data_hash, task, "last").with_suffix(f".{number}.checkpoint")

    def remove_checkpoints(self, run: Run, data_hash: str, task: str) -> None:
        """Remove the checkpoints of a fit; log those that cannot be removed."""
        folder = self.checkpoint_path(run, data_hash, task, 0).parent
        is_of_task = re.compile(re.escape(task) + r"\.\d+\.checkpoint").fullmatch  # not those of a task "bolt.v2"
        paths = [path for path in folder.glob("*.checkpoint") if is_of_task(path.name)]
        for path in sorted(paths, reverse=True):  # a kill leaves the first one
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                _log.warning("%s cannot be removed: %s. Make its folder writable.", path, error.strerror)

    def get(self, run: Run, data_hash: str, category: str, selection: Selection) -> Record | None:
        """Return that record, or None if it does not exist or cannot be read."""
        path = self.path(run, data_hash, category, selection)
        try:
            return self._read(path) if path.is_file() else None
        except OSError:  # a name that this file system cannot store; `save` reports it
            return None

    def save(
        self,
        record: Record,
        predictions: Predictions | None,
        *,
        map_precision: MapPrecision = "float16",
        pictures: Mapping[str, NDArray[np.uint8]] | None = None,
        model: bytes | None = None,
    ) -> Record:
        """Write the predictions, the pictures, the model, and last the record.

        Args:
            record: the record, whose fields determine the path.
            predictions: the predictions, or None if the run failed.
            map_precision: how the maps are stored.
            pictures: pictures by name, (h, w) or (h, w, 3).
            model: the fitted method as safetensors, or None.

        Returns:
            The record as written, with its artifacts.

        Raises:
            BenchError: if a value cannot be written or the folder is not writable. An existing record is then
                unchanged, and the new result is saved in a temporary folder if possible.
        """
        path = self.path_of(record)
        files: dict[Path, bytes] = {}
        artifacts = {name: value for name, value in record.artifacts.items() if not name.endswith("sha256")}
        artifacts["model"] = model is not None
        if model is not None:
            files[path.with_suffix(".safetensors")] = model
            artifacts["model_sha256"] = sha256(model).hexdigest()
        if predictions is not None:
            stored_precision: MapPrecision = "none" if predictions.maps is None else map_precision
            packed = files[path.with_suffix(".npz")] = pack(predictions, stored_precision)
            artifacts |= {"map_precision": stored_precision, "sha256": sha256(packed).hexdigest()}
        hashes = {}
        for name, picture in (pictures or {}).items():
            check_picture_name(name)
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files[_picture_path(path, name)] = file.getvalue()
            hashes[name] = sha256(file.getvalue()).hexdigest()
        record = replace(record, artifacts=artifacts | ({"pictures_sha256": hashes} if hashes else {}))
        record.to_json()  # raises the error of a wrong value before anything is written
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            record = replace(record, sequence=self._next_sequence())
            previous_files = [
                path.with_suffix(".npz"),
                path.with_suffix(".safetensors"),
                *_pictures_folder(path).glob("*.png"),
            ]
            obsolete = [path, *(file for file in previous_files if file not in files)]
            write_files(files | {path: record.to_json().encode()}, obsolete=obsolete, lock=self.root)
        except OSError as error:
            raise BenchError(
                f"Writing results below {self.root} failed ({error.strerror}: {error.filename or path}). "
                f"{self._save_elsewhere(path, record, files)} "
                f"Free disk space or make the folder writable, or choose another one with --runs."
            ) from error
        return record

    def add(self, record: Record, files: Mapping[Path, bytes]) -> None:
        """Write a record of another store with what its `files` returned; its `sequence` is kept.

        Raises BenchError if the folder is not writable.
        """
        path = self.path_of(record)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._include_sequence(record.sequence)
            content = {self.root / name: content for name, content in files.items()}
            write_files(content | {path: record.to_json().encode()}, obsolete=[path], lock=self.root)
        except OSError as error:
            raise BenchError(
                f"Writing {path} failed ({error.strerror}). Free disk space or make the folder writable."
            ) from error

    def files(self, record: Record) -> dict[Path, bytes]:
        """Return the content of the other files of a record, by their path below the root.

        Raises BenchError if one is missing or is not the one that the record names.
        """
        path, artifacts = self.path_of(record), record.artifacts
        hashes = {path.with_suffix(".npz"): artifacts["sha256"]} if "sha256" in artifacts else {}
        if artifacts.get("model"):
            hashes[path.with_suffix(".safetensors")] = artifacts.get("model_sha256")
        for name, digest in artifacts.get("pictures_sha256", {}).items():
            check_picture_name(name)
            hashes[_picture_path(path, name)] = digest
        return {file.relative_to(self.root): read_verified(file, digest) for file, digest in hashes.items()}

    def update(self, record: Record) -> Record:
        """Replace a record; its predictions, pictures and model stay as they are. Raises BenchError as `save` does."""
        path = self.path_of(record)
        try:
            write_files({path: record.to_json().encode()}, lock=self.root)
        except OSError as error:
            raise BenchError(
                f"Writing {path} failed ({error.strerror}). Free disk space or make the folder writable."
            ) from error
        return record

    def check_writable(self, needed: int = 0) -> None:
        """Raise BenchError if the folder is not writable or has less than `needed` free bytes.

        Temporary files that killed processes left in the store are removed first.
        """
        remove_abandoned(self.root, recursive=True)
        folder = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        try:
            tempfile.TemporaryFile(dir=folder).close()
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise BenchError(
                f"Results are written below {self.root}, but {folder} is not writable ({error.strerror}). "
                f"Change its permissions, or choose another folder with --runs."
            ) from error
        if needed > free:
            raise BenchError(
                f"The predictions of this plan need about {needed / 1e6:.1f} MB; "
                f"{folder} has {free / 1e6:.1f} MB free. "
                f"Free some, choose another folder with --runs, or store less with --map-precision none."
            )

    def _save_elsewhere(self, path: Path, record: Record, files: Mapping[Path, bytes]) -> str:
        """Write a result into a temporary folder, and return a sentence that states where."""
        try:
            root = Path(tempfile.mkdtemp(prefix="maskbench-"))
            moved = {root / file.relative_to(self.root): content for file, content in files.items()}
            write_files(moved | {root / path.relative_to(self.root): record.to_json().encode()})
        except OSError:
            return "A temporary folder has no space either: this result is lost; rerun the command to compute it again."
        return f"This result is saved in {root}: copy its content into {self.root}."

    def records(self, below: Path | None = None) -> Iterator[Record]:
        """Yield all records in the order of their paths; log and skip those, and folders, that cannot be read.

        Args:
            below: file of a record, or folder of records; default: all records.
        """
        below = below or self.root
        for path in [below] if below.is_file() else files_below(below, ".json"):
            record = self._read(path)
            if record is not None:
                yield record

    def predictions(self, record: Record, *, maps: bool = True) -> Predictions:
        """Return the predictions of a record, without `maps` if these are not needed.

        Raises BenchError if the file is missing or is not the one that the record names.
        """
        path = self.path_of(record).with_suffix(".npz")
        packed = read_verified(path, record.artifacts.get("sha256"))
        try:
            return unpack(packed, maps=maps)
        except Exception as error:  # NumPy and zipfile raise many types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BenchError(f"{path} must hold valid predictions: {reason:.200}. Rerun with --force.") from error

    def pictures(self, record: Record) -> dict[str, Path]:
        """Return the pictures stored with a record, by name. Raises BenchError as `predictions` does."""
        return {name: self.picture(record, name) for name in picture_names(record)}

    def picture(self, record: Record, name: str) -> Path:
        """Return one of the pictures stored with a record. Raises BenchError as `predictions` does."""
        path = _picture_path(self.path_of(record), name)
        read_verified(path, record.artifacts["pictures_sha256"][name])
        return path

    def _next_sequence(self) -> int:
        """Return the `sequence` of the next record, and store it as the largest one."""
        with folder_lock(self.root):
            following = max(self._last_sequence() + 1, time.time_ns() // 1000)
            self._write_sequence(following)
        return following

    def _include_sequence(self, sequence: int) -> None:
        """Store the `sequence` of a record of another store as the largest one if it is; later ones are larger."""
        with folder_lock(self.root):
            last = self._last_sequence()
            if sequence > last:
                self._write_sequence(sequence)

    def _last_sequence(self) -> int:
        try:
            number, end = (self.root / SEQUENCE_FILE).read_text("ascii").split(".")
            return int(number + end)
        except (FileNotFoundError, ValueError):  # also a file that is cut off, because the disk was full
            return max((record.sequence for record in self.records()), default=0)

    def _write_sequence(self, sequence: int) -> None:
        (self.root / SEQUENCE_FILE).write_text(f"{sequence}.", "ascii")

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per record: the run's fields (`dataset`, `settings.<name>`, ...), `metrics.<name>`, times."""
        return to_frame(self.records())

    def _read(self, path: Path) -> Record | None:
        try:
            record = Record.from_json(read_regular_file(path, MAX_BYTES).decode("utf-8"))
        except (OSError, UnicodeDecodeError, BenchError) as error:
            _log.warning("%s is skipped: %s", path, error)
            return None
        if self.path_of(record) != path:
            _log.warning("%s is skipped: its fields do not belong to its path. Remove it.", path)
            return None
        return record


def to_frame(records: Iterable[Record]) -> "pd.DataFrame":
    """Return one row per record, as `Store.to_frame` does."""
    import pandas as pd

    return pd.DataFrame([to_row(record) for record in records])


def to_row(record: Record) -> dict[str, Any]:
    """Return the values of a record by column: `dataset`, `settings.epochs`, `metrics.image_auroc`, ..."""
    values = asdict(record)
    return dict(_columns("", values.pop("run") | values))


def _columns(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _columns(f"{name}.{key}" if name else key, part)
    else:
        yield name, value


def read_verified(path: Path, digest: str | None) -> bytes:
    """Return the content of an artifact. Raises BenchError if it is unreadable or its hash differs from the record."""
    try:
        content = read_regular_file(path)
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}). Rerun with --force.") from error
    if sha256(content).hexdigest() != digest:
        raise BenchError(f"{path} is not the file that its record names. Rerun with --force.")
    return content


def picture_names(record: Record) -> list[str]:
    """Return the names of the pictures stored with a record, sorted."""
    return sorted(record.artifacts.get("pictures_sha256", {}))


def check_picture_name(name: str) -> None:
    """Raise BenchError if a picture's name is not valid in a file name."""
    if not _PICTURE_NAME.fullmatch(name):
        raise BenchError(
            f"A picture's name must consist of at most 60 letters, digits, spaces and _ + - . only, got {name!r:.200}. "
            f"Rename it in explain."
        )


def _picture_path(path: Path, name: str) -> Path:
    return _pictures_folder(path) / f"{name}.png"


def _pictures_folder(path: Path) -> Path:
    return path.parent / "pictures" / path.stem
