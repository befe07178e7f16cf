"""A cache of tensors on disk: safetensors files in a folder of bounded size, mapped into memory, verified before use.

Parallel processes may share the folder: a file is renamed to its name when it is complete, and a removed file stays
readable in the processes that have it open.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.files import remove_abandoned, temporary_file

FOLDER_BYTES = 16 * 2**30
"""Maximum size of a folder; the least recently used files are removed first."""

RESERVE_BYTES = 2**30
"""Bytes of disk space that always stay free."""

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def load(folder: Path, key: str) -> list[Tensor] | None:
    """Return the tensors that were saved with the key, memory-mapped, or None if there is no file.

    A file that is damaged, truncated or of another key is removed, and None is returned.
    """
    path = _path(folder, key)
    try:
        with safetensors.safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("key") == key and metadata.get("crc32") == _checksum(path):
            os.utime(path)  # marks it as used now
            tensors = load_file(path)
            return [tensors[str(number)] for number in range(len(tensors))]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # noqa: BLE001  safetensors has several classes of errors, and none may end a fit
        logging.getLogger(__name__).debug("%s: %s", path, error)
    logging.getLogger(__name__).warning("The cache file %s is damaged; its features are computed again.", path.name)
    path.unlink(missing_ok=True)
    return None


def save(folder: Path, key: str, count: int, batches: Iterable[Sequence[Tensor]]) -> list[Tensor] | None:
    """Write tensors batch by batch and return them memory-mapped.

    Args:
        folder: folder of the cache.
        key: key of the file.
        count: number of rows of each tensor.
        batches: batches (b, ...) of each tensor, together `count` rows.

    Returns:
        Tensors (count, ...), or None if the disk is full or the folder is not writable; then not all batches were used.
    """
    path = _path(folder, key)
    try:
        with temporary_file(path) as unfinished:
            is_complete = _write(unfinished, key, count, batches)
            if is_complete:
                unfinished.replace(path)
    except OSError as error:
        logging.getLogger(__name__).warning("Cannot write features to %s: %s", folder, error.strerror or error)
        return None
    return load(folder, key) if is_complete else None


def _write(path: Path, key: str, count: int, batches: Iterable[Sequence[Tensor]]) -> bool:
    """Write a file of the cache; return False if there is no space for it."""
    with path.open("w+b") as stream:
        start = 0
        for batch in batches:
            if start == 0:
                header, offsets = _header(key, count, batch)
                if not _free_space(path.parent, offsets[-1] - offsets[0]):
                    return False
                stream.write(header)
            for offset, rows in zip(offsets, batch, strict=False):
                stream.seek(offset + start * rows[0].nbytes)
                stream.write(_bytes(rows))
            start += len(batch[0])
        stream.flush()
        crc = _checksum(path)
        stream.seek(0)
        stream.write(header.replace(b"0" * 8, crc.encode(), 1))
    return True


def _path(folder: Path, key: str) -> Path:
    return folder / f"{sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _header(key: str, count: int, batch: Sequence[Tensor]) -> tuple[bytes, list[int]]:
    """Return the header of a safetensors file with a checksum of zeros, and the offsets of each tensor and the end."""
    ends, entries = [0], dict[str, Any]()
    for number, rows in enumerate(batch):
        ends.append(ends[-1] + count * rows[0].nbytes)
        shape = [count, *rows.shape[1:]]
        entries[str(number)] = {"dtype": _NAMES[rows.dtype], "shape": shape, "data_offsets": ends[-2:]}
    text = json.dumps({"__metadata__": {"crc32": "0" * 8, "key": key}, **entries}).encode()
    text += b" " * (-len(text) % 64)  # aligns the data
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + end for end in ends]


def _bytes(rows: Tensor) -> memoryview:
    return memoryview(rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _checksum(path: Path) -> str:
    """Return the CRC-32 of the tensors' bytes, which follow the header."""
    crc = 0
    with path.open("rb") as stream:
        _skip_header(stream)
        while chunk := stream.read(2**22):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _skip_header(stream: BinaryIO) -> None:
    stream.seek(int.from_bytes(stream.read(8), "little"), os.SEEK_CUR)


def _free_space(folder: Path, needed: int) -> bool:
    """Remove the least recently used files until `needed` bytes fit into the folder; False if they never fit."""
    remove_abandoned(folder)
    files = []
    for path in folder.iterdir():
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed by another process
            continue
        if path.suffix == ".safetensors":
            files.append((stat.st_mtime, stat.st_size, path))
    used = sum(size for _, size, _ in files)
    if needed > FOLDER_BYTES or needed + RESERVE_BYTES > shutil.disk_usage(folder).free:
        return False
    for _, size, path in sorted(files):
        if used + needed <= FOLDER_BYTES:
            break
        path.unlink(missing_ok=True)
        used -= size
    return True
