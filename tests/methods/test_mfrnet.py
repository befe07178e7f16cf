"""MFRNet as we read it: against its definition written out slowly, and against numbers worked out by hand."""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.evaluation import metrics
from bench.method import NOT_FITTED, Setup
from bench.methods import meanmap
from bench.methods.mfrnet import MFRNet, Settings, _false_colours
from bench.methods.parts.backbone import layout
from bench.methods.parts.features import FrozenFeatures
from bench.methods.parts.hybrid import HybridBlock, MultiPoolingAttention, RestorationNet, average_pool
from bench.methods.parts.masks import complementary_masks
from bench.methods.parts.similarity import ssim

CPU = torch.device("cpu")
TINY = Settings(
    backbone="random:resnet18", stages=(1, 2), cells=(1, 2), widths=(8, 12), depth=1, head_width=4, pools=(4, 2),
    epochs=3, lr=1e-3, batch=2,
)  # fmt: skip  # 8 x 8 places of 192 channels
SETUP = Setup((32, 32), CPU, seed=0)


@pytest.fixture(autouse=True)
def _one_thread(_repeatable: None) -> None:
    """Networks so small gain nothing from a second thread, and lose much to waiting for it on a busy machine."""
    torch.set_num_threads(1)


class Pictures:
    """Good images in memory."""

    digest = "pictures"

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        for chosen in (torch.arange(len(self)) if order is None else order).split(size):
            yield self.images[chosen]


