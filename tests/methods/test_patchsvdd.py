"""Patch SVDD: vectors, distances, maps, losses and gradients of the authors' code; dense passes; drawn pairs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.bank import MemoryBank
from bench.methods.parts.patch_encoder import PatchEncoder, PositionClassifier
from bench.methods.parts.random_crops import cut_patches
from bench.methods.patchsvdd import (
    DIRECTIONS,
    PatchSVDD,
    Settings,
    distort,
    draw_directions,
    draw_neighbors,
    mean_over_patches,
    nearest_distances,
)

CPU = torch.device("cpu")
TINY = Settings(width=4, dimensions=8, repeats=4, epochs=2, batch_size=8)
Reference = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("patchsvdd")


@pytest.fixture(scope="module")
def method(reference: Reference, fill_by_hash: Callable[..., None]) -> PatchSVDD:
    """A method with the weights of the reference data, and the memory of its training images."""
    method = PatchSVDD(Settings(), Setup((128, 128), CPU, seed=0))
    encoder = method.build_encoder()
    fill_by_hash(encoder)
    images = reference["images_train"]
    method.encoder, method.mean = encoder.eval(), images.mean(dim=0)
    method.large_bank, method.small_bank = method._encode_training_images((images * 255).round().to(torch.uint8))
    return method


# ---- The reference data: numbers of the authors' code ----


@torch.no_grad()
def test_vectors_distances_and_maps_equal_the_reference(
    method: PatchSVDD, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    images = reference["images_test"]
    large, small = method.encode(images)
    assert_relative(large[:, :, ::2, ::2].permute(0, 2, 3, 1), reference["embedding64"])
    assert_relative(small[:, :, ::6, ::6].permute(0, 2, 3, 1), reference["embedding32"])
    assert_relative(nearest_distances(large, method._banks[0]), reference["patch64"])
    assert_relative(nearest_distances(small, method._banks[1]), reference["patch32"])
    for scale, side in zip(method.scale_maps(images), (64, 32), strict=True):
        assert_relative(scale[:, ::2, ::2], reference[f"map{side}"])
    prediction = method.predict(images)
    assert_relative(prediction.maps, reference["maps"])
    assert_relative(prediction.scores, reference["scores"])


def test_losses_and_gradients_equal_the_reference(
    method: PatchSVDD, reference: Reference, fill_by_hash: Callable[..., None], assert_relative: Callable[..., None]
) -> None:
    images = (reference["images_train"] * 255).round().to(torch.uint8)
    encoder, classifiers = method.build_encoder(), method.build_classifiers()
    for network in (encoder, *classifiers):
        fill_by_hash(network)
    total = torch.zeros(())
    for side, classifier in zip((64, 32), classifiers, strict=True):
        pairs = {}
        for name in ("pos", "svdd"):
            index, first, second = (reference[f"{name}{side}_{key}"] for key in ("image", "first", "second"))
            pairs[name] = method.cut(images, index, torch.stack([first, second]), side)
        labels = reference[f"pos{side}_label"]
        position, svdd = method.losses(encoder, classifier, pairs["pos"], labels, pairs["svdd"])
        assert_close(position.detach().double(), reference[f"pos{side}_loss"], rtol=1e-4, atol=0)
        assert_close(svdd.detach().double(), reference[f"svdd{side}_loss"], rtol=1e-4, atol=0)
        total = total + position + 1e-3 * svdd
    assert_close(total.detach().double(), reference["loss_total"], rtol=1e-4, atol=0)
    total.backward()
    assert_relative(encoder.small[0].weight.grad, reference["grad_conv1"], 1e-3)
    assert_relative(encoder.project.weight.grad[:8, :8, 0, 0], reference["grad_hier_conv2"], 1e-3)
    assert_relative(classifiers[0].fc3.bias.grad, reference["grad_fc3_bias64"], 1e-3)
    assert classifiers[0].fc3.weight.grad is None


# ---- The encoders ----


@pytest.mark.parametrize(("size", "strides"), [((96, 101), (16, 4)), ((70, 64), (2, 6))])
@torch.no_grad()
def test_a_pass_over_the_image_equals_single_patches(size: tuple[int, int], strides: tuple[int, int]) -> None:
    encoder, images = PatchEncoder(2, 5), torch.randn(2, 3, *size)
    for maps, side, stride in zip(encoder.encode_images(images, strides), (64, 32), strides, strict=True):
        assert maps.shape[2:] == tuple((length - side) // stride + 1 for length in size)
        for i in range(maps.shape[2]):
            for j in range(maps.shape[3]):
                patch = images[:, :, i * stride : i * stride + side, j * stride : j * stride + side]
                assert_close(encoder.encode(patch), maps[:, :, i, j], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_columns_of_the_last_matrix_have_length_one(frozen: bool) -> None:
    classifier, vectors = PositionClassifier(3, 6, frozen=frozen), torch.randn(2, 4, 3)
    logits = classifier(vectors[0], vectors[1])
    scaled = PositionClassifier(3, 6, frozen=frozen)
    scaled.load_state_dict(classifier.state_dict())
    scaled.fc3.weight.data *= torch.rand(6) + 0.5  # by column
    assert_close(scaled(vectors[0], vectors[1]), logits)
    logits.square().sum().backward()
    assert (classifier.fc3.weight.grad is None) == frozen
    assert classifier.fc3.bias.grad is not None


# ---- Pairs of patches ----


def test_the_second_patch_lies_in_the_direction_of_the_label() -> None:
    size, side = (300, 200), 32
    (first, second), labels = draw_directions(4000, side, size, Generator().manual_seed(0))
    for corner in (first, second):
        assert corner.amin(dim=0).tolist() == [0, 0]
        assert corner.amax(dim=0).tolist() == [size[0] - side, size[1] - side]
    moved = second - first
    is_inside = ((second > 0) & (second < torch.tensor(size) - side)).all(dim=1)  # not moved into the image
    directions = torch.tensor(DIRECTIONS)[labels]
    assert torch.equal(moved.sign()[is_inside], directions[is_inside])
    distances = moved.abs()[is_inside][directions[is_inside] != 0]
    assert set(distances.tolist()) == set(range(24, 32))
    assert labels.bincount().min() > 400


def test_neighbors_are_shifted_by_one_or_two_pixels() -> None:
    for side, radius in ((64, 2), (32, 1)):
        first, second = draw_neighbors(4000, side, (300, 200), Generator().manual_seed(0))
        moved = second - first
        is_inside = ((second > 0) & (second < torch.tensor([300, 200]) - side)).all(dim=1)
        shifts = {tuple(shift) for shift in moved[is_inside].tolist()}
        assert len(shifts) == (2 * radius + 1) ** 2 - 1
        assert (0, 0) not in shifts
        assert moved.abs().max() == radius


def test_cut_patches_are_parts_of_the_images(method: PatchSVDD) -> None:
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    index, corner = torch.tensor([1, 0]), torch.tensor([[3, 7], [60, 0]])
    assert torch.equal(cut_patches(images, index, corner, 8)[1], images[0, :, 60:68, :8])
    pairs = method.cut(images, index, torch.stack([corner, corner + 1]), 8)
    assert_close(pairs[2], images[1, :, 4:12, 8:16] / 255 - method.mean[:, 4:12, 8:16])


def test_distortions_have_a_shift_per_channel_and_noise_per_pixel() -> None:
    change = distort(torch.zeros(200, 3, 16, 16), Generator().manual_seed(0))
    shift = change.mean(dim=(2, 3))
    assert shift.std() == pytest.approx(0.02, rel=0.1)
    assert (change - shift[:, :, None, None]).std() == pytest.approx(0.02, rel=0.02)


# ---- Maps ----


def test_a_pixel_is_the_mean_of_the_patches_that_cover_it() -> None:
    values = torch.tensor([[[1.0, 4.0]]])  # 1 x 2 patches of side 4 at columns 0 and 2, in an image of 4 x 7
    maps = mean_over_patches(values, 4, 2, (4, 7))
    assert_close(maps[0, 0], torch.tensor([1, 1, 2.5, 2.5, 4, 4, 4]))  # the last column is not covered


def test_means_over_patches_equal_a_loop() -> None:
    values, side, stride, size = torch.rand(2, 4, 5), 6, 3, (15, 18)
    total, count = torch.zeros(2, *size), torch.zeros(size)
    for i in range(4):
        for j in range(5):
            window = slice(i * stride, i * stride + side), slice(j * stride, j * stride + side)
            total[:, *window] += values[:, i, j, None, None]
            count[window] += 1
    assert_close(mean_over_patches(values, side, stride, size), total / count)


def test_nearest_distances_equal_all_distances() -> None:
    vectors, rows = torch.rand(2, 4, 3, 5), torch.rand(30, 4)
    bank = MemoryBank.from_rows(rows - rows.mean(dim=0), rows.mean(dim=0))
    expected = torch.cdist(vectors.permute(0, 2, 3, 1).flatten(0, 2), rows).amin(dim=1).view(2, 3, 5)
    assert_close(nearest_distances(vectors, bank), expected)


# ---- Fit ----


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 96, 96, generator=Generator().manual_seed(1))


def test_training_images_have_distance_zero(images: Tensor, in_memory: Callable[..., object]) -> None:
    method = PatchSVDD(TINY, Setup((96, 96), CPU, seed=0))
    method.fit(in_memory((255 * images).round() / 255), lambda *_: None)
    scale = method.small_bank.std(dim=0).norm()
    assert method.predict((255 * images).round() / 255).maps.max() < 1e-3 * scale
    assert method.predict(1 - images).maps.max() > 0
    assert method.info() | {"large_patches": 4 * 9, "small_patches": 4 * 17 * 17} == method.info()


def test_combinations_are_those_of_both_scales(images: Tensor, in_memory: Callable[..., object]) -> None:
    method = PatchSVDD(TINY, Setup((96, 96), CPU, seed=0))
    method.fit(in_memory(images[:2]), lambda *_: None)
    large, small = method.scale_maps(images)
    for name, expected in (("product", large * small), ("sum", large + small), ("large", large), ("small", small)):
        method.settings = replace(TINY, combination=name)
        assert_close(method.predict(images).maps, expected)


def test_training_reduces_the_loss(in_memory: Callable[..., object]) -> None:
    ramp = torch.linspace(0, 1, 96)
    image = torch.stack([ramp.expand(96, 96), ramp[:, None].expand(96, 96), torch.zeros(96, 96)])
    losses: list[float] = []
    settings = replace(
        TINY, width=8, dimensions=16, initialization="kaiming", repeats=64, epochs=3, batch_size=16, lr=3e-3
    )
    method = PatchSVDD(settings, Setup((96, 96), CPU, seed=0))
    method.fit(in_memory(torch.stack([image, image.flip(1)])), lambda _done, _total, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("changes", "message"), [({"strides": (16, 3)}, "two even numbers"), ({"repeats": 0}, "repeats must be >= 1")]
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_small_images_raise_an_error() -> None:
    with pytest.raises(BenchError, match="at least 64 x 64 pixels, got 64 x 63"):
        PatchSVDD(TINY, Setup((64, 63), CPU, seed=0))


def test_memory_has_all_vectors_of_the_training_images() -> None:
    vectors = 2 * 4 * 64 * (64 * 64 + 16 * 16)  # twice, in bytes, of an image of 256 pixels
    few, many = (PatchSVDD.estimate_memory(Settings(), (256, 256), n) for n in (100, 101))
    assert many - few == 3 * 256 * 256 + vectors
