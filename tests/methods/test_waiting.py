"""No method waits for its device in predict or in a training step: on a GPU a wait costs more than the computation."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.config.method_metadata import method_metadata
from bench.config.settings import resolve
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup

WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), int(), bool()
    "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2",  # shapes that depend on values
    "aten::equal", "aten::is_nonzero",
}  # fmt: skip
NAMES = [name for name in registry.names("methods") if not method_metadata(name).is_external]


class WaitCounter(TorchDispatchMode):
    """Counts the operations whose value or shape the host must read from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._draws: list[torch.Tensor] = []  # single random numbers; references, so that no address is used again

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        masked = name in {"aten::index.Tensor", "aten::index", "aten::index_put_"} and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        # A random index or number from a CPU generator is read without a wait on every device; losses are not. Every
        # integer is taken for a random index, which may hide a wait for another integer of the device.
        is_draw = name == "aten::_local_scalar_dense" and (
            args[0].dtype == torch.int64 or any(args[0].data_ptr() == draw.data_ptr() for draw in self._draws)
        )
        if (name in WAITING and not is_draw) or masked:
            self.counts[name] += 1
        result = function(*args, **(kwargs or {}))
        if name.startswith("aten::rand") and result.ndim == 0:
            self._draws.append(result)
        return result


def create(name: str, **changes: object) -> Any:
    module = registry.load("methods", name)
    values = {**method_metadata(name).profiles.get("check", {}), **changes}
    raw = {key: (value, "") for key, value in values.items()}
    settings, _ = resolve(module.Settings, raw, name)
    return module.METHOD(settings, Setup((64, 64), torch.device("cpu"), 0))


def fit_and_count_waits(name: str, images: int, **changes: object) -> tuple[Any, Counter[str]]:
    method = create(name, **changes)
    with WaitCounter() as waits:
        method.fit(SyntheticImages(count=images), lambda *_: None)
    return method, waits.counts


def test_the_counter_counts_numbers_indices_and_boolean_selections() -> None:
    values = torch.tensor([1.0, 0.0])
    with WaitCounter() as waits:
        float(values[0])
        float(torch.rand(()))  # a draw does not wait
        values.nonzero()
        values[values > 0]
        bool(values.any())
        torch.where(values > 0, values, 0)  # does not wait
    assert waits.counts["aten::_local_scalar_dense"] == 2
    assert waits.counts["aten::nonzero"] == 1
    assert waits.counts.total() == 4


@pytest.mark.parametrize("name", NAMES)
def test_predict_does_not_wait_for_the_device(name: str) -> None:
    method, _ = fit_and_count_waits(name, 4)
    images = SyntheticImages(count=2).pixels
    method.predict(images)  # the first call may wait
    with WaitCounter() as waits, torch.no_grad():
        method.predict(images)
    assert not waits.counts


@pytest.mark.parametrize("name", [name for name in NAMES if registry.load("methods", name).METHOD.iterative])
def test_the_waits_of_a_fit_do_not_depend_on_the_number_of_steps(name: str) -> None:
    if "batch_size" not in registry.load("methods", name).Settings.__dataclass_fields__:
        pytest.skip("there is no setting 'batch_size'")
    few, many = (fit_and_count_waits(name, images, batch_size=1)[1] for images in (2, 5))
    assert few == many