def pictures(count: int = 4, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
    return torch.rand(count, 3, *size, generator=Generator().manual_seed(seed))


def fitted(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> MFRNet:
    method = MFRNet(settings, setup)
    method.fit(Pictures(pictures(size=setup.size) if images is None else images), lambda *_: None)
    return method


def restoration_net(channels: int = 5, **changes: object) -> RestorationNet:
    settings = {"widths": (8, 12), "depth": 1, "decoder_depth": 1, "head_width": 4, "pools": (4, 2)} | changes
    return RestorationNet(channels, **settings)


@pytest.fixture(scope="module")
def tiny() -> MFRNet:
    torch.manual_seed(0)
    return fitted()


# ---- Crossed masks and parallel restorations ----


def one_pass(network: RestorationNet, features: Tensor) -> Tensor:
    maps = network.restore(network.stem(features.permute(0, 2, 3, 1)))
    return network.head(network.norm(maps)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_restorations_are_joined_as_the_definition_says(size: tuple[int, int]) -> None:
    network = restoration_net(learn_token=True)
    nn.init.normal_(network.token)
    features, drawn = torch.randn(2, 5, *size), Generator().manual_seed(0)
    masks = complementary_masks(*size, cell=2, subsets=3, generator=drawn)
    expected = torch.zeros_like(features)
    for mask in masks:  # the sum over passes of (1 - M) f(M F), with the token where M F is 0
        visible = (~mask).float()
        shown = visible * features + (1 - visible) * network.token[:, None, None]
        expected += (1 - visible) * one_pass(network, shown)
    assert_close(network(features, masks), expected, rtol=1e-4, atol=1e-5)


def test_each_place_is_taken_from_the_pass_that_hid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = restoration_net(channels=8)
    network.stem = network.norm = network.head = nn.Identity()
    numbered = lambda maps: torch.arange(3.0).repeat_interleave(2).view(6, 1, 1, 1).expand_as(maps)
    monkeypatch.setattr(network, "restore", numbered)  # pass 0 answers 0 everywhere, pass 1 answers 1, pass 2 answers 2
    owners = torch.tensor([[0, 1, 2], [2, 1, 0]])
    joined = network(torch.randn(2, 8, 2, 3), owners == torch.arange(3)[:, None, None])
    assert torch.equal(joined, owners.float().expand(2, 8, 2, 3))


def test_no_place_is_restored_from_what_it_holds_itself() -> None:
    network, features = restoration_net(), torch.randn(1, 5, 6, 6, requires_grad=True)
    masks = complementary_masks(6, 6, cell=2, subsets=3, generator=Generator().manual_seed(0))
    restored = network(features, masks)
    for mask in masks:
        told = torch.autograd.grad(restored[0, :, mask].sum(), features, retain_graph=True)[0]
        assert told[0, :, mask].abs().max() == 0
        assert told[0, :, ~mask].abs().min() > 0  # while all that is visible takes part


def test_masks_of_training_and_test_hide_every_place_once(tiny: MFRNet) -> None:
    drawn = Generator().manual_seed(0)
    trained = [tiny._crossed(drawn) for _ in range(20)]
    for masks in [*trained, *tiny._test_masks]:
        assert masks.shape == (3, 8, 8)
        assert (masks.sum(dim=0) == 1).all()
    sides = {bool((masks[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2) == masks).all())
             for masks in trained}  # fmt: skip
    assert sides == {True, False}  # cells of 2 come, and cells of 1


def test_the_test_masks_come_from_their_own_seed_alone(tiny: MFRNet) -> None:
    other = MFRNet(replace(TINY, test_seed=1), tiny.setup)
    other.restore(tiny.state())
    torch.manual_seed(99)
    first, again, moved = (torch.stack(one._test_masks) for one in (tiny, MFRNet(TINY, tiny.setup), other))
    assert torch.equal(first, again)
    assert not torch.equal(first, moved)
    assert not torch.equal(tiny.predict(pictures()).maps, other.predict(pictures()).maps)


# ---- The hybrid block ----


def slow_attention(attention: MultiPoolingAttention, asked: Tensor, seen: Tensor) -> Tensor:
    """Plain multi-head attention of (n, c) queries to (s, c) places, head by head and place by place."""
    width = asked.shape[1] // attention.heads
    query, (key, value) = attention.query(asked), attention.key_value(seen).chunk(2, dim=1)
    mixed = torch.zeros_like(asked)
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        for place in range(len(asked)):
            weights = (key[:, part] @ query[place, part] / math.sqrt(width)).softmax(dim=0)
            mixed[place, part] = weights @ value[:, part]
    return attention.proj(mixed)


def test_with_a_pool_as_large_as_the_map_attention_is_plain_attention() -> None:
    attention = MultiPoolingAttention(12, 3, (7,))
    maps = torch.randn(1, 5, 7, 12)
    local = F.conv2d(maps.permute(0, 3, 1, 2), attention.local[0].weight, attention.local[0].bias, padding=1, groups=12)
    seen = attention.norm(maps + local.permute(0, 2, 3, 1)).view(35, 12)
    expected = slow_attention(attention, maps.view(35, 12), seen)
    assert_close(attention(maps).view(35, 12), expected, rtol=1e-4, atol=1e-5)


def test_several_pools_answer_together() -> None:
    attention = MultiPoolingAttention(8, 2, (3, 1))
    for local in attention.local:
        nn.init.zeros_(local.weight)
        nn.init.zeros_(local.bias)
    maps = torch.randn(1, 6, 9, 8)
    pools = [F.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), side).flatten(2)[0].T for side in (3, 1)]
    expected = slow_attention(attention, maps.view(54, 8), attention.norm(torch.cat(pools)))
    assert_close(attention(maps).view(54, 8), expected, rtol=1e-4, atol=1e-5)


@given(size=st.tuples(st.integers(1, 13), st.integers(1, 13)), target=st.tuples(st.integers(1, 13), st.integers(1, 13)))
def test_average_pool_is_torchs_adaptive_one(size: tuple[int, int], target: tuple[int, int]) -> None:
    maps = torch.randn(2, *size, 3)
    expected = F.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), target).permute(0, 2, 3, 1)
    assert_close(average_pool(maps, *target), expected)


def test_a_block_adds_position_then_attention_then_feed_forward() -> None:
    block, maps = HybridBlock(8, 4, (2,)), torch.randn(2, 5, 6, 8)
    first = maps + block.position(maps)
    second = first + block.attention(block.norm1(first))
    assert_close(block(maps), second + block.feed_forward(block.norm2(second)))


