"""The folder of results: records with their predictions, models and pictures.

    runs/<dataset>/<protocol>[-k]/<name>/<hash>/seed<s>/<category>[.oracle].json   the record
                                                        <category>[.oracle].npz    the predictions
                                                        <category>.safetensors     the fitted method, with --keep-model
                                                        views/<category>/*.png     pictures for reports

All files of a record are written under temporary names and then renamed. The record is renamed last, so its presence
implies that the other files exist.
"""

import fcntl
import glob
import io
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.errors import BenchError
from bench.identity import run_hash
from bench.record import Maps, Predictions, Record, Run, Selection, to_float16, to_float32

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

STALE_SECONDS = 3600
"""Age after which a temporary file is considered left by a killed process, and removed."""


class Store:
    """A folder of records; only this class writes to it.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run: Run, data_digest: str, category: str, selection: Selection) -> Path:
        """Return the path of that record, whether or not it exists."""
        protocol = f"{run.protocol}-{run.k}" if run.k else run.protocol
        name = run.name.replace(":", "-")
        folder = self.root / run.dataset / protocol / name / run_hash(run, data_digest) / f"seed{run.seed}"
        return folder / (f"{category}.oracle.json" if selection == "oracle" else f"{category}.json")

    def path_of(self, record: Record) -> Path:
        """Return the path of a record."""
        return self.path(record.run, record.data_digest, record.category, record.selection)

    def get(self, run: Run, data_digest: str, category: str, selection: Selection) -> Record | None:
        """Return that record, or None if it does not exist or cannot be read."""
        path = self.path(run, data_digest, category, selection)
        try:
            return self._read(path) if path.is_file() else None
        except OSError:  # a name that this file system cannot store; `save` reports it
            return None

    def save(
        self,
        record: Record,
        predictions: Predictions | None,
        *,
        maps: Maps = "float16",
        views: Mapping[str, NDArray[np.uint8]] | None = None,
        model: bytes | None = None,
    ) -> Record:
        """Write the predictions, the pictures, the model, and last the record.

        Args:
            record: with the fields that decide the path.
            predictions: or None if the run failed.
            maps: how the maps are stored.
            views: pictures by name, (h, w) or (h, w, 3).
            model: the fitted method as safetensors, or None.

        Returns:
            The record as written, with its artifacts.

        Raises:
            BenchError: if a value cannot be written or the folder is not writable. An existing record is then
                unchanged, and the new result is saved in a temporary folder if possible.
        """
        path = self.path_of(record)
        files = {path.with_suffix(".safetensors"): model} if model is not None else {}
        record = replace(record, artifacts=record.artifacts | {"model": model is not None})
        if predictions is not None:
            stored_maps: Maps = "none" if predictions.maps is None else maps
            packed = _pack(predictions, stored_maps)
            files[path.with_suffix(".npz")] = packed
            digest = sha256(packed).hexdigest()
            record = replace(record, artifacts=record.artifacts | {"maps": stored_maps, "sha256": digest})
        for name, picture in (views or {}).items():
            if Path(name).name != name:
                raise BenchError(f"A picture's name must be valid in a file name, got '{name}'. Rename it in explain.")
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files[_views_folder(path) / f"{name}.png"] = file.getvalue()
        try:
            _write(path, record.to_json().encode(), files, self.root)
        except OSError as error:
            raise BenchError(
                f"Writing results below {self.root} failed ({error.strerror}: {error.filename or path}). "
                f"{self._save_elsewhere(path, record, files)} "
                f"Free disk space or make the folder writable, or choose another one with --runs."
            ) from error
        return record

    def update(self, record: Record) -> Record:
        """Replace a record; its predictions, pictures and model stay as they are."""
        _write(self.path_of(record), record.to_json().encode(), {}, self.root)
        return record

    def check_writable(self, needed: int = 0) -> None:
        """Raise BenchError if the folder is not writable or has less than `needed` free bytes."""
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
                f"Free some, choose another folder with --runs, or store less with --maps none."
            )

    def _save_elsewhere(self, path: Path, record: Record, files: Mapping[Path, bytes]) -> str:
        """Write a result into a temporary folder, and return a sentence that says where."""
        try:
            root = Path(tempfile.mkdtemp(prefix="maskbench-"))
            moved = {root / file.relative_to(self.root): content for file, content in files.items()}
            _write(root / path.relative_to(self.root), record.to_json().encode(), moved, root)
        except OSError:
            return "A temporary folder has no space either: this result is lost; rerun the command to compute it again."
        return f"This result is saved in {root}: copy its content into {self.root}."

    def records(self, below: Path | None = None) -> Iterator[Record]:
        """Yield all records in the order of their paths; log and skip those that cannot be read.

        Args:
            below: only the record of that path, or those in that folder.
        """
        below = below or self.root
        for path in [below] if below.is_file() else sorted(below.rglob("*.json")):
            record = self._read(path)
            if record is not None:
                yield record

    def predictions(self, record: Record, *, maps: bool = True) -> Predictions:
        """Return the predictions of a record, without `maps` if these are not needed.

        Raises BenchError if the file is missing or is not the one that the record names.
        """
        path = self.path_of(record).with_suffix(".npz")
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise BenchError(
                f"The predictions {path} cannot be read ({error.strerror}). Rerun with --force."
            ) from error
        if sha256(packed).hexdigest() != record.artifacts.get("sha256"):
            raise BenchError(f"{path} is not the file that its record names. Rerun with --force.")
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            shape = arrays["shape"].tolist()
            bits = np.unpackbits(arrays["masks"], count=math.prod(shape)).reshape(shape)
            stored_maps = None
            if maps and "maps" in arrays:
                stored_maps = arrays["maps"]
                if "exponent" in arrays:
                    stored_maps = to_float32(stored_maps, int(arrays["exponent"]))
            return Predictions(
                files=tuple(arrays["files"].tolist()),
                defects=tuple(arrays["defects"].tolist()),
                scores=arrays["scores"],
                maps=stored_maps,
                masks=bits.view(np.bool_),
                has_pixel_labels=arrays["has_pixel_labels"],
                soft_masks=_unpack_soft_masks(arrays, bits) if "soft_values" in arrays else None,
            )

    def views(self, record: Record) -> dict[str, Path]:
        """Return the pictures stored with a record, by name."""
        return {path.stem: path for path in sorted(_views_folder(self.path_of(record)).glob("*.png"))}

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per record: the run's fields (`dataset`, `settings.<name>`, ...), `metrics.<name>`, times."""
        return to_frame(self.records())

    def _read(self, path: Path) -> Record | None:
        try:
            record = Record.from_json(path.read_text(encoding="utf-8"))
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

    rows = [asdict(record) for record in records]
    return pd.json_normalize([row.pop("run") | row for row in rows])


