"""Checkpoints inside a fit: a fit that was interrupted continues with the epoch after its last checkpoint.

Each loop over `Method.epochs` has one file, which is replaced every few minutes. If another loop follows, the file
of the first remains, because the later loop depends on its result. A checkpoint is used only by a fit that would
compute the same values bit by bit: same run, data, seed, code, packages, processor and number of threads.

A file is the sha256 of the rest, 32 bytes, and what `torch.save` writes: `torch.load` verifies no checksum itself.
"""

import ast
import io
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

import bench
from bench import environment, registry
from bench.errors import BenchError, first_line, shortened
from bench.files import read_regular_file, write_files
from bench.identity import run_hash
from bench.method import Method, State
from bench.store import Store

if TYPE_CHECKING:
    from bench.execution.job import Job

_log = logging.getLogger(__name__)

_VARIABLE = {"driver", "clocks", "cores"}
"""Entries of `environment.describe` on which a computation does not depend, or that the other entries imply."""

_DIGEST_BYTES = 32


class FitCheckpoints:
    """Reads and writes the checkpoints of one fit.

    Attributes:
        fit_state: returns what the caller needs to continue; stored in each checkpoint.
        excluded: returns a context in which the time of the fit does not count.
    """

    def __init__(self, path: Callable[[int], Path], key: Mapping[str, str], seconds: float, label: str) -> None:
        """Store the arguments.

        Args:
            path: returns the file of a loop by its number in the fit, from 0.
            key: what must be equal for a checkpoint to be used, by a readable name.
            seconds: minimum time between two checkpoints in seconds.
            label: name of the fit, for messages.
        """
        self._path, self._key, self._seconds, self._label = path, dict(key), seconds, label
        self._loaded: list[dict[str, Any]] = []
        self._n_loops, self._written_at = 0, time.monotonic()
        self.fit_state: Callable[[], dict[str, Any]] = dict
        self.excluded: Callable[[], AbstractContextManager[None]] = nullcontext

    def load(self) -> dict[str, Any] | None:
        """Read the checkpoints, and return the `fit_state` of the last one; None if the fit starts from the beginning.

        A file that is damaged or belongs to another fit is ignored with a warning.
        """
        for number in count():
            document = self._read(self._path(number))
            if document is None:
                break
            self._loaded.append(document)
            if document["epoch"] < document["total"]:
                break
        if not self._loaded:
            return None
        last = self._loaded[-1]
        _log.info("%s: continues after epoch %d of %d", self._label, last["epoch"], last["total"])
        with self.removed_on_error():
            return dict(last["fit"])

    def epochs(self, method: Method, total: int, state: tuple[State, ...], is_last: bool) -> Iterator[int]:
        """Yield the numbers of the epochs, as `Method.epochs` does, and write checkpoints between them."""
        number, first = self._n_loops, 1
        self._n_loops += 1
        if number < len(self._loaded):
            with self.removed_on_error():
                first += _restore(self._loaded[number], total, method, state)
            self._loaded[number] = {}  # frees its memory
        for epoch in range(first, total + 1):
            yield epoch
            if epoch < total and time.monotonic() - self._written_at >= self._seconds:
                self._write(number, epoch, total, method, state)
        if not is_last and first <= total:
            self._write(number, total, total, method, state)

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove the checkpoints if the block fails, so that the next fit starts from the beginning.

        Raises BenchError with the reason.
        """
        try:
            yield
        except Exception as error:
            for number in range(len(self._loaded)):
                self._path(number).unlink(missing_ok=True)
            raise BenchError(
                f"A checkpoint must have the state of its fit, but it differs ({_reason(error)}). It was removed. "
                f"Run the same command again."
            ) from error

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            document = _verified(read_regular_file(path))
            different = [name for name in self._key if document["key"].get(name) != self._key[name]]
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  torch raises many types for a damaged file
            _log.warning("%s: a checkpoint is ignored, because it cannot be read (%s).", self._label, _reason(error))
            return None
        if different:
            _log.warning("%s: a checkpoint is ignored, because it differs in: %s.", self._label, ", ".join(different))
            return None
        return document

    def _write(self, number: int, epoch: int, total: int, method: Method, state: tuple[State, ...]) -> None:
        with self.excluded():
            file = io.BytesIO()
            try:
                document = {
                    "key": self._key,
                    "epoch": epoch,
                    "total": total,
                    "fit": self.fit_state(),
                    "state": [_get_state(each) for each in state],
                    "learned": _learned(method, state),
                    "generators": _global_generators(method.setup.device),
                }
                torch.save(document, file)
                write_files({self._path(number): sha256(file.getbuffer()).digest() + file.getvalue()})
            except Exception as error:  # noqa: BLE001  the state of a plug-in may be anything
                _log.warning("%s: no checkpoint could be written (%s).", self._label, _reason(error))
        self._written_at = time.monotonic()


def job_checkpoints(job: "Job", module: ModuleType, device: torch.device) -> FitCheckpoints | None:
    """Return the checkpoints of a job's fit; None if they are off, or if the store is not on this machine.

    A fit with a time limit writes at least three.
    """
    seconds = 60 * job.execution.checkpoint_minutes
    if not seconds or not job.runs.is_dir():
        return None
    seconds = min(seconds, job.execution.timeout / 4) if job.execution.timeout else seconds
    path = partial(Store(job.runs).checkpoint_path, job.run, job.data_hash, job.task.name)
    return FitCheckpoints(path, _key(job, module, device), seconds, job.label)


def _key(job: "Job", module: ModuleType, device: torch.device) -> dict[str, str]:
    """Return what must be equal for a fit to continue from a checkpoint, by a readable name."""
    environment_values = {
        name: str(value) for name, value in environment.describe(device).items() if name not in _VARIABLE
    }
    evaluation, batch_size = job.evaluation, job.compute.batch_size
    oracle = [evaluation.eval_every, evaluation.map_precision, batch_size] if evaluation.selection != "last" else []
    return {
        "run": f"{job.run.store_name} {run_hash(job.run, job.data_hash)} {job.task.name}",
        "seed": str(job.run.seed),
        "evaluation": json.dumps(oracle),  # its results on the test set are part of the state
        "version of the code": _code_hash(module),
        "packages of the method": _imported_packages(module),
        "processor": environment_values.pop("device"),
        "device": device.type,
        **environment_values,
    }


def _code_hash(module: ModuleType) -> str:
    """Return a hash of all files that a method may import: of its folder, the modules that methods share, and bench."""
    folder, digest = Path(module.__file__ or "").parent, sha256()
    shared_modules = [
        path for each in (folder, *registry.plugin_folders("methods")) for path in each.glob("parts/**/*.py")
    ]
    for path in sorted({*folder.glob("*.py"), *shared_modules, *Path(bench.__file__).parent.rglob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _imported_packages(module: ModuleType) -> str:
    """Return the packages that a method's file imports, with their versions: "anomalib 2.3.2, timm 1.0.24"."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(module.__file__ or "").read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    packages = sorted({name.partition(".")[0] for name in names})
    versions = []
    for package in packages:
        with suppress(PackageNotFoundError):  # a module of the standard library, or a package with another name
            versions.append(f"{package} {version(package)}")
    return ", ".join(versions)