def test_without_its_convolution_the_feed_forward_looks_at_one_place_only() -> None:
    maps = torch.randn(1, 5, 5, 8)
    moved = maps.clone()
    moved[0, 2, 2] += 1
    for convolution, changed in ((True, 9), (False, 1)):
        feed_forward = HybridBlock(8, 4, (2,), convolution=convolution).feed_forward
        apart = (feed_forward(moved) - feed_forward(maps)).abs().sum(dim=3) > 0
        assert apart.sum() == changed


def test_a_head_width_that_does_not_divide_a_width_is_an_error() -> None:
    with pytest.raises(BenchError, match="5 does not divide 8"):
        HybridBlock(8, 5, (2,))


def test_one_width_is_a_flat_stack() -> None:
    network = restoration_net(widths=(8,), depth=6)
    assert not [name for name, _ in network.named_parameters() if name.startswith(("downs", "ups", "joins"))]
    assert len(network.levels[0]) == 6


# ---- Features ----


def test_the_default_stages_of_a_vgg16_are_the_last_relus_before_each_pool() -> None:
    settings = Settings()
    assert layout(settings.backbone, settings.stages) == ((64, 128, 256, 512), (1, 2, 4, 8))


def test_finer_stages_are_averaged_down_and_a_coarse_first_one_is_enlarged() -> None:
    images = pictures(2)
    fine = MFRNet(replace(TINY, stages=(0, 1, 2), stride=8, cells=(1,)), SETUP)  # strides 2, 4, 8
    for found, stage in zip(fine._extract(images), fine._backbone(images), strict=True):
        assert_close(found, F.avg_pool2d(stage, stage.shape[2] // 4))
    coarse = MFRNet(replace(TINY, stages=(2, 3)), SETUP)  # strides 8 and 16, for a map of stride 4
    found, stages = coarse._extract(images), coarse._backbone(images)
    assert_close(found[0], F.interpolate(stages[0], (8, 8), mode="bilinear", align_corners=True))
    assert torch.equal(found[1], stages[1])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_statistics_are_per_channel_of_the_training_set(batch: int) -> None:
    images = pictures(5)
    method = fitted(replace(TINY, batch=batch, epochs=1, least_spread=0.0), images=images)
    stages = method._extract(images)
    enlarged = [F.interpolate(stage, (8, 8), mode="bilinear", align_corners=True) for stage in stages]
    values = torch.cat(enlarged, dim=1).double().transpose(0, 1).flatten(1)  # (c, images * places)
    assert_close(method._mean.double(), values.mean(dim=1), rtol=1e-5, atol=1e-6)
    assert_close(method._std.double(), values.std(dim=1, correction=0).clamp(min=1e-6), rtol=1e-4, atol=1e-7)
    kept = method._mean.clone()
    method.predict(pictures(3, seed=7) * 2)  # what is judged teaches nothing
    assert torch.equal(method._mean, kept)


def test_no_channel_counts_as_if_it_varied_less_than_a_part_of_its_stage() -> None:
    free, bound = (fitted(replace(TINY, epochs=1, least_spread=least)) for least in (0.0, 0.9))
    for own, floored in zip(free._std.split([64, 128]), bound._std.split([64, 128]), strict=True):
        assert_close(floored, own.clamp(min=0.9 * float(own.mean())))
        assert (floored > own).any()


def test_l2_makes_the_root_mean_square_of_every_place_1() -> None:
    method = fitted(replace(TINY, normalisation="l2", epochs=1))
    features = method._normalised(method._extract(pictures()))
    assert_close(features.square().mean(dim=1), torch.ones(4, 8, 8))


# ---- The loss, which is the map ----


def test_the_loss_is_the_mean_of_the_map_of_differences(tiny: MFRNet) -> None:
    weighed = copy(tiny)
    weighed.settings = replace(TINY, structure_weight=0.5, smoothing=0.0, cells=(2,))
    weighed._test_masks = tiny._test_masks[:1]  # which are drawn when a method is made
    features, restored, masks = next(weighed._restorations(pictures()))
    assert tiny._network is not None
    loss = weighed.losses(tiny._network, features, masks)
    pixel = ((features - restored) ** 2).mean()
    structure = (1 - ssim(features, restored)).mean()
    assert_close(loss["pixel"], pixel)
    assert_close(loss["structure"], structure)
    assert_close(loss["total"], pixel + 0.5 * structure)
    places = weighed._merged(*weighed._differences(features, restored))
    assert_close(places.mean(), loss["total"])
    assert_close(weighed.predict(pictures()).maps, F.interpolate(places[:, None], (32, 32), mode="bilinear")[:, 0])


@pytest.mark.parametrize("structure", ["ssim", "msgms", "both"])
def test_equal_features_do_not_differ(tiny: MFRNet, structure: str) -> None:
    method = copy(tiny)
    method.settings = replace(TINY, structure=structure)
    features = torch.randn(2, 192, 8, 8)
    pixel, difference = method._differences(features, features)
    assert pixel.max() == 0
    assert_close(difference, torch.zeros(2, 8, 8), rtol=0, atol=1e-5)


def test_a_larger_data_range_is_as_good_as_smaller_features(tiny: MFRNet) -> None:
    features, restored = torch.randn(2, 192, 8, 8), torch.randn(2, 192, 8, 8)
    scaled = copy(tiny)
    scaled.settings = replace(TINY, data_range=4.0)
    assert_close(scaled._differences(4 * features, 4 * restored)[1], tiny._differences(features, restored)[1])


def test_differences_are_merged_by_sum_or_product(tiny: MFRNet) -> None:
    pixel, structure = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 0.5)
    assert tiny._merged(pixel, structure) == 3.5
    product = copy(tiny)
    product.settings = replace(TINY, map_merge="product")
    assert product._merged(pixel, structure) == 1.5


# ---- Fitting ----


def gratings(count: int, seed: int) -> Tensor:
    """Stripes of random phase: each pixel is as often light as dark, so a mean image tells nothing of them."""
    generator = Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    stripes = 0.5 + 0.3 * torch.sin(2 * math.pi * torch.arange(64) / 8 + phase)  # (count, 1, 1, 64)
    return stripes.expand(-1, 3, 64, -1) + 0.02 * torch.randn(count, 3, 64, 64, generator=generator)


def test_it_learns_to_restore_unseen_images_and_finds_what_does_not_fit_its_surroundings() -> None:
    settings = replace(
        TINY, backbone="tf_efficientnet_lite0", widths=(32,), head_width=16, epochs=30, lr=3e-3, smoothing=2.0
    )
    setup, train, test = Setup((64, 64), CPU, seed=0), gratings(6, seed=1), gratings(8, seed=2)
    masks = torch.zeros(8, 64, 64, dtype=torch.bool)
    masks[4:, 20:36, 24:40] = True
    test[4:, :, 20:36, 24:40] = 1 - test[4:, :, 20:36, 24:40]  # in a square of four images light and dark are swapped
    losses: list[float] = []
    method = MFRNet(settings, setup)
    method.fit(Pictures(train), lambda _done, _total, loss: losses.append(loss or math.nan))
    floor = meanmap.METHOD(meanmap.Settings(smoothing=2.0), setup)
    floor.fit(Pictures(train), lambda *_: None)

    def judged(found: MFRNet | meanmap.MeanMap) -> tuple[float, float]:
        told = found.predict(test)
        arrays = told.scores.double().numpy(), masks.any(dim=(1, 2)).numpy(), list(told.maps.numpy())
        values = metrics.evaluate(*arrays, list(masks.numpy())).values
        return values["image_auroc"], values["pixel_auroc"]

    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        missed = [(features - restored).square().mean() for features, restored, _ in method._restorations(test[:4])]
    assert max(missed) < 0.75  # 1 is what every channel's mean would miss
    image, pixel = judged(method)
    assert image > 0.9
    assert pixel > 0.9
    assert pixel > judged(floor)[1] + 0.2


def test_the_seed_decides_weights_masks_and_order(tiny: MFRNet) -> None:
    images = pictures(3, seed=5)
    torch.manual_seed(123)  # the global generator has no say
    assert torch.equal(fitted().predict(images).maps, tiny.predict(images).maps)
    assert not torch.equal(fitted(setup=replace(SETUP, seed=1)).predict(images).maps, tiny.predict(images).maps)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalisation": "l2"}, {"mask_token": "learned"}, {"cells": (2,), "subsets": 2}, {"widths": (8,)},
        {"decoder_depth": 1}, {"pools": (16,)}, {"feed_forward": "mlp"}, {"structure": "msgms"}, {"structure": "both"},
        {"map_merge": "product"}, {"score": "std"}, {"stride": 8, "cells": (1,)}, {"weight_decay": 1e-2},
    ],
    ids=str,
)  # fmt: skip
def test_every_alternative_fits_and_answers_otherwise(tiny: MFRNet, changes: dict[str, object]) -> None:
    found, usual = fitted(replace(TINY, **changes)).predict(pictures()), tiny.predict(pictures())
    assert torch.isfinite(found.maps).all()
    assert torch.isfinite(found.scores).all()
    assert not torch.equal(found.scores, usual.scores)


