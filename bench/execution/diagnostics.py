"""`bench check`: what works on this machine; whether a method keeps its promises; whether a data set is sound."""

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from bench import environment as here
from bench import registry
from bench.config.bench_toml import Config, cache_folder
from bench.config.method_metadata import method_metadata
from bench.config.plan import make_plan
from bench.data import dataset_checks
from bench.errors import BenchError, CheckResult
from bench.errors import check_known as refuse_unknown
from bench.execution import method_checks
from bench.execution.job import capture_warnings

SPARE_BYTES = 5 << 30
"""Free disk below which a campaign's maps may not fit."""

_EXTRAS = {"ray": ("--executor ray", ("ray",)), "export": ("bench export", ("onnx", "onnxruntime", "onnxscript"))}
"""By the name of an extra, what it is for and the packages that it brings; that of a host is told with the host."""


def check_environment(check_known: Config) -> list[CheckResult]:
    """Device, versions, disk, extras, methods with their backbones, and data sets."""
    on = here.device("auto")
    told = here.describe(on)
    found = [
        CheckResult(
            f"Python {told['python']}, torch {told['torch']}, timm {told['timm']}, maskbench {told['maskbench']}"
        ),
        CheckResult(
            f"device {on.type}: {told['device']}, {told['cores']} cores, {here.free_memory() / 1e9:.0f} GB free"
        ),
    ]
    if on.type == "cuda":
        found.append(CheckResult(f"GPU memory: {torch.cuda.mem_get_info(on)[0] / 1e9:.0f} GB free"))
    free = shutil.disk_usage(Path.cwd()).free
    mend = "" if free > SPARE_BYTES else "that is little for maps; choose another disk with --runs, or --maps none"
    found.append(CheckResult(f"disk: {free / 1e9:.0f} GB free here", mend))
    return [*found, *_extras(), *_methods(check_known), *_datasets(check_known)]


def check_target(
    check_known: Config, name: str, data: Path | None, progress: Callable[[int, int], None]
) -> list[CheckResult]:
    """The findings about what `name` means: a method's name, alias or file; else a data set; else a folder of images.

    data: where the data set lies, if not where [paths.data] says. Raises BenchError where `name` is nothing of these.
    """
    methods, datasets = list(check_known.aliases()), registry.names("datasets")
    if name.endswith(".py") or name in methods:
        if data is not None:
            raise BenchError(f"--data goes with a data set; {name} is a method. Leave it out.")
        return check_method(check_known, name)
    if name in datasets:
        root = data or check_known.data(name) or cache_folder(check_known) / name
        return _sound(registry.load("datasets", name), root, progress)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        refuse_unknown([name], [*methods, *datasets], "a method, a data set or a folder")
    if data is not None:
        raise BenchError(f"--data goes with a data set's name; {name} is a folder already. Leave it out.")
    return _sound(_reader(folder), folder, progress)


def _sound(module: ModuleType, root: Path, progress: Callable[[int, int], None]) -> list[CheckResult]:
    with capture_warnings() as said:
        samples = module.samples(root)
    categories = len({sample.category for sample in samples})
    told = f"{module.TITLE}: {len(samples)} images in {categories} categor{'y' if categories == 1 else 'ies'}, {root}"
    return [CheckResult(told), *dataset_checks.inspect(samples, said, progress)]


def _reader(folder: Path) -> ModuleType:
    """The data set whose layout a folder has: own images, else a published one. Raises BenchError where it has none."""
    own = registry.load("datasets", "folder")
    published = [registry.load("datasets", name) for name in registry.names("datasets") if name != "folder"]
    for module in (own, *(module for module in published if not module.SYNTHETIC)):
        try:
            with capture_warnings():
                module.samples(folder)
        except BenchError:
            continue
        return module
    return own  # its error tells how to lay images out


def check_method(check_known: Config, name: str) -> list[CheckResult]:
    """The promises of a method, by its name, an alias, or the path of its file, at the settings of profile check."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BenchError(f"bench check takes a method's name or its file; {name} is no file.")
        registry.add_folder("methods", path.resolve().parent)
        name = path.stem
    plan = make_plan(check_known, registry.names("methods"), said={"method": name}, profile="check")
    choice = plan.method_specs[0]
    module = registry.load("methods", choice.method)
    shape = method_checks.check_definitions(module)
    if any(finding.problem for finding in shape):
        return shape
    settings, _ = choice.resolve(module.Settings, "")
    return method_checks.check_method(module, settings)


def _extras() -> list[CheckResult]:
    """Each extra: the versions of its packages, or how to get them. None of them is imported."""
    found = []
    for extra, (use, packages) in _EXTRAS.items():
        try:
            told = ", ".join(f"{package} {version(package)}" for package in packages)
            found.append(CheckResult(f"{use}: {told}"))
        except PackageNotFoundError as error:
            mend = f"it needs the package {error.name}, which is not installed: pip install 'maskbench[{extra}]'"
            found.append(CheckResult(use, mend, required=False))
    return found


def _methods(check_known: Config) -> list[CheckResult]:
    """Each method file: whether it works with the settings of profile demo, and with those of the papers."""
    found = []
    hosts = [name for name in registry.names("methods") if method_metadata(name).is_hosted]
    for name in hosts:
        try:
            registry.load("methods", name)
            found.append(CheckResult(f"method {name}:MODEL hosts the models of {name}"))
        except BenchError as error:
            found.append(CheckResult(f"method {name}:MODEL hosts the models of {name}", str(error), required=False))
    for name in (name for name in registry.names("methods") if name not in hosts):
        for profile, size in (("demo", "demo"), ("code", "paper")):
            try:
                plan = make_plan(check_known, registry.names("methods"), said={"method": name}, profile=profile)
                choice, module = plan.method_specs[0], registry.load("methods", name)
                settings, _ = choice.resolve(module.Settings, "")
                module.METHOD.file_hashes(settings, check_known.path("weights"))
                found.append(CheckResult(f"method {name} at {size} size"))
            except BenchError as error:
                found.append(CheckResult(f"method {name} at {size} size", str(error), required=profile == "demo"))
    return found


def _datasets(check_known: Config) -> list[CheckResult]:
    found = []
    for name in registry.names("datasets"):
        if name == "folder":
            continue  # the user's own: it has no one place
        root = check_known.data(name) or cache_folder(check_known) / name
        module = registry.load("datasets", name)
        if module.SYNTHETIC and not root.exists():
            found.append(CheckResult(f"data set {name}: drawn at its first use, {root}"))
            continue
        try:
            samples = module.samples(root)
            categories = len({sample.category for sample in samples})
            found.append(CheckResult(f"data set {name}: {len(samples)} images in {categories} categories, {root}"))
        except BenchError as error:
            found.append(CheckResult(f"data set {name}", str(error), required=False))
    return found
