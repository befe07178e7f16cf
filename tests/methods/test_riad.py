"""RIAD: the size of its U-Net, inpainting compared with a slow loop, its map by the definition, and its training."""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Setup
from bench.methods import riad
from bench.methods.parts.maps import mean_filter
from bench.methods.parts.masks import complementary_masks
from bench.methods.parts.similarity import gms, msgms, ssim
from bench.methods.parts.unet import UNet
from bench.methods.riad import RIAD, Settings

CPU = torch.device("cpu")
SETUP = Setup((32, 32), CPU, seed=0)
TINY = Settings(width=2, cell_sizes=(2, 4), epochs=2, batch_size=2, mean_filter=5, lr=1e-3)


@pytest.fixture(scope="module")
def fitted(in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]) -> Callable[..., RIAD]:
    """Return the function that fits a method."""

    def fit(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> RIAD:
        method = RIAD(settings, setup)
        method.fit(in_memory(random_images(size=setup.size) if images is None else images), lambda *_: None)
        return method

    return fit


@pytest.fixture(scope="module")
def tiny(fitted: Callable[..., RIAD]) -> RIAD:
    torch.manual_seed(0)
    return fitted()


# ---- The U-Net ----


def test_the_stages_have_the_shapes_of_the_table() -> None:
    with torch.device("meta"):
        network = UNet(64)
    shapes: list[tuple[int, ...]] = []
    for stage in [*network.down, *network.upsample, *network.up, network.head]:
        stage.register_forward_hook(lambda _stage, _inputs, output: shapes.append(tuple(output.shape[1:])))
    assert network(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 3, 256, 256)
    down = [(64, 256, 256), (128, 128, 128), (256, 64, 64), (512, 32, 32), (512, 16, 16)]
    up = [shape for shape in down[-2::-1] for _ in range(2)]  # upsampled, then concatenated and convolved
    assert shapes == [*down, *up, (3, 256, 256)]


def test_width_64_has_the_number_of_parameters_computed_by_hand() -> None:
    widths = [64, 128, 256, 512, 512]
    convolution = lambda before, after, side: before * after * side**2 + 2 * after  # no bias, batch norm has two values
    down = convolution(3, 64, 3) + sum(convolution(a, b, 4) for a, b in pairwise(widths))
    down += sum(convolution(width, width, 3) for width in widths)
    upsample = sum(a * b * 16 + b for a, b in pairwise(widths[::-1]))
    up = sum(convolution(2 * width, width, 3) + convolution(width, width, 3) for width in widths[:-1])
    head = 64 * 3 * 9 + 3
    expected = down + upsample + up + head
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet(64).parameters()) == expected == 28_800_835


def test_skip_connections_reach_the_output_and_values_are_in_the_range_of_tanh() -> None:
    network, images = UNet(2).eval(), torch.randn(1, 3, 32, 32)
    for module in network.upsample:  # then the only path to the output is that of the skip connections
        nn.init.zeros_(module.weight)
    one, other = network(images), network(images + 1)
    assert (one - other).abs().max() > 1e-4
    assert one.abs().max() <= 1


def test_activation_bytes_are_close_to_what_a_pass_keeps() -> None:
    network, saved = UNet(8).train(), dict[int, int]()

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        network(torch.randn(1, 3, 64, 64))
    saved_bytes = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert 0.8 * saved_bytes < UNet.activation_bytes(8, (64, 64)) < 1.25 * saved_bytes


# ---- Inpainting by twelve passes ----


def slow_inpaint(method: RIAD, images: Tensor) -> Tensor:
    """Return (cells, b, 3, h, w), computed image by image, cell size by cell size and pass by pass."""
    network, generator = method.network, Generator().manual_seed(method.settings.test_seed)
    reconstructed = torch.zeros(len(method.settings.cell_sizes), *images.shape)
    for number, cell in enumerate(method.settings.cell_sizes):
        masks = complementary_masks(*images.shape[2:], cell=cell, subsets=method.settings.subsets, generator=generator)
        for index, image in enumerate(images):
            for mask in masks:
                visible = (~mask).float()
                reconstructed[number, index] += (1 - visible) * network((image * visible)[None])[0]
    return reconstructed


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 5, 12, 100])
def test_inpainting_equals_a_slow_loop_for_every_batch_size(
    tiny: RIAD, batch: int, random_images: Callable[..., Tensor]
) -> None:
    images = tiny.scale(random_images(2, seed=4))
    reconstructed = tiny.reconstruct(tiny.network, images, tiny.test_masks, batch)
    assert_close(reconstructed, slow_inpaint(tiny, images), rtol=1e-4, atol=1e-5)


