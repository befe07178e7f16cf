"""What every method promises, each checked on a fitted one and told in plain words: `bench check` and the tests.

The images are drawn here and tiny: the checks ask whether a method keeps its promises, not whether it is good.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.environment import seed_everything
from bench.errors import BenchError, CheckResult
from bench.method import Method, Prediction, Setup

SIZE = (64, 64)


class Drawn:
    """Six good images of a shaded square with noise, walkable as a method's training images are."""

    digest = "drawn for the contract"

    def __init__(self, size: tuple[int, int] = SIZE, count: int = 6) -> None:
        generator = torch.Generator().manual_seed(7)
        rows, columns = (torch.linspace(0, 1, side) for side in size)
        shade = 0.3 + 0.2 * rows[:, None] + 0.2 * columns  # (h, w)
        shade[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] += 0.2
        self.pixels = (shade + 0.03 * torch.randn(count, 3, *size, generator=generator)).clamp(0, 1)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        """As `bench.method.Images` says."""
        walked = self.pixels if order is None else self.pixels[order]
        yield from (walked[start : start + size] for start in range(0, len(walked), size))


def shape_of(module: ModuleType) -> list[CheckResult]:
    """Whether the file defines what a method file defines."""
    settings, kind = getattr(module, "Settings", None), getattr(module, "METHOD", None)
    found = [CheckResult("The file defines Settings, a frozen dataclass with a default for every field.")]
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        found = [CheckResult(found[0].requirement, "there is none; write `@dataclass(frozen=True) class Settings:`")]
    elif not settings.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        found = [CheckResult(found[0].requirement, "it can be changed; write `@dataclass(frozen=True)`")]
    else:
        without = [
            entry.name
            for entry in dataclasses.fields(settings)
            if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        ]
        if without:
            found = [CheckResult(found[0].requirement, f"no default for {', '.join(without)}; give each one")]
    promise = "The file defines METHOD, a subclass of bench.method.Method with fit, predict, state and restore."
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        return [*found, CheckResult(promise, "there is none; end the file with `METHOD = YourClass`")]
    lacking = sorted(kind.__abstractmethods__)
    return [*found, CheckResult(promise, f"it lacks {', '.join(lacking)}; write them" if lacking else "")]


def check(module: ModuleType, settings: Any) -> list[CheckResult]:
    """Every promise, checked in order on the CPU; a promise that can't be checked because another broke says so."""
    found = shape_of(module)
    if any(finding.problem for finding in found):
        return found
    trial = _Trial(module, settings)
    promises: list[tuple[str, Callable[[], str]]] = [
        ("predict before fit is refused with a BenchError.", trial.refuses_before_fit),
        ("fit tells its progress: done rises to total, losses are finite.", trial.tells_progress),
        ("predict answers float32 scores (b,) and maps (b, h, w), all finite.", trial.answers),
        ("An image scores the same alone as in a batch.", trial.alone_as_in_a_batch),
        ("A prediction stays as it is after the next predict.", trial.stays_valid),
        ("predict asked twice answers the same.", trial.repeats),
        ("Two fits with one seed answer the same.", trial.same_seed_same_answer),
        ("state and restore give the same answers back.", trial.restores),
        ("predict leaves the images it is given untouched.", trial.leaves_images),
        ("explain gives pictures by name: (b, h, w) maps or (b, 3, h, w) images.", trial.explains),
        ("facts are plain values that JSON can hold.", trial.facts_are_json),
        ("A method answers for oblong images, or refuses their size with a BenchError.", trial.takes_oblong_images),
        ("An iterative method can predict inside progress, without changing the fit.", trial.predicts_in_progress),
    ]
    for promise, ask in promises:
        try:
            found.append(CheckResult(promise, ask()))
        except Exception as error:  # noqa: BLE001  a stranger's code may raise anything
            found.append(CheckResult(promise, f"{type(error).__name__}: {error}"))
    return found


