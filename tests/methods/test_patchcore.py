"""PatchCore compared with the authors' code on synthetic images, and with slow implementations."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from bench.errors import BenchError
from bench.evaluation.metrics import auroc
from bench.method import Images, Setup
from bench.methods import meanmap, patchcore
from bench.methods.patchcore import PatchCore, Settings, greedy_coreset, locally_aware
from bench.weights import find_weights

LITE = "tf_efficientnet_lite0"
SMALL = Settings(backbone=LITE, pretrain_dim=48, target_dim=32, projection=16, coreset=0.1)


def silent(_done: int, _total: int, _loss: float | None) -> None:
    pass


def setup(size: tuple[int, int] = (64, 64), seed: int = 0, **more: object) -> Setup:
    return Setup(size, torch.device("cpu"), seed, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(in_memory: Callable[[Tensor], Images]) -> Callable[..., PatchCore]:
    """Return the function that fits a method."""

    def fit(settings: Settings, images: Tensor, seed: int = 0) -> PatchCore:
        method = PatchCore(settings, setup((images.shape[2], images.shape[3]), seed))
        method.fit(in_memory(images), silent)
        return method

    return fit


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Return (6, 3, 64, 64) smooth images with noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(6, 3, 8, 8, generator=generator)
    return (F.interpolate(coarse, size=64, mode="bilinear") + 0.1 * torch.rand(6, 3, 64, 64, generator=generator)) / 1.1


@pytest.fixture(scope="module")
def method(images: Tensor, fitted: Callable[..., PatchCore]) -> PatchCore:
    """A small PatchCore that is fitted on the images; no test changes it."""
    return fitted(SMALL, images)


# Results of the authors' code for synthetic images (MIT-licensed, github.com/amazon-science/patchcore-inspection).


@pytest.fixture
def reference(data: Path) -> dict[str, Tensor]:
    with np.load(data / "patchcore_reference.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays}
    for name in ("train", "test"):
        tensors[name] = tensors[name].permute(0, 3, 1, 2).float() / 255
    return tensors


@pytest.fixture
def official() -> PatchCore:
    settings = Settings(backbone=LITE, pretrain_dim=96, target_dim=96, projection=None)
    return PatchCore(settings, setup((128, 128)))


def test_embeddings_equal_those_of_the_authors_code(reference: dict[str, Tensor], official: PatchCore) -> None:
    embeddings, grid = official.extract_patches(reference["train"])
    assert grid == (16, 16)
    torch.testing.assert_close(embeddings, reference["embeddings"], rtol=1e-4, atol=1e-4)


def test_the_coreset_from_equal_starting_points_equals_that_of_the_authors_code(reference: dict[str, Tensor]) -> None:
    for features in (reference["embeddings"], reference["embeddings"] - reference["embeddings"].mean(dim=0)):
        assert torch.equal(greedy_coreset(features, 102, reference["starts"]), reference["picks"])


def test_scores_and_maps_equal_those_of_the_authors_code(reference: dict[str, Tensor], official: PatchCore) -> None:
    center = reference["embeddings"].mean(dim=0)
    official.load_state_dict({"bank": reference["embeddings"][reference["picks"]] - center, "center": center})
    _, _, patch_scores, _ = official.score_patches(reference["test"])
    prediction = official.predict(reference["test"])
    torch.testing.assert_close(patch_scores.view(3, 256), reference["patch_scores"], rtol=1e-4, atol=0)
    torch.testing.assert_close(prediction.scores, reference["scores"], rtol=1e-4, atol=0)
    torch.testing.assert_close(prediction.maps, reference["maps"], rtol=1e-4, atol=0)


def test_the_bank_has_a_tenth_of_the_patches(
    reference: dict[str, Tensor], official: PatchCore, in_memory: Callable[[Tensor], Images]
) -> None:
    official.fit(in_memory(reference["train"]), silent)
    state = official.state_dict()
    rows = state["bank"] + state["center"]
    assert rows.shape == (102, 96)
    assert torch.cdist(rows, reference["embeddings"]).amin(dim=1).max() < 0.05  # of about 50: each is a patch


# Locally aware patch features.


def in_the_authors_order(stages: list[Tensor], patch: int, pretrain_dim: int, target_dim: int) -> Tensor:
    """Return patch features with neighborhoods that are upsampled before they are pooled."""
    b, _, h, w = stages[0].shape
    pooled = []
    for stage in stages:
        windows = F.unfold(stage, patch, padding=patch // 2).view(b, -1, *stage.shape[2:])  # (b, c * patch^2, h_i, w_i)
        windows = F.interpolate(windows, size=(h, w), mode="bilinear", align_corners=False)
        windows = windows.flatten(2).transpose(1, 2).flatten(0, 1)  # (b * h * w, c * patch^2)
        pooled.append(F.adaptive_avg_pool1d(windows, pretrain_dim))
    return F.adaptive_avg_pool1d(torch.stack(pooled, dim=1).flatten(1), target_dim)


@pytest.mark.parametrize("patch", [1, 3, 5])
@pytest.mark.parametrize("dims", [(24, 24), (7, 11), (300, 64)])
def test_pooling_before_upsampling_gives_the_same_features(patch: int, dims: tuple[int, int]) -> None:
    stages = [torch.rand(2, 10, 6, 8), torch.rand(2, 14, 3, 4)]
    features, grid = locally_aware(stages, patch, pretrain_dim=dims[0], target_dim=dims[1])
    assert grid == (6, 8)
    torch.testing.assert_close(features, in_the_authors_order(stages, patch, *dims), rtol=1e-4, atol=1e-5)


# The coreset.


def plain_greedy(features: Tensor, count: int, starts: Tensor) -> list[int]:
    """Return the coreset of the plain loop, which updates all anchors after each selection."""
    anchors = torch.cdist(features, features[starts]).mean(dim=1)
    rows = []
    for _ in range(count):
        rows.append(int(anchors.argmax()))
        anchors = torch.minimum(anchors, (features - features[rows[-1]]).norm(dim=1))
    return rows


@pytest.mark.parametrize("candidates", [1, 2, 8, 64, 2048])
def test_the_coreset_equals_that_of_the_plain_loop(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "CANDIDATES", candidates)
    monkeypatch.setattr(patchcore, "BLOCK", 1024)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        features = 4 * torch.randn(7, 9, generator=generator)[torch.randint(7, (400,), generator=generator)]
        features = features.double() + torch.randn(400, 9, generator=generator)  # float64: no two distances are equal
        starts = torch.randperm(400, generator=generator)[:10]
        assert greedy_coreset(features, 200, starts).tolist() == plain_greedy(features, 200, starts)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**32), st.data())
def test_the_coreset_never_contains_a_row_twice_also_for_equal_rows(
    n: int, d: int, seed: int, data: st.DataObject
) -> None:
    features = torch.randint(3, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    count = data.draw(st.integers(1, n))
    rows = greedy_coreset(features, count, torch.arange(min(n, 3)))
    assert len(set(rows.tolist())) == len(rows) == count


def test_the_coreset_of_a_line_starts_with_its_ends() -> None:
    features = torch.arange(11.0)[:, None]
    rows = greedy_coreset(features, 3, torch.tensor([4]))
    assert rows.tolist() == [10, 0, 7]  # the farthest from the start; the other end; between the start and 10


# The method.


def test_with_all_patches_in_the_bank_a_training_image_has_the_score_0(
    images: Tensor, fitted: Callable[..., PatchCore]
) -> None:
    method = fitted(Settings(backbone=LITE, pretrain_dim=48, target_dim=32, coreset=1), images)
    assert method.predict(images).scores.max() < 1e-4 * method.predict(1 - images).scores.min()


def test_the_bank_depends_on_the_seed_only(method: PatchCore, images: Tensor, fitted: Callable[..., PatchCore]) -> None:
    bank = method.state_dict()["bank"]
    torch.manual_seed(99)
    assert torch.equal(fitted(SMALL, images).state_dict()["bank"], bank)
    assert not torch.equal(fitted(SMALL, images, seed=1).state_dict()["bank"], bank)


def test_a_restored_method_has_the_size_of_its_bank(method: PatchCore) -> None:
    restored = PatchCore(SMALL, setup())
    restored.load_state_dict(method.state_dict())
    assert restored.info() == method.info()
    assert restored.info()["bank_rows"] == 38  # a tenth of 6 images x 8 x 8 features, rounded down


def test_progress_increases_to_its_total_in_few_calls(images: Tensor, in_memory: Callable[[Tensor], Images]) -> None:
    calls: list[tuple[int, int, float | None]] = []
    PatchCore(SMALL, setup()).fit(in_memory(images), lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1:] for call in calls} == {(101, None)}
    assert done[0] == 1
    assert done[-1] == 101
    assert len(calls) <= 101


def with_same_bank(method: PatchCore, **changes: object) -> PatchCore:
    other = PatchCore(replace(SMALL, **changes), setup())  # type: ignore[arg-type]
    other.load_state_dict(method.state_dict())
    return other


def test_distances_are_squared_or_euclidean(method: PatchCore, images: Tensor) -> None:
    euclidean = with_same_bank(method, distance="euclidean").predict(1 - images).scores
    torch.testing.assert_close(euclidean.square(), method.predict(1 - images).scores, rtol=1e-4, atol=0)


def test_more_neighbors_increase_the_scores(method: PatchCore, images: Tensor) -> None:
    assert (with_same_bank(method, n_neighbors=3).predict(images).scores > method.predict(images).scores).all()


def test_the_weight_of_a_score_by_hand() -> None:
    method = PatchCore(Settings(backbone=LITE, reweight=2), setup())
    method.load_state_dict({"bank": torch.tensor([[0.0], [1.0], [10.0]]), "center": torch.zeros(1)})
    weight = method.score_weight(torch.tensor([[3.0], [1000.0]]), torch.tensor([1, 2]))
    # The distance from 3 to its neighbor 1 is 2; those to 1 and to the row nearest to 1, which is 0, are 2 and 3.
    by_hand = 1 - math.exp(2) / (math.exp(2) + math.exp(3))
    # The distances from 1000 are 990 to 10 and 999 to 1: the exponential must not overflow.
    assert weight.tolist() == pytest.approx([by_hand, 1 - 1 / (1 + math.exp(9))])


def test_reweighting_decreases_scores_and_does_not_change_maps(method: PatchCore, images: Tensor) -> None:
    weighted, plain = with_same_bank(method, reweight=9).predict(1 - images), method.predict(1 - images)
    assert ((weighted.scores > 0) & (weighted.scores < plain.scores)).all()
    assert torch.equal(weighted.maps, plain.maps)


def test_bfloat16_features_give_similar_float32_maps(method: PatchCore, images: Tensor) -> None:
    rounded = PatchCore(SMALL, setup(precision="bfloat16"))
    rounded.load_state_dict(method.state_dict())
    prediction, exact = rounded.predict(1 - images), method.predict(1 - images)
    assert prediction.maps.dtype == prediction.scores.dtype == torch.float32
    assert not torch.equal(prediction.maps, exact.maps)
    assert np.corrcoef(prediction.maps.flatten(), exact.maps.flatten())[0, 1] > 0.99


def test_explain_returns_the_distances_before_smoothing(method: PatchCore, images: Tensor) -> None:
    unsmoothed = with_same_bank(method, smoothing=0.0).predict(images)
    assert torch.equal(method.explain(images)["nearest distance"], unsmoothed.maps)


def test_the_file_hashes_contain_the_backbone() -> None:
    assert PatchCore.file_hashes(SMALL, None) == {"backbone": find_weights(LITE, None).sha256}


def test_the_required_memory_is_estimated_and_logged(
    images: Tensor, caplog: pytest.LogCaptureFixture, fitted: Callable[..., PatchCore]
) -> None:
    # 6 images of 8 x 8 patches: all with 32 values, projected to 16, 38 of them in the bank, projected to 8; for the
    # batch of 6 images 40 channels of 8 x 8 and 112 of 4 x 4 features with 9 neighbors, pooled to 2 x 48, then to 32.
    batch = 9 * (40 * 64 + 112 * 16) + 64 * (2 * 2 * 48 + 32)
    assert PatchCore.estimate_memory(SMALL, (64, 64), 6) == 4 * (384 * (32 + 16) + 38 * (32 + 8) + 6 * batch)
    with caplog.at_level(logging.INFO):
        fitted(SMALL, images)
    assert "GB of memory" in caplog.text


def test_more_memory_than_available_raises_an_error_with_two_solutions(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, fitted: Callable[..., PatchCore]
) -> None:
    monkeypatch.setattr(PatchCore, "estimate_memory", classmethod(lambda *_: 10**17))
    with pytest.raises(BenchError, match=r"--limit.*target_dim"):
        fitted(SMALL, images)


@pytest.mark.parametrize(
    "changes",
    [{"coreset": 0.0}, {"coreset": 1.1}, {"patch": 2}, {"n_neighbors": 0}, {"projection": 0}, {"reweight": 1},
     {"smoothing": -1.0}],
)  # fmt: skip
def test_invalid_settings_raise_an_error(changes: dict[str, float]) -> None:
    with pytest.raises(BenchError, match=f"patchcore: {next(iter(changes))} must be"):
        Settings(**changes)  # type: ignore[arg-type]


def test_features_that_are_not_finite_raise_an_error(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, in_memory: Callable[[Tensor], Images]
) -> None:
    method = PatchCore(SMALL, setup())
    monkeypatch.setattr(method, "extract_patches", lambda part: (torch.full((len(part) * 64, 32), math.nan), (8, 8)))
    with pytest.raises(BenchError, match="finite"):
        method.fit(in_memory(images), silent)


# The mean map.


def test_the_mean_map_is_the_squared_distance_from_the_mean_image(in_memory: Callable[[Tensor], Images]) -> None:
    method = meanmap.MeanMap(meanmap.Settings(smoothing=0.0), setup((2, 2)))
    method.fit(in_memory(torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])), silent)
    image = torch.full((1, 3, 2, 2), 0.5)
    image[0, 0, 1, 1] = 1.1  # one channel of one pixel, 0.6 from the mean: a third of 0.36
    prediction = method.predict(image)
    assert prediction.maps[0].flatten().tolist() == pytest.approx([0, 0, 0, 0.12])
    assert prediction.scores.tolist() == pytest.approx([0.12])


@pytest.mark.slow
@pytest.mark.parametrize(("category", "image_auroc", "pixel_auroc"), [("bottle", 100.0, 98.4), ("capsule", None, 98.5)])
def test_the_auroc_on_real_images_equals_that_of_the_authors_code(
    shared: Path, category: str, image_auroc: float | None, pixel_auroc: float, in_memory: Callable[[Tensor], Images]
) -> None:
    """Compared with means of three seeds; capsule's image AUROC changes by two points with the seed: left out."""
    root = shared / "data" / "real256" / "mvtec" / category
    files = sorted((root / "test").glob("*/*"))
    settings = Settings(backbone="resnet18.tv_in1k", coreset=0.01)
    method = PatchCore(settings, setup((256, 256), weights=shared / "weights"))
    method.fit(in_memory(load_images(sorted((root / "train" / "good").iterdir()))), silent)
    predictions = [method.predict(load_images([file])) for file in files]
    scores = torch.cat([one.scores for one in predictions]).double().numpy()
    maps = torch.cat([one.maps for one in predictions]).double().numpy()
    masks = np.stack([defect_mask(root, file) for file in files])
    if image_auroc is not None:
        labels = np.array([file.parent.name != "good" for file in files])
        assert 100 * auroc(scores, labels) == pytest.approx(image_auroc, abs=1.0)
    assert 100 * auroc(maps.ravel(), masks.ravel()) == pytest.approx(pixel_auroc, abs=0.5)


def load_images(files: list[Path]) -> Tensor:
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def defect_mask(root: Path, file: Path) -> np.ndarray:
    if file.parent.name == "good":
        return np.zeros((256, 256), dtype=bool)
    (mask,) = (root / "ground_truth" / file.parent.name).glob(f"{file.stem}_mask.*")
    return np.asarray(Image.open(mask).convert("L")) > 0
