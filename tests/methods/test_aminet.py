"""AMI-Net compared with the authors' code, with slow implementations and with values computed by hand."""

import math
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Images, Setup
from bench.methods import aminet
from bench.methods.aminet import AMINet, Settings
from bench.methods.parts.features import fuse
from bench.methods.parts.inpainting import Inpainter, discrepancy, inter_cluster_distance, jittered
from bench.methods.parts.onednn import with_onednn_linear

CPU = torch.device("cpu")
TINY = Settings(
    backbone="random:resnet18", patch=2, width=16, heads=2, depth=1, clusters=3, epochs=3, lr=1e-3, batch_size=2
)  # 8 x 8 features of 448 channels, 4 x 4 tokens
SETUP = Setup((32, 32), CPU, seed=0)


@pytest.fixture(scope="module")
def fitted(in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]) -> Callable[..., AMINet]:
    """Return the function that fits a method."""

    def fit(settings: Settings = TINY, setup: Setup = SETUP, count: int = 4) -> AMINet:
        method = AMINet(settings, setup)
        method.fit(in_memory(random_images(count)), lambda *_: None)
        return method

    return fit


def with_settings(method: AMINet, **changes: object) -> AMINet:
    """Return a copy of the fitted method with other settings; it shares the frozen backbone."""
    other = copy(method)
    other.settings = replace(method.settings, **changes)
    other.network = deepcopy(method.network)
    return other


@pytest.fixture(scope="module")
def tiny(fitted: Callable[..., AMINet]) -> AMINet:
    torch.manual_seed(0)
    return fitted()


def patches_of(method: AMINet, images: Tensor) -> Tensor:
    return method.to_patches(method.extract(images))


# ---- Results of the authors' code for synthetic images (MIT license) ----


@pytest.fixture(scope="module")
def released() -> tuple[AMINet, Tensor, dict[str, np.ndarray]]:
    data = Path(__file__).resolve().parents[1] / "reference_data"
    settings = Settings(backbone="tf_efficientnet_lite0", width=48, depth=2, clusters=4)
    method = AMINet.from_checkpoint(data / "aminet_released_form.pth", settings, Setup((256, 256), CPU, seed=0))
    with np.load(data / "aminet_reference.npz") as file:
        reference = dict(file)
    return method, torch.from_numpy(reference["images"]).permute(0, 3, 1, 2) / 255, reference


def assert_equal_to(values: Tensor, expected: np.ndarray) -> None:
    """Assert that max|difference| / max|value| < 1e-4."""
    assert np.abs(values.numpy() - expected).max() / np.abs(expected).max() < 1e-4


def test_features_equal_those_of_the_authors_code(released: tuple[AMINet, Tensor, dict[str, np.ndarray]]) -> None:
    method, images, reference = released
    features = fuse(method.extract(images), average_pool=True)
    assert features.shape == (3, 176, 64, 64)
    assert_equal_to(features.mean(dim=(2, 3)), reference["feature_mean"])
    assert_equal_to(features[:, :, 0, 0], reference["feature_corner"])


def test_distances_and_adaptive_masks_equal_those_of_the_authors_code(
    released: tuple[AMINet, Tensor, dict[str, np.ndarray]],
) -> None:
    method, images, reference = released
    pictures = {name: picture[:, ::16, ::16] for name, picture in method.explain(images).items()}
    assert_equal_to(pictures["distance"], reference["distance"])
    assert np.array_equal(pictures["mask"].numpy(), 1 - reference["cluster_mask"])  # theirs is 1 where visible


def test_maps_and_scores_equal_those_of_the_authors_code(
    released: tuple[AMINet, Tensor, dict[str, np.ndarray]],
) -> None:
    method, images, reference = released
    prediction = method.predict(images)
    assert_equal_to(prediction.maps, reference["map"])
    assert_equal_to(prediction.scores, reference["score"])