def test_passes_are_in_as_few_batches_as_the_memory_allows(
    tiny: RIAD, monkeypatch: pytest.MonkeyPatch, random_images: Callable[..., Tensor]
) -> None:
    """6 passes of 2 images are 12 inputs."""
    sizes: list[int] = []
    expected_maps = tiny.predict(random_images(2)).maps
    method = copy(tiny)
    method.network = copy(tiny.network)
    method.network.forward = lambda images: (sizes.append(len(images)), tiny.network(images))[1]
    for passes, expected in ((12, [12]), (11, [11, 1]), (5, [5, 5, 2]), (1, [1] * 12)):
        monkeypatch.setattr(riad, "passes_per_batch", lambda *_, passes=passes: passes)
        sizes.clear()
        assert_close(method.predict(random_images(2)).maps, expected_maps, rtol=1e-4, atol=1e-6)
        assert sizes == expected


def test_a_restored_pixel_does_not_depend_on_its_own_value(tiny: RIAD, random_images: Callable[..., Tensor]) -> None:
    images = tiny.scale(random_images(1)).requires_grad_()
    masks = tiny.test_masks[:1]
    reconstructed = tiny.reconstruct(tiny.network, images, masks, 3)
    for mask in masks[0]:
        gradient = torch.autograd.grad(reconstructed[0, 0, :, mask].sum(), images, retain_graph=True)[0]
        assert gradient[0, :, mask].abs().max() == 0
        assert gradient[0, :, ~mask].abs().max() > 0


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_test_masks_hide_every_pixel_once_in_cells_of_each_size(size: tuple[int, int]) -> None:
    method = RIAD(replace(TINY, cell_sizes=(2, 4, 8, 16)), replace(SETUP, size=size))
    masks = method.test_masks
    assert masks.shape == (4, 3, *size)
    assert (masks.sum(dim=1) == 1).all()
    for cell, subsets in zip((2, 4, 8, 16), masks, strict=True):
        expected = subsets[:, ::cell, ::cell].repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        assert torch.equal(subsets, expected)
        counts = subsets[:, ::cell, ::cell].sum(dim=(1, 2))
        assert counts.max() - counts.min() <= 1