def _verified(content: bytes) -> dict[str, Any]:
    """Return the document of a checkpoint. Raises an exception of any type if it is damaged."""
    packed = memoryview(content)[_DIGEST_BYTES:]
    if sha256(packed).digest() != content[:_DIGEST_BYTES]:
        raise ValueError("its checksum differs")
    document: dict[str, Any] = torch.load(io.BytesIO(packed), weights_only=True)
    if document["epoch"] not in range(1, document["total"] + 1):
        raise ValueError("its epoch is not one of the loop")
    return document


def _reason(error: Exception) -> str:
    return shortened(getattr(error, "strerror", None) or first_line(error), 200)


def _get_state(each: State) -> Any:
    if isinstance(each, Generator):
        return each.get_state()
    if isinstance(each, nn.Module):
        return _module_state(each)
    return dict(each) if isinstance(each, dict) else each.state_dict()


def _set_state(each: State, state: Any) -> None:
    if isinstance(each, Generator):
        each.set_state(state)
    elif isinstance(each, nn.Module):
        _set_module_state(each, state)
    elif isinstance(each, dict):
        each.clear()
        each.update(state)
    else:
        each.load_state_dict(state)


def _module_state(module: nn.Module) -> dict[str, Any]:
    return {"tensors": module.state_dict(), "training": [each.training for each in module.modules()]}


def _set_module_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    module.load_state_dict(state["tensors"])
    for each, training in zip(module.modules(), state["training"], strict=True):
        each.training = training


def _learned(method: Method, state: tuple[State, ...]) -> dict[str, Any]:
    """Return the learned attributes that are set: the index in `state` of those that it contains, else the content."""
    learned: dict[str, Any] = {}
    for name in method.learned:
        if name in vars(method):
            value = vars(method)[name]
            number = next((number for number, each in enumerate(state) if each is value), None)
            is_module = number is None and isinstance(value, nn.Module)
            learned[name] = {"number": number, "value": _module_state(value) if is_module else None}
            if number is None and isinstance(value, Tensor):
                learned[name]["value"] = value
    return learned


def _restore(document: Mapping[str, Any], total: int, method: Method, state: tuple[State, ...]) -> int:
    """Set the state of a checkpoint, and return the number of its completed epochs."""
    if document["total"] != total or not document["learned"].keys() <= set(method.learned):
        raise ValueError(f"it has {document['total']} epochs and sets {', '.join(document['learned']) or 'nothing'}")
    for each, saved in zip(state, document["state"], strict=True):
        _set_state(each, saved)
    for name, entry in document["learned"].items():
        value = entry["value"] if entry["number"] is None else state[entry["number"]]
        if isinstance(value, dict):
            module = method.initialize(getattr(method, f"build_{name}"))
            _set_module_state(module, value)
            value = module
        setattr(method, name, value)
    _set_global_generators(document["generators"], method.setup.device)
    return int(document["epoch"])


def _global_generators(device: torch.device) -> dict[str, Any]:
    name, keys, *position = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *position],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_global_generators(states: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
