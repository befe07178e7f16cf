import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

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
from bench.method import Method, Setup
from bench.methods import meanmap, patchcore
from bench.methods.parts.backbone import find
from bench.methods.patchcore import PatchCore, Settings, greedy_coreset, locally_aware

LITE = "tf_efficientnet_lite0"
SMALL = Settings(backbone=LITE, pretrain_dim=48, target_dim=32, projection=16, coreset=0.1)


@dataclass
class Given:
    """Images that a fit walks over."""

    images: Tensor
    digest: str = "images"

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        yield from torch.split(self.images if order is None else self.images[order], size)


def silent(_done: int, _total: int, _loss: float | None) -> None:
    pass


def setup(size: tuple[int, int] = (64, 64), seed: int = 0, **more: object) -> Setup:
    return Setup(size, torch.device("cpu"), seed, **more)  # type: ignore[arg-type]


def fitted(chosen: Settings, images: Tensor, seed: int = 0) -> PatchCore:
    method = PatchCore(chosen, setup((images.shape[2], images.shape[3]), seed))
    method.fit(Given(images), silent)
    return method


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(6, 3, 64, 64) smooth pictures with a little noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(6, 3, 8, 8, generator=generator)
    return (F.interpolate(coarse, size=64, mode="bilinear") + 0.1 * torch.rand(6, 3, 64, 64, generator=generator)) / 1.1


@pytest.fixture(scope="module")
def method(images: Tensor) -> PatchCore:
    """A small PatchCore that was fitted on the images; no test changes it."""
    return fitted(SMALL, images)


# What the authors' code answers on synthetic images (MIT-licensed, github.com/amazon-science/patchcore-inspection).


@pytest.fixture
def reference(data: Path) -> dict[str, Tensor]:
    with np.load(data / "patchcore_reference.npz") as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays}
    for name in ("train", "test"):
        found[name] = found[name].permute(0, 3, 1, 2).float() / 255
    return found


@pytest.fixture
def official() -> PatchCore:
    chosen = Settings(backbone=LITE, pretrain_dim=96, target_dim=96, projection=None)
    return PatchCore(chosen, setup((128, 128)))


def test_embeddings_are_the_authors(reference: dict[str, Tensor], official: PatchCore) -> None:
    embeddings, grid = official._patches(reference["train"])
    assert grid == (16, 16)
    torch.testing.assert_close(embeddings, reference["embeddings"], rtol=1e-4, atol=1e-4)


def test_picks_from_the_same_starts_are_the_authors(reference: dict[str, Tensor]) -> None:
    for features in (reference["embeddings"], reference["embeddings"] - reference["embeddings"].mean(dim=0)):
        assert torch.equal(greedy_coreset(features, 102, reference["starts"]), reference["picks"])


def test_scores_and_maps_are_the_authors(reference: dict[str, Tensor], official: PatchCore) -> None:
    centre = reference["embeddings"].mean(dim=0)
    official.restore({"bank": reference["embeddings"][reference["picks"]] - centre, "centre": centre})
    _, _, patch_scores, _ = official._judged(reference["test"])
    found = official.predict(reference["test"])
    torch.testing.assert_close(patch_scores.view(3, 256), reference["patch_scores"], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.scores, reference["scores"], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.maps, reference["maps"], rtol=1e-4, atol=0)


def test_a_fit_on_the_authors_images_keeps_a_tenth_of_the_patches(
    reference: dict[str, Tensor], official: PatchCore
) -> None:
    official.fit(Given(reference["train"]), silent)
    state = official.state()
    rows = state["bank"] + state["centre"]
    assert rows.shape == (102, 96)
    assert torch.cdist(rows, reference["embeddings"]).amin(dim=1).max() < 0.05  # of about 50: each is a patch


# Locally aware patch features.


