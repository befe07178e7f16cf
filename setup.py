"""Copy bench.toml into the wheel as bench/bench.toml. Everything else is in pyproject.toml."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfig(build_py):  # noqa: D101
    def run(self) -> None:  # noqa: D102
        super().run()
        if not self.editable_mode:  # an editable installation reads the file of the checkout
            copyfile("bench.toml", Path(self.build_lib) / "bench" / "bench.toml")

    def get_source_files(self) -> list[str]:  # noqa: D102
        return [*super().get_source_files(), "bench.toml"]  # for the sdist


setup(cmdclass={"build_py": BuildWithConfig})
