"""The report as a Parquet table, read back with pyarrow."""

import io
import sys
from collections.abc import Callable
from importlib import import_module

import pytest

from bench.cli import app
from bench.errors import BenchError
from bench.record import Record
from bench.report_format import Report
from bench.store import Store

parquet = import_module("bench.reports.parquet")
csv_format = import_module("bench.reports.csv_")


def report(records: list[Record], name: str = "report") -> Report:
    return Report(name, "title", (), tuple(records))


@pytest.mark.slow  # needs an extra, which CI installs for the slow tests
def test_numbers_texts_and_lists_have_their_types_and_mixed_columns_are_json(
    make_record: Callable[..., Record],
) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="needs maskbench[parquet]")
    first = make_record(settings={"lr": 1, "stages": [1, 2], "mode": "a", "flag": True}, losses=[0.5, 0.25])
    second = make_record(settings={"lr": 0.5, "stages": [3], "mode": 2, "other": "x"}, failure="‡ = failed")
    table = pq.read_table(io.BytesIO(parquet.render(report([first, second]))))
    values = table.to_pydict()
    assert values["settings.lr"] == [1.0, 0.5]
    assert values["settings.stages"] == [[1, 2], [3]]
    assert values["settings.mode"] == ['"a"', "2"]
    assert values["settings.flag"] == [True, None]
    assert values["settings.other"] == [None, "x"]
    assert values["losses"] == [[0.5, 0.25], []]
    assert values["metrics.image_auroc"] == [0.9, 0.9]
    assert values["failure"] == ["", "‡ = failed"]
    assert values["seed"] == [0, 0]


@pytest.mark.slow
def test_numbers_that_no_type_represents_exactly_and_names_that_are_not_utf_8_are_kept(
    make_record: Callable[..., Record],
) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="needs maskbench[parquet]")
    first = make_record(settings={"n": 2**53 + 1, "m": 2**62}, train_files=["bolt/\udcff.png"], failure="\udcff")
    second = make_record(settings={"n": 0.5, "m": 1}, train_files=[], losses=[])
    values = pq.read_table(io.BytesIO(parquet.render(report([first, second])))).to_pydict()
    assert values["settings.n"] == ["9007199254740993", "0.5"]
    assert values["settings.m"] == [2**62, 1]
    assert values["train_files"] == [["bolt/\\udcff.png"], []]
    assert values["failure"] == ["\\udcff", ""]


@pytest.mark.slow
def test_the_columns_are_those_of_csv_without_records_and_with_failed_ones(make_record: Callable[..., Record]) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="needs maskbench[parquet]")
    failed = make_record(failure="no memory", metrics={}, losses=[])
    for records in ([], [failed], [failed, make_record()]):
        table = pq.read_table(io.BytesIO(parquet.render(report(records))))
        header = csv_format.render(report(records)).splitlines()[0]
        assert ",".join(table.column_names) == header
        assert table.num_rows == len(records)
    table = pq.read_table(io.BytesIO(parquet.render(report([failed]))))
    assert table.to_pydict()["failure"] == ["no memory"]
    assert table.to_pydict()["losses"] == [[]]  # a list as in other stores, and not the text "[]"


@pytest.mark.slow
def test_the_columns_are_those_of_the_frame(simulate: Callable[..., Store]) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="needs maskbench[parquet]")
    store = simulate(["bolt"], ["Restore", "Other"], (0, 1))
    table = pq.read_table(io.BytesIO(parquet.render(report(list(store.records())))))
    frame = store.to_frame()
    assert set(table.column_names) == set(frame.columns)
    assert table.column("metrics.aupro_30").to_pylist() == frame["metrics.aupro_30"].tolist()


def test_without_pyarrow_and_for_a_verification_the_error_states_what_to_do(
    make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError, match="excludes --audit and --verify"):
        parquet.render(report([make_record()], "verification"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BenchError, match=r"pip install 'maskbench\[parquet\]'"):
        parquet.render(report([make_record()]))


def test_bytes_are_written_to_a_file_and_not_printed(
    simulate: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = simulate(["bolt"], ["Restore"])
    content = b"PAR1\x00\xff"
    monkeypatch.setattr(parquet, "render", lambda _: content)
    monkeypatch.chdir(store.root.parent)
    for arguments, code in ((["--out", "out"], 0), ([], 2)):
        command = ["bench", "report", "--runs", str(store.root), "--format", "parquet", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit_info:
            app.main()
        assert (exit_info.value.code or 0) == code
    assert (store.root.parent / "out" / "report.parquet").read_bytes() == content
    assert "Add --out DIR" in capsys.readouterr().err
