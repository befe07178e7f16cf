"""The requirements of the method contract, each checked on a fitted method: `bench check NAME` and the tests.

The images are synthetic and tiny: the checks test whether a method satisfies the contract, not whether it is accurate.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.config.settings import resolve
from bench.environment import seed_everything
from bench.errors import MAX_REASON, BenchError, CheckResult, error_text, shortened
from bench.execution.fit_checkpoint import FitCheckpoints
from bench.execution.pictures_and_times import check_pictures
from bench.method import Method, Prediction, Progress, Setup

SIZE = (64, 64)


class SyntheticImages:
    """Good images of a shaded square with noise, with the interface of a method's training images."""

    content_hash = "synthetic images of the method checks"

    def __init__(self, size: tuple[int, int] = SIZE, count: int = 6, seed: int = 7) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (torch.linspace(0, 1, side) for side in size)
        shade = 0.3 + 0.2 * rows[:, None] + 0.2 * columns  # (h, w)
        shade[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] += 0.2
        self.pixels = (shade + 0.03 * torch.randn(count, 3, *size, generator=generator)).clamp(0, 1)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """Yield batches as `bench.method.Images` requires."""
        pixels = self.pixels if order is None else self.pixels[order]
        yield from (pixels[start : start + size] for start in range(0, len(pixels), size))


NOISE = 1e-6
"""Standard deviation of the noise on images in [0, 1] in the check of stability: 1/4000 of a gray level."""


def check_definitions(module: ModuleType) -> list[CheckResult]:
    """Check that the file defines what a method's file must define."""
    return [
        CheckResult("The file defines Settings, a frozen dataclass with a default for every field.", _settings(module)),
        CheckResult("The file defines METHOD, a subclass of bench.method.Method with fit and predict.", _class(module)),
        CheckResult("PROFILES and ALIASES contain only valid settings.", _profiles(module)),
    ]


def _settings(module: ModuleType) -> str:
    settings = getattr(module, "Settings", None)
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        return "it is missing; write `@dataclass(frozen=True) class Settings:`"
    if not settings.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "it is not frozen; write `@dataclass(frozen=True)`"
    missing = [
        entry.name
        for entry in dataclasses.fields(settings)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    ]
    return f"no default for {', '.join(missing)}; add one for each" if missing else ""


def _class(module: ModuleType) -> str:
    method = getattr(module, "METHOD", None)
    if not (isinstance(method, type) and issubclass(method, Method)):
        return "it is missing; end the file with `METHOD = YourClass`"
    missing = sorted(method.__abstractmethods__)
    if method.pretrains and method.pretrain is Method.pretrain:
        missing.append("pretrain")
    if missing:
        return f"{', '.join(missing)} is missing; define it"
    overridden = [
        name for name in ("state_dict", "load_state_dict") if getattr(method, name) is not getattr(Method, name)
    ]
    return f"it overrides {', '.join(overridden)}; name the attributes in `learned` instead" if overridden else ""


def _profiles(module: ModuleType) -> str:
    if _settings(module):
        return "it cannot be checked without Settings; define them first"
    aliases = {name: entry.get("settings", {}) for name, entry in getattr(module, "ALIASES", {}).items()}
    for constant, tables in (("PROFILES", getattr(module, "PROFILES", {})), ("ALIASES", aliases)):
        for name, values in tables.items():
            try:
                resolve(module.Settings, {key: (value, constant) for key, value in values.items()}, "the method")
            except BenchError as error:
                return f"{name}: {error}"
    return ""


def check_method(module: ModuleType, settings: Any) -> list[CheckResult]:
    """Check all requirements in order, on the CPU; if the definitions are wrong, only those."""
    results = check_definitions(module)
    if any(result.problem for result in results):
        return results
    method = _MethodUnderTest(module, settings)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("predict and state_dict before fit raise a BenchError.", method.raises_before_fit),
        ("fit calls progress: done increases up to total, losses are finite.", method.reports_progress),
        ("predict returns float32 scores (b,) and maps (b, h, w), all finite.", method.predicts_valid_values),
        ("An image has the same score alone and in a batch.", method.is_independent_of_the_batch),
        ("A later predict does not overwrite a prediction.", method.prediction_is_not_overwritten),
        ("Two predict calls return the same values.", method.is_deterministic),
        ("Two fits with one seed give the same predictions.", method.depends_on_seed_only),
        ("A method that is loaded from its state gives the same predictions.", method.can_be_loaded),
        ("predict does not modify its images.", method.does_not_modify_images),
        ("explain returns pictures by name: (b, h, w) maps or (b, 3, h, w) images.", method.explains),
        ("info returns values for JSON.", method.info_is_json),
        ("Non-square images are accepted, or their size raises a BenchError.", method.accepts_non_square_images),
        ("An iterative method can predict inside progress; the fit does not change.", method.predicts_in_progress),
        ("A method that pretrains can be loaded after pretrain and fit.", method.pretrains),
        ("A fit that continues from a checkpoint learns the same, bit by bit.", method.continues_from_checkpoint),
    ]
    for requirement, check in checks:
        try:
            results.append(CheckResult(requirement, check()))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  the code of others may raise anything
            text = shortened(error_text(error), MAX_REASON)
            results.append(CheckResult(requirement, f"{type(error).__name__}: {text}"))
    if not any(result.problem for result in results):
        results.append(method.check_stability())
    return results