@pytest.mark.parametrize(("kind", "moved"), [("zero", False), ("learned", True)])
def test_only_a_learned_token_leaves_zero(kind: str, moved: bool) -> None:
    assert bool(fitted(replace(TINY, mask_token=kind)).state()["token"].any()) == moved


def test_images_need_be_neither_square_nor_even() -> None:
    setup = replace(SETUP, size=(36, 60))  # 9 x 15 places
    found = fitted(setup=setup).predict(pictures(2, setup.size))
    assert found.maps.shape == (2, 36, 60)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_answers_much_the_same_in_float32(tiny: MFRNet, precision: str) -> None:
    found, usual = fitted(setup=replace(SETUP, precision=precision)).predict(pictures()), tiny.predict(pictures())
    assert found.maps.dtype == found.scores.dtype == torch.float32
    assert_close(found.maps, usual.maps, rtol=0.1, atol=0.1 * float(usual.maps.max()))


def test_from_lr_drop_on_the_rate_is_a_tenth() -> None:
    low, dropped = (fitted(replace(TINY, lr=lr, lr_drop=drop)) for lr, drop in ((1e-3, 0), (1e-2, 1)))
    assert torch.equal(low.predict(pictures()).maps, dropped.predict(pictures()).maps)


def test_a_loss_that_is_not_finite_is_an_error_in_words() -> None:
    with pytest.raises(BenchError, match=r"A loss must be finite; MFRNet's is .* in epoch"):
        fitted(replace(TINY, lr=1e30))


