import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.methods.parts import pyramid_gaussians
from bench.methods.parts.pyramid_gaussians import PyramidGaussians


def pyramid(count: int, scale: float = 1.0) -> list[Tensor]:
    """Return three stages, with one direction of large variance."""
    shapes = ((3, 8, 12), (5, 4, 6), (9, 2, 2))
    return [scale * torch.randn(count, *shape) + 30 * torch.randn(count, 1, 1, 1) for shape in shapes]


def brute_force(supports: list[Tensor], features: list[Tensor], regularization: float) -> Tensor:
    join = lambda stages: torch.cat([F.interpolate(stage, stages[0].shape[2:]) for stage in stages], dim=1).double()
    joined, queries = join(supports), join(features)
    result = torch.empty(queries.shape[0], *queries.shape[2:], dtype=torch.float64)
    for row in range(joined.shape[2]):
        for column in range(joined.shape[3]):
            values = joined[:, :, row, column]
            covariance = torch.cov(values.T) + regularization * torch.eye(values.shape[1], dtype=torch.float64)
            delta = queries[:, :, row, column] - values.mean(dim=0)
            result[:, row, column] = (delta * torch.linalg.solve(covariance, delta.T).T).sum(dim=1).sqrt()
    return result


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("regularization", [0.01, 1.0])
def test_distances_equal_those_of_inverse_covariances(count: int, regularization: float) -> None:
    supports, features = pyramid(count), pyramid(3)
    distance = PyramidGaussians(supports, regularization).distance(features)
    assert_close(distance.double(), brute_force(supports, features, regularization), rtol=1e-4, atol=1e-5)


def test_a_large_variance_does_not_cancel() -> None:
    supports = [30 * torch.randn(6, 4, 1, 1), torch.zeros(6, 8, 1, 1)]
    features = [stage[:1].clone() for stage in supports]  # a support itself: the distance is about 2
    distance = PyramidGaussians(supports, 1e-2).distance(features)
    expected = brute_force(supports, features, 1e-2)
    assert expected.max() < 3
    assert_close(distance.double(), expected, rtol=1e-3, atol=0)


def test_factors_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    supports = pyramid(4)
    factors = PyramidGaussians(supports, 0.01).inverse_factors
    monkeypatch.setattr(pyramid_gaussians, "MAX_ELEMENTS", 1)
    assert_close(PyramidGaussians(supports, 0.01).inverse_factors, factors, rtol=1e-6, atol=1e-9)


def test_distance_by_hand() -> None:
    supports = [torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)]  # mean 2, variance 2
    features = [torch.tensor([[[[5.0]]]]), torch.tensor([[[[4.0]]]])]
    expected = (3**2 / (2 + 0.5) + 4**2 / 0.5) ** 0.5
    assert float(PyramidGaussians(supports, 0.5).distance(features)) == pytest.approx(expected, rel=1e-6)
