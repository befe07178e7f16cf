"""US: networks, scores and losses of a re-implementation; dense passes against single patches; random patches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.dense_patch_network import PatchNetwork, patch_layers, receptive_field
from bench.methods.parts.descriptor_losses import squared_correlations, triplet_loss
from bench.methods.parts.image_folder import ImageFolder
from bench.methods.parts.random_crops import PairSampler, draw_images, random_windows, sample_regions
from bench.methods.us import US, Settings, standardize

FIELDS = (17, 33, 65)
SETUP = Setup((64, 64), torch.device("cpu"), seed=0)
REFERENCE = Settings(first_kernel=3, error="norm", validation_fraction=0, metric_weight=0, compactness="samples")
TINY = Settings(
    receptive_fields=(17,), width=4, descriptor=8, students=2, backbone="random:resnet18", stage=1, teacher_steps=3,
    teacher_batch_size=8, crop=16, epochs=2, batch_size=2,
)  # fmt: skip
Reference = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("us")


@pytest.fixture(scope="module")
def method(reference: Reference, fill_by_hash: Callable[..., None], in_memory: Callable[..., object]) -> US:
    """A method with the weights of the re-implementation, calibrated on its training images."""
    method = US(REFERENCE, SETUP)
    teachers, students = method.build_teachers(), method.build_students()
    for teacher in teachers:
        fill_by_hash(teacher)
    for i, student in enumerate(students):
        fill_by_hash(student, 1000 * (i % 3 + 1))
    train = in_memory(reference["images"][:3])
    method.teachers, method.students = teachers, students
    method.teacher_mean, method.teacher_std = method._teacher_statistics(train)
    method.calibration = method._calibrate(train, torch.arange(3))
    return method


# ---- The reference data: numbers of a re-implementation ----


@torch.no_grad()
def test_descriptors_errors_and_maps_equal_the_reference(
    method: US, reference: Reference, assert_relative: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    test, errors = reference["images"][3:], []
    for i, field in enumerate(FIELDS):
        side = receptive_field(method.layers(field))
        patches = method._pad(test, field).unfold(2, side, 9).unfold(3, side, 9)  # (2, 3, 8, 8, side, side)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        for name, network in (("teacher", method.teachers[i]), ("student", method.students[3 * i])):
            assert_relative(network.describe_patches(patches).view(2, 8, 8, 128), reference[f"{name}{field}"])
        assert_relative(method.teacher_mean[i], reference[f"teacher_mean{field}"])
        assert_relative(method.teacher_std[i].square(), reference[f"teacher_var{field}"])
        error, variance = method.errors(test, i)
        assert_relative(error[:, ::2, ::2], reference[f"error{field}"])
        assert_relative(variance[:, ::2, ::2], reference[f"variance{field}"])
        (error_mean, error_std), (variance_mean, variance_std) = method.calibration[i]
        moments = torch.stack([error_mean, error_std.square(), variance_mean, variance_std.square()])
        assert_close(moments.double(), reference[f"calibration{field}"], rtol=1e-4, atol=0)
        assert_relative(standardize((error, variance), method.calibration[i]).sum(dim=0), reference[f"map{field}"])
        errors.append((error, variance))
    monkeypatch.setattr(method, "errors", lambda _, i: errors[i])  # which take seconds
    prediction = method.predict(test)
    assert_relative(prediction.maps, reference["maps"])
    assert_relative(prediction.scores, reference["scores"])


def test_losses_of_students_equal_the_reference(method: US, reference: Reference) -> None:
    for i, field in enumerate(FIELDS):
        padded = method._pad(reference["images"][:1], field)
        targets = method._describe(method.teachers[i], padded, i)
        losses = [F.mse_loss(student(padded), targets) for student in method.students[3 * i : 3 * i + 3]]
        assert_close(torch.stack(losses).double(), reference[f"student_loss{field}"], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("i", "field", "n_tensors"), [(0, 17, 8), (1, 33, 8)])
def test_losses_of_the_teacher_equal_the_reference(
    method: US, reference: Reference, by_hash: Callable[[int, int], Tensor], i: int, field: int, n_tensors: int
) -> None:
    decoder = nn.Linear(128, 512)
    decoder.weight.data = (by_hash(512 * 128, n_tensors).view(512, 128) * (6 / 128) ** 0.5).float()
    decoder.bias.data = 0.1 * by_hash(512, n_tensors + 1).float()
    images, targets = reference["images"], by_hash(6 * 512, 77).view(6, 512).float()
    patches = torch.stack([images[k % 3, :, k : k + field, k : k + field] for k in range(6)])
    distillation, compactness = reference[f"distillation{field}"], reference[f"compactness{field}"]
    loss = method.teacher_loss(method.teachers[i], decoder, patches, patches, targets)
    assert_close(loss.detach().double(), distillation + compactness, rtol=1e-4, atol=0)
    decoded = decoder(method.teachers[i].describe_patches(method._normalize(patches)))
    assert_close(squared_correlations(decoded).detach().double(), compactness, rtol=1e-4, atol=0)


# ---- Networks ----


@pytest.mark.parametrize(
    ("field", "first_kernel", "side"), [(17, None, 17), (33, None, 32), (33, 3, 30), (65, None, 60)]
)
def test_a_dense_pass_equals_single_patches(field: int, first_kernel: int | None, side: int) -> None:
    layers = patch_layers(field, 4, 6, first_kernel)
    network = PatchNetwork(layers)
    image = torch.rand(1, 3, field + 4, field + 6)
    dense = network(image)
    assert receptive_field(layers) == side
    assert dense.shape == (1, 6, field + 5 - side, field + 7 - side)
    for row in range(5):
        for column in range(7):
            patch = image[:, :, row : row + field, column : column + field]
            assert_close(network.describe_patches(patch)[0], dense[0, :, row, column], rtol=1e-4, atol=1e-6)


def test_patches_of_other_sizes_raise_an_error() -> None:
    with pytest.raises(BenchError, match="17, 33, 65 pixels, got 20"):
        patch_layers(20, 4, 6)


# ---- Losses worked out by hand ----


def test_the_triplet_loss_takes_the_nearer_negative() -> None:
    anchors = torch.tensor([[0.0], [3.0]])
    positives = torch.tensor([[1.0], [3.0]])
    # Row 0: near 1, negative 3 at squared distance 9 and, from the positive, 4: 1 + 1 - 4 < 0.
    # Row 1: near 0, negative 0 at 9: 0. With margin 5: 5 + 1 - 4 = 2 and 0.
    assert float(triplet_loss(anchors, positives, 1.0)) == 0
    assert float(triplet_loss(anchors, positives, 5.0)) == 1


def test_correlations_count_each_pair_once() -> None:
    first, second = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])
    vectors = torch.stack([first, 5 - 2 * first, second])  # correlations -1, 0 and 0
    assert_close(squared_correlations(vectors), torch.tensor(1.0))
    expected = torch.corrcoef(torch.stack([first, second, first * second])).triu(1).square().sum()
    assert_close(squared_correlations(torch.stack([first, second, first * second])), expected)


def test_metric_and_compactness_are_added_with_their_weights() -> None:
    settings = replace(TINY, metric_weight=2.0, compactness_weight=3.0)
    method, patches, positives = US(settings, SETUP), torch.rand(8, 3, 17, 17), torch.rand(8, 3, 17, 17)
    teacher, decoder = method.build_teachers()[0], nn.Linear(8, 5)
    anchors, near = (teacher.describe_patches(method._normalize(part)) for part in (patches, positives))
    targets = torch.rand(8, 5)
    expected = (decoder(anchors) - targets).square().sum(dim=1).mean()
    expected = expected + 2 * triplet_loss(anchors, near, 1.0) + 3 * squared_correlations(anchors.T)
    assert_close(method.teacher_loss(teacher, decoder, patches, positives, targets), expected)


# ---- Random patches ----


def test_regions_are_resampled_bilinearly() -> None:
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8)
    index, corner, side = (
        torch.tensor([1, 0, 0]),
        torch.tensor([[2.0, 0.0, 3.0], [4.0, 0.0, 1.0]]),
        torch.tensor([4.0, 8.0, 4.0]),
    )
    regions = sample_regions(images, index, corner, side, 4)
    assert_close(regions[0], images[1, :, 2:6, 4:8] / 255)
    averaged = F.avg_pool2d(images[:1, :, :8, :8].float(), 2)[0] / 255
    assert_close(regions[1], averaged)
    assert_close(regions[2], images[0, :, 3:7, 1:5] / 255)
    enlarged = sample_regions(images, index[:1], corner[:, :1], side[:1], 8)[0]
    expected = F.interpolate(images[1:].float() / 255, scale_factor=2.0, mode="bilinear")[0, :, 4:12, 8:16]
    assert_close(enlarged, expected)


def test_regions_beyond_the_border_repeat_its_pixels() -> None:
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    region = sample_regions(images, torch.tensor([0]), torch.tensor([[-2.0], [2.0]]), torch.tensor([4.0]), 4)
    assert_close(region[0, 0] * 255, torch.tensor([[2.0, 3, 3, 3], [2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7]]))


def test_pairs_without_changes_are_equal_and_changes_are_small() -> None:
    images = draw_images_of(torch.rand(3, 3, 40, 40))
    same = PairSampler((1.0, 1.0), jitter=0, shift=0, luminance=0, noise=0)
    regions, positives = same.draw(images, 6, 9, Generator().manual_seed(0))
    assert torch.equal(regions, positives)
    changed = PairSampler((0.5, 4.0), jitter=0.2)
    regions, positives = changed.draw(images, 64, 9, Generator().manual_seed(0))
    assert regions.shape == positives.shape == (64, 3, 9, 9)
    assert 0 <= regions.amin() < regions.amax() <= 1
    difference = (regions - positives).abs().mean()
    assert 0.01 < difference < (regions - positives.roll(1, 0)).abs().mean()


def draw_images_of(images: Tensor) -> Tensor:
    return images.mul(255).round().to(torch.uint8)


def test_images_are_drawn_from_all_sources(in_memory: Callable[..., object]) -> None:
    sources = [in_memory(torch.full((n, 3, 4, 4), value)) for n, value in ((9, 0.2), (2, 0.6))]
    images = draw_images(sources, 6, 2, Generator().manual_seed(0))
    assert images.shape == (5, 3, 2, 2)
    assert images[:, 0, 0, 0].tolist() == [51, 51, 51, 153, 153]


def test_windows_are_parts_of_their_image() -> None:
    images = torch.arange(2 * 30.0).view(2, 1, 5, 6)
    windows = random_windows(images, 2, Generator().manual_seed(0))
    for image, window in zip(images, windows, strict=True):
        row, column = divmod(int(window[0, 0, 0] - image[0, 0, 0]), 6)
        assert torch.equal(window, image[:, row : row + 2, column : column + 2])


def test_windows_are_at_a_corner_in_one_of_sixteen_draws() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 0, 0] = 1
    generator = Generator().manual_seed(0)
    counts = [int(random_windows(image, 8, generator).sum()) for _ in range(640)]
    assert 25 < sum(counts) < 65  # half of the side: a quarter of the draws in each direction


def test_a_folder_of_images_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, color, size in (("b.png", 100, (8, 4)), ("a.png", 200, (6, 6))):
        Image.new("RGB", size, (color, 0, 0)).save(tmp_path / name)
    folder = ImageFolder(tmp_path, (4, 4), "teacher_images")
    (batch,) = folder.batches(2)
    assert batch.shape == (2, 3, 4, 4)
    assert_close(batch[:, 0, 0, 0], torch.tensor([200.0, 100]) / 255)
    before = folder.content_hash
    Image.new("RGB", (6, 6)).save(tmp_path / "a.png")
    assert folder.content_hash != before
    with pytest.raises(BenchError, match="teacher_images=DIR must be a folder with images"):
        ImageFolder(tmp_path / "none", (4, 4), "teacher_images")


# ---- Fit ----


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(1))


def test_the_teacher_is_distilled_on_other_categories_only_if_there_are_some(
    images: Tensor, in_memory: Callable[..., object]
) -> None:
    def fitted(*, others: bool, **changes: object) -> US:
        method = US(replace(TINY, **changes), SETUP)
        if others:
            method.pretrain({"nut": in_memory(1 - images)}, lambda *_: None)
        method.fit(in_memory(images), lambda *_: None)
        return method

    alone, with_others, train_only = (
        fitted(others=False),
        fitted(others=True),
        fitted(others=True, teacher_images="train"),
    )
    assert alone.info()["teacher_distilled_on"] == train_only.info()["teacher_distilled_on"] == "training images"
    assert with_others.info()["teacher_distilled_on"] == "other categories"
    weights = [next(method.teachers.parameters()) for method in (alone, with_others, train_only)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_a_folder_of_images_is_the_source_of_the_teacher(
    images: Tensor, in_memory: Callable[..., object], tmp_path: Path
) -> None:
    Image.new("RGB", (80, 64), (90, 10, 30)).save(tmp_path / "one.png")
    settings = replace(TINY, teacher_images=str(tmp_path), teacher_steps=1)
    method = US(settings, SETUP)
    method.pretrain({"nut": in_memory(images)}, lambda *_: None)
    method.fit(in_memory(images), lambda *_: None)
    assert method.info()["teacher_distilled_on"] == "folder"
    assert US.file_hashes(settings, None).keys() == {"backbone", "teacher_images"}
    assert US.file_hashes(TINY, None).keys() == {"backbone"}


def test_pretraining_and_training_reduce_their_losses(
    images: Tensor, in_memory: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.methods.us.POOL_STEPS", 60)
    settings = replace(
        TINY, teacher_steps=100, teacher_lr=1e-3, lr=1e-2, epochs=10, crop=0, backbone="tf_efficientnet_lite0",
    )  # fmt: skip
    method, teacher, students = US(settings, SETUP), list[float](), list[float]()
    method.pretrain({"nut": in_memory(images)}, lambda _done, _total, loss: teacher.append(loss))
    method.fit(in_memory(images), lambda _done, _total, loss: students.append(loss))
    assert len(teacher) == 2
    assert teacher[1] < 0.9 * teacher[0]
    assert students[-1] < 0.9 * students[0]


def test_targets_and_calibrated_maps_have_mean_zero_and_deviation_one(
    images: Tensor, in_memory: Callable[..., object]
) -> None:
    method = US(replace(TINY, crop=0, downsample=2), SETUP)
    method.fit(in_memory(images), lambda *_: None)
    targets = method._describe(method.teachers[0], method._pad(images, 17), 0)
    assert targets.shape == (4, 8, 32, 32)
    assert_close(targets.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    assert_close(targets.std(dim=(0, 2, 3), correction=0), torch.ones(8), atol=1e-4, rtol=0)
    for part in standardize(method.errors(images, 0), method.calibration[0]):
        assert_close(part.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
        assert_close(part.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_batches_of_predict_do_not_change_the_maps(
    images: Tensor, in_memory: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = US(TINY, SETUP)
    method.fit(in_memory(images), lambda *_: None)
    whole = method.predict(images)
    monkeypatch.setattr("bench.methods.us.passes_per_batch", lambda *_: 3)
    assert_close(method.predict(images).maps, whole.maps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"receptive_fields": (16,)}, "must be different ones of 17, 33 and 65"),
        ({"receptive_fields": (17, 17)}, "must be different ones"),
        ({"zoom": (2.0, 1.0)}, "zoom must be a range"),
        ({"students": 0}, "students must be >= 1"),
    ],
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_images_that_are_too_small_raise_an_error() -> None:
    with pytest.raises(BenchError, match="larger than crop = 64"):
        US(replace(TINY, crop=64), SETUP)
    with pytest.raises(BenchError, match="multiples of downsample = 3"):
        US(replace(TINY, downsample=3), SETUP)


def test_memory_grows_with_the_crop() -> None:
    small, large = (US.estimate_memory(replace(TINY, crop=crop), (256, 256), 4) for crop in (64, 128))
    assert small < large < US.estimate_memory(replace(TINY, crop=0), (256, 256), 4)
