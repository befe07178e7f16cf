"""SPADE against the reference data, a plain search, and images whose nearest neighbors are known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.maps import gaussian_filter, upsample
from bench.methods.spade import SPADE, Settings

SETTINGS = Settings(backbone="tf_efficientnet_lite0", n_neighbors=3)  # of the reference data
Reference = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("spade")


@pytest.fixture(scope="module")
def state(reference: Reference, in_memory: Callable[[Tensor], object]) -> dict[str, Tensor]:
    method = create()
    method.fit(in_memory(reference["train"]), lambda *_: None)  # type: ignore[arg-type]
    return method.state_dict()


def create(settings: Settings = SETTINGS, size: tuple[int, int] = (128, 128)) -> SPADE:
    return SPADE(settings, Setup(size, torch.device("cpu"), seed=0))


def restore(state: dict[str, Tensor], **changes: object) -> SPADE:
    method = create(replace(SETTINGS, **changes))
    method.load_state_dict(state)
    return method


# ---- The reference data: numbers computed with the re-implementation ----


def test_pooled_vectors_neighbors_and_scores_equal_the_reference(
    state: dict[str, Tensor], reference: Reference, assert_relative: Callable[..., None]
) -> None:
    method = restore(state)
    assert_relative(method.pooled, reference["pooled_train"])
    assert_relative(method.extract(reference["test"])[0], reference["pooled_test"])
    scores, nearest, _ = method.measure(reference["test"])
    assert torch.equal(nearest, reference["neighbours"])
    assert_relative(scores, reference["score"])
    assert_relative(scores, reference["neighbour_distances"].mean(dim=1))


@pytest.mark.parametrize(("drop", "key"), [(True, "code"), (False, "all")])
def test_maps_with_and_without_the_partial_block_equal_the_reference(
    state: dict[str, Tensor], reference: Reference, drop: bool, key: str, assert_relative: Callable[..., None]
) -> None:
    method = restore(state, drop_partial_block=drop)
    _, _, maps = method.measure(reference["test"])
    for stage, part in enumerate(maps, start=1):
        assert_relative(part, reference[f"distance_{stage}_{key}"])
    assert_relative(method.predict(reference["test"]).maps, reference[f"map_{key}"])


# ---- Search ----


def test_the_map_is_that_of_a_plain_search(state: dict[str, Tensor], reference: Reference) -> None:
    method, images = restore(state), reference["test"]
    stages = method.backbone(images)[:3]
    train = method.backbone(reference["train"])[:3]
    _, nearest, _ = method.measure(images)
    expected = torch.zeros(2, 128, 128)
    for image in range(2):
        for stage, features in zip(stages, train, strict=True):
            queries, rows = stage[image].flatten(1).T, features[nearest[image]].permute(0, 2, 3, 1).flatten(0, 2)
            distances = torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
            expected[image] += upsample(distances.view(stage.shape[2:]), (128, 128), align_corners=False) / 3
    assert_close(method.predict(images).maps, gaussian_filter(expected, 4.0), rtol=1e-4, atol=1e-4)


def test_a_training_image_has_distance_0_to_itself(state: dict[str, Tensor], reference: Reference) -> None:
    method = restore(state, n_neighbors=1)
    scores, nearest, maps = method.measure(reference["train"][:3])
    assert nearest[:, 0].tolist() == [0, 1, 2]
    assert scores.abs().max() < 1e-5
    assert all(part.abs().max() < 1e-3 for part in maps)


def test_more_neighbors_than_training_images_use_all(state: dict[str, Tensor], reference: Reference) -> None:
    all_images, many = restore(state, n_neighbors=8), restore(state, n_neighbors=50)
    assert_close(many.predict(reference["test"]).maps, all_images.predict(reference["test"]).maps)
    assert many.info()["neighbors"] == 8


def test_more_neighbors_give_larger_scores_and_smaller_distances(
    state: dict[str, Tensor], reference: Reference
) -> None:
    (few_scores, _, few), (many_scores, _, many) = (
        restore(state, n_neighbors=count).measure(reference["test"]) for count in (1, 8)
    )
    assert (many_scores > few_scores).all()
    assert all((b <= a + 1e-4).all() for a, b in zip(few, many, strict=True))


def test_a_stage_with_too_few_features_for_a_block_is_an_error(in_memory: Callable[[Tensor], object]) -> None:
    method = create(replace(SETTINGS, n_neighbors=1, drop_partial_block=True), (64, 64))  # 16 features in stage 3
    images = torch.rand(2, 3, 64, 64)
    method.fit(in_memory(images), lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="requires 100 features"):
        method.predict(images)


def test_maps_of_images_that_are_not_square_keep_rows_and_columns(in_memory: Callable[[Tensor], object]) -> None:
    method = create(replace(SETTINGS, n_neighbors=1), (64, 128))
    image = torch.full((1, 3, 64, 128), 0.4)
    method.fit(in_memory(image), lambda *_: None)  # type: ignore[arg-type]
    image = image.clone()
    image[:, :, 40:56, 8:24] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1)
    row, column = divmod(int(method.predict(image).maps[0].argmax()), 128)
    assert 34 <= row < 62
    assert 2 <= column < 30


@pytest.mark.parametrize("changes", [{"pooled_stage": 3}, {"n_neighbors": 0}], ids=str)
def test_invalid_settings_are_errors(changes: dict[str, int]) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))):
        replace(SETTINGS, **changes)


def test_the_memory_estimate_covers_the_gallery(state: dict[str, Tensor]) -> None:
    assert state["gallery"].nbytes < SPADE.estimate_memory(SETTINGS, (128, 128), 8) < 4 * state["gallery"].nbytes
