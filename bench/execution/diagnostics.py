"""The checks of `bench check`: of this machine, of a method, of a dataset."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

from bench import environment, registry
from bench.config.bench_toml import Config, cache_folder, expand_user
from bench.config.method_metadata import method_metadata
from bench.config.plan import make_plan
from bench.data import dataset_checks
from bench.errors import BenchError, CheckResult, check_known
from bench.execution import method_checks
from bench.execution.job import capture_warnings
from bench.execution.planned_data import list_samples
from bench.execution.planned_method import shared_preprocessing

MIN_FREE_BYTES = 5 << 30
"""Free disk space below which the maps of a campaign may not fit."""

_EXTRAS = {
    "ray": ("--executor ray", ("ray",)),
    "export": ("bench export", ("onnx", "onnxruntime", "onnxscript")),
    "mlflow": ("bench track --to mlflow", ("mlflow-skinny",)),
    "tensorboard": ("bench track --to tensorboard", ("tensorboard",)),
    "wandb": ("bench track --to wandb-offline", ("wandb",)),
    "parquet": ("bench report --format parquet", ("pyarrow",)),
}
"""Name of an extra -> (what it is for, its packages). The extra of an external library is checked with its method."""


def check_environment(config: Config) -> list[CheckResult]:
    """Check device, versions, disk, extras, methods with their backbones, and datasets."""
    device = environment.device("auto")
    info = environment.describe(device)
    versions = ", ".join(f"{name} {info[name]}" for name in ("torch", "timm", "maskbench"))
    free_memory = environment.free_memory()
    memory = "unknown" if free_memory is None else f"{free_memory / 1e9:.0f} GB free"
    results = [
        CheckResult(f"Python {info['python']}, {versions}"),
        CheckResult(f"device {device.type}: {info['device']}, {info['cores']} cores, {memory}"),
    ]
    if device.type == "cuda":
        results.append(CheckResult(f"GPU memory: {torch.cuda.mem_get_info(device)[0] / 1e9:.0f} GB free"))
    free = shutil.disk_usage(Path.cwd()).free
    hint = "maps may need more; choose another disk with --runs, or --map-precision none"
    problem = "" if free > MIN_FREE_BYTES else hint
    results.append(CheckResult(f"disk: {free / 1e9:.0f} GB free in the working folder", problem))
    return [*results, *_check_extras(), *_check_methods(config), *_check_datasets(config)]


def check_target(
    config: Config, name: str, data: Path | None, progress: Callable[[int, int], None]
) -> list[CheckResult]:
    """Check what `name` refers to: a method's name, alias or file; else a dataset; else a folder of images.

    `data` is the folder of a dataset, if it is not the one of [paths.data]. Raises BenchError if `name` is none of
    these.
    """
    methods, datasets = list(config.aliases()), registry.names("datasets")
    if name.endswith(".py") or name in methods:
        if data is not None:
            raise BenchError(f"--data needs the name of a dataset; {name} is a method. Remove --data.")
        return check_method(config, name)
    if name in datasets:
        root = data or config.data(name) or cache_folder(config) / name
        return _check_dataset(config, registry.load("datasets", name), root, progress)
    folder = expand_user(name)
    if not folder.is_dir():
        check_known([name], [*methods, *datasets], "a method, a dataset or a folder")
    if data is not None:
        raise BenchError(f"--data needs the name of a dataset; {name} is a folder. Remove --data.")
    return _check_dataset(config, _detect_layout(folder), folder, progress)


def check_method(config: Config, name: str) -> list[CheckResult]:
    """Check a method, by its name, an alias, or the path of its file, with the settings of profile check."""
    if name.endswith(".py"):
        path = expand_user(name)
        if not path.is_file():
            raise BenchError(f"bench check needs a method's name or file; {path} is not a file.")
        registry.add_folder("methods", path.resolve().parent)
        name = path.stem
    spec = make_plan(config, registry.names("methods"), options={"method": name}, profile="check").method_specs[0]
    module = registry.load("methods", spec.method)
    with registry.plugin_call("methods", spec.method):
        definitions = method_checks.check_definitions(module)
        if any(result.problem for result in definitions):
            return definitions
        settings, _ = spec.resolve(module.Settings, "")
        return method_checks.check_method(module, settings)


def _check_dataset(
    config: Config, module: ModuleType, root: Path, progress: Callable[[int, int], None]
) -> list[CheckResult]:
    own_images = registry.load("datasets", "folder")
    options = {"dataset": module.__name__.rpartition(".")[2]}
    plan = make_plan(config, registry.names("methods"), options=options, paths={"data": root})
    proposal = own_images.propose_layout_if_needed(root) if module is own_images and not plan.tasks.layout else ""
    if proposal:
        plan = replace(plan, tasks=replace(plan.tasks, layout=proposal))
    with capture_warnings() as warnings:
        samples = list_samples(plan, module)
    count = len({sample.category for sample in samples})
    categories = "1 category" if count == 1 else f"{count} categories"
    summary = CheckResult(f"{module.TITLE}: {len(samples)} images in {categories}, {root}")
    layout = CheckResult(
        "The folder has the MVTec AD layout, or --layout names another.",
        f"it fits --layout '{proposal}'; pass this to bench run, or set it in bench.toml" if proposal else "",
        required=False,
    )
    checks = dataset_checks.check_dataset(
        samples, warnings, progress, shared_preprocessing(plan), is_official=module is not own_images
    )
    return [summary, *([layout] if module is own_images else []), *checks]


def _detect_layout(folder: Path) -> ModuleType:
    """Return the dataset module that can read a folder: own images without subfolders, else a published one."""
    generic = registry.load("datasets", "folder")
    for name in ("folder", *(name for name in registry.names("datasets") if name != "folder")):
        try:
            module = registry.load("datasets", name)
            if module.SYNTHETIC:
                continue
            with capture_warnings(), registry.plugin_call("datasets", name):
                samples = module.samples(folder)
        except BenchError:
            continue
        if module is not generic or not any(sample.folder for sample in samples):
            return module
    return generic  # with subfolders; or its error describes the layout for own images


def _check_extras() -> list[CheckResult]:
    """Check each extra: the versions of its packages, or how to install them. None of them is imported."""
    results = []
    for extra, (use, packages) in _EXTRAS.items():
        try:
            versions = ", ".join(f"{package} {version(package)}" for package in packages)
            results.append(CheckResult(f"{use}: {versions}"))
        except PackageNotFoundError as error:
            problem = f"package {error.name} is not installed: pip install 'maskbench[{extra}]'"
            results.append(CheckResult(use, problem, required=False))
    return results


def _check_methods(config: Config) -> list[CheckResult]:
    """Check that each method works with the settings of profile demo, and with those of the papers."""
    results = []
    names = registry.names("methods")
    external = [name for name in names if method_metadata(name).is_external]
    for name in external:
        requirement = f"method {name}:MODEL runs the models of {name}"
        try:
            registry.load("methods", name)
            results.append(CheckResult(requirement))
        except BenchError as error:
            results.append(CheckResult(requirement, str(error), required=False))
    for name in (name for name in names if name not in external):
        for profile, size in (("demo", "demo"), ("code", "paper")):
            requirement = f"method {name} at {size} size"
            try:
                spec = make_plan(config, names, options={"method": name}, profile=profile).method_specs[0]
                module = registry.load("methods", name)
                with registry.plugin_call("methods", name):
                    settings, _ = spec.resolve(module.Settings, "")
                    module.METHOD.file_hashes(settings, config.path("weights"))
                results.append(CheckResult(requirement))
            except BenchError as error:
                results.append(CheckResult(requirement, str(error), required=profile == "demo"))
    return results


def _check_datasets(config: Config) -> list[CheckResult]:
    results = []
    for name in registry.names("datasets"):
        if name == "folder":
            continue  # it has no default folder
        root = config.data(name) or cache_folder(config) / name
        try:
            module = registry.load("datasets", name)
            if module.SYNTHETIC and not root.exists():
                results.append(CheckResult(f"dataset {name}: generated at its first use, {root}"))
                continue
            with registry.plugin_call("datasets", name):
                samples = module.samples(root)
                categories = len({sample.category for sample in samples})
            results.append(CheckResult(f"dataset {name}: {len(samples)} images in {categories} categories, {root}"))
        except BenchError as error:
            results.append(CheckResult(f"dataset {name}", str(error), required=False))
    return results