def _views_folder(path: Path) -> Path:
    return path.parent / "views" / path.stem


def _pack(predictions: Predictions, maps: Maps) -> bytes:
    """Return the predictions as an npz file; equal predictions give equal bytes."""
    arrays: dict[str, Any] = {
        "files": np.array(predictions.files),
        "defects": np.array(predictions.defects),
        "scores": predictions.scores,
        "has_pixel_labels": predictions.has_pixel_labels,
        "shape": np.array(predictions.masks.shape),
        "masks": np.packbits(predictions.masks),
    }
    if predictions.maps is not None and maps == "float32":
        arrays["maps"] = predictions.maps
    elif predictions.maps is not None and maps == "float16":
        arrays["maps"], arrays["exponent"] = to_float16(predictions.maps)
    soft = predictions.soft_masks
    if soft is not None:  # they equal the masks except at their edges
        places = np.flatnonzero(soft != predictions.masks * np.uint8(255))
        arrays["soft_values"], arrays["soft_places"] = (
            soft.ravel()[places],
            places.astype(np.min_scalar_type(soft.size)),
        )
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpack_soft_masks(arrays: Mapping[str, NDArray[Any]], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (n, h, w) soft masks in 0..255: the masks of (n, h, w) bits, with other values at the stored places."""
    soft = bits * np.uint8(255)
    soft.put(arrays["soft_places"].astype(np.intp), arrays["soft_values"])
    return soft


def _write(last: Path, content: bytes, others: Mapping[Path, bytes], root: Path) -> None:
    """Write all files under temporary names, remove the old `last`, and rename all, `last` at the end.

    If the disk is full, the old files stay unchanged. If the process is killed between two renames, there is no `last`.
    If two processes write the same record, the later one replaces all files of the other.
    """
    unique = uuid4().hex[:12]  # process ids are not unique across machines
    temporary = {path: path.with_name(f".{path.name}.{unique}") for path in (*others, last)}
    try:
        for path, written in temporary.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written.open("wb") as file:
                file.write(content if path == last else others[path])
                file.flush()
                os.fsync(file.fileno())
        with _store_lock(root):
            if others:
                last.unlink(missing_ok=True)
            for path, written in temporary.items():
                written.replace(path)
        _remove_stale(temporary)
    finally:
        for written in temporary.values():
            with suppress(OSError):
                written.unlink(missing_ok=True)


@contextmanager
def _store_lock(root: Path) -> Iterator[None]:
    """Wait until no other process renames files in this store. The lock ends with the process that holds it."""
    folder = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: two writers of one record may then interleave
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_stale(paths: Iterable[Path]) -> None:
    """Remove temporary files of these paths that killed processes left."""
    for path in paths:
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*"):
            with suppress(OSError):
                if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                    stale.unlink()
