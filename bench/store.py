"""The folder of results: what was done, the raw answers beside it, and nothing half written.

    runs/<dataset>/<protocol>[-k]/<name>/<hash>/seed<s>/<category>[.oracle].json   the record
                                                        <category>[.oracle].npz    the raw answers
                                                        <category>.safetensors     the fitted method, with --keep-model
                                                        views/<category>/*.png     pictures for reports

All files of a record are written beside their places, then renamed into them, the record last: where it stands, all
that belongs to it stands.
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
from bench.record import Maps, Predictions, Record, Run, Selection, to_float16, to_float32

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

STALE_SECONDS = 3600
"""Seconds after which a file beside its place is what a killed process left, and is removed."""


class Store:
    """A folder of records, and the only place that writes to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run: Run, data: str, category: str, selection: Selection) -> Path:
        """Where that record stands or would stand."""
        protocol = f"{run.protocol}-{run.k}" if run.k else run.protocol
        folder = self.root / run.dataset / protocol / run.name.replace(":", "-") / run.key(data) / f"seed{run.seed}"
        return folder / (f"{category}.oracle.json" if selection == "oracle" else f"{category}.json")

    def get(self, run: Run, data: str, category: str, selection: Selection) -> Record | None:
        """The record that stands there; None where none does or where it can't be read."""
        path = self.path(run, data, category, selection)
        try:
            return self._read(path) if path.is_file() else None
        except OSError:  # a name that this file system can't hold: saving will say so
            return None

    def save(
        self,
        record: Record,
        answers: Predictions | None,
        *,
        maps: Maps = "float16",
        views: Mapping[str, NDArray[np.uint8]] | None = None,
        model: bytes | None = None,
    ) -> Record:
        """Writes the answers, the pictures (name -> (h, w) or (h, w, 3)), the model, and last the record.

        Returns the record as written. Raises BenchError where a value can't be written, or the folder not be written
        to; what stood there before then stands still, and what could not be written is kept in a temporary folder.
        """
        path = self.path(record.run, record.data_digest, record.category, record.selection)
        files = {path.with_suffix(".safetensors"): model} if model is not None else {}
        record = replace(record, artifacts=record.artifacts | {"model": model is not None})
        if answers is not None:
            kept: Maps = "none" if answers.maps is None else maps
            packed = _pack(answers, kept)
            files[path.with_suffix(".npz")] = packed
            record = replace(record, artifacts=record.artifacts | {"maps": kept, "sha256": sha256(packed).hexdigest()})
        for name, picture in (views or {}).items():
            if Path(name).name != name:
                raise BenchError(f"A picture's name is part of a file's; '{name}' can't be. Rename it in explain.")
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files[_views(path) / f"{name}.png"] = file.getvalue()
        try:
            _write(path, record.to_json().encode(), files, self.root)
        except OSError as error:
            raise BenchError(
                f"Results are written below {self.root}; that failed ({error.strerror}: {error.filename or path}). "
                f"{self._rescued(path, record, files)} Free or open the folder, or choose another with --runs."
            ) from error
        return record

    def update(self, record: Record) -> Record:
        """Writes a record anew over the one that stands there, whose answers, pictures and model stay as they are."""
        place = self.path(record.run, record.data_digest, record.category, record.selection)
        _write(place, record.to_json().encode(), {}, self.root)
        return record

    def check_writable(self, needed: int = 0) -> None:
        """Raises BenchError where nothing can be written here, or where less than `needed` bytes are free."""
        place = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise BenchError(
                f"Results are written below {self.root}; {place} can't be written to ({error.strerror}). "
                f"Open the folder, or choose another with --runs."
            ) from error
        if needed > free:
            raise BenchError(
                f"The answers of this plan take about {needed / 1e6:.1f} MB; {free / 1e6:.1f} MB are free at {place}. "
                f"Free some, choose another folder with --runs, or keep less with --maps none."
            )

    def _rescued(self, path: Path, record: Record, files: Mapping[Path, bytes]) -> str:
        """Writes a result that has no room here into a temporary folder, and says where."""
        try:
            root = Path(tempfile.mkdtemp(prefix="maskbench-"))
            moved = {root / place.relative_to(self.root): content for place, content in files.items()}
            _write(root / path.relative_to(self.root), record.to_json().encode(), moved, root)
        except OSError:
            return "There was no room elsewhere either: this result is lost, and the same call makes it again."
        return f"This result is kept in {root}: copy what is in it into {self.root}."

    def records(self, below: Path | None = None) -> Iterator[Record]:
        """All records, in the order of their paths. One that can't be read is told and passed over.

        below: only the record of that path, or those in that folder.
        """
        below = below or self.root
        for path in [below] if below.is_file() else sorted(below.rglob("*.json")):
            record = self._read(path)
            if record is not None:
                yield record

    def predictions(self, record: Record, *, maps: bool = True) -> Predictions:
        """The raw answers of a record; without `maps` these stay unread.

        Raises BenchError where they are gone or are not what the record names.
        """
        path = self.path(record.run, record.data_digest, record.category, record.selection).with_suffix(".npz")
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise BenchError(f"Answers lie beside their record; {path} can't be read ({error.strerror}).") from error
        if sha256(packed).hexdigest() != record.artifacts.get("sha256"):
            raise BenchError(f"{path} is not the file that its record names. Run it again with --force.")
        with np.load(io.BytesIO(packed), allow_pickle=False) as found:
            shape = found["shape"].tolist()
            bits = np.unpackbits(found["masks"], count=math.prod(shape)).reshape(shape)
            kept = None
            if maps and "maps" in found:
                kept = to_float32(found["maps"], int(found["exponent"])) if "exponent" in found else found["maps"]
            return Predictions(
                files=tuple(found["files"].tolist()),
                defects=tuple(found["defects"].tolist()),
                scores=found["scores"],
                maps=kept,
                masks=bits.view(np.bool_),
                has_pixel_labels=found["known"],
                soft_masks=_soft(found["soft"], found["soft_at"], bits) if "soft" in found else None,
            )

    def views(self, record: Record) -> dict[str, Path]:
        """The pictures stored with a record, by name."""
        folder = _views(self.path(record.run, record.data_digest, record.category, record.selection))
        return {path.stem: path for path in sorted(folder.glob("*.png"))}

    def to_frame(self) -> "pd.DataFrame":
        """A row a record: what was asked (`dataset`, `settings.<name>`, ...), `metrics.<name>`, seconds, latency."""
        return to_frame(self.records())

    def _read(self, path: Path) -> Record | None:
        try:
            record = Record.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BenchError) as error:
            _log.warning("%s is left out: %s", path, error)
            return None
        if self.path(record.run, record.data_digest, record.category, record.selection) != path:
            _log.warning("%s is left out: its values are not those of its place. Remove it.", path)
            return None
        return record


