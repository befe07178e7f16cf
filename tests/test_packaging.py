"""The package: what the wheel holds, and that `bench` runs from it outside a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("methods", "datasets", "reports")


def shipped() -> set[str]:
    """The files that belong into the wheel, as the wheel names them."""
    plug_ins = [f"bench/{path.relative_to(ROOT).as_posix()}" for kind in KINDS for path in files(ROOT / kind)]
    engine = [path.relative_to(ROOT).as_posix() for path in files(ROOT / "bench")]
    return {*plug_ins, *engine, "bench/bench.toml"}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_list_of_packages_is_what_lies_on_the_disk() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in shipped()}
    assert sorted(listed) == sorted(folders)  # a folder without files does not outlive a clone, and breaks its install


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, which is built from a copy: the checkout stays as it is."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("bench", *KINDS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "bench.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_four_folders_and_one_import_root(wheel: Path) -> None:
    with ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        assert names == shipped()
        assert packed.read("bench/bench.toml") == (ROOT / "bench.toml").read_bytes()
    assert {"bench/py.typed", "bench/methods/aminet.py", "bench/reports/published/fig8_timing.csv"} <= names


@pytest.mark.slow
def test_bench_runs_from_the_wheel_outside_a_checkout(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "unpacked")
    # -S: without the .pth file of an editable install, which would lend what the wheel lacks
    path = [str(tmp_path / "unpacked"), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]

    def said(*arguments: str) -> str:
        command = [sys.executable, "-S", "-m", "bench", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    methods = said("list", "methods")
    assert "AMI-Net‡" in methods  # from the wheel's bench.toml
    assert "patchcore" in methods
    assert "mvtec" in said("list", "datasets")
    assert "table1" in said("list", "campaigns")


@pytest.mark.slow
def test_an_installed_wheel_brings_the_command_and_the_python_api(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows only what maskbench depends on."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, bench = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "bench"
    into = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(into, check=True, env=environment)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    def said(*words: str | Path) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in said(python, "-c", "import bench; print(bench.__file__)")
    asked = ("--protocol", "kshot", "--k", "2", "--category", "gear", "--limit", "4", "--no-time")
    assert "gear" in said(bench, "run", "--method", "meanmap", *asked, "--keep-model")
    assert "scores.csv" in said(bench, "predict", "demo/kshot-2/meanmap", *(tmp_path / "runs").rglob("worst.image.png"))
    assert "works" in said(bench, "check", "meanmap")
    assert "1 record of Mean map" in said(python, "-c", "from bench import records; print(records())")