class _MethodUnderTest:
    """A method on the synthetic images. Each check returns "" or the problem."""

    def __init__(self, module: ModuleType, settings: Any) -> None:
        self.module = module
        self.settings = settings
        self.train = SyntheticImages()
        self.test = SyntheticImages(count=3).pixels.clone()
        self.test[2, :, 30:38, 30:38] = 1.0
        self._fitted: Method | None = None
        self._calls: list[tuple[int, int, float | None]] = []

    def create(self, size: tuple[int, int] = SIZE) -> Method:
        seed_everything(3)
        method: Method = self.module.METHOD(self.settings, Setup(size, torch.device("cpu"), 3))
        return method

    def fitted(self) -> Method:
        if self._fitted is None:
            method = self.create()
            method.fit(self.train, lambda done, total, loss: self._calls.append((done, total, loss)))
            self._fitted = method
        return self._fitted

    def raises_before_fit(self) -> str:
        method = self.create()
        for name, call in (("predict", lambda: method.predict(self.test)), ("state_dict", method.state_dict)):
            try:
                call()
            except BenchError:
                continue
            return f"{name} returned a value; read what fit learns from an attribute that is named in `learned`"
        return ""

    def reports_progress(self) -> str:
        self.fitted()
        if not self._calls:
            return "progress was never called; call it at least once, as progress(1, 1, None)"
        done = [call[0] for call in self._calls]
        if done != sorted(done) or done[-1] != self._calls[-1][1]:
            return f"the calls were {self._calls[:3]} ... {self._calls[-1]}; done must increase and end at total"
        losses = [call[2] for call in self._calls if call[2] is not None]
        return "" if np.isfinite(losses).all() else "a loss was not finite; raise a BenchError instead"

    def predicts_valid_values(self) -> str:
        prediction = self.fitted().predict(self.test)
        shapes = (tuple(prediction.scores.shape), tuple(prediction.maps.shape))
        if shapes != ((3,), (3, *SIZE)):
            return f"for 3 images of {SIZE[0]} x {SIZE[1]}, scores are {shapes[0]} and maps {shapes[1]}"
        if prediction.scores.dtype != torch.float32 or prediction.maps.dtype != torch.float32:
            return f"they are {prediction.scores.dtype} and {prediction.maps.dtype}; end predict with .float()"
        is_finite = bool(torch.isfinite(prediction.scores).all() and torch.isfinite(prediction.maps).all())
        return "" if is_finite else "there are NaN or infinite values"

    def is_independent_of_the_batch(self) -> str:
        method = self.fitted()
        batch = method.predict(self.test)
        single = [method.predict(self.test[i : i + 1]) for i in range(3)]
        scores, maps = torch.cat([one.scores for one in single]), torch.cat([one.maps for one in single])
        hint = "; do not normalize over the batch, and use eval mode"
        return _difference(Prediction(scores, maps), batch, 1e-4, hint)

    def prediction_is_not_overwritten(self) -> str:
        method = self.fitted()
        first = method.predict(self.test)
        copy = Prediction(first.scores.clone(), first.maps.clone())
        method.predict(self.test.flip(0))
        return _difference(first, copy, 0.0, "; return new tensors, not a buffer")

    def is_deterministic(self) -> str:
        method = self.fitted()
        hint = "; seed the random generator in each predict"
        return _difference(method.predict(self.test), method.predict(self.test), 0.0, hint)

    def depends_on_seed_only(self) -> str:
        second = self.create()
        second.fit(self.train, lambda *_: None)
        hint = "; draw only from setup.seed or from the global generators"
        return _difference(second.predict(self.test), self.fitted().predict(self.test), 0.0, hint)

    def check_stability(self) -> CheckResult:
        """Measure how far predictions move with the number of threads, the batch size, and noise of `NOISE`."""
        method, images = self.fitted(), self.test
        noise = NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        expected, threads = method.predict(images), torch.get_num_threads()
        others = {f"noise of {NOISE:g}": method.predict(images + noise)}
        singles = [method.predict(image[None]) for image in images]
        others["batches of one image"] = Prediction(
            torch.cat([single.scores for single in singles]), torch.cat([single.maps for single in singles])
        )
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                others[f"{count} thread{'s' if count > 1 else ''}"] = method.predict(images)
        finally:
            torch.set_num_threads(threads)
        changes = {name: _largest_change(other, expected) for name, other in others.items()}
        worst = max(changes, key=lambda name: changes[name])
        requirement = (
            f"Threads, batch size and noise of {NOISE:g} change predictions by at most {method.max_instability:g} of "
            f"their largest value (measured: {changes[worst]:.1g}, with {worst})."
        )
        if changes[worst] <= method.max_instability:
            return CheckResult(requirement)
        hint = "compute small differences without cancellation, or set max_instability with the reason"
        return CheckResult(requirement, f"{hint} in a comment")

    def can_be_loaded(self) -> str:
        return self._loaded_difference(self.fitted())

    def _loaded_difference(self, method: Method) -> str:
        loaded = self.create()
        loaded.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
        hint = "; name all attributes that predict reads in `learned`"
        return _difference(loaded.predict(self.test), method.predict(self.test), 1e-6, hint)

    def does_not_modify_images(self) -> str:
        images = self.test.clone()
        self.fitted().predict(images)
        return "" if torch.equal(images, self.test) else "they were modified; work on a copy"

    def explains(self) -> str:
        try:
            check_pictures(self.fitted().explain(self.test), self.test)
        except BenchError as error:
            return str(error)
        return ""

    def info_is_json(self) -> str:
        json.dumps(self.fitted().info(), allow_nan=False)
        return ""

    def accepts_non_square_images(self) -> str:
        size = (SIZE[0], SIZE[1] * 3 // 2)
        images = SyntheticImages(size, count=3)
        try:
            method = self.create(size)
            method.fit(images, lambda *_: None)
        except BenchError:
            return ""
        shape = tuple(method.predict(images.pixels).maps.shape)
        return "" if shape == (3, *size) else f"for 3 images of {size[0]} x {size[1]}, maps are {shape}"

    def predicts_in_progress(self) -> str:
        if not self.module.METHOD.iterative:
            return ""
        method, predictions = self.create(), list[Prediction]()

        def progress(done: int, total: int, loss: float | None) -> None:  # noqa: ARG001
            with torch.random.fork_rng():
                predictions.append(method.predict(self.test))

        method.fit(self.train, progress)
        prediction = method.predict(self.test)
        hint = " between the last progress and after fit; call progress after the learned attributes are set"
        problem = _difference(predictions[-1], prediction, 0.0, hint)
        hint = " from a fit without predict in progress; use no generator of fit in predict, and return to train mode"
        return problem or _difference(prediction, self.fitted().predict(self.test), 0.0, hint)

    def pretrains(self) -> str:
        if not self.module.METHOD.pretrains:
            return ""
        method = self.create()
        others = {"first": SyntheticImages(count=4, seed=8), "second": SyntheticImages(count=4, seed=9)}
        method.pretrain(others, lambda *_: None)
        method.fit(self.train, lambda *_: None)
        return self._loaded_difference(method)

    def continues_from_checkpoint(self) -> str:
        """Interrupt a fit in the middle, continue it in a new method, and compare; without checkpoints, do nothing."""
        self.fitted()
        remaining = 1 + len(self._calls) // 2

        def interrupt(*_: object) -> None:
            nonlocal remaining
            remaining -= 1
            if not remaining:
                raise _InterruptionError

        with TemporaryDirectory() as folder:
            path = Path(folder).joinpath

            def fit(progress: Progress) -> Method:
                method = self.create()
                checkpoints = FitCheckpoints(lambda number: path(str(number)), {}, 0, "the check")
                checkpoints.load()
                method.epoch_loop = checkpoints.epochs
                method.fit(self.train, progress)
                return method

            with suppress(_InterruptionError):
                fit(interrupt)
            if not any(Path(folder).iterdir()):
                return ""
            state, expected = fit(lambda *_: None).state_dict(), self.fitted().state_dict()
        different = [name for name in state if not torch.equal(state[name], expected[name])]
        hint = "pass all objects that the loop changes to self.epochs"
        return f"'{different[0]}' differs; {hint}" if different else ""


class _InterruptionError(Exception):
    """Ends a fit in the check of checkpoints."""


def _largest_change(first: Prediction, second: Prediction) -> float:
    """Return the largest difference of scores or maps, relative to the largest value."""
    return max(
        float(
            (getattr(first, name) - getattr(second, name)).abs().max() / getattr(second, name).abs().max().clamp(1e-30)
        )
        for name in ("scores", "maps")
    )


def _difference(first: Prediction, second: Prediction, relative: float, hint: str) -> str:
    """Return the problem if two predictions differ by more than `relative` times the largest value, else ""."""
    for name in ("scores", "maps"):
        values, expected = getattr(first, name), getattr(second, name)
        tolerance = relative * float(expected.abs().max())
        difference = float((values - expected).abs().max())
        if not difference <= tolerance:  # also if it is NaN
            return f"{name} differ by {difference:.3g} (tolerance: {tolerance:.3g}){hint}"
    return ""
