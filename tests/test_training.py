"""Optimization steps: equal to a loop with a torch optimizer, with loss scaling, clipping and a check of the loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.method import Setup
from bench.training import TrainingStep, check_finite

SETUP = Setup((4, 4), torch.device("cpu"), seed=0)
TARGET = torch.tensor([[1.0, -2.0, 3.0]])


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, 3))


def loss_of(values: nn.Parameter) -> Tensor:
    return (values - TARGET).square().mean()


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_steps_equal_those_of_a_torch_optimizer(optimizer_class: type[torch.optim.Optimizer]) -> None:
    expected, values = parameter(), parameter()
    optimizer = optimizer_class([expected], lr=0.1)  # type: ignore[call-arg]
    training = TrainingStep(SETUP, optimizer_class, [values], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(expected).backward()
        optimizer.step()
        training.minimize(loss_of(values), 1)
    torch.testing.assert_close(values, expected)
    assert values.any()


def test_the_optimizer_is_fused_where_torch_has_such_a_kernel() -> None:
    assert TrainingStep(SETUP, torch.optim.Adam, [parameter()], lr=0.1).optimizer.defaults["fused"]
    assert "fused" not in TrainingStep(SETUP, torch.optim.RMSprop, [parameter()], lr=0.1).optimizer.defaults
    meta = replace(SETUP, device=torch.device("meta"))
    assert not TrainingStep(meta, torch.optim.Adam, [parameter()], lr=0.1).optimizer.defaults["fused"]


def test_parameters_without_a_gradient_are_left_out_and_groups_are_passed_on() -> None:
    frozen, values = parameter().requires_grad_(requires_grad=False), parameter()
    assert TrainingStep(SETUP, torch.optim.SGD, [frozen, values], lr=0.1).optimizer.param_groups[0]["params"] == [
        values
    ]
    groups = [{"params": [values], "lr": 0.5}]
    assert TrainingStep(SETUP, torch.optim.SGD, groups, lr=0.1).optimizer.param_groups[0]["lr"] == 0.5


def test_the_epoch_loss_is_the_mean_over_images_since_the_last_call() -> None:
    values = parameter()
    training = TrainingStep(SETUP, torch.optim.SGD, [values], lr=0.0)
    training.minimize(2 * values.sum() + 1, 3)
    training.minimize(2 * values.sum() + 5, 1)
    assert training.epoch_loss() == (3 * 1 + 1 * 5) / 4
    training.minimize(2 * values.sum() + 7, 2)
    assert training.epoch_loss() == 7


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises_an_error_with_the_epoch(value: float) -> None:
    values = parameter()
    training = TrainingStep(SETUP, torch.optim.SGD, [values], lr=0.0)
    training.minimize(values.sum(), 1)
    training.epoch_loss()
    training.minimize(values.sum() + value, 1)
    with pytest.raises(BenchError, match=rf"must be finite, got {value} in epoch 2\. Pass a lower --set lr"):
        training.epoch_loss()
    with pytest.raises(BenchError, match="in epoch 7"):
        check_finite(value, 7)
    check_finite(0.0, 7)


def test_gradients_are_clipped_to_the_norm() -> None:
    values = parameter()
    training = TrainingStep(SETUP, torch.optim.SGD, [values], lr=1.0, max_grad_norm=0.5)
    training.minimize((values * torch.tensor([[3.0, 4.0, 0.0]])).sum(), 1)  # the norm of the gradient is 5
    torch.testing.assert_close(values.detach(), torch.tensor([[-0.3, -0.4, 0.0]]))


def test_at_float16_the_loss_is_scaled_and_a_step_with_infinite_gradients_is_skipped() -> None:
    values = parameter()
    training = TrainingStep(replace(SETUP, precision="float16"), torch.optim.SGD, [values], lr=1.0, max_grad_norm=0.5)
    training.minimize((values * torch.tensor([[3.0, 4.0, 0.0]])).sum(), 1)
    torch.testing.assert_close(values.detach(), torch.tensor([[-0.3, -0.4, 0.0]]))
    before = values.detach().clone()
    training.minimize((values * math.inf).sum(), 1)
    assert torch.equal(values.detach(), before)
