"""The package: the files in the wheel, and `bench` from the wheel outside a checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("methods", "datasets", "reports")


def shipped() -> set[str]:
    """Return the files that must be in the wheel, with their names there."""
    plugins = [f"bench/{path.relative_to(ROOT).as_posix()}" for kind in KINDS for path in files(ROOT / kind)]
    package = [path.relative_to(ROOT).as_posix() for path in files(ROOT / "bench")]
    return {*plugins, *package, "bench/bench.toml"}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_list_of_packages_equals_the_folders() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix().replace("/", ".") for name in shipped()}
    assert sorted(packages) == sorted(folders)  # git does not store empty folders


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution of a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("bench", *KINDS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "bench.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_version_comes_from_the_tags_and_from_the_sdist_without_git(tmp_path: Path) -> None:
    """Without git it is the fallback, without tags a development version, and with a tag that of the tag."""
    copy = tmp_path / "checkout"
    for name in ("bench", *KINDS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "bench.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SETUPTOOLS_SCM"))}
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")

    def call(*command: str, folder: Path = copy) -> str:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        return result.stdout.strip()

    def version() -> str:
        return call(sys.executable, "-W", "ignore", "-m", "setuptools_scm").splitlines()[-1]

    assert version() == "0.1.0.dev0"
    call("git", "init", "-q")
    call("git", "add", "-A")
    call("git", *identity, "commit", "-q", "-m", "First")
    assert re.fullmatch(r"0\.1(\.0)?\.dev1\+g[0-9a-f]+", version())
    call("git", *identity, "tag", "-a", "v1.2.3", "-m", "v1.2.3")
    assert version() == "1.2.3"
    call(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path / "dist"), ".")
    (archive,) = (tmp_path / "dist").iterdir()
    assert archive.name == "maskbench-1.2.3.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    call(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path / "wheel"),
        ".",
        folder=source,
    )
    assert [path.name for path in (tmp_path / "wheel").iterdir()] == ["maskbench-1.2.3-py3-none-any.whl"]


@pytest.mark.slow
def test_the_wheel_has_all_files_and_one_import_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == shipped()
        assert archive.read("bench/bench.toml") == (ROOT / "bench.toml").read_bytes()
    assert {"bench/py.typed", "bench/methods/aminet.py", "bench/reports/published/fig8_timing.csv"} <= names


@pytest.mark.slow
def test_bench_runs_from_the_wheel_outside_a_checkout(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    # -S ignores the .pth file of an editable installation, which would provide files that the wheel lacks
    path = [str(tmp_path / "unpacked"), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]

    def output_of(*arguments: str) -> str:
        command = [sys.executable, "-S", "-m", "bench", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    methods = output_of("list", "methods")
    assert "AMI-Net‡" in methods  # from the method file in the wheel
    assert "patchcore" in methods
    assert "mvtec" in output_of("list", "datasets")
    assert "table1" in output_of("list", "campaigns")


@pytest.mark.slow
def test_an_installed_wheel_has_the_command_and_the_python_api(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that uses the dependencies of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, bench = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "bench"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(install, check=True, env=environment)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    def output_of(*arguments: str | Path) -> str:
        result = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert str(site) in output_of(python, "-c", "import bench; print(bench.__file__)")
    options = ("--protocol", "kshot", "--k", "2", "--category", "gear", "--limit", "4", "--no-time")
    assert "gear" in output_of(bench, "run", "--method", "meanmap", *options, "--keep-model")
    assert "scores.csv" in output_of(
        bench, "predict", "demo/kshot-2/meanmap", *(tmp_path / "runs").rglob("worst.image.png")
    )
    assert "ok" in output_of(bench, "check", "meanmap")
    assert "1 record of Mean map" in output_of(python, "-c", "from bench import records; print(records())")
