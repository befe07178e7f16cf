"""RIAD: its U-Net by the numbers, the joined passes against a slow loop, its map by the definition, and its fitting."""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import NOT_FITTED, Setup
from bench.methods import riad
from bench.methods.parts.maps import mean_filter
from bench.methods.parts.masks import complementary_masks
from bench.methods.parts.similarity import gms, msgms, ssim
from bench.methods.parts.unet import UNet
from bench.methods.riad import RIAD, Settings

CPU = torch.device("cpu")
SETUP = Setup((32, 32), CPU, seed=0)
TINY = Settings(width=2, cells=(2, 4), epochs=2, batch=2, mean_filter=5, lr=1e-3)


class Pictures:
    """Good images in memory."""

    digest = "pictures"

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        yield from (self.images if order is None else self.images[order]).split(size)


def pictures(count: int = 3, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
    return torch.rand(count, 3, *size, generator=Generator().manual_seed(seed))


def fitted(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> RIAD:
    method = RIAD(settings, setup)
    method.fit(Pictures(pictures(size=setup.size) if images is None else images), lambda *_: None)
    return method


@pytest.fixture(scope="module")
def tiny() -> RIAD:
    torch.manual_seed(0)
    return fitted()


# ---- The U-Net ----


def test_the_stages_are_those_of_the_table() -> None:
    with torch.device("meta"):
        network = UNet(64)
    shapes: list[tuple[int, ...]] = []
    for stage in [*network.down, *network.enlarge, *network.up, network.colour]:
        stage.register_forward_hook(lambda _stage, _given, gave: shapes.append(tuple(gave.shape[1:])))
    assert network(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 3, 256, 256)
    down = [(64, 256, 256), (128, 128, 128), (256, 64, 64), (512, 32, 32), (512, 16, 16)]
    up = [shape for shape in down[-2::-1] for _ in range(2)]  # enlarged, then joined and convolved
    assert shapes == [*down, *up, (3, 256, 256)]


def test_width_64_has_as_many_weights_as_a_sum_by_hand() -> None:
    widths = [64, 128, 256, 512, 512]
    convolution = lambda before, after, side: before * after * side**2 + 2 * after  # no bias, but batch norm's two
    down = convolution(3, 64, 3) + sum(convolution(a, b, 4) for a, b in pairwise(widths))
    down += sum(convolution(width, width, 3) for width in widths)
    enlarge = sum(a * b * 16 + b for a, b in pairwise(widths[::-1]))
    up = sum(convolution(2 * width, width, 3) + convolution(width, width, 3) for width in widths[:-1])
    colour = 64 * 3 * 9 + 3
    expected = down + enlarge + up + colour
    assert riad._weights(64) == expected == 28_800_835
    assert RIAD(Settings(), Setup((256, 256), CPU, 0)).facts() == {"trainable_parameters": expected, "passes": 12}


def test_what_the_way_down_had_reaches_the_way_up_and_values_stay_within_1() -> None:
    network, images = UNet(2).eval(), torch.randn(1, 3, 32, 32)
    for module in network.enlarge:  # nothing comes from below, so all that differs came across
        nn.init.zeros_(module.weight)
    one, other = network(images), network(images + 1)
    assert (one - other).abs().max() > 1e-4
    assert one.abs().max() <= 1


def test_what_a_pass_remembers_is_about_what_it_is_told_to() -> None:
    network, kept = UNet(8).train(), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(1, 3, 64, 64))
    found = sum(size for place, size in kept.items() if place not in weights)
    assert 0.8 * found < UNet.remembered(8, (64, 64)) < 1.25 * found


# ---- Twelve passes, joined ----


def slow_paint(method: RIAD, images: Tensor) -> Tensor:
    """(cells, b, 3, h, w): image by image, cell size by cell size, pass by pass, as the paper is told to do it."""
    network, drawn = method._network, Generator().manual_seed(method.settings.test_seed)
    painted = torch.zeros(len(method.settings.cells), *images.shape)
    for number, cell in enumerate(method.settings.cells):
        masks = complementary_masks(*images.shape[2:], cell=cell, subsets=method.settings.subsets, generator=drawn)
        for place, image in enumerate(images):
            for mask in masks:
                visible = (~mask).float()
                painted[number, place] += (1 - visible) * network((image * visible)[None])[0]
    return painted


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 5, 12, 100])
def test_passes_in_any_batches_are_joined_as_a_slow_loop_joins_them(tiny: RIAD, at_once: int) -> None:
    images = tiny._scaled(pictures(2, seed=4))
    painted = tiny._painted(tiny._network, images, tiny._test_masks, at_once)
    assert_close(painted, slow_paint(tiny, images), rtol=1e-4, atol=1e-5)