def test_the_loss_and_its_parts_equal_those_of_the_authors_code(
    released: tuple[AMINet, Tensor, dict[str, np.ndarray]],
) -> None:
    method, images, reference = released
    mask = torch.from_numpy(reference["train_mask"]).flatten(1) == 0
    with torch.no_grad():
        losses = method.losses(method.network, patches_of(method, images), mask)
    names = {"mse": "mse", "cosine": "cos", "intra": "intra", "inter": "inter", "total": "total"}
    for key, name in names.items():
        assert_equal_to(losses[key], reference[f"loss_{name}"])


def test_the_paper_size_has_129891328_trainable_parameters() -> None:
    with torch.device("meta"):
        network = Inpainter(16 * 1792, (16, 16), width=768, depth=8, heads=12, aggregation_depth=1, clusters=8)
    assert sum(parameter.numel() for parameter in network.parameters()) == 129_891_328


def test_info_has_the_sizes_the_use_of_the_clusters_and_the_loss_terms(
    tiny: AMINet,
    fitted: Callable[..., AMINet],
    in_memory: Callable[[Tensor], Images],
    random_images: Callable[..., Tensor],
) -> None:
    n_trainable = sum(parameter.numel() for parameter in tiny.network.parameters())
    expected = {
        "trainable_parameters": n_trainable,
        "tokens": 16,
        "feature_channels": 448,
        "backbone": "random:resnet18",
        "backbone_source": "random",
        "backbone_sha256": "random",
    }
    info = tiny.info()
    assert {name: info[name] for name in expected} == expected
    assert 1 <= info["clusters_used"] <= TINY.clusters
    assert 0 <= info["masked_fraction"] < 1
    terms = {name: info[f"loss_{name}"] for name in ("mse", "cosine", "intra", "inter")}
    assert {len(values) for values in terms.values()} == {TINY.epochs}
    weights = {"mse": 1, "cosine": 5, "intra": 1, "inter": -0.1}
    totals = [sum(weights[name] * values[epoch] for name, values in terms.items()) for epoch in range(TINY.epochs)]
    losses: list[float] = []
    method = AMINet(TINY, SETUP)
    torch.manual_seed(0)
    method.fit(in_memory(random_images(4)), lambda done, total, loss: losses.append(loss))
    assert totals == pytest.approx(losses, rel=1e-5)  # the weighted terms add up to the loss of each epoch
    zero_token = fitted(replace(TINY, mask_token="zero", epochs=1))
    assert zero_token.info()["trainable_parameters"] == n_trainable - 16


# ---- Files that are not released checkpoints ----


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "content", [{"epoch": 1}, {"state_dict": {}}, [1, 2], Malicious(), {"state_dict": Malicious()}]
)
def test_a_file_that_is_not_a_released_checkpoint_raises_an_error_and_is_not_executed(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "AMAE.pth")
    with pytest.raises(BenchError, match=r"cannot read AMAE\.pth"):
        AMINet.from_checkpoint(Path("AMAE.pth"), TINY, SETUP)
    assert not Path("executed").exists()


def test_a_missing_checkpoint_raises_an_error_with_its_name() -> None:
    with pytest.raises(BenchError, match=r"nowhere\.pth"):
        AMINet.from_checkpoint(Path("nowhere.pth"), TINY, SETUP)


def test_a_checkpoint_of_other_settings_raises_an_error(data: Path) -> None:
    settings = Settings(backbone="tf_efficientnet_lite0", width=48, depth=3, clusters=4)
    with pytest.raises(BenchError, match="settings that it was fitted with"):
        AMINet.from_checkpoint(data / "aminet_released_form.pth", settings, Setup((256, 256), CPU, seed=0))


# ---- Training ----


