"""PaDiM against the reference data, a slow oracle, and Gaussians that are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.padim import PaDiM, Settings
from bench.methods.parts.gaussians import GaussianEstimator, mahalanobis_distance, whitening

CPU = torch.device("cpu")
SMALL = Settings(backbone="tf_efficientnet_lite0", dimensions=30)
Reference = dict[str, Tensor]


@pytest.fixture
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("padim")


def fit(images: object, settings: Settings = SMALL, size: tuple[int, int] = (64, 64)) -> PaDiM:
    method = PaDiM(settings, Setup(size, CPU, seed=0))
    method.fit(images, lambda *_: None)  # type: ignore[arg-type]
    return method


@pytest.fixture
def method(reference: Reference, in_memory: Callable[[Tensor], object]) -> PaDiM:
    return fit(in_memory(reference["train"]))


# ---- The reference data: numbers computed with the re-implementation ----


def test_channels_and_embedding_equal_the_reference(
    method: PaDiM, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    assert torch.equal(method.channels, reference["idx"])
    assert_relative(method.embed(reference["test"]), reference["embedding"])


def test_mean_and_covariance_equal_the_reference(
    method: PaDiM, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    assert_relative(method.mean.T, reference["mean"])
    factors = method.whitening[reference["positions"]].double()
    covariance = torch.linalg.inv(factors.transpose(1, 2) @ factors).permute(1, 2, 0)  # (d, d, positions)
    assert_relative(covariance, reference["cov"])


def test_distances_maps_and_scores_equal_the_reference(
    method: PaDiM, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    assert_relative(method.distances(reference["test"]), reference["distances"])
    prediction = method.predict(reference["test"])
    assert_relative(prediction.maps, reference["map"])
    assert_relative(prediction.scores, reference["score"])


# ---- Gaussians ----


def test_batches_of_any_size_give_the_covariance_of_numpy() -> None:
    features = torch.randn(3, 11, 4, generator=Generator().manual_seed(1)) + 1000  # a large mean
    estimator = GaussianEstimator(3, 4, CPU)
    for batch in features.split([1, 4, 6], dim=1):
        estimator.add(batch)
    assert_close(estimator.mean, features.mean(dim=1))
    covariance = estimator.covariance()
    for position in range(3):
        expected = torch.from_numpy(np.cov(features[position].double().numpy(), rowvar=False)).float()
        assert_close(covariance[position], expected, rtol=1e-3, atol=1e-3)


def test_distances_equal_those_of_a_loop_with_inverses() -> None:
    generator = Generator().manual_seed(2)
    features = torch.randn(5, 3, 6, generator=generator)
    mean, root = torch.randn(5, 6, generator=generator), torch.randn(5, 6, 2, generator=generator)
    covariance = root @ root.transpose(1, 2)  # of rank 2, so singular
    distances = mahalanobis_distance(features, mean, whitening(covariance.clone(), 0.01))
    for position in range(5):
        inverse = torch.linalg.inv(covariance[position].double() + 0.01 * torch.eye(6))
        for image in range(3):
            difference = (features[position, image] - mean[position]).double()
            assert_close(
                distances[position, image].double(), (difference @ inverse @ difference).sqrt(), rtol=1e-4, atol=0
            )


def test_distances_along_an_axis_are_in_standard_deviations() -> None:
    covariance = torch.diag(torch.tensor([4.0, 9.0]))[None]
    factors = whitening(covariance, 0.0)
    features = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [2.0, 3.0]]])
    assert_close(mahalanobis_distance(features, torch.zeros(1, 2), factors), torch.tensor([[1.0, 1.0, 2**0.5]]))


def test_one_image_gives_euclidean_distances(reference: Reference, in_memory: Callable[[Tensor], object]) -> None:
    method = fit(in_memory(reference["train"][:1]))
    difference = method.embed(reference["test"]) - method.embed(reference["train"][:1])
    assert_close(method.distances(reference["test"]), difference.norm(dim=1) / 0.01**0.5, rtol=1e-4, atol=1e-3)


# ---- The embedding ----


def test_a_deep_feature_is_copied_to_all_positions_that_it_covers(method: PaDiM, reference: Reference) -> None:
    stages = method.backbone(reference["test"])
    joined = torch.cat(
        [stage.repeat_interleave(2**i, 2).repeat_interleave(2**i, 3) for i, stage in enumerate(stages)], 1
    )
    assert torch.equal(method.embed(reference["test"]), joined[:, method.channels])


def test_the_seed_of_the_channels_changes_the_draw(reference: Reference, in_memory: Callable[[Tensor], object]) -> None:
    images = in_memory(reference["train"])
    first, second = fit(images), fit(images, replace(SMALL, channel_seed=1))
    assert len(set(first.channels.tolist())) == 30
    assert not torch.equal(first.channels, second.channels)
    second.load_state_dict(first.state_dict())  # the draw is part of the state
    assert_close(second.predict(reference["test"]).maps, first.predict(reference["test"]).maps)


def test_a_defect_has_the_largest_distance(method: PaDiM, reference: Reference) -> None:
    image = reference["train"][:1].clone()
    image[:, :, 16:32, 32:48] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    maps = method.predict(image).maps[0]
    row, column = divmod(int(maps.argmax()), 64)
    assert 12 <= row < 36
    assert 28 <= column < 52


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 177}, "must be <= 176"),
        ({"regularization": 0.0}, "must be > 0"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_invalid_settings_are_errors(changes: dict[str, float], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        PaDiM(replace(SMALL, **changes), Setup((64, 64), CPU, seed=0))


def test_the_memory_estimate_covers_the_learned_tensors(method: PaDiM) -> None:
    stored = sum(tensor.nbytes for tensor in method.state_dict().values())
    assert stored < PaDiM.estimate_memory(SMALL, (64, 64), 8) < 2 * stored
