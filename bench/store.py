"""The folder of results: what was done, the raw answers beside it, and nothing half written.

    runs/<dataset>/<protocol>[-k]/<name>/<hash>/seed<s>/<category>[.oracle].json   the record
                                                        <category>[.oracle].npz    the raw answers
                                                        <category>.safetensors     the fitted method, with --keep-model
                                                        views/<category>/*.png     pictures for reports

A record is written last, beside its place, and renamed into it: where it stands, all that belongs to it stands.
"""

import io
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.errors import BenchError
from bench.record import Answers, Maps, Record, Run, Selection, exponent

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)


class Store:
    """A folder of records, and the only place that writes to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run: Run, data: str, category: str, selection: Selection) -> Path:
        """Where that record stands or would stand."""
        protocol = f"{run.protocol}-{run.k}" if run.k else run.protocol
        folder = self.root / run.dataset / protocol / run.name / run.key(data) / f"seed{run.seed}"
        return folder / (f"{category}.oracle.json" if selection == "oracle" else f"{category}.json")

    def find(self, run: Run, data: str, category: str, selection: Selection) -> Record | None:
        """The record that stands there; None where none does or where it can't be read."""
        path = self.path(run, data, category, selection)
        return self._read(path) if path.is_file() else None

    def save(
        self,
        record: Record,
        answers: Answers | None,
        *,
        maps: Maps = "float16",
        views: Mapping[str, NDArray[np.uint8]] | None = None,
        model: bytes | None = None,
    ) -> Record:
        """Writes the answers, the pictures (name -> (h, w) or (h, w, 3)), the model, and last the record.

        Returns the record as written. Raises BenchError where the folder can't be written to.
        """
        path = self.path(record.run, record.data, record.category, record.selection)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if answers is not None:
                packed, kept = _pack(answers, maps)
                _write(path.with_suffix(".npz"), packed)
                record = replace(record, stored=kept)
            for name, picture in (views or {}).items():
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "PNG")
                _write(path.parent / "views" / record.category / f"{name}.png", file.getvalue())
            if model is not None:
                _write(path.with_suffix(".safetensors"), model)
            _write(path, record.to_json().encode())
        except OSError as error:
            raise BenchError(
                f"Results are written below {self.root}; that failed ({error.strerror}: {error.filename}). "
                f"Free or open the folder, or choose another with --runs."
            ) from error
        return record

    def walk(self) -> Iterator[Record]:
        """All records, in the order of their paths. One that can't be read is told and passed over."""
        for path in sorted(self.root.rglob("*.json")):
            record = self._read(path)
            if record is not None:
                yield record

    def answers(self, record: Record) -> Answers:
        """The raw answers of a record. Raises BenchError where they are gone or are not what the record names."""
        path = self.path(record.run, record.data, record.category, record.selection).with_suffix(".npz")
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise BenchError(f"Answers lie beside their record; {path} can't be read ({error.strerror}).") from error
        if sha256(packed).hexdigest() != record.stored.get("sha256"):
            raise BenchError(f"{path} is not the file that its record names. Run it again with --force.")
        with np.load(io.BytesIO(packed), allow_pickle=False) as found:
            count, height, width = found["shape"].tolist()
            bits = np.unpackbits(found["masks"], count=count * height * width)
            maps = None
            if "maps" in found:
                maps = found["maps"].astype(np.float32) * np.float32(2.0 ** int(found["exponent"]))
            return Answers(
                files=tuple(found["files"].tolist()),
                defects=tuple(found["defects"].tolist()),
                scores=found["scores"],
                maps=maps,
                masks=bits.astype(np.bool_).reshape(count, height, width),
                known=found["known"],
            )

    def views(self, record: Record) -> dict[str, Path]:
        """The pictures stored with a record, by name."""
        folder = self.path(record.run, record.data, record.category, record.selection).parent / "views"
        return {path.stem: path for path in sorted((folder / record.category).glob("*.png"))}

    def frame(self) -> "pd.DataFrame":
        """A row a record: the run, every setting as `settings.<name>`, every metric, seconds and latency."""
        import pandas as pd

        return pd.json_normalize([asdict(record) for record in self.walk()])

    def _read(self, path: Path) -> Record | None:
        try:
            return Record.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BenchError) as error:
            _log.warning("%s is left out: %s", path, error)
            return None


def _pack(answers: Answers, maps: Maps) -> tuple[bytes, dict[str, object]]:
    arrays: dict[str, NDArray[np.generic]] = {
        "files": np.array(answers.files),
        "defects": np.array(answers.defects),
        "scores": answers.scores,
        "known": answers.known,
        "shape": np.array(answers.masks.shape),
        "masks": np.packbits(answers.masks),
    }
    if answers.maps is not None and maps != "none":
        power = exponent(answers.maps) if maps == "float16" else 0
        arrays["exponent"] = np.array(power)
        arrays["maps"] = (answers.maps / np.float32(2.0**power)).astype(maps)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    packed = file.getvalue()
    return packed, {"maps": maps, "sha256": sha256(packed).hexdigest()}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