class _Trial:
    """One method on the drawn images. Each check answers "" or what is broken."""

    def __init__(self, module: ModuleType, settings: Any) -> None:
        self.module = module
        self.settings = settings
        self.train = Drawn()
        self.test = Drawn(count=3).pixels.clone()
        self.test[2, :, 30:38, 30:38] = 1.0
        self._fitted: Method | None = None
        self._told: list[tuple[int, int, float | None]] = []

    def made(self, size: tuple[int, int] = SIZE) -> Method:
        seed_everything(3)
        method: Method = self.module.METHOD(self.settings, Setup(size, torch.device("cpu"), 3))
        return method

    def fitted(self) -> Method:
        if self._fitted is None:
            method = self.made()
            method.fit(self.train, lambda done, total, loss: self._told.append((done, total, loss)))
            self._fitted = method
        return self._fitted

    def refuses_before_fit(self) -> str:
        try:
            self.made().predict(self.test)
        except BenchError:
            return ""
        return "it answered; begin predict with `raise BenchError(NOT_FITTED)` where nothing was fitted"

    def tells_progress(self) -> str:
        self.fitted()
        if not self._told:
            return "progress was never called; call it at least once, as progress(1, 1, None)"
        done = [entry[0] for entry in self._told]
        if done != sorted(done) or done[-1] != self._told[-1][1]:
            return f"it told {self._told[:3]} ... {self._told[-1]}; done must rise and end at total"
        losses = [entry[2] for entry in self._told if entry[2] is not None]
        return "" if np.isfinite(losses).all() else "a loss was not finite; raise BenchError instead"

    def answers(self) -> str:
        found = self.fitted().predict(self.test)
        shapes = (tuple(found.scores.shape), tuple(found.maps.shape))
        if shapes != ((3,), (3, *SIZE)):
            return f"3 images of {SIZE[0]} x {SIZE[1]} gave scores {shapes[0]} and maps {shapes[1]}"
        if found.scores.dtype != torch.float32 or found.maps.dtype != torch.float32:
            return f"they are {found.scores.dtype} and {found.maps.dtype}; end predict with .float()"
        finite = bool(torch.isfinite(found.scores).all() and torch.isfinite(found.maps).all())
        return "" if finite else "it answered NaN or infinity"

    def alone_as_in_a_batch(self) -> str:
        method = self.fitted()
        whole = method.predict(self.test)
        alone = [method.predict(self.test[i : i + 1]) for i in range(3)]
        maps, scores = torch.cat([one.maps for one in alone]), torch.cat([one.scores for one in alone])
        return _differs(Prediction(scores, maps), whole, 1e-4, "; normalise nothing over the batch; be in eval mode")

    def stays_valid(self) -> str:
        method = self.fitted()
        first = method.predict(self.test)
        kept = Prediction(first.scores.clone(), first.maps.clone())
        method.predict(self.test.flip(0))
        return _differs(first, kept, 0.0, "; return new tensors, not a buffer")

    def repeats(self) -> str:
        method = self.fitted()
        return _differs(method.predict(self.test), method.predict(self.test), 0.0, "; draw from a seed at each predict")

    def same_seed_same_answer(self) -> str:
        again = self.made()
        again.fit(self.train, lambda *_: None)
        mend = "; draw from setup.seed or the global generators only"
        return _differs(again.predict(self.test), self.fitted().predict(self.test), 0.0, mend)

    def restores(self) -> str:
        other = self.made()
        other.restore({name: value.clone() for name, value in self.fitted().state().items()})
        return _differs(other.predict(self.test), self.fitted().predict(self.test), 1e-6, "; state must hold all of it")

    def leaves_images(self) -> str:
        given = self.test.clone()
        self.fitted().predict(given)
        return "" if torch.equal(given, self.test) else "it wrote into them; work on a copy"

    def explains(self) -> str:
        wrong = {
            name: tuple(picture.shape)
            for name, picture in self.fitted().explain(self.test).items()
            if picture.shape not in {(3, *SIZE), (3, 3, *SIZE)}
        }
        return f"3 images gave {wrong}" if wrong else ""

    def facts_are_json(self) -> str:
        json.dumps(self.fitted().facts(), allow_nan=False)
        return ""

    def takes_oblong_images(self) -> str:
        size = (SIZE[0], SIZE[1] * 3 // 2)
        oblong = Drawn(size, count=3)
        try:
            method = self.made(size)
            method.fit(oblong, lambda *_: None)
        except BenchError:
            return ""
        shape = tuple(method.predict(oblong.pixels).maps.shape)
        return "" if shape == (3, *size) else f"3 images of {size[0]} x {size[1]} gave maps {shape}"

    def predicts_in_progress(self) -> str:
        if not self.module.METHOD.iterative:
            return ""
        method, seen = self.made(), list[Prediction]()

        def look(done: int, total: int, loss: float | None) -> None:  # noqa: ARG001
            with torch.random.fork_rng():
                seen.append(method.predict(self.test))

        method.fit(self.train, look)
        found = method.predict(self.test)
        last = _differs(seen[-1], found, 0.0, " between the last progress and after fit; report the finished epoch")
        mend = " from a fit without looking; draw nothing from a generator that fit uses, and go back to train mode"
        return last or _differs(found, self.fitted().predict(self.test), 0.0, mend)


def _differs(found: Prediction, expected: Prediction, relative: float, mend: str) -> str:
    for name in ("scores", "maps"):
        one, other = getattr(found, name), getattr(expected, name)
        allowed = relative * float(other.abs().max())
        worst = float((one - other).abs().max())
        if not worst <= allowed:  # NaN breaks it too
            return f"{name} differ by {worst:.3g} (allowed: {allowed:.3g}){mend}"
    return ""