def test_passes_come_in_as_few_batches_as_memory_allows(tiny: RIAD, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 passes of 2 images are 12 to paint; each takes a third of what it would remember for its gradients."""
    remembered, sizes = UNet.remembered(2, (32, 32)), list[int]()
    usual = tiny.predict(pictures(2)).maps
    watched = copy(tiny)
    watched._network, watched._asked = copy(tiny._network), None
    watched._network.forward = lambda given: (sizes.append(len(given)), tiny._network(given))[1]
    for passes, expected in ((12, [12]), (11, [11, 1]), (5, [5, 5, 2]), (0, [1] * 12)):
        monkeypatch.setattr(riad, "room", lambda _device, passes=passes: passes * remembered // 3 + 1)
        sizes.clear()
        assert_close(watched.predict(pictures(2)).maps, usual, rtol=1e-4, atol=1e-6)
        assert sizes == expected


def test_no_pixel_is_painted_from_what_it_holds_itself(tiny: RIAD) -> None:
    images = tiny._scaled(pictures(1)).requires_grad_()
    masks = tiny._test_masks[:1]
    painted = tiny._painted(tiny._network, images, masks, 3)
    for mask in masks[0]:
        told = torch.autograd.grad(painted[0, 0, :, mask].sum(), images, retain_graph=True)[0]
        assert told[0, :, mask].abs().max() == 0
        assert told[0, :, ~mask].abs().max() > 0


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_test_masks_hide_every_pixel_once_in_cells_of_each_size(size: tuple[int, int]) -> None:
    method = RIAD(replace(TINY, cells=(2, 4, 8, 16)), replace(SETUP, size=size))
    masks = method._test_masks
    assert masks.shape == (4, 3, *size)
    assert (masks.sum(dim=1) == 1).all()
    for cell, some in zip((2, 4, 8, 16), masks, strict=True):
        blown = some[:, ::cell, ::cell].repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        assert torch.equal(some, blown)
        counts = some[:, ::cell, ::cell].sum(dim=(1, 2))
        assert counts.max() - counts.min() <= 1


def test_test_masks_come_from_their_own_seed_alone(tiny: RIAD) -> None:
    other = RIAD(replace(TINY, test_seed=1), tiny.setup)
    other.restore(tiny.state())
    torch.manual_seed(99)
    assert torch.equal(tiny._test_masks, RIAD(TINY, tiny.setup)._test_masks)
    assert (tiny._test_masks != other._test_masks).float().mean() > 0.3  # of two random thirds 4 / 9 differ
    maps, moved = (method.predict(pictures()).maps for method in (tiny, other))
    assert not torch.equal(maps, moved)
    assert_close(moved.mean(), maps.mean(), rtol=0.1, atol=0)  # what they see is the same kind of thing
    refitted = fitted(replace(TINY, test_seed=1)).state()
    assert all(torch.equal(refitted[name], value) for name, value in tiny.state().items())  # learned alike


# ---- Loss and map ----


def test_the_map_is_the_mean_over_cell_sizes_of_1_minus_msgms_under_a_mean_filter(tiny: RIAD) -> None:
    images = pictures(2, seed=4)
    wanted = images * 2 - 1
    with torch.no_grad():
        painted = slow_paint(tiny, wanted)
    unlike = torch.stack([1 - msgms(wanted, one).mean(dim=1) for one in painted]).mean(dim=0)
    found = tiny.predict(images)
    assert_close(found.maps, mean_filter(unlike, 5), rtol=1e-3, atol=1e-5)
    assert torch.equal(found.scores, found.maps.amax(dim=(1, 2)))


def test_grey_takes_the_gradients_of_the_mean_of_the_colours(tiny: RIAD) -> None:
    one, other = pictures(1, seed=2), pictures(1, seed=3)
    grey = copy(tiny)
    grey.settings = replace(TINY, grey=True)
    assert_close(tiny._unlike(one, other), 1 - msgms(one, other).mean(dim=1))
    assert_close(grey._unlike(one, other), 1 - msgms(one.mean(1, keepdim=True), other.mean(1, keepdim=True))[:, 0])


@pytest.mark.parametrize("changes", [{}, {"gms_weight": 0.5, "ssim_weight": 2.0}, {"grey": True}], ids=str)
def test_the_loss_is_l2_and_msgms_and_ssim_by_their_weights(tiny: RIAD, changes: dict[str, object]) -> None:
    method, images = copy(tiny), pictures(2)
    method.settings = replace(TINY, cells=(4,), **changes)
    network = UNet(2).eval()
    loss = method._loss(network, images, Generator().manual_seed(3))
    drawn = Generator().manual_seed(3)
    torch.randint(1, (), generator=drawn)  # the cell's size was drawn first
    masks = complementary_masks(32, 32, cell=4, subsets=3, generator=drawn)
    wanted = images * 2 - 1
    painted = sum(mask * network(wanted * ~mask) for mask in masks)
    shown = [wanted.mean(1, keepdim=True), painted.mean(1, keepdim=True)] if method.settings.grey else [wanted, painted]
    scales = []
    for _ in range(4):
        scales.append((1 - gms(*shown)).mean())
        shown = [F.avg_pool2d(one, 2) for one in shown]
    parts = (wanted - painted).square().mean(), torch.stack(scales).mean(), 1 - ssim(wanted, painted).mean()
    weights = 1, method.settings.gms_weight, method.settings.ssim_weight
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_training_draws_every_cell_size_and_other_masks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Tensor]] = []

    def watched(height: int, width: int, *, cell: int, subsets: int, generator: Generator) -> Tensor:
        seen.append((cell, complementary_masks(height, width, cell=cell, subsets=subsets, generator=generator)))
        return seen[-1][1]

    monkeypatch.setattr(riad, "complementary_masks", watched)
    fitted(replace(TINY, epochs=6, batch=1))
    trained = seen[2:]  # the first two are of the check before fitting
    assert len(trained) == 18
    assert {cell for cell, _ in trained} == {2, 4}
    assert len({mask.numpy().tobytes() for _, mask in trained}) == 18


# ---- Fitting ----


def stripes(count: int, seed: int) -> Tensor:
    """Stripes of a random phase: each pixel is as often light as dark, so a mean image tells nothing of them."""
    generator = Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    waves = 0.5 + 0.3 * torch.sin(2 * math.pi * torch.arange(32) / 8 + phase)  # (count, 1, 1, 32)
    return waves.expand(-1, 3, 32, -1) + 0.02 * torch.randn(count, 3, 32, 32, generator=generator)


def test_it_learns_to_paint_unseen_stripes_from_what_lies_around() -> None:
    losses: list[float] = []
    method, test = RIAD(replace(TINY, width=8, epochs=20, lr=3e-3), SETUP), stripes(4, seed=2)
    method.fit(Pictures(stripes(6, seed=1)), lambda _done, _total, loss: losses.append(loss or math.nan))
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        wanted, painted = method._restored(test)
    assert (painted - wanted).square().mean() < 0.2 * wanted.var()


def test_the_seed_decides_all_and_the_global_generator_nothing(tiny: RIAD) -> None:
    images = pictures(seed=5)
    torch.manual_seed(123)
    assert torch.equal(fitted().predict(images).maps, tiny.predict(images).maps)
    assert not torch.equal(fitted(setup=replace(SETUP, seed=1)).predict(images).maps, tiny.predict(images).maps)


@pytest.mark.parametrize(
    "changes",
    [{"cells": (8,)}, {"subsets": 2}, {"grey": True}, {"mean_filter": 1}, {"reduce": 2}, {"weight_decay": 0.1},
     {"gms_weight": 0.0}, {"lr_drop": 2}],
    ids=str,
)  # fmt: skip
def test_every_alternative_fits_and_answers_otherwise(tiny: RIAD, changes: dict[str, object]) -> None:
    found, usual = fitted(replace(TINY, **changes)).predict(pictures()), tiny.predict(pictures())
    assert torch.isfinite(found.maps).all()
    assert found.maps.shape == (3, 32, 32)
    assert not torch.equal(found.maps, usual.maps)


def test_from_lr_drop_on_the_rate_is_a_tenth() -> None:
    low, dropped = (fitted(replace(TINY, lr=lr, lr_drop=drop)) for lr, drop in ((1e-3, 0), (1e-2, 1)))
    assert torch.equal(low.predict(pictures()).maps, dropped.predict(pictures()).maps)


def test_the_epoch_that_is_best_on_held_out_images_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    method = RIAD(replace(TINY, epochs=9, patience=2), SETUP)
    script, held_out = iter([3.0, 1.0, 2.0, 1.0]), []

    def scripted(_network: UNet, _train: object, held: Tensor) -> float:
        held_out.append(sorted(held.tolist()))
        return next(script)

    monkeypatch.setattr(method, "_held_loss", scripted)
    told, maps = [], []

    def progress(done: int, total: int, _loss: float | None) -> None:
        told.append((done, total))
        maps.append(method.predict(pictures()).maps)

    method.fit(Pictures(pictures(10)), progress)
    assert told == [(1, 9), (2, 9), (3, 9), (4, 4)]  # two epochs without a better loss end the fit
    assert len(held_out[0]) == 2  # a fifth of ten
    assert all(held == held_out[0] for held in held_out)
    assert method.facts()["kept_epoch"] == 2
    assert torch.equal(maps[1], maps[3])
    assert not torch.equal(maps[0], maps[1])


def test_held_out_images_are_judged_alike_after_every_epoch_and_teach_nothing() -> None:
    method, images = fitted(replace(TINY, epochs=1), images=pictures(10)), Pictures(pictures(10))
    before = method.state()
    first, again = (method._held_loss(method._network, images, torch.arange(4)) for _ in range(2))
    assert first == again
    assert all(torch.equal(before[name], value) for name, value in method.state().items())  # batch norm's among them


def test_fewer_than_ten_images_hold_none_out() -> None:
    told = []
    method = RIAD(replace(TINY, patience=1, epochs=3), SETUP)
    method.fit(Pictures(pictures(9)), lambda done, total, _loss: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert method.facts()["kept_epoch"] == 3


# ---- What it tells of itself, and what it refuses ----


def test_explain_shows_what_was_painted_hidden_and_unlike_for_each_cell_size(tiny: RIAD) -> None:
    told, images = tiny.explain(pictures(2)), pictures(2)
    assert list(told) == [
        f"{name}, cells of {cell}" for cell in (2, 4) for name in ("reconstruction", "mask", "gradient difference")
    ]
    with torch.no_grad():
        painted = (slow_paint(tiny, images * 2 - 1) + 1) / 2
    assert_close(told["reconstruction, cells of 4"], painted[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(told["mask, cells of 4"][0].bool(), tiny._test_masks[1, 0])
    mean = (told["gradient difference, cells of 2"] + told["gradient difference, cells of 4"]) / 2
    assert_close(mean_filter(mean, 5), tiny.predict(images).maps)
    halved = fitted(replace(TINY, reduce=2)).explain(images)
    assert {picture.shape[-2:] for picture in halved.values()} == {(32, 32)}


def test_state_gives_the_same_answers_back_and_other_settings_are_refused(tiny: RIAD) -> None:
    other = RIAD(TINY, SETUP)
    other.restore(tiny.state())
    assert torch.equal(other.predict(pictures()).maps, tiny.predict(pictures()).maps)
    with pytest.raises(BenchError, match="needs the settings that it was fitted with"):
        RIAD(replace(TINY, width=3), SETUP).restore(tiny.state())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_answers_much_the_same_in_float32(tiny: RIAD, precision: str) -> None:
    found, usual = fitted(setup=replace(SETUP, precision=precision)).predict(pictures()), tiny.predict(pictures())
    assert found.maps.dtype == found.scores.dtype == torch.float32
    assert_close(found.maps, usual.maps, rtol=0.2, atol=0.1 * float(usual.maps.max()))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"width": 0}, "1 or more"), ({"cells": ()}, "one or more"), ({"cells": (4, 0)}, "one or more"),
        ({"subsets": 1}, "must see something"), ({"holdout": 1.0}, "below 1"), ({"mean_filter": 4}, "odd"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(BenchError, match=rule):
        replace(TINY, **changes)


def test_before_fit_at_other_sizes_and_at_a_loss_without_end_it_says_so(tiny: RIAD) -> None:
    with pytest.raises(BenchError, match=NOT_FITTED):
        RIAD(TINY, SETUP).predict(pictures())
    with pytest.raises(BenchError, match=r"\(32, 32\) pixels; \(64, 64\) came"):
        tiny.predict(pictures(1, (64, 64)))
    with pytest.raises(BenchError, match=r"16 divides its height and width .*; 40 x 32 came"):
        RIAD(TINY, replace(SETUP, size=(40, 32)))
    with pytest.raises(BenchError, match="3 subsets of 1 x 1 cells"):
        RIAD(replace(TINY, cells=(32,)), SETUP)
    with pytest.raises(BenchError, match=r"A loss must be finite; RIAD's is nan"):
        fitted(images=pictures() * math.nan)