def test_test_masks_depend_on_test_seed_only(
    tiny: RIAD, fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    other = RIAD(replace(TINY, test_seed=1), tiny.setup)
    other.load_state_dict(tiny.state_dict())
    torch.manual_seed(99)
    assert torch.equal(tiny.test_masks, RIAD(TINY, tiny.setup).test_masks)
    assert (tiny.test_masks != other.test_masks).float().mean() > 0.3  # two random thirds differ in 4 / 9
    maps, other_maps = (method.predict(random_images()).maps for method in (tiny, other))
    assert not torch.equal(maps, other_maps)
    assert_close(other_maps.mean(), maps.mean(), rtol=0.1, atol=0)
    refitted = fitted(replace(TINY, test_seed=1)).state_dict()
    assert all(
        torch.equal(refitted[name], value) for name, value in tiny.state_dict().items()
    )  # the training is the same


# ---- Loss and map ----


def test_the_map_is_the_filtered_mean_over_cell_sizes_of_1_minus_msgms(
    tiny: RIAD, random_images: Callable[..., Tensor]
) -> None:
    images = random_images(2, seed=4)
    original = images * 2 - 1
    with torch.no_grad():
        reconstructed = slow_inpaint(tiny, original)
    expected = torch.stack([1 - msgms(original, part).mean(dim=1) for part in reconstructed]).mean(dim=0)
    prediction = tiny.predict(images)
    assert_close(prediction.maps, mean_filter(expected, 5), rtol=1e-3, atol=1e-5)
    assert torch.equal(prediction.scores, prediction.maps.amax(dim=(1, 2)))


def test_grayscale_uses_the_gradients_of_the_mean_color(tiny: RIAD, random_images: Callable[..., Tensor]) -> None:
    one, other = random_images(1, seed=2), random_images(1, seed=3)
    grayscale = copy(tiny)
    grayscale.settings = replace(TINY, grayscale=True)
    assert_close(tiny.gms_dissimilarity(one, other), 1 - msgms(one, other).mean(dim=1))
    assert_close(
        grayscale.gms_dissimilarity(one, other), 1 - msgms(one.mean(1, keepdim=True), other.mean(1, keepdim=True))[:, 0]
    )


@pytest.mark.parametrize("changes", [{}, {"gms_weight": 0.5, "ssim_weight": 2.0}, {"grayscale": True}], ids=str)
def test_the_loss_is_the_weighted_sum_of_l2_msgms_and_ssim(
    tiny: RIAD, changes: dict[str, object], random_images: Callable[..., Tensor]
) -> None:
    method, images = copy(tiny), random_images(2)
    method.settings = replace(TINY, cell_sizes=(4,), **changes)
    network = UNet(2).eval()
    loss = method.loss(network, images, Generator().manual_seed(3))
    generator = Generator().manual_seed(3)
    torch.randint(1, (), generator=generator)  # the size of the cells is drawn first
    masks = complementary_masks(32, 32, cell=4, subsets=3, generator=generator)
    original = images * 2 - 1
    reconstructed = sum(mask * network(original * ~mask) for mask in masks)
    pair = [original, reconstructed]
    if method.settings.grayscale:
        pair = [part.mean(1, keepdim=True) for part in pair]
    scales = []
    for _ in range(4):
        scales.append((1 - gms(*pair)).mean())
        pair = [F.avg_pool2d(part, 2) for part in pair]
    parts = (
        (original - reconstructed).square().mean(),
        torch.stack(scales).mean(),
        1 - ssim(original, reconstructed).mean(),
    )
    weights = 1, method.settings.gms_weight, method.settings.ssim_weight
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_training_uses_every_cell_size_and_new_masks_in_each_step(
    monkeypatch: pytest.MonkeyPatch, fitted: Callable[..., RIAD]
) -> None:
    calls: list[tuple[int, Tensor]] = []

    def recorded(height: int, width: int, *, cell: int, subsets: int, generator: Generator) -> Tensor:
        calls.append((cell, complementary_masks(height, width, cell=cell, subsets=subsets, generator=generator)))
        return calls[-1][1]

    monkeypatch.setattr(riad, "complementary_masks", recorded)
    fitted(replace(TINY, epochs=6, batch_size=1))
    steps = calls[2:]  # the first two are the test masks
    assert len(steps) == 18
    assert {cell for cell, _ in steps} == {2, 4}
    assert len({mask.numpy().tobytes() for _, mask in steps}) == 18


# ---- Training ----


def stripes(count: int, seed: int) -> Tensor:
    """Return stripes with a random phase: every pixel has the same mean, so the mean image has no information."""
    generator = Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    waves = 0.5 + 0.3 * torch.sin(2 * math.pi * torch.arange(32) / 8 + phase)  # (count, 1, 1, 32)
    return waves.expand(-1, 3, 32, -1) + 0.02 * torch.randn(count, 3, 32, 32, generator=generator)


def test_it_learns_to_inpaint_new_stripes(in_memory: Callable[[Tensor], Images]) -> None:
    losses: list[float] = []
    method, test = RIAD(replace(TINY, width=8, epochs=20, lr=3e-3), SETUP), stripes(4, seed=2)
    method.fit(in_memory(stripes(6, seed=1)), lambda _done, _total, loss: losses.append(loss or math.nan))
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        original, reconstructed = method.reconstruct_images(test)
    assert (reconstructed - original).square().mean() < 0.2 * original.var()


def test_a_fit_depends_on_the_seed_and_not_on_the_global_generator(
    tiny: RIAD, fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(seed=5)
    torch.manual_seed(123)
    assert torch.equal(fitted().predict(images).maps, tiny.predict(images).maps)
    assert not torch.equal(fitted(setup=replace(SETUP, seed=1)).predict(images).maps, tiny.predict(images).maps)


@pytest.mark.parametrize(
    "changes",
    [{"cell_sizes": (8,)}, {"subsets": 2}, {"grayscale": True}, {"mean_filter": 1}, {"border": "zeros"},
     {"downsample": 2}, {"weight_decay": 0.1}, {"gms_weight": 0.0}, {"lr_drop_epoch": 2}],
    ids=str,
)  # fmt: skip
def test_every_alternative_setting_changes_the_predictions(
    tiny: RIAD, changes: dict[str, object], fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    prediction = fitted(replace(TINY, **changes)).predict(random_images())
    assert torch.isfinite(prediction.maps).all()
    assert prediction.maps.shape == (3, 32, 32)
    assert not torch.equal(prediction.maps, tiny.predict(random_images()).maps)


def test_zeros_at_the_border_hide_differences_in_the_outer_pixels_only() -> None:
    original = torch.zeros(1, 3, 32, 32)
    reconstructed = original.clone()
    reconstructed[..., 0, :] = 0.05  # the outermost row
    reconstructed[..., 16, 16] = 0.05
    reflected, zeros = (
        RIAD(replace(TINY, border=border), SETUP).gms_dissimilarity(original + 0.5, reconstructed + 0.5)[0]
        for border in ("reflect", "zeros")
    )
    assert zeros[0].mean() < 0.2 * reflected[0].mean()
    assert_close(zeros[12:20, 12:20], reflected[12:20, 12:20])


def test_from_lr_drop_epoch_the_rate_is_one_tenth(
    fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    low, dropped = (fitted(replace(TINY, lr=lr, lr_drop_epoch=drop)) for lr, drop in ((1e-3, 0), (1e-2, 1)))
    assert torch.equal(low.predict(random_images()).maps, dropped.predict(random_images()).maps)


def test_the_epoch_with_the_lowest_validation_loss_is_used(
    monkeypatch: pytest.MonkeyPatch, in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    method = RIAD(replace(TINY, epochs=9, patience=2), SETUP)
    losses, splits = iter([3.0, 1.0, 2.0, 1.0]), []

    def validation_loss(_network: UNet, _train: object, validation: Tensor) -> float:
        splits.append(sorted(validation.tolist()))
        return next(losses)

    monkeypatch.setattr(method, "validation_loss", validation_loss)
    calls, maps = [], []

    def progress(done: int, total: int, _loss: float | None) -> None:
        calls.append((done, total))
        maps.append(method.predict(random_images()).maps)

    method.fit(in_memory(random_images(10)), progress)
    assert calls == [(1, 9), (2, 9), (3, 9), (4, 4)]  # two epochs without a lower loss end the training
    assert len(splits[0]) == 2  # a fifth of ten
    assert all(split == splits[0] for split in splits)
    assert method.info()["best_epoch"] == 2
    assert torch.equal(maps[1], maps[3])
    assert not torch.equal(maps[0], maps[1])


def test_the_validation_loss_is_deterministic_and_does_not_change_the_network(
    fitted: Callable[..., RIAD], in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    method, images = fitted(replace(TINY, epochs=1), images=random_images(10)), in_memory(random_images(10))
    before = method.state_dict()
    first, second = (method.validation_loss(method.network, images, torch.arange(4)) for _ in range(2))
    assert first == second
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())  # including batch norm


def test_with_fewer_than_ten_images_there_is_no_validation(
    in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    calls = []
    method = RIAD(replace(TINY, patience=1, epochs=3), SETUP)
    method.fit(in_memory(random_images(9)), lambda done, total, _loss: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert method.info()["best_epoch"] == 3


# ---- Explanation, information, errors ----


def test_explain_returns_reconstruction_mask_and_difference_for_each_cell_size(
    tiny: RIAD, fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    pictures, images = tiny.explain(random_images(2)), random_images(2)
    assert list(pictures) == [
        "reconstruction cells of 2", "mask cells of 2", "dissimilarity cells of 2",
        "reconstruction cells of 4", "mask", "dissimilarity cells of 4",
    ]  # fmt: skip
    with torch.no_grad():
        reconstructed = (slow_inpaint(tiny, images * 2 - 1) + 1) / 2
    assert_close(pictures["reconstruction cells of 4"], reconstructed[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(pictures["mask"][0].bool(), tiny.test_masks[1, 0])
    mean = (pictures["dissimilarity cells of 2"] + pictures["dissimilarity cells of 4"]) / 2
    assert_close(mean_filter(mean, 5), tiny.predict(images).maps)
    downsampled = fitted(replace(TINY, downsample=2)).explain(images)
    assert {picture.shape[-2:] for picture in downsampled.values()} == {(32, 32)}


def test_info_has_the_size_of_the_network_and_the_passes(tiny: RIAD) -> None:
    n_parameters = sum(parameter.numel() for parameter in tiny.network.parameters())
    assert tiny.info() == {"trainable_parameters": n_parameters, "passes": 6, "best_epoch": 2}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_similar_float32_maps(
    tiny: RIAD, precision: str, fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    prediction = fitted(setup=replace(SETUP, precision=precision)).predict(random_images())
    expected = tiny.predict(random_images())
    assert prediction.maps.dtype == prediction.scores.dtype == torch.float32
    assert_close(prediction.maps, expected.maps, rtol=0.2, atol=0.1 * float(expected.maps.max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width must be >= 1, got 0"),
        ({"cell_sizes": ()}, "one or more"),
        ({"cell_sizes": (4, 0)}, "one or more"),
        ({"subsets": 1}, "subsets must be >= 2"),
        ({"validation_fraction": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"mean_filter": 4}, "odd integer"),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_an_unfitted_method_wrong_sizes_and_a_loss_of_nan_raise_errors(
    tiny: RIAD, fitted: Callable[..., RIAD], random_images: Callable[..., Tensor]
) -> None:
    with pytest.raises(BenchError, match=NOT_FITTED):
        RIAD(TINY, SETUP).predict(random_images())
    with pytest.raises(BenchError, match="must be 32 x 32 pixels as in training, got 64 x 64"):
        tiny.predict(random_images(1, (64, 64)))
    with pytest.raises(BenchError, match=r"multiples of 16 .*, got 40 x 32"):
        RIAD(TINY, replace(SETUP, size=(40, 32)))
    with pytest.raises(BenchError, match="3 subsets of 1 x 1 cells"):
        RIAD(replace(TINY, cell_sizes=(32,)), SETUP)
    with pytest.raises(BenchError, match="The loss must be finite, got nan in epoch 1"):
        fitted(images=random_images() * math.nan)
