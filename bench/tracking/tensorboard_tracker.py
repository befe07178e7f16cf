"""Write runs as event files of TensorBoard, one folder per record."""

import io
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from bench.errors import BenchError, first_line
from bench.files import temporary_folder
from bench.tracking.tracked_run import TrackedRun


class TensorboardTracker:
    """The event files below a folder: `<dataset>/<protocol>/<name>/<hash>/seed<s>/<category>.<id>`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, run: TrackedRun) -> bool:
        """Return whether the folder of the run exists."""
        return self._path(run).is_dir()

    def write(self, run: TrackedRun) -> None:
        """Write scalars, pictures and a table of the parameters; the folder appears when they are complete."""
        path, files = self._path(run), run.read_files()
        with temporary_folder(path) as folder:
            writer = SummaryWriter(str(folder))
            for name, value in run.metrics.items():
                writer.add_scalar(name, value, 0, walltime=run.started)
            for point in run.curves:
                writer.add_scalar(point.name, point.value, point.epoch, walltime=run.started)
            writer.add_text("run", _table(run), 0, walltime=run.started)
            for name, content in files.items():
                if name.endswith(".png"):
                    pixels = _read_picture(name, content)
                    writer.add_image(name.removesuffix(".png"), pixels, 0, walltime=run.started, dataformats="HWC")
            writer.close()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            shutil.move(folder, path)

    def _path(self, run: TrackedRun) -> Path:
        return self._folder / f"{run.path.removesuffix('.json')}.{run.id}"


def _read_picture(name: str, content: bytes) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB"))
    except Exception as error:  # Pillow raises many types
        raise BenchError(f"A picture must be a PNG; {name} is not: {first_line(error)}. Rerun with --force.") from error


def _table(run: TrackedRun) -> str:
    """Return the parameters as Markdown, which TensorBoard renders; text of records is escaped."""
    notes = [*run.caveats, *([f"failed: {run.failure}"] if run.failure else [])]
    rows = [f"| {_escape(name)} | {_escape(value)} |" for name, value in run.params.items()]
    return "\n".join([*(f"- {_escape(note)}" for note in notes), "", "| parameter | value |", "| --- | --- |", *rows])


def _escape(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return " ".join(escaped.split())
