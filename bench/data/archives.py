"""Unpack an archive from the internet: only files and folders, only below the target, with a limit of the size."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Self

from bench.errors import BenchError

MAX_FILES = 500_000
"""Largest number of members of an archive."""

MAX_HEADER_BYTES = 1 << 20
"""Largest size of a header of a .tar archive, such as a long name, which `tarfile` reads into memory."""

BLOCK_BYTES = 1 << 20

MAX_PADDING_BLOCKS = 64
"""Largest number of blocks after the last member of a .tar archive; they are zeros."""

_SYMLINK, _TYPE_MASK = 0o120000, 0o170000

_HEADERS = {
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
}  # fmt: skip

Progress = Callable[[int, int], None]


class _TarMember(tarfile.TarInfo):
    """A member of a .tar archive, or a header that describes the next one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the member of a header. Raises ReadError for a header that is too large to be read into memory."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header declares {member.size} bytes")
        return member


class _Target:
    """The folder that an archive is unpacked into, and the number of bytes that may still be written.

    Attributes:
        folder: the folder.
        archive: name of the archive, for messages.
        remaining: number of bytes that may still be written.
    """

    def __init__(self, folder: Path, archive: Path, max_bytes: int) -> None:
        self.folder = folder
        self.archive = archive.name
        self.max_bytes = self.remaining = max_bytes
        self.n_members = 0

    def path(self, name: str) -> Path:
        """Return the path of a member. Raises BenchError if it is absolute or leaves the folder."""
        self.n_members += 1
        if self.n_members > MAX_FILES:
            raise BenchError(f"{self.archive} must have at most {MAX_FILES} members; it has more.")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or ".." in parts or ":" in (parts[0] if parts else "") or "\0" in name:
            raise BenchError(
                f"{self.archive} must have only members below one folder, got {name!r:.200}. It is unsafe."
            )
        return self.folder.joinpath(*parts)

    def member_error(self, name: str, description: str) -> BenchError:
        """Return the error for a member that is neither a file nor a folder."""
        return BenchError(
            f"{self.archive} must have only files and folders; {name!r:.200} is {description}. It is unsafe."
        )

    def write(self, name: str, size: int, stream: IO[bytes]) -> None:
        """Write a member. Raises BenchError if there is no space left for it."""
        path = self.path(name)
        if size > self.remaining:
            raise BenchError(f"{self.archive} must unpack to at most {self.max_bytes / 1e9:.3g} GB; it has more.")
        self.remaining -= size
        path.parent.mkdir(parents=True, exist_ok=True)
        missing = size  # a member may have less or more than it declares
        with path.open("xb") as file:
            while missing and (block := stream.read(min(missing, BLOCK_BYTES))):
                file.write(block)
                missing -= len(block)
        if missing:
            raise BenchError(
                f"{self.archive} is damaged: {name!r:.200} has fewer bytes than stated. Download it again."
            )


def unpack(archive: Path, folder: Path, *, max_bytes: int, progress: Progress = lambda *_: None) -> None:
    """Unpack a .zip or .tar archive, compressed or not, into an empty folder.

    Args:
        archive: the file.
        folder: the folder to write to.
        max_bytes: largest size of all files together.
        progress: called with the number of bytes that are written and at most written.

    Raises:
        BenchError: the file is not an archive or is damaged, or a member is a link or a device, would be written
            outside the folder, exists twice, or exceeds the limits.
    """
    target = _Target(folder, archive, max_bytes)
    members = _unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar
    try:
        for _ in members(archive, target):
            progress(max_bytes - target.remaining, max_bytes)
    except FileExistsError as error:
        raise BenchError(f"{archive.name} must have each file once; {error.filename} exists twice.") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, NotImplementedError) as error:
        reason = " ".join(str(error).split())  # one line
        raise BenchError(f"{archive.name} must be a complete archive: {reason}. Download it again.") from error
    except (RuntimeError, ValueError) as error:  # an encrypted member, a name that is not valid
        raise BenchError(f"{archive.name} cannot be unpacked: {error}.") from error
    except OSError as error:  # without a number of the system, it is damaged data of gzip or bzip2
        reason = f"{error.strerror}, {error.filename or folder}" if error.strerror else f"it is damaged, {error}"
        raise BenchError(f"{archive.name} cannot be unpacked: {reason}.") from error


def _unpack_tar(archive: Path, target: _Target) -> Iterator[None]:
    with tarfile.open(archive, tarinfo=_TarMember) as tar:
        for member in tar:
            tarfile.data_filter(member, str(target.folder))  # raises TarError for what is unsafe
            if member.isdir():
                target.path(member.name).mkdir(parents=True, exist_ok=True)
            elif not member.isreg() or member.issparse():
                raise target.member_error(member.name, "a link or a special file")
            else:
                stream = tar.extractfile(member)
                assert stream is not None
                target.write(member.name, member.size, stream)
            yield
        assert tar.fileobj is not None
        for _ in range(MAX_PADDING_BLOCKS):  # gzip and xz verify their checksum only at the end of the file
            if not tar.fileobj.read(BLOCK_BYTES):
                return
        raise tarfile.ReadError("more data follows its last member")


def _unpack_zip(archive: Path, target: _Target) -> Iterator[None]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if (member.external_attr >> 16) & _TYPE_MASK == _SYMLINK:
                raise target.member_error(member.filename, "a link")
            if member.is_dir():
                target.path(member.filename).mkdir(parents=True, exist_ok=True)
            else:
                with zipped.open(member) as stream:
                    target.write(member.filename, member.file_size, stream)
            yield