def in_the_authors_order(stages: list[Tensor], patch: int, pretrain_dim: int, target_dim: int) -> Tensor:
    """The slow oracle: every neighbourhood is enlarged plane by plane, and only then pooled."""
    b, _, h, w = stages[0].shape
    pooled = []
    for stage in stages:
        around = F.unfold(stage, patch, padding=patch // 2).view(b, -1, *stage.shape[2:])  # (b, c * patch^2, h_i, w_i)
        around = F.interpolate(around, size=(h, w), mode="bilinear", align_corners=False)
        around = around.flatten(2).transpose(1, 2).flatten(0, 1)  # (b * h * w, c * patch^2)
        pooled.append(F.adaptive_avg_pool1d(around, pretrain_dim))
    return F.adaptive_avg_pool1d(torch.stack(pooled, dim=1).flatten(1), target_dim)


@pytest.mark.parametrize("patch", [1, 3, 5])
@pytest.mark.parametrize("dims", [(24, 24), (7, 11), (300, 64)])
def test_pooling_before_enlarging_changes_nothing(patch: int, dims: tuple[int, int]) -> None:
    stages = [torch.rand(2, 10, 6, 8), torch.rand(2, 14, 3, 4)]
    found, grid = locally_aware(stages, patch, pretrain_dim=dims[0], target_dim=dims[1])
    assert grid == (6, 8)
    torch.testing.assert_close(found, in_the_authors_order(stages, patch, *dims), rtol=1e-4, atol=1e-5)


# The coreset.


def plain_greedy(features: Tensor, count: int, starts: Tensor) -> list[int]:
    """The slow oracle: all anchors learn of each pick before the next."""
    anchors = torch.cdist(features, features[starts]).mean(dim=1)
    picks = []
    for _ in range(count):
        picks.append(int(anchors.argmax()))
        anchors = torch.minimum(anchors, (features - features[picks[-1]]).norm(dim=1))
    return picks


@pytest.mark.parametrize("candidates", [1, 2, 8, 64, 2048])
def test_the_coreset_is_that_of_the_plain_loop(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "CANDIDATES", candidates)
    monkeypatch.setattr(patchcore, "BLOCK", 1024)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        features = 4 * torch.randn(7, 9, generator=generator)[torch.randint(7, (400,), generator=generator)]
        features = features.double() + torch.randn(400, 9, generator=generator)  # float64: no two distances round alike
        starts = torch.randperm(400, generator=generator)[:10]
        assert greedy_coreset(features, 200, starts).tolist() == plain_greedy(features, 200, starts)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**32), st.data())
