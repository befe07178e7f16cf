"""MFRNet, our reading: compared with a slow implementation of its definition and with values computed by hand."""

import math
from collections.abc import Callable
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
from bench.method import NOT_FITTED, Images, Setup
from bench.methods import meanmap
from bench.methods.mfrnet import MFRNet, Settings, false_colors
from bench.methods.parts.backbone import channels_and_strides
from bench.methods.parts.features import FrozenFeatures
from bench.methods.parts.masks import complementary_masks
from bench.methods.parts.restoration_net import HybridBlock, MultiPoolingAttention, RestorationNet, average_pool
from bench.methods.parts.similarity import ssim

CPU = torch.device("cpu")
TINY = Settings(
    backbone="random:resnet18", stages=(1, 2), cell_sizes=(1, 2), widths=(8, 12), depth=1, head_width=4, pools=(4, 2),
    epochs=3, lr=1e-3, batch_size=2,
)  # fmt: skip  # 8 x 8 features of 192 channels
SETUP = Setup((32, 32), CPU, seed=0)


@pytest.fixture(scope="module")
def fitted(in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]) -> Callable[..., MFRNet]:
    """Return the function that fits a method."""

    def fit(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> MFRNet:
        method = MFRNet(settings, setup)
        method.fit(in_memory(random_images(4, size=setup.size) if images is None else images), lambda *_: None)
        return method

    return fit


def restoration_net(channels: int = 5, **changes: object) -> RestorationNet:
    settings = {"widths": (8, 12), "depth": 1, "decoder_depth": 1, "head_width": 4, "pools": (4, 2)} | changes
    return RestorationNet(channels, **settings)


@pytest.fixture(scope="module")
def tiny(fitted: Callable[..., MFRNet]) -> MFRNet:
    torch.manual_seed(0)
    return fitted()


# ---- Crossed masks and parallel restorations ----


def one_pass(network: RestorationNet, features: Tensor) -> Tensor:
    maps = network.restore(network.stem(features.permute(0, 2, 3, 1)))
    return network.head(network.norm(maps)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_restorations_are_combined_by_the_definition(size: tuple[int, int]) -> None:
    network = restoration_net(learn_token=True)
    nn.init.normal_(network.token)
    features, generator = torch.randn(2, 5, *size), Generator().manual_seed(0)
    masks = complementary_masks(*size, cell=2, subsets=3, generator=generator)
    expected = torch.zeros_like(features)
    for mask in masks:  # the sum over passes of (1 - M) f(M F), with the token where M F is 0
        visible = (~mask).float()
        masked = visible * features + (1 - visible) * network.token[:, None, None]
        expected += (1 - visible) * one_pass(network, masked)
    assert_close(network(features, masks), expected, rtol=1e-4, atol=1e-5)


def test_each_feature_is_taken_from_the_pass_that_hid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = restoration_net(channels=8)
    network.stem = network.norm = network.head = nn.Identity()
    # pass 0 returns 0 everywhere, pass 1 returns 1, pass 2 returns 2
    numbered = lambda maps: torch.arange(3.0).repeat_interleave(2).view(6, 1, 1, 1).expand_as(maps)
    monkeypatch.setattr(network, "restore", numbered)
    pass_numbers = torch.tensor([[0, 1, 2], [2, 1, 0]])
    restored = network(torch.randn(2, 8, 2, 3), pass_numbers == torch.arange(3)[:, None, None])
    assert torch.equal(restored, pass_numbers.float().expand(2, 8, 2, 3))


def test_a_restored_feature_does_not_depend_on_its_own_value() -> None:
    network, features = restoration_net(), torch.randn(1, 5, 6, 6, requires_grad=True)
    masks = complementary_masks(6, 6, cell=2, subsets=3, generator=Generator().manual_seed(0))
    restored = network(features, masks)
    for mask in masks:
        gradient = torch.autograd.grad(restored[0, :, mask].sum(), features, retain_graph=True)[0]
        assert gradient[0, :, mask].abs().max() == 0
        assert gradient[0, :, ~mask].abs().min() > 0  # it depends on all visible features


def test_training_masks_and_test_masks_hide_every_feature_once(tiny: MFRNet) -> None:
    generator = Generator().manual_seed(0)
    training_masks = [tiny.training_masks(generator) for _ in range(20)]
    for masks in [*training_masks, *tiny.test_masks]:
        assert masks.shape == (3, 8, 8)
        assert (masks.sum(dim=0) == 1).all()
    sides = {bool((masks[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2) == masks).all())
             for masks in training_masks}  # fmt: skip
    assert sides == {True, False}  # there are cells of 2 and cells of 1


def test_the_test_masks_depend_on_test_seed_only(tiny: MFRNet, random_images: Callable[..., Tensor]) -> None:
    other = MFRNet(replace(TINY, test_seed=1), tiny.setup)
    other.load_state_dict(tiny.state_dict())
    torch.manual_seed(99)
    first, second, third = (torch.stack(method.test_masks) for method in (tiny, MFRNet(TINY, tiny.setup), other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(tiny.predict(random_images(4)).maps, other.predict(random_images(4)).maps)


# ---- The hybrid block ----


def slow_attention(attention: MultiPoolingAttention, queries: Tensor, features: Tensor) -> Tensor:
    """Return multi-head attention of (n, c) queries to (s, c) features, head by head and query by query."""
    width = queries.shape[1] // attention.heads
    query, (key, value) = attention.query(queries), attention.key_value(features).chunk(2, dim=1)
    attended = torch.zeros_like(queries)
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        for index in range(len(queries)):
            weights = (key[:, part] @ query[index, part] / math.sqrt(width)).softmax(dim=0)
            attended[index, part] = weights @ value[:, part]
    return attention.proj(attended)


def test_with_a_pool_of_the_size_of_the_map_it_is_standard_attention() -> None:
    attention = MultiPoolingAttention(12, 3, (7,))
    maps = torch.randn(1, 5, 7, 12)
    local = F.conv2d(maps.permute(0, 3, 1, 2), attention.local[0].weight, attention.local[0].bias, padding=1, groups=12)
    features = attention.norm(maps + local.permute(0, 2, 3, 1)).view(35, 12)
    expected = slow_attention(attention, maps.view(35, 12), features)
    assert_close(attention(maps).view(35, 12), expected, rtol=1e-4, atol=1e-5)


def test_the_keys_are_those_of_all_pools() -> None:
    attention = MultiPoolingAttention(8, 2, (3, 1))
    for local in attention.local:
        nn.init.zeros_(local.weight)
        nn.init.zeros_(local.bias)
    maps = torch.randn(1, 6, 9, 8)
    pools = [F.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), side).flatten(2)[0].T for side in (3, 1)]
    expected = slow_attention(attention, maps.view(54, 8), attention.norm(torch.cat(pools)))
    assert_close(attention(maps).view(54, 8), expected, rtol=1e-4, atol=1e-5)


@given(size=st.tuples(st.integers(1, 13), st.integers(1, 13)), target=st.tuples(st.integers(1, 13), st.integers(1, 13)))
def test_average_pool_equals_adaptive_avg_pool_of_torch(size: tuple[int, int], target: tuple[int, int]) -> None:
    maps = torch.randn(2, *size, 3)
    expected = F.adaptive_avg_pool2d(maps.permute(0, 3, 1, 2), target).permute(0, 2, 3, 1)
    assert_close(average_pool(maps, *target), expected)


def test_a_block_adds_position_then_attention_then_feed_forward() -> None:
    block, maps = HybridBlock(8, 4, (2,)), torch.randn(2, 5, 6, 8)
    first = maps + block.position(maps)
    second = first + block.attention(block.norm1(first))
    assert_close(block(maps), second + block.feed_forward(block.norm2(second)))


def test_without_its_convolution_the_feed_forward_operates_on_single_features() -> None:
    maps = torch.randn(1, 5, 5, 8)
    changed_maps = maps.clone()
    changed_maps[0, 2, 2] += 1
    for convolution, n_changed in ((True, 9), (False, 1)):
        feed_forward = HybridBlock(8, 4, (2,), convolution=convolution).feed_forward
        is_changed = (feed_forward(changed_maps) - feed_forward(maps)).abs().sum(dim=3) > 0
        assert is_changed.sum() == n_changed


def test_a_head_width_that_does_not_divide_a_width_raises_an_error() -> None:
    with pytest.raises(BenchError, match="got head_width = 5 and width = 8"):
        HybridBlock(8, 5, (2,))


def test_one_width_is_a_flat_stack() -> None:
    network = restoration_net(widths=(8,), depth=6)
    assert not [name for name, _ in network.named_parameters() if name.startswith(("downs", "ups", "joins"))]
    assert len(network.levels[0]) == 6


# ---- Features ----


def test_the_default_stages_of_a_vgg16_are_the_last_relu_before_each_pool() -> None:
    settings = Settings()
    assert channels_and_strides(settings.backbone, settings.stages) == ((64, 128, 256, 512), (1, 2, 4, 8))


def test_finer_stages_are_averaged_and_a_coarser_first_stage_is_upsampled(random_images: Callable[..., Tensor]) -> None:
    images = random_images(2)
    fine = MFRNet(replace(TINY, stages=(0, 1, 2), stride=8, cell_sizes=(1,)), SETUP)  # strides 2, 4, 8
    for extracted, stage in zip(fine.extract(images), fine.backbone(images), strict=True):
        assert_close(extracted, F.avg_pool2d(stage, stage.shape[2] // 4))
    coarse = MFRNet(replace(TINY, stages=(2, 3)), SETUP)  # strides 8 and 16, for a map of stride 4
    extracted, stages = coarse.extract(images), coarse.backbone(images)
    assert_close(extracted[0], F.interpolate(stages[0], (8, 8), mode="bilinear", align_corners=True))
    assert torch.equal(extracted[1], stages[1])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_statistics_are_those_of_each_channel_over_the_training_set(
    batch: int, fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(5)
    method = fitted(replace(TINY, batch_size=batch, epochs=1, min_relative_std=0.0), images=images)
    stages = method.extract(images)
    upsampled = [F.interpolate(stage, (8, 8), mode="bilinear", align_corners=True) for stage in stages]
    values = torch.cat(upsampled, dim=1).double().transpose(0, 1).flatten(1)  # (c, images * features)
    assert_close(method.mean.double(), values.mean(dim=1), rtol=1e-5, atol=1e-6)
    assert_close(method.std.double(), values.std(dim=1, correction=0).clamp(min=1e-6), rtol=1e-4, atol=1e-7)
    mean = method.mean.clone()
    method.predict(random_images(3, seed=7) * 2)  # predict does not change them
    assert torch.equal(method.mean, mean)


def test_the_std_of_a_channel_has_a_lower_bound_relative_to_its_stage(fitted: Callable[..., MFRNet]) -> None:
    free, bound = (fitted(replace(TINY, epochs=1, min_relative_std=least)) for least in (0.0, 0.9))
    for std, clamped in zip(free.std.split([64, 128]), bound.std.split([64, 128]), strict=True):
        assert_close(clamped, std.clamp(min=0.9 * float(std.mean())))
        assert (clamped > std).any()


def test_l2_normalizes_the_root_mean_square_of_every_feature_to_1(
    fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    method = fitted(replace(TINY, normalization="l2", epochs=1))
    features = method.normalize(method.extract(random_images(4)))
    assert_close(features.square().mean(dim=1), torch.ones(4, 8, 8))


# ---- The loss and the map ----


def test_the_loss_is_the_mean_of_the_map_of_differences(tiny: MFRNet, random_images: Callable[..., Tensor]) -> None:
    method = copy(tiny)
    method.settings = replace(TINY, structure_weight=0.5, smoothing=0.0, cell_sizes=(2,))
    method.test_masks = tiny.test_masks[:1]  # which are drawn in __init__
    features, restored, masks = next(method.restorations(random_images(4)))
    loss = method.losses(tiny.network, features, masks)
    pixel = ((features - restored) ** 2).mean()
    structure = (1 - ssim(features, restored)).mean()
    assert_close(loss["pixel"], pixel)
    assert_close(loss["structure"], structure)
    assert_close(loss["total"], pixel + 0.5 * structure)
    combined = method.combine_maps(*method.differences(features, restored))
    assert_close(combined.mean(), loss["total"])
    assert_close(
        method.predict(random_images(4)).maps, F.interpolate(combined[:, None], (32, 32), mode="bilinear")[:, 0]
    )


@pytest.mark.parametrize("structure", ["ssim", "msgms", "both"])
def test_equal_features_have_no_difference(tiny: MFRNet, structure: str) -> None:
    method = copy(tiny)
    method.settings = replace(TINY, structure=structure)
    features = torch.randn(2, 192, 8, 8)
    pixel, difference = method.differences(features, features)
    assert pixel.max() == 0
    assert_close(difference, torch.zeros(2, 8, 8), rtol=0, atol=1e-5)


def test_a_larger_data_range_is_equivalent_to_smaller_features(tiny: MFRNet) -> None:
    features, restored = torch.randn(2, 192, 8, 8), torch.randn(2, 192, 8, 8)
    scaled = copy(tiny)
    scaled.settings = replace(TINY, data_range=4.0)
    assert_close(scaled.differences(4 * features, 4 * restored)[1], tiny.differences(features, restored)[1])


def test_differences_are_combined_by_sum_or_product(tiny: MFRNet) -> None:
    pixel, structure = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), 0.5)
    assert tiny.combine_maps(pixel, structure) == 3.5
    product = copy(tiny)
    product.settings = replace(TINY, map_merge="product")
    assert product.combine_maps(pixel, structure) == 1.5


# ---- Training ----


def gratings(count: int, seed: int) -> Tensor:
    """Return stripes with a random phase: every pixel has the same mean, so the mean image has no information."""
    generator = Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    stripes = 0.5 + 0.3 * torch.sin(2 * math.pi * torch.arange(64) / 8 + phase)  # (count, 1, 1, 64)
    return stripes.expand(-1, 3, 64, -1) + 0.02 * torch.randn(count, 3, 64, 64, generator=generator)


def test_it_learns_to_restore_new_images_and_detects_a_region_that_differs_from_its_context(
    in_memory: Callable[[Tensor], Images],
) -> None:
    settings = replace(
        TINY, backbone="tf_efficientnet_lite0", widths=(32,), head_width=16, epochs=30, lr=3e-3, smoothing=2.0
    )
    setup, train, test = Setup((64, 64), CPU, seed=0), gratings(6, seed=1), gratings(8, seed=2)
    masks = torch.zeros(8, 64, 64, dtype=torch.bool)
    masks[4:, 20:36, 24:40] = True
    test[4:, :, 20:36, 24:40] = 1 - test[4:, :, 20:36, 24:40]  # inverts a square in four images
    losses: list[float] = []
    method = MFRNet(settings, setup)
    method.fit(in_memory(train), lambda _done, _total, loss: losses.append(loss or math.nan))
    floor = meanmap.METHOD(meanmap.Settings(smoothing=2.0), setup)
    floor.fit(in_memory(train), lambda *_: None)

    def auroc(method: MFRNet | meanmap.MeanMap) -> tuple[float, float]:
        prediction = method.predict(test)
        arrays = prediction.scores.double().numpy(), masks.any(dim=(1, 2)).numpy(), list(prediction.maps.numpy())
        values = metrics.evaluate(*arrays, list(masks.numpy())).values
        return values["image_auroc"], values["pixel_auroc"]

    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        errors = [(features - restored).square().mean() for features, restored, _ in method.restorations(test[:4])]
    assert max(errors) < 0.75  # the error of every channel's mean is 1
    image, pixel = auroc(method)
    assert image > 0.9
    assert pixel > 0.9
    assert pixel > auroc(floor)[1] + 0.2


def test_a_fit_depends_on_the_seed_and_not_on_the_global_generator(
    tiny: MFRNet, fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(3, seed=5)
    torch.manual_seed(123)
    assert torch.equal(fitted().predict(images).maps, tiny.predict(images).maps)
    assert not torch.equal(fitted(setup=replace(SETUP, seed=1)).predict(images).maps, tiny.predict(images).maps)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "l2"}, {"mask_token": "learned"}, {"cell_sizes": (2,), "subsets": 2}, {"widths": (8,)},
        {"decoder_depth": 1}, {"pools": (16,)}, {"feed_forward": "mlp"}, {"structure": "msgms"}, {"structure": "both"},
        {"map_merge": "product"}, {"score": "std"}, {"stride": 8, "cell_sizes": (1,)}, {"weight_decay": 1e-2},
    ],
    ids=str,
)  # fmt: skip
def test_every_alternative_setting_changes_the_predictions(
    tiny: MFRNet, changes: dict[str, object], fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    prediction = fitted(replace(TINY, **changes)).predict(random_images(4))
    assert torch.isfinite(prediction.maps).all()
    assert torch.isfinite(prediction.scores).all()
    assert not torch.equal(prediction.scores, tiny.predict(random_images(4)).scores)


@pytest.mark.parametrize(("kind", "changes"), [("zero", False), ("learned", True)])
def test_only_a_learned_token_changes(kind: str, changes: bool, fitted: Callable[..., MFRNet]) -> None:
    assert bool(fitted(replace(TINY, mask_token=kind)).network.token.any()) == changes


def test_images_can_have_any_size(fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]) -> None:
    setup = replace(SETUP, size=(36, 60))  # 9 x 15 features
    prediction = fitted(setup=setup).predict(random_images(2, setup.size))
    assert prediction.maps.shape == (2, 36, 60)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_similar_float32_maps(
    tiny: MFRNet, precision: str, fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    prediction = fitted(setup=replace(SETUP, precision=precision)).predict(random_images(4))
    expected = tiny.predict(random_images(4))
    assert prediction.maps.dtype == prediction.scores.dtype == torch.float32
    assert_close(prediction.maps, expected.maps, rtol=0.1, atol=0.1 * float(expected.maps.max()))


def test_from_lr_drop_epoch_the_rate_is_one_tenth(
    fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    low, dropped = (fitted(replace(TINY, lr=lr, lr_drop_epoch=drop)) for lr, drop in ((1e-3, 0), (1e-2, 1)))
    assert torch.equal(low.predict(random_images(4)).maps, dropped.predict(random_images(4)).maps)


def test_a_loss_that_is_not_finite_raises_an_error(fitted: Callable[..., MFRNet]) -> None:
    with pytest.raises(BenchError, match=r"The loss must be finite, got .* in epoch"):
        fitted(replace(TINY, lr=1e30))


def test_the_epoch_with_the_lowest_validation_loss_is_used(
    monkeypatch: pytest.MonkeyPatch, in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    method = MFRNet(replace(TINY, epochs=9, patience=2), SETUP)
    losses, splits = iter([3.0, 1.0, 2.0, 1.0]), []

    def validation_loss(_network: RestorationNet, _features: object, validation: Tensor) -> float:
        splits.append(sorted(validation.tolist()))
        return next(losses)

    monkeypatch.setattr(method, "validation_loss", validation_loss)
    calls, maps = [], []

    def progress(done: int, total: int, _loss: float | None) -> None:
        calls.append((done, total))
        maps.append(method.predict(random_images(4)).maps)

    method.fit(in_memory(random_images(10)), progress)
    assert calls == [(1, 9), (2, 9), (3, 9), (4, 4)]  # two epochs without a lower loss end the training
    assert len(splits[0]) == 2  # a fifth of ten
    assert all(split == splits[0] for split in splits)
    assert method.info()["best_epoch"] == 2
    assert torch.equal(maps[1], maps[3])
    assert not torch.equal(maps[0], maps[1])


def test_the_validation_loss_is_deterministic(
    fitted: Callable[..., MFRNet], in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    method = fitted(replace(TINY, epochs=1), images=random_images(10))
    features = FrozenFeatures(method.extract, in_memory(random_images(10)), setup=method.setup)
    first, second = (method.validation_loss(method.network, features, torch.arange(4)) for _ in range(2))
    assert first == second


def test_with_fewer_than_ten_images_there_is_no_validation(
    in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    calls = []
    method = MFRNet(replace(TINY, patience=1), SETUP)
    method.fit(in_memory(random_images(9)), lambda done, total, _loss: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert method.info()["best_epoch"] == 3


# ---- Explanation, information, errors ----


def test_explain_returns_masks_features_restorations_and_differences(
    tiny: MFRNet, random_images: Callable[..., Tensor]
) -> None:
    explanation = tiny.explain(random_images(3))
    assert list(explanation) == [
        "mask cells of 1", "features", "restored cells of 1", "mask", "restored cells of 2",
        "pixel difference", "structural difference",
    ]  # fmt: skip
    values = torch.cat([value.flatten() for name, value in explanation.items() if "difference" not in name])
    assert 0 <= values.min() < values.max() <= 1
    masks = explanation["mask"][0]
    assert masks.unique().tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert torch.equal(
        masks, masks[::8, ::8].repeat_interleave(8, 0).repeat_interleave(8, 1)
    )  # cells of 2 x 2 features


def test_false_colors_of_exactly_restored_features_are_equal() -> None:
    features = torch.randn(2, 7, 6, 5)
    original, restored = false_colors(features, features.clone())
    assert torch.equal(original, restored)
    assert original.shape == (2, 3, 6, 5)
    assert_close(original.amax(dim=(2, 3)), torch.ones(2, 3))
    assert_close(original.amin(dim=(2, 3)), torch.zeros(2, 3))


def test_a_restored_method_has_the_statistics_and_the_best_epoch(tiny: MFRNet) -> None:
    other = MFRNet(TINY, SETUP)
    other.load_state_dict(tiny.state_dict())
    assert other.info() == tiny.info()
    assert torch.equal(other.mean, tiny.mean)


def test_info_has_the_sizes_the_best_epoch_and_the_backbone(tiny: MFRNet) -> None:
    n_trainable = sum(value.numel() for name, value in tiny.network.named_parameters() if name != "token")
    assert tiny.info() == {
        "trainable_parameters": n_trainable, "features": 64, "feature_channels": 192, "best_epoch": 3,
        "backbone": "random:resnet18", "backbone_source": "random", "backbone_sha256": "random",
    }  # fmt: skip
    assert MFRNet.file_hashes(TINY, None) == {"backbone": "random"}


def test_an_unfitted_method_and_images_of_another_size_raise_errors(
    tiny: MFRNet, random_images: Callable[..., Tensor]
) -> None:
    with pytest.raises(BenchError, match=NOT_FITTED):
        MFRNet(TINY, SETUP).predict(random_images(4))
    with pytest.raises(BenchError, match="must be 32 x 32 pixels as in training, got 64 x 64"):
        tiny.predict(random_images(1, (64, 64)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"subsets": 1}, "subsets must be >= 2"),
        ({"cell_sizes": ()}, "one or more"),
        ({"pools": (4, 0)}, "pools must be one or more"),
        ({"smoothing": -1.0}, "smoothing must be in"),
        ({"validation_fraction": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"data_range": 0.0}, "data_range must be > 0"),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_cells_that_are_too_large_for_the_map_raise_an_error_before_fit() -> None:
    with pytest.raises(BenchError, match="3 subsets of 1 x 1 cells"):
        MFRNet(replace(TINY, cell_sizes=(8,)), SETUP)


@pytest.mark.parametrize("settings", [TINY, replace(TINY, widths=(16,), depth=3, structure="both", batch_size=4)])
def test_the_estimated_memory_is_between_one_and_four_times_that_of_a_step(
    settings: Settings, fitted: Callable[..., MFRNet], random_images: Callable[..., Tensor]
) -> None:
    method = fitted(replace(settings, epochs=1))
    features = method.normalize(method.extract(random_images(settings.batch_size)))
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = method.losses(method.network, features, method.test_masks[0])["total"]
    assert loss.requires_grad
    estimate = MFRNet.estimate_memory(settings, SETUP.size, settings.batch_size)
    assert sum(saved.values()) < estimate < 4 * sum(saved.values())