def test_the_epoch_that_is_best_on_held_out_images_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    method = MFRNet(replace(TINY, epochs=9, patience=2), SETUP)
    script = iter([3.0, 1.0, 2.0, 1.0])
    held_out = []

    def scripted(_network: RestorationNet, _features: object, held: Tensor) -> float:
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


def test_held_out_images_are_judged_alike_after_every_epoch() -> None:
    method = fitted(replace(TINY, epochs=1), images=pictures(10))
    features = FrozenFeatures(method._extract, Pictures(pictures(10)), setup=method.setup)
    assert method._network is not None
    first, again = (method._held_loss(method._network, features, torch.arange(4)) for _ in range(2))
    assert first == again


def test_fewer_than_ten_images_hold_none_out() -> None:
    told = []
    method = MFRNet(replace(TINY, patience=1), SETUP)
    method.fit(Pictures(pictures(9)), lambda done, total, _loss: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert method.facts()["kept_epoch"] == 3


# ---- What it tells of itself ----


def test_explain_shows_masks_differences_and_features_beside_their_restorations(tiny: MFRNet) -> None:
    told = tiny.explain(pictures(3))
    assert list(told) == [
        "masks, cells of 1", "features", "restored, cells of 1", "masks, cells of 2", "restored, cells of 2",
        "pixel difference", "structural difference",
    ]  # fmt: skip
    assert all(told[name].min() >= 0 and told[name].max() <= 1 for name in told if "difference" not in name)
    masks = told["masks, cells of 2"][0]
    assert masks.unique().tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert torch.equal(masks, masks[::8, ::8].repeat_interleave(8, 0).repeat_interleave(8, 1))  # cells of 2 x 2 places


def test_false_colours_of_what_was_restored_exactly_are_the_same() -> None:
    features = torch.randn(2, 7, 6, 5)
    shown, restored = _false_colours(features, features.clone())
    assert torch.equal(shown, restored)
    assert shown.shape == (2, 3, 6, 5)
    assert_close(shown.amax(dim=(2, 3)), torch.ones(2, 3))
    assert_close(shown.amin(dim=(2, 3)), torch.zeros(2, 3))


def test_state_holds_statistics_and_the_kept_epoch(tiny: MFRNet) -> None:
    other = MFRNet(TINY, SETUP)
    other.restore(tiny.state())
    assert torch.equal(other.predict(pictures()).maps, tiny.predict(pictures()).maps)
    assert other.facts() == tiny.facts()
    assert torch.equal(other._mean, tiny._mean)


def test_a_state_of_other_settings_is_refused(tiny: MFRNet) -> None:
    with pytest.raises(BenchError, match="needs the settings that it was fitted with"):
        MFRNet(replace(TINY, depth=2), SETUP).restore(tiny.state())
    with pytest.raises(BenchError, match="needs the settings that it was fitted with"):
        MFRNet(TINY, SETUP).restore({})


def test_facts_count_what_is_learned(tiny: MFRNet) -> None:
    state = tiny.state()
    learned = sum(state[name].numel() for name in state if name not in ("mean", "std", "kept_epoch", "token"))
    assert tiny.facts() == {
        "trainable_parameters": learned, "places": 64, "feature_channels": 192, "kept_epoch": 3,
        "backbone": "random:resnet18", "backbone_source": "random", "backbone_sha256": "random",
    }  # fmt: skip
    assert MFRNet.inputs(TINY, None) == {"backbone": "random"}


def test_before_fit_and_at_another_size_it_refuses_to_answer(tiny: MFRNet) -> None:
    with pytest.raises(BenchError, match=NOT_FITTED):
        MFRNet(TINY, SETUP).predict(pictures())
    with pytest.raises(BenchError, match=r"\(32, 32\) pixels; \(64, 64\) came"):
        tiny.predict(pictures(1, (64, 64)))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"epochs": 0}, "1 or more"), ({"subsets": 1}, "must see something"), ({"cells": ()}, "one or more"),
        ({"pools": (4, 0)}, "one or more"), ({"smoothing": -1.0}, "0 or more"), ({"holdout": 1.0}, "below 1"),
        ({"data_range": 0.0}, "above 0"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(BenchError, match=rule):
        replace(TINY, **changes)


def test_cells_too_large_for_the_map_are_refused_before_fitting() -> None:
    with pytest.raises(BenchError, match="3 subsets of 1 x 1 cells"):
        MFRNet(replace(TINY, cells=(8,)), SETUP)


@pytest.mark.parametrize("settings", [TINY, replace(TINY, widths=(16,), depth=3, structure="both", batch=4)])
def test_the_memory_told_is_enough_for_what_a_step_keeps_and_not_many_times_it(settings: Settings) -> None:
    method = fitted(replace(settings, epochs=1))
    assert method._network is not None
    features = method._normalised(method._extract(pictures(settings.batch)))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = method.losses(method._network, features, method._test_masks[0])["total"]
    assert loss.requires_grad
    told = MFRNet.memory(settings, SETUP.size, images=settings.batch)
    assert sum(kept.values()) < told < 4 * sum(kept.values())
