"""No method waits for its device inside a prediction or a training step: on a GPU a wait costs more than the work."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.config.bench_toml import load_config
from bench.config.settings import resolve
from bench.errors import BenchError
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup

WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), int(), bool()
    "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2",  # shapes that depend on values
    "aten::equal", "aten::is_nonzero",
}  # fmt: skip
BRIDGES = {"anomalib", "sklearn"}  # what is inside them is not ours to mend
NAMES = [name for name in registry.names("methods") if name not in BRIDGES]


class Waits(TorchDispatchMode):
    """Counts the operations inside the block whose answer or shape only the device knows."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        masked = name in {"aten::index.Tensor", "aten::index", "aten::index_put_"} and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        # An index that a CPU generator drew is read at once on every device; losses, distances and masks are not.
        drawn = name == "aten::_local_scalar_dense" and args[0].dtype == torch.int64
        if (name in WAITING and not drawn) or masked:
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


def made(name: str, **changes: object) -> Any:
    module = registry.load("methods", name)
    given = load_config().tables["profile"]["check"]["set"].get(name, {})
    raw = {key: (value, "") for key, value in {**given, **changes}.items()}
    settings, _ = resolve(module.Settings, raw, name)
    return module.METHOD(settings, Setup((64, 64), torch.device("cpu"), 0))


def waits_of_a_fit(name: str, images: int, **changes: object) -> tuple[Counter[str], Any]:
    method = made(name, **changes)
    with Waits() as waits:
        method.fit(SyntheticImages(count=images), lambda *_: None)
    return waits.seen, method


def test_the_counter_sees_every_kind_of_wait() -> None:
    values = torch.tensor([1.0, 0.0])
    with Waits() as waits:
        float(values[0])
        values.nonzero()
        values[values > 0]
        bool(values.any())
        torch.where(values > 0, values, 0)  # waits for nothing
    assert waits.seen["aten::_local_scalar_dense"] == 2
    assert waits.seen["aten::nonzero"] == 1
    assert waits.seen.total() == 4


@pytest.mark.parametrize("name", NAMES)
def test_predict_does_not_wait_for_the_device(name: str) -> None:
    _, method = waits_of_a_fit(name, 4)
    images = SyntheticImages(count=2).pixels
    method.predict(images)  # what is made once may wait
    with Waits() as waits, torch.no_grad():
        method.predict(images)
    assert not waits.seen


@pytest.mark.parametrize("name", [name for name in NAMES if registry.load("methods", name).METHOD.iterative])
def test_a_fit_waits_once_an_epoch_however_many_steps_it_has(name: str) -> None:
    try:
        few, many = (waits_of_a_fit(name, images, batch=1)[0] for images in (2, 5))
    except BenchError:
        pytest.skip("it has no setting 'batch'")
    assert few == many
