"""Tensors that outlive a process: safetensors files in a bounded folder, mapped into memory, checked before use.

Parallel processes may share the folder: a file gets its name only when it is whole, and one that was taken away stays
readable for those who have it open.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER_BYTES = 16 * 2**30
"""What a folder may hold; the files unused for longest go first."""

RESERVE_BYTES = 2**30
"""What is left free on the disk in any case."""

STALE_SECONDS = 24 * 3600.0
"""After so long an unfinished file is what a killed process left behind."""

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_UNFINISHED = ".unfinished"


def load(folder: Path, key: str) -> list[Tensor] | None:
    """The tensors that were saved under the key, mapped: read from the disk where they are used. None without a file.

    A file that is damaged, cut off or another key's is never used: it is removed, and None comes back.
    """
    path = _path(folder, key)
    try:
        with safetensors.safe_open(path, "pt") as opened:
            told = opened.metadata() or {}
        if told.get("key") == key and told.get("crc32") == _checksum(path):
            os.utime(path)  # used now
            tensors = load_file(path)
            return [tensors[str(number)] for number in range(len(tensors))]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # noqa: BLE001  safetensors has several of its own, and none of them may stop a fit
        logging.getLogger(__name__).debug("%s: %s", path, error)
    logging.getLogger(__name__).warning("A file of frozen features was damaged and is made anew: %s", path.name)
    path.unlink(missing_ok=True)
    return None


def save(folder: Path, key: str, count: int, batches: Iterable[Sequence[Tensor]]) -> list[Tensor] | None:
    """Writes tensors of `count` rows, given batch by batch, each (b, ...), and maps them.

    None where the disk has no room or the folder can't be written; not all batches were taken then.
    """
    path = _path(folder, key)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}{_UNFINISHED}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w+b") as stream:
            start = 0
            for batch in batches:
                if start == 0:
                    header, places = _header(key, count, batch)
                    if not _make_room(folder, places[-1] - places[0]):
                        return None
                    stream.write(header)
                for place, rows in zip(places, batch, strict=False):
                    stream.seek(place + start * rows[0].nbytes)
                    stream.write(_bytes(rows))
                start += len(batch[0])
            stream.flush()
            crc = _checksum(unfinished)
            stream.seek(0)
            stream.write(header.replace(b"0" * 8, crc.encode(), 1))
        unfinished.replace(path)
    except OSError as error:
        logging.getLogger(__name__).warning("Features can't be kept in %s: %s", folder, error.strerror or error)
        return None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return load(folder, key)


def _path(folder: Path, key: str) -> Path:
    return folder / f"{sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _header(key: str, count: int, batch: Sequence[Tensor]) -> tuple[bytes, list[int]]:
    """The head of a safetensors file with a checksum of zeros, and where each tensor begins and the last one ends."""
    places, entries = [0], dict[str, Any]()
    for number, rows in enumerate(batch):
        places.append(places[-1] + count * rows[0].nbytes)
        shape, offsets = [count, *rows.shape[1:]], places[-2:]
        entries[str(number)] = {"dtype": _NAMES[rows.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps({"__metadata__": {"crc32": "0" * 8, "key": key}, **entries}).encode()
    text += b" " * (-len(text) % 64)  # data begins where a processor likes it to
    head = len(text).to_bytes(8, "little") + text
    return head, [len(head) + place for place in places]


def _bytes(rows: Tensor) -> memoryview:
    return memoryview(rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _checksum(path: Path) -> str:
    """Of the tensors' bytes, which begin behind the head."""
    crc = 0
    with path.open("rb") as stream:
        _skip_head(stream)
        while chunk := stream.read(2**22):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _skip_head(stream: BinaryIO) -> None:
    stream.seek(int.from_bytes(stream.read(8), "little"), os.SEEK_CUR)


def _make_room(folder: Path, needed: int) -> bool:
    """Takes away what was unused for longest until the folder may take so many bytes more; False where it never can."""
    files = []
    for path in folder.iterdir():
        try:
            about = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        if path.name.endswith(_UNFINISHED):
            if time.time() - about.st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        elif path.suffix == ".safetensors":
            files.append((about.st_mtime, about.st_size, path))
    held = sum(size for _, size, _ in files)
    if needed > FOLDER_BYTES or needed + RESERVE_BYTES > shutil.disk_usage(folder).free:
        return False
    for _, size, path in sorted(files):
        if held + needed <= FOLDER_BYTES:
            break
        path.unlink(missing_ok=True)
        held -= size
    return True
