"""RegAD: views, warps, embeddings, distances, map and training loss of the authors' code; pretraining on categories."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.regad import RegAD, Settings, SiameseHead, augment

CPU = torch.device("cpu")
SETUP = Setup((64, 64), CPU, seed=0)
REFERENCE = Settings(backbone="random:resnet18")
TINY = Settings(
    backbone="tf_efficientnet_lite0", stages=(1, 2), normalize=True, pretrain_epochs=2, batch_size=2, n_references=1
)


@pytest.fixture(scope="module")
def reference(contiguous_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    numbers = contiguous_reference("regad")
    enlarged = numbers["images"].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)  # (6, 3, 224, 224)
    return numbers | {"images": enlarged}


@pytest.fixture
def method(fill_by_hash: Callable[..., None]) -> RegAD:
    """A RegAD whose network has the weights of the reference."""
    method = RegAD(REFERENCE, Setup((224, 224), CPU, seed=0))
    network = method.build_network()
    fill_by_hash(network)
    for stage in network.stages:
        last = stage["transformer"].head[2]
        last.weight.data.mul_(0.1)
        last.bias.data.add_(torch.tensor([0.0, 1.0, 1.0]))
    method.network = network.eval()
    method.pretrain_categories = torch.tensor(1)
    return method


@torch.no_grad()
def test_views_and_warps_equal_the_authors_code(
    method: RegAD, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    views = augment(reference["images"][:2])
    assert views.shape == (44, 3, 224, 224)
    assert_close(views[:, :, ::16, ::16], reference["augmented"], rtol=0, atol=1e-3)
    _, matrices = method.network.register(torch.cat([views[::9], reference["images"][4:]]))
    for number, matrix in enumerate(matrices, start=1):
        expected = reference[f"theta{number}"]
        assert_relative(matrix, torch.cat([expected[:44:9], expected[44:]]))


def test_embeddings_distances_map_and_scores_equal_the_authors_code(
    method: RegAD,
    reference: dict[str, Tensor],
    in_memory: Callable[..., object],
    assert_relative: Callable[..., None],
) -> None:
    method.fit(in_memory(reference["images"][:2]), lambda *_: None)
    images, (rows, columns) = reference["images"][4:], reference["positions"].T
    supports = method._join(list(method._stages_of_supports()))[rows * 56 + columns]  # (p, 44, 448)
    assert_relative(supports, reference["embedding_support"], 2e-3)  # stored as float16
    with torch.no_grad():
        queries = method._join(method.embed(images))[rows * 56 + columns]
    assert_relative(queries, reference["embedding_query"])
    assert_close(method.distances(images), reference["distance"], rtol=2e-3, atol=0)  # their inverse is float32
    prediction = method.predict(images)
    assert_close(prediction.maps[:, ::4, ::4], reference["map"], rtol=1e-3, atol=0)
    assert_close(prediction.scores, reference["scores"], rtol=1e-3, atol=0)


def test_training_loss_and_gradients_equal_the_authors_code(
    method: RegAD, reference: dict[str, Tensor], fill_by_hash: Callable[..., None], assert_relative: Callable[..., None]
) -> None:
    head = SiameseHead(256)
    fill_by_hash(head.encoder)
    fill_by_hash(head.predictor)
    network = method.network.train()
    head.train()
    images = reference["images"]
    queries, references = images[reference["train_query"]], images[reference["train_support"]]
    loss = method.loss(network, head, queries, references)
    loss.backward()
    assert_close(loss.detach().double(), reference["train_loss"], rtol=1e-4, atol=1e-5)  # a mean of cosines near 0
    codes = head.encoder(network.register(queries)[0][-1])
    assert_relative(codes[:, ::8, ::3, ::3], reference["train_z1"], 1e-3)
    # A change of the images by 1e-7 changes these by 10 %, so processors differ: by up to 21 % of the largest value.
    for number, stage in enumerate(network.stages, start=1):
        assert_relative(stage["transformer"].head[2].bias.grad, reference[f"grad_fc{number}"], 0.3)
    assert_relative(head.predictor[3].weight.grad[:8, :8, 0, 0], reference["grad_predictor"], 1e-3)


def test_views_of_a_hand_made_image() -> None:
    image = torch.zeros(1, 3, 10, 10)
    image[0, 0, 2, 7] = 1
    views = augment(image)
    positions = [tuple(divmod(int(view[0].argmax()), 10)) for view in views]
    assert positions[0] == (2, 7)
    assert positions[9] == (1, 6)  # the content moves by 0.2 halves, one pixel, against the direction of the shift
    assert positions[17:] == [(2, 2), (2, 7), (2, 2), (7, 2), (7, 7)]  # mirrored, gray, and three quarter turns
    assert_close(views[18, :, 2, 7], torch.full((3,), 0.299))


def brute_force_distances(method: RegAD, train: Tensor, images: Tensor) -> Tensor:
    """Return distances by an inverse covariance per position in float64."""
    supports = method._join(method._embed_views(train)).double()  # (h * w, n, c)
    queries = method._join(method.embed(images)).double()
    mean = supports.mean(dim=1, keepdim=True)
    centered = supports - mean
    identity = torch.eye(supports.shape[2], dtype=torch.float64)
    covariance = centered.transpose(1, 2) @ centered / (supports.shape[1] - 1) + 0.01 * identity
    delta = queries - mean
    squared = torch.einsum("pbc,pcd,pbd->bp", delta, torch.linalg.inv(covariance), delta)
    return squared.sqrt().view(len(images), *method._grids[0])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@torch.no_grad()
def test_distances_equal_those_of_inverse_covariances(
    in_memory: Callable[..., object], random_images: Callable[..., Tensor], count: int
) -> None:
    train, images = random_images(count, (64, 64)), random_images(2, (64, 64), seed=2)
    method = RegAD(replace(TINY, pretrain_epochs=0), SETUP)
    method.fit(in_memory(train), lambda *_: None)
    is_few = 22 * count < 24 + 40  # channels
    assert (method.supports is not None) == is_few
    assert (method.whitening is None) == is_few
    assert_close(method.distances(images).double(), brute_force_distances(method, train, images), rtol=1e-3, atol=0)


def categories(in_memory: Callable[..., object], random_images: Callable[..., Tensor]) -> dict[str, Any]:
    return {name: in_memory(random_images(5, (64, 64), seed=seed)) for seed, name in enumerate(("bolt", "nut"))}


def test_pretraining_reduces_the_loss_and_moves_the_warps(
    in_memory: Callable[..., object], random_images: Callable[..., Tensor]
) -> None:
    settings = replace(TINY, pretrain_epochs=6, lr=3e-3)
    method, losses = RegAD(settings, SETUP), []
    method.pretrain(categories(in_memory, random_images), lambda _done, _total, loss: losses.append(loss))
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.02
    assert not method.network.training
    with torch.no_grad():
        _, matrices = method.network.register(random_images(2, (64, 64), seed=5))
    assert all((matrix[:, :, :2] - torch.eye(2)).abs().max() > 1e-4 for matrix in matrices)
    method.fit(in_memory(random_images(2, (64, 64), seed=7)), lambda *_: None)
    assert method.info()["pretrain_categories"] == 2
    assert method.info()["trainable_parameters"] > 0


def test_pairs_are_of_one_category_and_never_an_image_with_itself(in_memory: Callable[..., object]) -> None:
    images = {"a": torch.arange(7.0), "b": torch.arange(100.0, 103)}
    others = {name: in_memory(values.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)) for name, values in images.items()}
    method = RegAD(replace(TINY, batch_size=3, n_references=2), SETUP)
    generator, seen, references_seen, orders = Generator().manual_seed(0), [], set(), set()
    for _ in range(40):
        epoch = list(method._draw_pairs(others, generator))
        assert [len(queries) for queries, _ in epoch].count(3) == 3
        assert len(epoch) == 4  # 3 + 3 + 1 of a, 3 of b
        for queries, references in epoch:
            assert references.shape == (len(queries), 2, 3, 2, 2)
            number, other = queries[:, 0, 0, 0], references[:, :, 0, 0, 0]
            assert len({*(number >= 100).tolist(), *(other >= 100).flatten().tolist()}) == 1
            assert (other != number[:, None]).all()
            references_seen |= set(other.flatten().tolist())
        queries = torch.cat([queries[:, 0, 0, 0] for queries, _ in epoch])
        assert queries.sort().values.tolist() == [*range(7), 100, 101, 102]
        orders.add(tuple(queries.tolist()))
        seen.append(queries)
    assert references_seen == {*range(7), 100, 101, 102}
    assert len(orders) == 40


def test_learning_rate_is_that_of_the_epochs_that_the_code_evaluates(
    in_memory: Callable[..., object], random_images: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def record(self: torch.optim.SGD, *arguments: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    method = RegAD(replace(TINY, batch_size=5, lr=1e-4), SETUP)
    method.pretrain({"nut": in_memory(random_images(5, (64, 64)))}, lambda *_: None)
    assert rates == pytest.approx([0.75e-4, 0.25e-4])


def test_without_pretraining_the_warps_are_the_identity(
    in_memory: Callable[..., object], random_images: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    images = random_images(2, (64, 64))
    for epochs, others, count in (
        (0, {"nut": in_memory(images)}, 0),
        (1, {}, 1),
        (1, {"one": in_memory(images[:1])}, 1),
    ):
        caplog.clear()
        method = RegAD(replace(TINY, pretrain_epochs=epochs), SETUP)
        with caplog.at_level(logging.WARNING):
            method.pretrain(others, lambda *_: None)
            method.fit(in_memory(images), lambda *_: None)
        assert [record.message.startswith("RegAD is not registered") for record in caplog.records] == [True] * count
        with torch.no_grad():
            maps, matrices = method.network.register(images)
            aligned = method.network(images)
        identity = torch.eye(2, 3).expand(2, -1, -1)
        assert all(torch.equal(matrix, identity) for matrix in matrices)
        assert_close(aligned, maps, rtol=1e-4, atol=1e-4)
        assert method.info()["pretrain_categories"] == 0
        assert (method.info()["trainable_parameters"] == 0) == (epochs == 0)


def test_explain_shows_the_registered_image(
    in_memory: Callable[..., object], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(2, (64, 64))
    method = RegAD(TINY, SETUP)
    method.fit(in_memory(images[:1]), lambda *_: None)
    for stage, values in zip(method.network.stages, ((torch.pi / 2, 1.0, 1.0), (0.0, -1.0, 1.0)), strict=True):
        stage["transformer"].head[2].bias.data.copy_(torch.tensor(values))
    pictures = method.explain(images)
    expected = torch.rot90(images, 1, (2, 3)).flip(3)  # a quarter turn, then mirrored
    assert_close(pictures["registered image"], expected, rtol=0, atol=1e-4)
    assert pictures["Mahalanobis distance"].shape == (2, 64, 64)


def test_weights_with_fused_batch_norms_cannot_be_trained(
    tmp_path: Path, in_memory: Callable[..., object], random_images: Callable[..., Tensor]
) -> None:
    settings = replace(TINY, backbone="random:resnet18")
    layers = RegAD(settings, SETUP).build_network().stages
    names = ({"0": "conv1", "1": "bn1", "4": "layer1"}, {"0": "layer2"})
    tensors = {
        f"{renamed[key.split('.')[0]]}.{key.partition('.')[2]}": value.clone()
        for stage, renamed in zip(layers, names, strict=True)
        for key, value in stage["layers"].state_dict().items()
    }
    save_file(tensors, tmp_path / "resnet18.tv_in1k-fused.safetensors")
    fused = RegAD(replace(settings, backbone="resnet18.tv_in1k"), replace(SETUP, weights=tmp_path))
    with pytest.raises(BenchError, match="fused into the convolutions"):
        fused.pretrain(categories(in_memory, random_images), lambda *_: None)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ((64, 96), {}, "must be squares"), ((60, 60), {}, "a multiple of 8 pixels"),
        ((64, 64), {"regularization": 0.0}, "regularization"), ((64, 64), {"n_references": 0}, "n_references"),
    ],
)  # fmt: skip
def test_invalid_settings_raise_an_error(size: tuple[int, int], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        RegAD(replace(TINY, **changes), replace(SETUP, size=size))


def test_estimated_memory_is_that_of_the_training_step_or_of_the_gaussians() -> None:
    few = 2 * 88 * (64 * 56**2 + 128 * 28**2 + 256 * 14**2) + 56**2 * 88**2
    settings = Settings(backbone="random:resnet18", pretrain_epochs=0)
    assert RegAD.estimate_memory(settings, (224, 224), 4) == 4 * few
    assert RegAD.estimate_memory(settings, (224, 224), 100) == 4 * 56**2 * 448 * (448 + 66)
    assert RegAD.estimate_memory(replace(settings, pretrain_epochs=1), (224, 224), 1) == 4 * 140 * 224**2 * 96