def to_frame(records: Iterable[Record]) -> "pd.DataFrame":
    """A row a record, as `Store.frame` says."""
    import pandas as pd

    rows = [asdict(record) for record in records]
    return pd.json_normalize([row.pop("run") | row for row in rows])


def _views(path: Path) -> Path:
    return path.parent / "views" / path.stem


def _pack(answers: Predictions, maps: Maps) -> bytes:
    """The answers as an npz file, the same bytes for the same answers."""
    arrays: dict[str, Any] = {
        "files": np.array(answers.files),
        "defects": np.array(answers.defects),
        "scores": answers.scores,
        "known": answers.has_pixel_labels,
        "shape": np.array(answers.masks.shape),
        "masks": np.packbits(answers.masks),
    }
    if answers.maps is not None and maps == "float32":
        arrays["maps"] = answers.maps
    elif answers.maps is not None and maps == "float16":
        arrays["maps"], arrays["exponent"] = to_float16(answers.maps)
    if answers.soft_masks is not None:  # but for their edges the masks are these as well
        at = np.flatnonzero(answers.soft_masks != answers.masks * np.uint8(255))
        arrays["soft"], arrays["soft_at"] = (
            answers.soft_masks.ravel()[at],
            at.astype(np.min_scalar_type(answers.soft_masks.size)),
        )
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _soft(values: NDArray[np.uint8], at: NDArray[np.uint64], bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w) the masks of (n, h, w) bits in 255ths, with other values at some places."""
    soft = bits * np.uint8(255)
    soft.put(at.astype(np.intp), values)
    return soft


def _write(last: Path, content: bytes, others: Mapping[Path, bytes], root: Path) -> None:
    """Writes all files beside their places, takes the old `last` away, and moves each to its place, `last` at the end.

    So a full disk leaves what stood there as it was, and a kill between two moves leaves no `last` for half of them.
    Two processes that write the same record move their files one after the other, and the later one stands.
    """
    mine = uuid4().hex[:12]  # a process's number may be another one's on another machine
    beside = {place: place.with_name(f".{place.name}.{mine}") for place in (*others, last)}
    try:
        for place, temporary in beside.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content if place == last else others[place])
                file.flush()
                os.fsync(file.fileno())
        with _alone(root):
            if others:
                last.unlink(missing_ok=True)
            for place, temporary in beside.items():
                temporary.replace(place)
        _tidy(beside)
    finally:
        for temporary in beside.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Waits until no other process moves files in this store; the lock goes with the process that holds it."""
    folder = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: there two writers of one record may meet
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _tidy(places: Iterable[Path]) -> None:
    """Removes what killed processes left beside these places."""
    for place in places:
        for left in place.parent.glob(f".{glob.escape(place.name)}.*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()
