"""The store: what is saved is read back bit for bit, nothing stands half, and broken files are passed over."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.errors import BenchError
from bench.record import Maps, Predictions, Record, Run
from bench.store import Store

RUN = Run(
    dataset="real",
    synthetic=False,
    protocol="kshot",
    k=4,
    seed=2,
    limit=0,
    name="jittered",
    method="inpaint",
    title="Inpaint‡",
    settings={"lr": 1e-3},
    preprocessing={"height": 3, "width": 5},
    precision="float32",
    file_hashes={},
    profile="demo",
    profile_note="",
)
RECORD = Record(run=RUN, category="bolt", data_digest="d1", metrics={"image_auroc": 0.5})


def answers(seed: int = 0, *, maps: bool = True) -> Predictions:
    random = np.random.default_rng(seed)
    return Predictions(
        files=("good/000.png", "crack/sch\udcf6n ‡.png"),
        defects=("good", "crack"),
        scores=random.normal(size=2),
        maps=random.normal(size=(2, 3, 5)).astype(np.float32) if maps else None,
        masks=random.random((2, 3, 5)) > 0.5,
        has_pixel_labels=np.array([True, False]),
    )


def same(one: Predictions, other: Predictions) -> bool:
    maps = one.maps is None and other.maps is None
    return (
        (one.files, one.defects) == (other.files, other.defects)
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("scores", "masks", "known"))
        and (maps or (one.maps is not None and other.maps is not None and np.array_equal(one.maps, other.maps)))
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a result goes that finds no room
    return Store(tmp_path / "runs")


def files(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


# ---- places


def test_a_path_says_what_was_asked(store: Store) -> None:
    key = RUN.key("d1")
    assert store.path(RUN, "d1", "bolt", "last") == store.root / f"real/kshot-4/jittered/{key}/seed2/bolt.json"
    oracle = store.path(replace(RUN, protocol="unified", k=0), "d1", "bolt", "oracle")
    assert oracle == store.root / f"real/unified/jittered/{key}/seed2/bolt.oracle.json"


def test_all_that_belongs_to_a_record_lies_beside_it(store: Store) -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    store.save(RECORD, answers(), views={"best.map": picture, "good.image": np.dstack([picture] * 3)}, model=b"weights")
    place = store.path(RUN, "d1", "bolt", "last").parent
    found = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    assert found == [
        "bolt.json",
        "bolt.npz",
        "bolt.safetensors",
        "views/bolt/best.map.png",
        "views/bolt/good.image.png",
    ]
    views = store.views(RECORD)
    assert list(views) == ["best.map", "good.image"]
    assert np.array_equal(np.asarray(Image.open(views["best.map"]).copy()), picture)
    assert (place / "bolt.safetensors").read_bytes() == b"weights"


def test_a_dot_in_a_categorys_name_is_part_of_it(store: Store) -> None:
    for category in ("v1.2", "v1.3"):
        store.save(replace(RECORD, category=category), answers(), views={"good.image": np.zeros((2, 2), np.uint8)})
    assert [record.category for record in store.records()] == ["v1.2", "v1.3"]
    assert files(store) == ["good.image.png"] * 2 + ["v1.2.json", "v1.2.npz", "v1.3.json", "v1.3.npz"]


def test_last_and_oracle_stand_side_by_side_with_answers_and_pictures_of_their_own(store: Store) -> None:
    last = store.save(RECORD, answers(0), views={"best.map": np.zeros((2, 2), np.uint8)})
    oracle = store.save(replace(RECORD, selection="oracle", eval_every=10), answers(1))
    assert store.get(RUN, "d1", "bolt", "last") == last
    assert store.get(RUN, "d1", "bolt", "oracle") == oracle
    assert not same(store.predictions(last), store.predictions(oracle))
    assert list(store.views(last)) == ["best.map"]
    assert store.views(oracle) == {}


# ---- saving and finding


def test_what_was_saved_is_found_and_nothing_else(store: Store) -> None:
    assert store.get(RUN, "d1", "bolt", "last") is None
    saved = store.save(RECORD, answers())
    assert store.get(RUN, "d1", "bolt", "last") == saved
    assert store.get(RUN, "d2", "bolt", "last") is None
    assert store.get(replace(RUN, seed=3), "d1", "bolt", "last") is None
    assert store.get(replace(RUN, settings={"lr": 1e-4}), "d1", "bolt", "last") is None
    assert store.get(RUN, "d1", "tile", "last") is None


def test_a_record_without_answers_stands_alone(store: Store) -> None:
    failed = store.save(replace(RECORD, failure="it broke", metrics={}), None)
    assert store.get(RUN, "d1", "bolt", "last") == failed
    assert files(store) == ["bolt.json"]
    with pytest.raises(BenchError, match=r"bolt\.npz can't be read"):
        store.predictions(failed)


def test_what_a_record_says_of_its_pictures_is_kept_beside_what_the_store_adds(store: Store) -> None:
    saved = store.save(replace(RECORD, artifacts={"views": {"best": "crack/0.png"}}), answers())
    assert saved.artifacts.keys() == {"views", "maps", "sha256", "model"}
    assert (saved.artifacts["views"], saved.artifacts["maps"]) == ({"best": "crack/0.png"}, "float16")


@pytest.mark.parametrize("maps", ["float16", "float32", "none"])
def test_answers_are_read_back_bit_for_bit_as_rounded_said(store: Store, maps: Maps) -> None:
    saved = store.save(RECORD, answers().rounded(maps), maps=maps)
    found = store.predictions(saved)
    expected = answers().rounded(maps) if maps != "none" else replace(answers(), maps=None)
    assert same(found, expected)
    assert (found.scores.dtype, found.masks.dtype, found.has_pixel_labels.dtype) == (np.float64, np.bool_, np.bool_)
    assert saved.artifacts["maps"] == maps


def test_maps_that_are_not_there_are_said_not_to_be_there(store: Store) -> None:
    saved = store.save(RECORD, answers(maps=False), maps="float16")
    assert saved.artifacts["maps"] == "none"
    assert store.predictions(saved).maps is None


@given(seed=st.integers(0, 1000), power=st.integers(-130, 100))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_maps_of_any_size_are_read_back_as_rounded_said(store: Store, seed: int, power: int) -> None:
    given_ = answers(seed)
    assert given_.maps is not None
    scaled = replace(given_, maps=np.ldexp(given_.maps, power)).rounded("float16")
    assert same(store.predictions(store.save(RECORD, scaled)), scaled)


def test_the_same_answers_are_the_same_bytes(store: Store, tmp_path: Path) -> None:
    once, again = store.save(RECORD, answers()), Store(tmp_path / "other").save(RECORD, answers())
    assert once == again


def test_saving_again_replaces(store: Store) -> None:
    store.save(RECORD, answers(0))
    again = store.save(replace(RECORD, metrics={"image_auroc": 0.75}), answers(1))
    assert list(store.records()) == [again]
    assert same(store.predictions(again), answers(1).rounded("float16"))
    assert files(store) == ["bolt.json", "bolt.npz"]


def test_records_are_walked_in_the_order_of_their_paths(store: Store) -> None:
    for category in ("tile", "bolt"):
        for seed in (1, 0):
            store.save(replace(RECORD, category=category, run=replace(RUN, seed=seed)), None)
    assert [(record.run.seed, record.category) for record in store.records()] == [
        (0, "bolt"),
        (0, "tile"),
        (1, "bolt"),
        (1, "tile"),
    ]


def test_a_store_that_is_not_there_holds_nothing(store: Store) -> None:
    assert list(store.records()) == []
    assert store.to_frame().empty


def test_a_frame_has_a_row_a_record_and_a_column_a_value(store: Store) -> None:
    store.save(RECORD, answers())
    store.save(replace(RECORD, category="tile", metrics={"image_ap": 1.0}), None)
    frame = store.to_frame()
    assert frame["category"].tolist() == ["bolt", "tile"]
    assert frame["dataset"].tolist() == ["real", "real"]
    assert frame["settings.lr"].tolist() == [1e-3, 1e-3]
    assert frame["metrics.image_auroc"].tolist()[0] == 0.5
    assert frame["metrics.image_auroc"].isna().tolist() == [False, True]
    assert frame["stored.maps"].tolist()[0] == "float16"


# ---- what is broken is told and passed over


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "A record is JSON"),
        (b"{", "A record is JSON"),
        (b"\xff\xfe", "can't decode byte"),
        (b"[1, 2]", "A record has schema 1 to 2; this has None"),
        (b'{"schema": 99}', "A record has schema 1 to 2; this has 99"),
        (RECORD.to_json().replace("0.5", '"x"').encode(), "metrics is dict"),
        (RECORD.to_json().encode()[:200], "A record is JSON"),
    ],
    ids=["empty", "cut off", "no UTF-8", "no record", "another schema", "another type", "half"],
)
def test_a_corrupt_record_is_told_and_passed_over(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes, words: str
) -> None:
    tile = store.save(replace(RECORD, category="tile"), answers())
    store.save(RECORD, answers())
    path = store.path(RUN, "d1", "bolt", "last")
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert list(store.records()) == [tile]
        assert store.get(RUN, "d1", "bolt", "last") is None
    assert len(caplog.messages) == 2
    assert all(f"{path} is left out: " in message and words in message for message in caplog.messages)


def test_a_record_that_was_changed_or_moved_is_not_trusted(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.save(RECORD, answers())
    path = store.path(RUN, "d1", "bolt", "last")
    text = path.read_text("utf-8")
    path.with_name("tile.json").write_text(text, "utf-8")
    path.write_text(text.replace("0.001", "0.002"), "utf-8")
    assert list(store.records()) == []
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "its values are not those of its place. Remove it."
    ] * 2


def test_a_store_can_be_moved_as_a_whole(store: Store, tmp_path: Path) -> None:
    saved = store.save(RECORD, answers())
    moved = Store(store.root.rename(tmp_path / "elsewhere"))
    assert list(moved.records()) == [saved]
    assert same(moved.predictions(saved), answers().rounded("float16"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None], ids=["empty", "cut off", "of another run"])
def test_answers_that_are_not_those_of_the_record_are_refused(store: Store, content: bytes | None) -> None:
    saved = store.save(RECORD, answers())
    path = store.path(RUN, "d1", "bolt", "last").with_suffix(".npz")
    other = store.save(replace(RECORD, category="tile"), answers(1))
    path.write_bytes(path.with_name("tile.npz").read_bytes() if content is None else content)
    with pytest.raises(BenchError, match=r"bolt\.npz is not the file that its record names\. .*--force"):
        store.predictions(saved)
    assert same(store.predictions(other), answers(1).rounded("float16"))


def test_other_peoples_files_are_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    saved = store.save(RECORD, answers())
    (store.root / "notes.json").write_text('{"my": "notes"}')
    (store.root / "real" / "folder.json").mkdir()
    assert list(store.records()) == [saved]
    assert any("notes.json is left out" in message for message in caplog.messages)


# ---- what can't be written


def test_a_file_in_the_folders_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("I am a file.")
    store = Store(tmp_path / "runs")
    assert store.get(RUN, "d1", "bolt", "last") is None
    assert list(store.records()) == []
    with pytest.raises(BenchError, match=rf"Results are written below {tmp_path}/runs; that failed \(.*--runs"):
        store.save(RECORD, answers())


def test_a_name_that_is_too_long_for_the_disk_is_a_clear_error(store: Store) -> None:
    record = replace(RECORD, category="x" * 300)
    assert store.get(RUN, "d1", record.category, "last") is None
    with pytest.raises(BenchError, match="File name too long"):
        store.save(record, answers())


def test_values_that_no_record_can_hold_are_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(BenchError, match="its facts"):
        store.save(replace(RECORD, method_info={"rows": float("nan")}), answers())
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["../best", "a/b", "/best"])
def test_a_picture_can_not_leave_its_folder(store: Store, name: str) -> None:
    with pytest.raises(BenchError, match="A picture's name"):
        store.save(RECORD, answers(), views={name: np.zeros((2, 2), np.uint8)})


@pytest.mark.parametrize("failing", range(3))
def test_a_full_disk_leaves_what_stood_there_and_nothing_half(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before = store.save(RECORD, answers(0), model=b"old")
    calls = []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match=r"No space left on device.* this result is lost"):
        store.save(replace(RECORD, metrics={}), answers(1), model=b"new")
    assert files(store) == ["bolt.json", "bolt.npz", "bolt.safetensors"]
    assert list(store.records()) == [before]
    assert same(store.predictions(before), answers(0).rounded("float16"))


def test_what_finds_no_room_is_kept_elsewhere_and_the_error_says_where(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sync = os.fsync

    def full(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().is_relative_to(store.root):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match="No space left on device") as refusal:
        store.save(RECORD, answers(1), views={"best.image": np.zeros((2, 2), np.uint8)}, model=b"new")
    (elsewhere,) = tmp_path.glob("maskbench-*")
    assert f"This result is kept in {elsewhere}: copy what is in it into {store.root}." in str(refusal.value)
    monkeypatch.undo()
    shutil.copytree(elsewhere, store.root, dirs_exist_ok=True)
    (found,) = store.records()
    assert found.metrics == RECORD.metrics
    assert same(store.predictions(found), answers(1).rounded("float16"))
    assert store.views(found)


def test_a_disk_too_small_for_the_plan_and_a_closed_folder_are_told_before_anything_is_fitted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check_writable(1000)
    assert not store.root.exists()  # asking makes nothing
    with pytest.raises(BenchError, match=r"about 1000000000000\.0 MB; .* MB are free"):
        store.check_writable(10**18)

    def closed(dir: Path) -> None:  # noqa: A002
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", closed)  # root may write anywhere, so that a mode would not do
    with pytest.raises(BenchError, match=r"can't be written to \(Read-only file system\)\. Open the folder"):
        store.check_writable()


def test_two_writers_of_one_record_leave_the_files_of_one_of_them(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: store.save(replace(RECORD, epoch=i), answers(i)), range(40)))
    (found,) = store.records()
    assert same(store.predictions(found), answers(found.epoch).rounded("float16"))
    assert files(store) == ["bolt.json", "bolt.npz"]


def test_what_a_killed_process_left_is_removed_once_it_is_old(store: Store) -> None:
    store.save(RECORD, answers())
    folder = store.path(RUN, "d1", "bolt", "last").parent
    old, young, others = folder / ".bolt.npz.dead", folder / ".bolt.json.busy", folder / ".tile.npz.dead"
    for path in (old, young, others):
        path.write_bytes(b"half")
    for path in (old, others):
        os.utime(path, (0, 0))
    store.save(RECORD, answers())
    assert not old.exists()
    assert young.exists()
    assert others.exists()


@pytest.mark.parametrize("moves", range(3))
def test_a_kill_between_two_moves_leaves_no_record_for_half_of_its_files(
    store: Store, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    store.save(RECORD, answers(0), model=b"old")
    calls = []
    move = Path.replace

    def killed(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > moves:
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(replace(RECORD, metrics={}), answers(1), model=b"new")
    assert list(store.records()) == []
    assert not any(name.startswith(".") for name in files(store))


SAVE_FOR_EVER = """
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
import numpy as np
from bench.record import Answers, Record
from bench.store import Store

record, store = Record.from_json(sys.argv[2]), Store(Path(sys.argv[1]))
for i in count():
    maps, masks = np.full((2, 50, 50), i, np.float32), np.zeros((2, 50, 50), np.bool_)
    answers = Answers(("a", "b"), ("good", "crack"), np.array([i, i + 1.0]), maps, masks, np.array([True, True]))
    store.save(replace(record, epoch=i), answers)
"""


def _written(path: Path) -> float:
    return path.stat().st_mtime


def test_a_process_killed_at_any_moment_leaves_whole_records_only(store: Store) -> None:
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(store.root), RECORD.to_json()]
    for delay in (0.01, 0.03, 0.05):
        with subprocess.Popen(command) as process:
            started = time.time()
            while process.poll() is None and max(map(_written, store.root.rglob("*.npz")), default=0.0) < started:
                time.sleep(0.001)
            time.sleep(delay)
            assert process.poll() is None  # it saves until it is killed
            process.kill()
        for record in store.records():
            assert store.predictions(record).scores.tolist() == [record.epoch, record.epoch + 1]
    saved = store.save(RECORD, answers())
    assert list(store.records()) == [saved]