def test_training_decreases_the_loss(
    in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    calls: list[tuple[int, int, float | None]] = []
    AMINet(replace(TINY, epochs=12), SETUP).fit(in_memory(random_images(4)), lambda *call: calls.append(call))
    losses = [loss for _, _, loss in calls if loss is not None]
    assert [(done, total) for done, total, _ in calls] == [(epoch, 12) for epoch in range(1, 13)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_fit_depends_on_its_seed_only(
    tiny: AMINet,
    fitted: Callable[..., AMINet],
    in_memory: Callable[[Tensor], Images],
    random_images: Callable[..., Tensor],
) -> None:
    images = random_images(4)
    torch.manual_seed(99)  # a fit neither uses nor changes the global generator
    before = torch.get_rng_state()
    second = fitted()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(second.predict(images).maps, tiny.predict(images).maps)
    other = AMINet(TINY, replace(SETUP, seed=1))
    other.backbone = tiny.backbone
    other.fit(in_memory(random_images(4)), lambda *_: None)
    assert not torch.equal(other.predict(images).maps, tiny.predict(images).maps)


def test_predict_in_progress_does_not_change_the_fit(
    tiny: AMINet,
    fitted: Callable[..., AMINet],
    in_memory: Callable[[Tensor], Images],
    random_images: Callable[..., Tensor],
) -> None:
    images, scores = random_images(4), []
    method = AMINet(replace(TINY, mask_at_test="random"), SETUP)
    method.fit(in_memory(random_images(4)), lambda *_: scores.append(method.predict(images).scores))
    assert len(scores) == 3
    assert torch.equal(with_settings(method, mask_at_test="adaptive").predict(images).maps, tiny.predict(images).maps)


def test_a_batch_size_above_the_number_of_images_is_allowed(
    fitted: Callable[..., AMINet], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(4)
    assert torch.equal(
        fitted(replace(TINY, batch_size=8), count=2).predict(images).maps,
        fitted(replace(TINY, batch_size=2), count=2).predict(images).maps,
    )


def test_a_loss_that_is_not_finite_raises_an_error(fitted: Callable[..., AMINet]) -> None:
    with pytest.raises(BenchError, match=r"must be finite, got nan in epoch \d+.*lr"):
        fitted(replace(TINY, lr=1e30))


def test_the_two_losses_have_gradients_for_disjoint_parameters_and_none_for_the_backbone(
    tiny: AMINet, random_images: Callable[..., Tensor]
) -> None:
    network, width = with_settings(tiny).network, TINY.width
    mask = torch.arange(16) % 2 == 0
    losses = tiny.losses(network, patches_of(tiny, random_images(4)), mask.expand(4, -1))
    (losses["intra"] - losses["inter"]).backward(retain_graph=True)
    clustering = {name for name, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    weight = network.embedding.weight.grad
    assert weight is not None
    assert not weight[:width].any()
    network.zero_grad()
    (losses["mse"] + losses["cosine"]).backward()
    inpainting = {name for name, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    weight = network.embedding.weight.grad
    assert weight is not None
    assert not weight[width:].any()
    assert clustering & inpainting == {"embedding.weight", "embedding.bias"}
    assert clustering | inpainting == {name for name, _ in network.named_parameters()}
    assert all(parameter.grad is None for parameter in tiny.backbone.parameters())


def test_a_mask_token_of_zero_stays_zero_and_a_learned_one_changes(tiny: AMINet, fitted: Callable[..., AMINet]) -> None:
    assert tiny.network.mask_token.any()
    assert not fitted(replace(TINY, mask_token="zero")).network.mask_token.any()


def test_without_final_norm_there_is_no_layer_norm_after_the_blocks(fitted: Callable[..., AMINet]) -> None:
    assert not any("norm." in name.removeprefix("aggregation_") for name in fitted(
        replace(TINY, final_norm=False, epochs=1)).state_dict() if "blocks" not in name and "aggregation." not in name
    )  # fmt: skip


# ---- The losses ----


def test_r_is_the_distance_times_one_minus_the_cosine() -> None:
    first = torch.tensor([[[1.0, 0.0]]])
    second = torch.tensor([[[0.0, 1.0], [-2.0, 0.0], [3.0, 0.0]]])
    assert_close(discrepancy(first, second, squared=False), torch.tensor([[[math.sqrt(2), 3 * 2, 2 * 0]]]))
    assert_close(discrepancy(first, second, squared=True), torch.tensor([[[2.0, 9 * 2, 4 * 0]]]))


def test_the_inter_cluster_distance_includes_both_orders_of_each_pair() -> None:
    centers = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]])  # R: sqrt 2, 6, sqrt 5
    expected = 2 * (math.sqrt(2) + 6 + math.sqrt(5))
    assert_close(inter_cluster_distance(centers, squared=False), torch.tensor([expected]))
    assert inter_cluster_distance(centers[:, :1], squared=False).tolist() == [0]


def test_the_discrepancy_of_long_almost_parallel_tokens_has_the_digits_of_float64() -> None:
    """Tokens of norm 800 at angles of about 0.01 to the centers: 1 - cos is about 5e-5."""
    generator = Generator().manual_seed(0)
    direction = F.normalize(torch.randn(1, 1, 128, generator=generator), dim=2)
    noise = F.normalize(torch.randn(2, 64, 128, generator=generator), dim=2)
    tokens, centers = 800 * (direction + 0.01 * noise), 13 * direction.expand(2, 1, 128)
    exact = discrepancy_in_float64(tokens, centers)
    assert 1e-5 < float((exact / (tokens.double() - centers.double()).norm(dim=2, keepdim=True)).median()) < 1e-4
    assert_close(discrepancy(tokens, centers, squared=False).double(), exact, rtol=1e-5, atol=0)

    from_dot_product = 1 - F.normalize(tokens, dim=2) @ F.normalize(centers, dim=2).mT
    cancelled = torch.cdist(tokens, centers) * from_dot_product
    assert float(((cancelled - exact) / exact).abs().max()) > 1e-4  # the form of the authors' code


def discrepancy_in_float64(tokens: Tensor, centers: Tensor) -> Tensor:
    tokens, centers = tokens.double(), centers.double()
    distance = (tokens[:, :, None] - centers[:, None]).norm(dim=3)
    return distance * (1 - F.cosine_similarity(tokens[:, :, None], centers[:, None], dim=3))


def test_equal_centers_have_a_finite_gradient() -> None:
    centers = torch.ones(1, 3, 4, requires_grad=True)
    inter_cluster_distance(centers, squared=False).sum().backward()
    assert centers.grad is not None
    assert centers.grad.isfinite().all()


def test_sums_equal_means_times_tokens_and_pairs(tiny: AMINet, random_images: Callable[..., Tensor]) -> None:
    mask = torch.zeros(4, 16, dtype=torch.bool)
    patches = patches_of(tiny, random_images(4))
    mean = tiny.losses(tiny.network, patches, mask)
    total = with_settings(tiny, cluster_reduction="sum").losses(tiny.network, patches, mask)
    assert_close(total["intra"], 16 * mean["intra"])
    assert_close(total["inter"], 3 * 2 * mean["inter"])
    assert_close(total["mse"], mean["mse"])


def test_the_total_is_the_weighted_sum_of_the_parts(tiny: AMINet, random_images: Callable[..., Tensor]) -> None:
    method = with_settings(tiny, mse_weight=2.0, cosine_weight=3.0, intra_weight=5.0, inter_weight=7.0)
    loss = method.losses(method.network, patches_of(tiny, random_images(4)), torch.zeros(4, 16, dtype=torch.bool))
    expected = 2 * loss["mse"] + 3 * loss["cosine"] + 5 * loss["intra"] - 7 * loss["inter"]
    assert_close(loss["total"], expected)


def test_the_cosine_is_computed_over_patches_or_places(tiny: AMINet, random_images: Callable[..., Tensor]) -> None:
    patches, mask = patches_of(tiny, random_images(4)), torch.zeros(4, 16, dtype=torch.bool)
    network = tiny.network
    restored = network.restore(network.mask_tokens(network.embed(patches)[0], mask))
    for over, shape in (("patch", (64, 4 * 448)), ("position", (256, 448))):
        loss = with_settings(tiny, cosine_over=over).losses(network, patches, mask)["cosine"]
        expected = 1 - F.cosine_similarity(patches.reshape(shape), restored.reshape(shape)).mean()
        assert_close(loss, expected)


# ---- Jitter ----


def test_jitter_is_noise_in_proportion_to_the_norm() -> None:
    tokens = torch.zeros(1, 2, 10_000)
    tokens[0, 1, 0] = 300.0  # norm 300: a std of 20 * 300 / 10,000 = 0.6
    noise = jittered(tokens, scale=20, generator=Generator().manual_seed(0)) - tokens
    assert not noise[0, 0].any()  # no noise for a mask token of zero
    assert abs(noise[0, 1].std() - 0.6) < 0.02
    assert torch.equal(jittered(tokens, scale=0, generator=None), tokens)


def test_jitter_is_added_in_both_streams_but_not_to_the_tokens_of_the_distances(
    tiny: AMINet, random_images: Callable[..., Tensor]
) -> None:
    method = with_settings(tiny, jitter=True)
    patches, mask = patches_of(tiny, random_images(4)), torch.zeros(4, 16, dtype=torch.bool)
    plain = tiny.forward(tiny.network, patches, mask, Generator())
    noisy = method.forward(tiny.network, patches, mask, Generator())
    assert not torch.equal(noisy[0], plain[0])  # restored
    assert torch.equal(noisy[1], plain[1])  # tokens of the distances
    assert not torch.equal(noisy[2], plain[2])  # centers
    assert torch.equal(method.forward(tiny.network, patches, mask, None)[0], plain[0])


def test_there_is_no_jitter_at_test_time(tiny: AMINet, random_images: Callable[..., Tensor]) -> None:
    images = random_images(4)
    assert torch.equal(with_settings(tiny, jitter=True).predict(images).maps, tiny.predict(images).maps)


def test_jitter_changes_the_fitted_network(
    tiny: AMINet, fitted: Callable[..., AMINet], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(4)
    assert not torch.equal(fitted(replace(TINY, jitter=True)).predict(images).maps, tiny.predict(images).maps)


# ---- Predictions ----


def slow_map(method: AMINet, images: Tensor) -> np.ndarray:
    """Return the map from features and restored features, smoothed by scipy."""
    restoration, settings = method.restore_images(images), method.settings
    b, grid, patch = len(images), 4, settings.patch

    def to_maps(patches: Tensor) -> Tensor:
        cells = patches.view(b, grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return cells.reshape(b, -1, grid * patch, grid * patch)

    def upsampled(factor: Tensor) -> np.ndarray:
        return F.interpolate(factor[:, None], (32, 32), mode="bilinear", align_corners=True)[:, 0].numpy()

    def smoothed(factor: np.ndarray) -> np.ndarray:
        return np.stack([gaussian_filter(one, settings.smoothing) for one in factor]) if settings.smoothing else factor

    original, restored = to_maps(restoration.patches), to_maps(restoration.restored)
    squares = (original - restored) ** 2
    difference = squares.mean(dim=1) if settings.map_difference == "mean_squared" else squares.sum(dim=1).sqrt()
    direction = 1 - F.cosine_similarity(original, restored)
    if settings.map_order == "multiply_first":
        return smoothed(upsampled(difference * direction))
    return smoothed(upsampled(difference)) * smoothed(upsampled(direction))


@pytest.mark.parametrize("order", ["upsample_first", "multiply_first"])
@pytest.mark.parametrize("difference", ["mean_squared", "norm"])
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_the_map_equals_a_slow_implementation(tiny: AMINet, order: str, difference: str, smoothing: float) -> None:
    method = with_settings(tiny, map_order=order, map_difference=difference, smoothing=smoothing, score="max")
    images = torch.rand(2, 3, 32, 32)
    prediction = method.predict(images)
    with torch.no_grad():
        expected = slow_map(method, images)
    np.testing.assert_allclose(prediction.maps.numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())
    np.testing.assert_allclose(prediction.scores.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


def test_a_prediction_requires_no_gradient(tiny: AMINet) -> None:
    prediction = tiny.predict(torch.rand(2, 3, 32, 32))
    assert not prediction.maps.requires_grad
    assert not prediction.scores.requires_grad


def masks_of(method: AMINet, images: Tensor) -> Tensor:
    with torch.no_grad():
        return method.restore_images(images).masks


def test_masks_at_test_time_depend_on_the_setting(tiny: AMINet) -> None:
    images = torch.rand(3, 3, 32, 32)
    assert 0 < masks_of(tiny, images).float().mean() < 1
    assert not masks_of(with_settings(tiny, lambda_=math.inf), images).any()  # no distance is infinite
    assert not masks_of(with_settings(tiny, mask_at_test="none"), images).any()
    random = masks_of(with_settings(tiny, mask_at_test="random", test_ratio=0.3), images)
    assert random.sum(dim=2).tolist() == [[4, 4, 4]]  # floor(0.3 * 16)
    complementary = masks_of(with_settings(tiny, mask_at_test="complementary", test_cell=1, test_subsets=5), images)
    assert complementary.shape == (5, 3, 16)
    assert (complementary.sum(dim=0) == 1).all()
    for masks in (random, complementary):
        assert (masks == masks[:, :1]).all()  # the same for every image


@pytest.mark.parametrize("mask_at_test", ["random", "complementary"])
def test_random_masks_at_test_time_depend_on_test_seed_only(tiny: AMINet, mask_at_test: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    first, other = (with_settings(tiny, mask_at_test=mask_at_test, test_cell=1, test_seed=seed) for seed in (0, 1))
    assert torch.equal(first.predict(images).maps, first.predict(images).maps)
    assert not torch.equal(first.predict(images).maps, other.predict(images).maps)


def test_complementary_passes_are_combined_from_what_each_one_hid(tiny: AMINet) -> None:
    method, network = with_settings(tiny, mask_at_test="complementary", test_cell=1), tiny.network
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        restoration = method.restore_images(images)
        embedded, _ = network.embed(restoration.patches)
        for mask in restoration.masks:
            restored = network.restore(network.mask_tokens(embedded, mask))
            assert_close(restoration.restored[mask], restored[mask])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_similar_float32_maps(
    tiny: AMINet, precision: str, in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    method = AMINet(replace(TINY, mask_at_test="none"), replace(SETUP, precision=precision))
    method.fit(in_memory(random_images(4)), lambda *_: None)
    images = random_images(4)
    prediction, expected = method.predict(images), with_settings(tiny, mask_at_test="none").predict(images)
    assert prediction.maps.dtype == prediction.scores.dtype == torch.float32
    assert torch.corrcoef(torch.stack([prediction.maps.flatten(), expected.maps.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_hides_almost_the_same_tokens(tiny: AMINet, precision: str) -> None:
    half, images = AMINet(TINY, replace(SETUP, precision=precision)), torch.rand(8, 3, 32, 32)
    half.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        masks, expected = half.restore_images(images).masks, tiny.restore_images(images).masks
    assert 0 < expected.float().mean() < 0.6
    assert (masks != expected).float().mean() < 0.05


def test_the_inference_copy_is_created_once_and_again_after_restore(
    tiny: AMINet, monkeypatch: pytest.MonkeyPatch, random_images: Callable[..., Tensor]
) -> None:
    networks, method, images = list[Inpainter](), AMINet(TINY, SETUP), random_images(4)
    method.load_state_dict(tiny.state_dict())

    def recorded(network: Inpainter, setup: Setup) -> Inpainter:
        networks.append(network)
        return with_onednn_linear(network, setup)

    monkeypatch.setattr(aminet, "with_onednn_linear", recorded)
    first, second = method.predict(images), method.predict(images)
    assert len(networks) == 1
    assert torch.equal(first.maps, second.maps)
    method.load_state_dict({name: torch.zeros_like(value) for name, value in method.state_dict().items()})
    assert not torch.equal(method.predict(images).maps, first.maps)
    assert len(networks) == 2


def test_images_of_another_size_raise_an_error(tiny: AMINet) -> None:
    with pytest.raises(BenchError, match="must be 32 x 32 pixels as in training, got 64 x 32"):
        tiny.predict(torch.rand(1, 3, 64, 32))


def test_images_can_be_non_square(in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]) -> None:
    method = AMINet(replace(TINY, mask_at_test="complementary"), replace(SETUP, size=(16, 48)))
    train = in_memory(random_images(4))
    train.images = torch.rand(2, 3, 16, 48)
    method.fit(train, lambda *_: None)
    assert method.predict(train.images).maps.shape == (2, 16, 48)


# ---- State, decoder, errors ----


def test_the_decoder_is_optional_and_does_not_change_the_scores(
    tiny: AMINet,
    fitted: Callable[..., AMINet],
    in_memory: Callable[[Tensor], Images],
    random_images: Callable[..., Tensor],
) -> None:
    images, calls = random_images(1), []
    plain = fitted(replace(TINY, epochs=1), count=1)
    method = AMINet(replace(TINY, epochs=1, decoder_epochs=2), SETUP)
    method.fit(in_memory(random_images(1)), lambda *call: calls.append(call))
    assert [(done, total, loss is None) for done, total, loss in calls] == [(1, 1, False), (2, 3, True), (3, 3, True)]
    assert torch.equal(method.predict(images).maps, plain.predict(images).maps)
    picture = method.explain(images)["reconstruction"]
    assert picture.shape == (1, 3, 32, 32)
    assert 0 <= picture.min() < picture.max() <= 1
    other = AMINet(method.settings, SETUP)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.explain(images)["reconstruction"], picture)
    assert "reconstruction" not in tiny.explain(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "multiple of 4 for 2-D position embeddings, got 18"),
        ({"heads": 3}, "got heads = 3 and width = 16"),
        ({"patch": 3}, "multiples of 12 pixels"),
        ({"patch": 0}, "patch must be >= 1"),
        ({"clusters": 0}, "clusters must be >= 1"),
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"decoder_epochs": -1}, "decoder_epochs must be >= 0, got -1"),
        ({"smoothing": -1.0}, "smoothing must be in"),
        ({"lr": -1e-3}, "lr must be >= 0, got -0.001"),
        ({"mask_ratio": 1.0}, "mask_ratio must be 'uniform' or in"),
        ({"test_ratio": -0.1}, "test_ratio must be in"),
        ({"mask_at_test": "complementary", "test_subsets": 5}, "5 subsets of 2 x 2 cells"),
    ],
)
def test_settings_that_are_invalid_or_contradict_each_other_raise_an_error(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        AMINet(replace(TINY, **changes), SETUP)


def test_a_size_that_is_not_a_multiple_of_the_patch_raises_an_error() -> None:
    with pytest.raises(BenchError, match="got 36 x 32"):
        AMINet(TINY, replace(SETUP, size=(36, 32)))


def test_the_estimated_memory_increases_with_the_images_up_to_the_budget() -> None:
    paper = Settings()
    estimates = [AMINet.estimate_memory(paper, (256, 256), images) for images in (2, 8, 100, 1000, 2000)]
    assert estimates == sorted(estimates)
    assert estimates[3] == estimates[4]  # above the budget features are not cached
    assert 2e9 < estimates[0] < estimates[3] < 10e9


def test_the_file_hashes_contain_the_backbone() -> None:
    assert AMINet.file_hashes(TINY, None) == {"backbone": "random"}
