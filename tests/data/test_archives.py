"""Archives from the internet are unpacked only below their folder, only as files, and only up to a size."""

import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data import archives
from bench.data.archives import unpack
from bench.errors import BenchError

MAX_BYTES = 1000


def zip_of(path: Path, members: dict[str, bytes], **attributes: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes.get("external_attr", 0)
            archive.writestr(info, content)
    return path


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
            else:
                archive.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_rejected(archive: Path, folder: Path, message: str) -> None:
    """The archive is rejected, and nothing is written next to the target folder."""
    before = names(folder.parent)
    with pytest.raises(BenchError, match=message):
        unpack(archive, folder, max_bytes=MAX_BYTES)
    assert [name for name in names(folder.parent) if not name.startswith("target/")] == before


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz"])
def test_files_of_all_formats_are_unpacked(tmp_path: Path, folder: Path, suffix: str) -> None:
    content = {"a/train/good/000.png": b"one", "a/x y ü.png": b"", "README.md": b"three"}
    archive = tmp_path / f"archive.{suffix}"
    if suffix == "zip":
        zip_of(archive, content | {"a/empty/": b""})
    else:
        mode = "w:" + suffix.removeprefix("tar").removeprefix(".")
        tar_of(archive, special("a/empty", tarfile.DIRTYPE), *content.items(), mode=mode)
    done: list[int] = []
    unpack(archive, folder, max_bytes=MAX_BYTES, progress=lambda written, _: done.append(written))
    assert {name: (folder / name).read_bytes() for name in names(folder)} == content
    assert (folder / "a" / "empty").is_dir()
    assert done[-1] == 8


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:/evil", "\\\\host\\evil", "a/..", "//x"]
)
def test_a_zip_member_outside_the_folder_is_rejected(tmp_path: Path, folder: Path, name: str) -> None:
    check_rejected(zip_of(tmp_path / "x.zip", {name: b"evil"}), folder, "It is unsafe")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:/evil"])
def test_a_tar_member_outside_the_folder_is_rejected(tmp_path: Path, folder: Path, name: str) -> None:
    check_rejected(tar_of(tmp_path / "x.tar", (name, b"evil")), folder, "unsafe|outside|absolute")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, ".."),
        (tarfile.SYMTYPE, "inside.png"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "inside.png"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_of_a_tar_are_rejected(tmp_path: Path, folder: Path, kind: bytes, target: str) -> None:
    """A link to a folder, followed by a file below it, would write outside the target."""
    members = (("inside.png", b"x"), special("link", kind, target), ("link/evil", b"evil"))
    check_rejected(tar_of(tmp_path / "x.tar", *members), folder, "link|special|absolute|outside|device")


def test_a_symbolic_link_of_a_zip_is_rejected(tmp_path: Path, folder: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", {"link": b"/etc"}, external_attr=(stat.S_IFLNK | 0o777) << 16)
    check_rejected(archive, folder, "is a link")


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_the_size_of_all_files_is_limited(tmp_path: Path, folder: Path, make: Callable[..., Path]) -> None:
    content = {"a": b"x" * 600, "b": b"x" * 600}
    archive = make(tmp_path / "x", content) if make is zip_of else make(tmp_path / "x", *content.items())
    check_rejected(archive, folder, "unpack to at most 1e-06 GB")
    assert names(folder) == ["a"]


def test_a_bomb_is_stopped_before_it_is_written(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(10_000_000))
    assert path.stat().st_size < 20_000
    check_rejected(path, folder, "unpack to at most")
    assert names(folder) == []


def test_the_number_of_members_is_limited(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    check_rejected(zip_of(tmp_path / "x.zip", {f"{i}": b"" for i in range(4)}), folder, "at most 3 members")


def test_a_file_that_is_there_twice_is_rejected(tmp_path: Path, folder: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", ("a", b"1"), ("a", b"2"))
    check_rejected(archive, folder, "must have each file once")


@pytest.mark.parametrize("n_bytes", [0, 10, 40, 700])
@pytest.mark.parametrize("suffix", ["zip", "tar.xz", "tar"])
def test_a_truncated_archive_is_an_error(tmp_path: Path, folder: Path, suffix: str, n_bytes: int) -> None:
    path, content = tmp_path / f"x.{suffix}", bytes(range(256)) * 3
    if suffix == "zip":
        zip_of(path, {"a": content})
    else:
        tar_of(path, ("a", content), mode="w:xz" if suffix == "tar.xz" else "w")
    complete = path.read_bytes()
    path.write_bytes(complete[: min(n_bytes, len(complete) // 2)])
    with pytest.raises(BenchError, match="must be a complete archive"):
        unpack(path, folder, max_bytes=MAX_BYTES)


def test_damaged_content_of_a_zip_is_an_error(tmp_path: Path, folder: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", {"a": b"content of the file"})
    archive.write_bytes(archive.read_bytes().replace(b"content of", b"CONTENT of"))
    with pytest.raises(BenchError, match="Bad CRC-32"):
        unpack(archive, folder, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_large_header_of_a_tar_is_refused_before_it_is_in_memory(tmp_path: Path, folder: Path, kind: bytes) -> None:
    header = special("header", kind)
    header.size = 40_000_000
    archive = tmp_path / "bomb.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size))
    tracemalloc.start()
    check_rejected(archive, folder, "a header declares 40000000 bytes")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a", b"x"), ("a/b/c", b"y")], "Not a directory"),
        ([("a" * 300, b"x")], "File name too long"),
    ],
)
def test_a_member_that_the_system_cannot_write_is_an_error(
    tmp_path: Path, folder: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(BenchError, match=f"cannot be unpacked: {message}"):
        unpack(tar_of(tmp_path / "a.tar", *members), folder, max_bytes=MAX_BYTES)


def test_a_changed_byte_of_a_compressed_tar_is_an_error(tmp_path: Path, folder: Path) -> None:
    packed = bytearray(gzip.compress(tar_of(tmp_path / "a.tar", ("a", b"0123456789")).read_bytes(), compresslevel=0))
    packed[packed.index(b"0123456789")] ^= 1
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(packed)
    with pytest.raises(BenchError, match="it is damaged, CRC check failed") as error_info:
        unpack(archive, folder, max_bytes=MAX_BYTES)
    assert "\n" not in str(error_info.value)


def test_endless_padding_of_a_tar_is_not_read(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_PADDING_BLOCKS", 2)
    archive = tar_of(tmp_path / "a.tar", ("a", b"x"))
    archive.write_bytes(archive.read_bytes() + bytes(3 * archives.BLOCK_BYTES))
    with pytest.raises(BenchError, match="more data follows its last member"):
        unpack(archive, folder, max_bytes=MAX_BYTES)