def test_the_coreset_never_picks_a_row_twice_even_among_equals(n: int, d: int, seed: int, data: st.DataObject) -> None:
    features = torch.randint(3, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    count = data.draw(st.integers(1, n))
    picks = greedy_coreset(features, count, torch.arange(min(n, 3)))
    assert len(set(picks.tolist())) == len(picks) == count


def test_a_coreset_of_a_line_takes_its_ends_first() -> None:
    features = torch.arange(11.0)[:, None]
    picks = greedy_coreset(features, 3, torch.tensor([4]))
    assert picks.tolist() == [10, 0, 7]  # the farthest from the start; the other end; between the start and 10


# The method.


def test_keeping_all_patches_scores_a_training_image_with_nothing(images: Tensor) -> None:
    method = fitted(Settings(backbone=LITE, pretrain_dim=48, target_dim=32, coreset=1), images)
    assert method.predict(images).scores.max() < 1e-4 * method.predict(1 - images).scores.min()


def test_an_image_scores_the_same_alone_as_in_a_batch(method: PatchCore, images: Tensor) -> None:
    together = method.predict(images)
    for i in range(len(images)):
        alone = method.predict(images[i : i + 1])
        torch.testing.assert_close(alone.scores[0], together.scores[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.maps[0], together.maps[i], rtol=1e-4, atol=1e-4)


def test_the_seed_alone_decides_the_bank(method: PatchCore, images: Tensor) -> None:
    one = method.state()["bank"]
    torch.manual_seed(99)
    assert torch.equal(fitted(SMALL, images).state()["bank"], one)
    assert not torch.equal(fitted(SMALL, images, seed=1).state()["bank"], one)


def test_a_restored_method_answers_the_same(method: PatchCore, images: Tensor) -> None:
    again = PatchCore(SMALL, setup())
    again.restore(method.state())
    assert torch.equal(again.predict(images).maps, method.predict(images).maps)
    assert again.facts() == method.facts()
    assert again.facts()["bank_rows"] == 38  # a tenth of 6 images x 8 x 8 places, rounded down


def test_progress_rises_to_its_total_in_few_calls(images: Tensor) -> None:
    calls: list[tuple[int, int, float | None]] = []
    PatchCore(SMALL, setup()).fit(Given(images), lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1:] for call in calls} == {(101, None)}
    assert done[0] == 1
    assert done[-1] == 101
    assert len(calls) <= 101


def same_bank(method: PatchCore, **changed: object) -> PatchCore:
    other = PatchCore(replace(SMALL, **changed), setup())  # type: ignore[arg-type]
    other.restore(method.state())
    return other


def test_distances_are_squared_or_not(method: PatchCore, images: Tensor) -> None:
    plain = same_bank(method, distance="euclidean").predict(1 - images).scores
    torch.testing.assert_close(plain.square(), method.predict(1 - images).scores, rtol=1e-4, atol=0)


def test_more_neighbours_raise_the_scores(method: PatchCore, images: Tensor) -> None:
    assert (same_bank(method, neighbours=3).predict(images).scores > method.predict(images).scores).all()


def test_the_weight_of_a_neighbourhood_by_hand() -> None:
    method = PatchCore(Settings(backbone=LITE, reweight=2), setup())
    method.restore({"bank": torch.tensor([[0.0], [1.0], [10.0]]), "centre": torch.zeros(1)})
    weight = method._weight(torch.tensor([[3.0], [1000.0]]), torch.tensor([1, 2]))
    # From 3 its neighbour 1 is 2 away, and of 1 and the row nearest to it, 0, the distances are 2 and 3.
    by_hand = 1 - math.exp(2) / (math.exp(2) + math.exp(3))
    # From 1000 it is 990 to 10 and 999 to 1: nothing overflows.
    assert weight.tolist() == pytest.approx([by_hand, 1 - 1 / (1 + math.exp(9))])


def test_reweighting_lowers_scores_and_leaves_maps(method: PatchCore, images: Tensor) -> None:
    weighed, plain = same_bank(method, reweight=9).predict(1 - images), method.predict(1 - images)
    assert ((weighed.scores > 0) & (weighed.scores < plain.scores)).all()
    assert torch.equal(weighed.maps, plain.maps)


def test_bfloat16_features_answer_nearly_the_same_in_float32(method: PatchCore, images: Tensor) -> None:
    rounded = PatchCore(SMALL, setup(precision="bfloat16"))
    rounded.restore(method.state())
    found, exact = rounded.predict(1 - images), method.predict(1 - images)
    assert found.maps.dtype == found.scores.dtype == torch.float32
    assert not torch.equal(found.maps, exact.maps)
    assert np.corrcoef(found.maps.flatten(), exact.maps.flatten())[0, 1] > 0.99


def test_explain_shows_the_distances_before_smoothing(method: PatchCore, images: Tensor) -> None:
    sharp = same_bank(method, smoothing=0.0).predict(images)
    assert torch.equal(method.explain(images)["nearest distance"], sharp.maps)


def test_the_hash_of_the_backbone_is_an_input() -> None:
    assert PatchCore.inputs(SMALL, None) == {"backbone": find(LITE, None).sha256}


def test_memory_is_counted_before_the_fit_and_told(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    # 6 images of 8 x 8 patches: all with 32 numbers, projected to 16, 38 kept, in 8 again; and of 6 images in one batch
    # 40 channels on 8 x 8 and 112 on 4 x 4 places with 9 neighbours, pooled to 2 x 48, joined, and pooled to 32.
    batch = 9 * (40 * 64 + 112 * 16) + 64 * (2 * 2 * 48 + 32)
    assert PatchCore.memory(SMALL, (64, 64), 6) == 4 * (384 * (32 + 16) + 38 * (32 + 8) + 6 * batch)
    with caplog.at_level(logging.INFO):
        fitted(SMALL, images)
    assert "GB of memory" in caplog.text


def test_more_memory_than_there_is_is_an_error_that_tells_the_mend(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatchCore, "memory", classmethod(lambda *_: 10**17))
    with pytest.raises(BenchError, match=r"--limit.*target_dim"):
        fitted(SMALL, images)


@pytest.mark.parametrize(
    "wrong",
    [{"coreset": 0.0}, {"coreset": 1.1}, {"patch": 2}, {"neighbours": 0}, {"projection": 0}, {"reweight": 1},
     {"smoothing": -1.0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BenchError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


def test_features_that_are_not_finite_fail_in_words(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    method = PatchCore(SMALL, setup())
    monkeypatch.setattr(method, "_patches", lambda given: (torch.full((len(given) * 64, 32), math.nan), (8, 8)))
    with pytest.raises(BenchError, match="finite"):
        method.fit(Given(images), silent)


@pytest.mark.parametrize("module", [patchcore, meanmap], ids=["patchcore", "meanmap"])
def test_predict_and_state_before_fit_are_errors(module: ModuleType, images: Tensor) -> None:
    unfitted: Method = module.METHOD(SMALL if module is patchcore else module.Settings(), setup())
    with pytest.raises(BenchError, match="fit or restore"):
        unfitted.predict(images)
    with pytest.raises(BenchError, match="fit or restore"):
        unfitted.state()


# The floor.


def test_the_floor_measures_the_distance_to_the_mean_image() -> None:
    method = meanmap.MeanMap(meanmap.Settings(smoothing=0.0), setup((2, 2)))
    method.fit(Given(torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])), silent)
    image = torch.full((1, 3, 2, 2), 0.5)
    image[0, 0, 1, 1] = 1.1  # one channel of one pixel, 0.6 from the mean: a third of 0.36
    found = method.predict(image)
    assert found.maps[0].flatten().tolist() == pytest.approx([0, 0, 0, 0.12])
    assert found.scores.tolist() == pytest.approx([0.12])


@pytest.mark.slow
@pytest.mark.parametrize(("category", "image_auroc", "pixel_auroc"), [("bottle", 100.0, 98.4), ("capsule", None, 98.5)])
def test_real_images_are_judged_as_by_the_authors_code(
    shared: Path, category: str, image_auroc: float | None, pixel_auroc: float
) -> None:
    """Their means of three seeds; capsule's image AUROC moves by two points with the seed, so one fit says little."""
    root = shared / "data" / "real256" / "mvtec" / category
    tested = sorted((root / "test").glob("*/*"))
    chosen = Settings(backbone="resnet18.tv_in1k", coreset=0.01)
    method = PatchCore(chosen, setup((256, 256), weights=shared / "weights"))
    method.fit(Given(pictures(sorted((root / "train" / "good").iterdir()))), silent)
    found = [method.predict(pictures([file])) for file in tested]
    scores = torch.cat([one.scores for one in found]).double().numpy()
    maps = torch.cat([one.maps for one in found]).double().numpy()
    masks = np.stack([defect_mask(root, file) for file in tested])
    if image_auroc is not None:
        labels = np.array([file.parent.name != "good" for file in tested])
        assert 100 * auroc(scores, labels) == pytest.approx(image_auroc, abs=1.0)
    assert 100 * auroc(maps.ravel(), masks.ravel()) == pytest.approx(pixel_auroc, abs=0.5)


def pictures(files: list[Path]) -> Tensor:
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def defect_mask(root: Path, file: Path) -> np.ndarray:
    if file.parent.name == "good":
        return np.zeros((256, 256), dtype=bool)
    (mask,) = (root / "ground_truth" / file.parent.name).glob(f"{file.stem}_mask.*")
    return np.asarray(Image.open(mask).convert("L")) > 0
