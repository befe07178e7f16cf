"""AMI-Net against its authors' answers, against slow oracles, and against numbers worked out by hand."""

import math
from collections.abc import Iterator
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
from bench.method import NOT_FITTED, Setup
from bench.methods import aminet
from bench.methods.aminet import AMINet, Settings, from_released_checkpoint
from bench.methods.parts.features import fuse
from bench.methods.parts.inpainting import Inpainter, discrepancy, jittered, separation, turn
from bench.methods.parts.onednn import by_onednn

CPU = torch.device("cpu")
TINY = Settings(
    backbone="random:resnet18", patch=2, width=16, heads=2, depth=1, clusters=3, epochs=3, lr=1e-3, batch=2
)  # 8 x 8 places of 448 channels, 4 x 4 tokens
SETUP = Setup((32, 32), CPU, seed=0)


@pytest.fixture(autouse=True)
def _one_thread(_repeatable: None) -> None:
    """Networks so small gain nothing from a second thread, and lose much to waiting for it on a busy machine."""
    torch.set_num_threads(1)


class Pictures:
    """Good images in memory."""

    digest = "pictures"

    def __init__(self, count: int = 4) -> None:
        self.images = torch.rand(count, 3, 32, 32, generator=Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        for chosen in (torch.arange(len(self)) if order is None else order).split(size):
            yield self.images[chosen]


def fitted(settings: Settings = TINY, setup: Setup = SETUP, count: int = 4) -> AMINet:
    method = AMINet(settings, setup)
    method.fit(Pictures(count), lambda *_: None)
    return method


def refitted(method: AMINet, **changes: object) -> AMINet:
    """A copy of the fitted network under other settings; the frozen backbone is shared."""
    other = copy(method)
    other.settings = replace(method.settings, **changes)
    other._network = deepcopy(method._network)
    return other


@pytest.fixture(scope="module")
def tiny() -> AMINet:
    torch.manual_seed(0)
    return fitted()


def network_of(method: AMINet) -> Inpainter:
    assert method._network is not None
    return method._network


def patches_of(method: AMINet, images: Tensor) -> Tensor:
    return method._patches(method._extract(images))


# ---- The authors' answers (MIT licence; made by running their code on synthetic images) ----


@pytest.fixture(scope="module")
def released() -> tuple[AMINet, Tensor, dict[str, np.ndarray]]:
    data = Path(__file__).resolve().parents[1] / "reference_data"
    settings = Settings(backbone="tf_efficientnet_lite0", width=48, depth=2, clusters=4)
    method = from_released_checkpoint(data / "aminet_released_form.pth", settings, Setup((256, 256), CPU, seed=0))
    with np.load(data / "aminet_reference.npz") as file:
        reference = dict(file)
    return method, torch.from_numpy(reference["images"]).permute(0, 3, 1, 2) / 255, reference


def assert_equal_to(found: Tensor, expected: np.ndarray) -> None:
    """max|difference| / max|value| < 1e-4."""
    assert np.abs(found.numpy() - expected).max() / np.abs(expected).max() < 1e-4


def test_features_are_the_authors(released: tuple[AMINet, Tensor, dict[str, np.ndarray]]) -> None:
    method, images, reference = released
    features = fuse(method._extract(images), average_pool=True)
    assert features.shape == (3, 176, 64, 64)
    assert_equal_to(features.mean(dim=(2, 3)), reference["feature_mean"])
    assert_equal_to(features[:, :, 0, 0], reference["feature_corner"])


def test_distances_and_adaptive_masks_are_the_authors(released: tuple[AMINet, Tensor, dict[str, np.ndarray]]) -> None:
    method, images, reference = released
    told = {name: picture[:, ::16, ::16] for name, picture in method.explain(images).items()}
    assert_equal_to(told["distance"], reference["distance"])
    assert np.array_equal(told["adaptive mask"].numpy(), 1 - reference["cluster_mask"])  # theirs is 1 where kept


def test_maps_and_scores_are_the_authors(released: tuple[AMINet, Tensor, dict[str, np.ndarray]]) -> None:
    method, images, reference = released
    found = method.predict(images)
    assert_equal_to(found.maps, reference["map"])
    assert_equal_to(found.scores, reference["score"])


def test_the_loss_and_its_parts_are_the_authors(released: tuple[AMINet, Tensor, dict[str, np.ndarray]]) -> None:
    method, images, reference = released
    mask = torch.from_numpy(reference["train_mask"]).flatten(1) == 0
    with torch.no_grad():
        found = method.losses(network_of(method), patches_of(method, images), mask)
    theirs = {"mse": "mse", "cosine": "cos", "intra": "intra", "inter": "inter", "total": "total"}
    for ours, name in theirs.items():
        assert_equal_to(found[ours], reference[f"loss_{name}"])


def test_the_paper_size_has_129891328_trainable_parameters() -> None:
    with torch.device("meta"):
        network = Inpainter(16 * 1792, (16, 16), width=768, depth=8, heads=12, aggregation_depth=1, clusters=8)
    assert sum(parameter.numel() for parameter in network.parameters()) == 129_891_328


def test_facts_count_what_is_learned(tiny: AMINet) -> None:
    learned = sum(parameter.numel() for parameter in network_of(tiny).parameters())
    assert tiny.facts() == {
        "trainable_parameters": learned,
        "tokens": 16,
        "feature_channels": 448,
        "backbone": "random:resnet18",
        "backbone_source": "random",
        "backbone_sha256": "random",
    }
    assert AMINet(replace(TINY, mask_token="zero"), SETUP).facts()["trainable_parameters"] == learned - 16


# ---- Released checkpoints that aren't ----


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "content", [{"epoch": 1}, {"state_dict": {}}, [1, 2], Malicious(), {"state_dict": Malicious()}]
)
def test_a_file_that_is_no_released_checkpoint_is_refused_and_never_run(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "AMAE.pth")
    with pytest.raises(BenchError, match=r"AMAE\.pth isn't"):
        from_released_checkpoint(Path("AMAE.pth"), TINY, SETUP)
    assert not Path("touched").exists()


def test_a_missing_checkpoint_is_an_error_that_names_it() -> None:
    with pytest.raises(BenchError, match=r"nowhere\.pth"):
        from_released_checkpoint(Path("nowhere.pth"), TINY, SETUP)


def test_a_checkpoint_of_other_settings_is_refused(data: Path) -> None:
    settings = Settings(backbone="tf_efficientnet_lite0", width=48, depth=3, clusters=4)
    with pytest.raises(BenchError, match="settings that it was fitted with"):
        from_released_checkpoint(data / "aminet_released_form.pth", settings, Setup((256, 256), CPU, seed=0))


# ---- Fitting ----


def test_it_learns() -> None:
    told: list[tuple[int, int, float | None]] = []
    AMINet(replace(TINY, epochs=12), SETUP).fit(Pictures(), lambda *tell: told.append(tell))
    losses = [loss for _, _, loss in told if loss is not None]
    assert [(done, total) for done, total, _ in told] == [(epoch, 12) for epoch in range(1, 13)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_fit_depends_on_its_seed_alone(tiny: AMINet) -> None:
    images = Pictures().images
    torch.manual_seed(99)  # of the global generator, which a fit neither uses nor changes
    before = torch.get_rng_state()
    again = fitted()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.predict(images).maps, tiny.predict(images).maps)
    other = AMINet(TINY, replace(SETUP, seed=1))
    other._backbone = tiny._backbone
    other.fit(Pictures(), lambda *_: None)
    assert not torch.equal(other.predict(images).maps, tiny.predict(images).maps)


def test_predicting_in_progress_changes_nothing(tiny: AMINet) -> None:
    images, asked = Pictures().images, []
    method = AMINet(replace(TINY, mask_at_test="random"), SETUP)
    method.fit(Pictures(), lambda *_: asked.append(method.predict(images).scores))
    assert len(asked) == 3
    assert torch.equal(refitted(method, mask_at_test="adaptive").predict(images).maps, tiny.predict(images).maps)


def test_a_batch_larger_than_the_images_is_all_of_them() -> None:
    images = Pictures().images
    assert torch.equal(
        fitted(replace(TINY, batch=8), count=2).predict(images).maps,
        fitted(replace(TINY, batch=2), count=2).predict(images).maps,
    )


def test_a_loss_that_is_not_finite_fails_in_words() -> None:
    with pytest.raises(BenchError, match=r"nan in epoch \d+.*lr"):
        fitted(replace(TINY, lr=1e30))


def test_the_two_losses_touch_disjoint_parameters_and_never_the_backbone(tiny: AMINet) -> None:
    network, width = network_of(refitted(tiny)), TINY.width
    mask = torch.arange(16) % 2 == 0
    losses = tiny.losses(network, patches_of(tiny, Pictures().images), mask.expand(4, -1))
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
    assert all(parameter.grad is None for parameter in tiny._backbone.parameters())


def test_a_mask_token_of_zero_stays_zero_and_a_learned_one_moves(tiny: AMINet) -> None:
    assert network_of(tiny).mask_token.any()
    assert not network_of(fitted(replace(TINY, mask_token="zero"))).mask_token.any()


def test_without_final_norms_there_are_none() -> None:
    assert not any("norm." in name.removeprefix("aggregation_") for name in fitted(
        replace(TINY, final_norm=False, epochs=1)).state() if "blocks" not in name and "aggregation." not in name
    )  # fmt: skip


# ---- The losses ----


def test_r_is_the_distance_times_one_minus_the_cosine() -> None:
    first = torch.tensor([[[1.0, 0.0]]])
    second = torch.tensor([[[0.0, 1.0], [-2.0, 0.0], [3.0, 0.0]]])
    assert_close(discrepancy(first, second, squared=False), torch.tensor([[[math.sqrt(2), 3 * 2, 2 * 0]]]))
    assert_close(discrepancy(first, second, squared=True), torch.tensor([[[2.0, 9 * 2, 4 * 0]]]))


def test_separation_sums_both_orders_of_each_pair() -> None:
    centres = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]])  # R: sqrt 2, 6, sqrt 5
    expected = 2 * (math.sqrt(2) + 6 + math.sqrt(5))
    assert_close(separation(centres, squared=False), torch.tensor([expected]))
    assert separation(centres[:, :1], squared=False).tolist() == [0]


def test_centres_that_coincide_have_a_finite_gradient() -> None:
    centres = torch.ones(1, 3, 4, requires_grad=True)
    separation(centres, squared=False).sum().backward()
    assert centres.grad is not None
    assert centres.grad.isfinite().all()


def test_turn_is_one_minus_the_cosine() -> None:
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    assert_close(turn(first, second), 1 - F.cosine_similarity(first, second, dim=-1))
    assert turn(torch.zeros(3), torch.ones(3)) == 1


def test_sums_are_means_times_tokens_and_pairs(tiny: AMINet) -> None:
    mask = torch.zeros(4, 16, dtype=torch.bool)
    patches = patches_of(tiny, Pictures().images)
    mean = tiny.losses(network_of(tiny), patches, mask)
    total = refitted(tiny, cluster_reduction="sum").losses(network_of(tiny), patches, mask)
    assert_close(total["intra"], 16 * mean["intra"])
    assert_close(total["inter"], 3 * 2 * mean["inter"])
    assert_close(total["mse"], mean["mse"])


def test_the_total_is_the_parts_by_their_weights(tiny: AMINet) -> None:
    method = refitted(tiny, mse_weight=2.0, cosine_weight=3.0, intra_weight=5.0, inter_weight=7.0)
    loss = method.losses(network_of(method), patches_of(tiny, Pictures().images), torch.zeros(4, 16, dtype=torch.bool))
    expected = 2 * loss["mse"] + 3 * loss["cosine"] + 5 * loss["intra"] - 7 * loss["inter"]
    assert_close(loss["total"], expected)


def test_the_cosine_is_taken_over_patches_or_places(tiny: AMINet) -> None:
    patches, mask = patches_of(tiny, Pictures().images), torch.zeros(4, 16, dtype=torch.bool)
    network = network_of(tiny)
    restored = network.restore(network.hide(network.embed(patches)[0], mask))
    for over, shape in (("patch", (64, 4 * 448)), ("place", (256, 448))):
        loss = refitted(tiny, cosine_over=over).losses(network, patches, mask)["cosine"]
        expected = 1 - F.cosine_similarity(patches.reshape(shape), restored.reshape(shape)).mean()
        assert_close(loss, expected)


# ---- Jitter ----


def test_jitter_is_noise_in_proportion_to_the_norm() -> None:
    tokens = torch.zeros(1, 2, 10_000)
    tokens[0, 1, 0] = 300.0  # norm 300: a std of 20 * 300 / 10,000 = 0.6
    noise = jittered(tokens, scale=20, generator=Generator().manual_seed(0)) - tokens
    assert not noise[0, 0].any()  # a mask token of zero gets none
    assert abs(noise[0, 1].std() - 0.6) < 0.02
    assert torch.equal(jittered(tokens, scale=0, generator=None), tokens)


def test_jitter_reaches_both_streams_but_not_the_tokens_that_are_measured(tiny: AMINet) -> None:
    method = refitted(tiny, jitter=True)
    patches, mask = patches_of(tiny, Pictures().images), torch.zeros(4, 16, dtype=torch.bool)
    plain = tiny._pass(network_of(tiny), patches, mask, Generator())
    noisy = method._pass(network_of(tiny), patches, mask, Generator())
    assert not torch.equal(noisy[0], plain[0])  # restored
    assert torch.equal(noisy[1], plain[1])  # tokens whose distances count
    assert not torch.equal(noisy[2], plain[2])  # centres
    assert torch.equal(method._pass(network_of(tiny), patches, mask, None)[0], plain[0])


def test_jitter_never_reaches_the_test(tiny: AMINet) -> None:
    images = Pictures().images
    assert torch.equal(refitted(tiny, jitter=True).predict(images).maps, tiny.predict(images).maps)


def test_with_jitter_another_network_is_fitted(tiny: AMINet) -> None:
    images = Pictures().images
    assert not torch.equal(fitted(replace(TINY, jitter=True)).predict(images).maps, tiny.predict(images).maps)


# ---- Answers ----


def slow_map(method: AMINet, images: Tensor) -> np.ndarray:
    """The map from features and restored features, place by place, smoothed by scipy."""
    found, settings = method._inpainted(images), method.settings
    b, grid, patch = len(images), 4, settings.patch

    def maps(patches: Tensor) -> Tensor:
        cells = patches.view(b, grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return cells.reshape(b, -1, grid * patch, grid * patch)

    def upsampled(factor: Tensor) -> np.ndarray:
        return F.interpolate(factor[:, None], (32, 32), mode="bilinear", align_corners=True)[:, 0].numpy()

    def smoothed(factor: np.ndarray) -> np.ndarray:
        return np.stack([gaussian_filter(one, settings.smoothing) for one in factor]) if settings.smoothing else factor

    before, after = maps(found.patches), maps(found.restored)
    squares = (before - after) ** 2
    difference = squares.mean(dim=1) if settings.map_difference == "mean_squared" else squares.sum(dim=1).sqrt()
    direction = 1 - F.cosine_similarity(before, after)
    if settings.map_order == "multiply_first":
        return smoothed(upsampled(difference * direction))
    return smoothed(upsampled(difference)) * smoothed(upsampled(direction))


@pytest.mark.parametrize("order", ["upsample_first", "multiply_first"])
@pytest.mark.parametrize("difference", ["mean_squared", "norm"])
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_the_map_is_what_a_slow_one_says(tiny: AMINet, order: str, difference: str, smoothing: float) -> None:
    method = refitted(tiny, map_order=order, map_difference=difference, smoothing=smoothing, score="max")
    images = torch.rand(2, 3, 32, 32)
    found = method.predict(images)
    with torch.no_grad():
        expected = slow_map(method, images)
    np.testing.assert_allclose(found.maps.numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())
    np.testing.assert_allclose(found.scores.numpy(), expected.max(axis=(1, 2)), rtol=1e-4)


def test_an_image_scores_the_same_alone_as_in_a_batch(tiny: AMINet) -> None:
    images = torch.rand(3, 3, 32, 32)
    whole = tiny.predict(images)
    for number in range(3):
        alone = tiny.predict(images[number : number + 1])
        assert_close(alone.maps[0], whole.maps[number], rtol=1e-4, atol=1e-5)
        assert_close(alone.scores[0], whole.scores[number], rtol=1e-4, atol=1e-5)


def test_a_prediction_needs_no_gradient_and_outlives_the_next(tiny: AMINet) -> None:
    images = torch.rand(2, 3, 32, 32)
    first = tiny.predict(images)
    kept = first.maps.clone()
    tiny.predict(images.flip(0))
    assert torch.equal(first.maps, kept)
    assert not first.maps.requires_grad
    assert not first.scores.requires_grad


def masks_of(method: AMINet, images: Tensor) -> Tensor:
    with torch.no_grad():
        return method._inpainted(images).masks


def test_masks_at_test_are_what_the_setting_says(tiny: AMINet) -> None:
    images = torch.rand(3, 3, 32, 32)
    assert 0 < masks_of(tiny, images).float().mean() < 1
    assert not masks_of(refitted(tiny, lambda_=math.inf), images).any()  # no distance reaches infinity
    assert not masks_of(refitted(tiny, mask_at_test="none"), images).any()
    drawn = masks_of(refitted(tiny, mask_at_test="random", test_ratio=0.3), images)
    assert drawn.sum(dim=2).tolist() == [[4, 4, 4]]  # floor(0.3 * 16)
    crossed = masks_of(refitted(tiny, mask_at_test="complementary", test_cell=1, test_subsets=5), images)
    assert crossed.shape == (5, 3, 16)
    assert (crossed.sum(dim=0) == 1).all()
    for masks in (drawn, crossed):
        assert (masks == masks[:, :1]).all()  # the same for every image


@pytest.mark.parametrize("mask_at_test", ["random", "complementary"])
def test_random_masks_at_test_are_repeated_by_their_seed(tiny: AMINet, mask_at_test: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    first, other = (refitted(tiny, mask_at_test=mask_at_test, test_cell=1, test_seed=seed) for seed in (0, 1))
    assert torch.equal(first.predict(images).maps, first.predict(images).maps)
    assert not torch.equal(first.predict(images).maps, other.predict(images).maps)


def test_complementary_passes_are_merged_from_what_each_one_hid(tiny: AMINet) -> None:
    method, network = refitted(tiny, mask_at_test="complementary", test_cell=1), network_of(tiny)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = method._inpainted(images)
        embedded, _ = network.embed(found.patches)
        for mask in found.masks:
            restored = network.restore(network.hide(embedded, mask))
            assert_close(found.restored[mask], restored[mask])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_answers_nearly_the_same_in_float32(tiny: AMINet, precision: str) -> None:
    method = AMINet(replace(TINY, mask_at_test="none"), replace(SETUP, precision=precision))
    method.fit(Pictures(), lambda *_: None)
    images = Pictures().images
    found, expected = method.predict(images), refitted(tiny, mask_at_test="none").predict(images)
    assert found.maps.dtype == found.scores.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.maps.flatten(), expected.maps.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_hides_nearly_the_same_tokens(tiny: AMINet, precision: str) -> None:
    half, images = AMINet(TINY, replace(SETUP, precision=precision)), torch.rand(8, 3, 32, 32)
    half.restore(tiny.state())
    with torch.no_grad():
        masks, expected = half._inpainted(images).masks, tiny._inpainted(images).masks
    assert 0 < expected.float().mean() < 0.6
    assert (masks != expected).float().mean() < 0.05


def test_what_answers_is_made_once_and_anew_behind_a_restore(tiny: AMINet, monkeypatch: pytest.MonkeyPatch) -> None:
    made, method, images = list[Inpainter](), AMINet(TINY, SETUP), Pictures().images
    method.restore(tiny.state())

    def counted(network: Inpainter, setup: Setup) -> Inpainter:
        made.append(network)
        return by_onednn(network, setup)

    monkeypatch.setattr(aminet, "by_onednn", counted)
    first, again = method.predict(images), method.predict(images)
    assert len(made) == 1
    assert torch.equal(first.maps, again.maps)
    method.restore({name: torch.zeros_like(value) for name, value in method.state().items()})
    assert not torch.equal(method.predict(images).maps, first.maps)
    assert len(made) == 2


def test_predict_before_fit_is_refused() -> None:
    for ask in (lambda method: method.predict(torch.rand(1, 3, 32, 32)), AMINet.state):
        with pytest.raises(BenchError, match=NOT_FITTED[:20]):
            ask(AMINet(TINY, SETUP))


def test_images_of_another_size_are_refused(tiny: AMINet) -> None:
    with pytest.raises(BenchError, match=r"\(32, 32\) pixels; \(64, 32\) came"):
        tiny.predict(torch.rand(1, 3, 64, 32))


def test_images_need_not_be_square() -> None:
    method = AMINet(replace(TINY, mask_at_test="complementary"), replace(SETUP, size=(16, 48)))
    pictures = Pictures()
    pictures.images = torch.rand(2, 3, 16, 48)
    method.fit(pictures, lambda *_: None)
    assert method.predict(pictures.images).maps.shape == (2, 16, 48)


# ---- State, decoder, refusals ----


def test_a_restored_method_answers_the_same_and_shares_nothing(tiny: AMINet) -> None:
    images, state = torch.rand(2, 3, 32, 32), tiny.state()
    other = AMINet(TINY, SETUP)
    other.restore(state)
    for value in state.values():
        value.zero_()
    assert torch.equal(other.predict(images).maps, tiny.predict(images).maps)


def test_a_state_of_other_settings_is_refused(tiny: AMINet) -> None:
    with pytest.raises(BenchError, match="size mismatch"):
        AMINet(replace(TINY, width=8), SETUP).restore(tiny.state())
    with pytest.raises(BenchError, match="Missing key"):
        AMINet(replace(TINY, depth=2), SETUP).restore(tiny.state())


def test_the_decoder_is_fitted_on_demand_and_moves_no_score(tiny: AMINet) -> None:
    images, told = Pictures(1).images, []
    plain = fitted(replace(TINY, epochs=1), count=1)
    method = AMINet(replace(TINY, epochs=1, decoder_epochs=2), SETUP)
    method.fit(Pictures(1), lambda *tell: told.append(tell))
    assert [(done, total, loss is None) for done, total, loss in told] == [(1, 1, False), (2, 3, True), (3, 3, True)]
    assert torch.equal(method.predict(images).maps, plain.predict(images).maps)
    shown = method.explain(images)["reconstruction"]
    assert shown.shape == (1, 3, 32, 32)
    assert 0 <= shown.min() < shown.max() <= 1
    other = AMINet(method.settings, SETUP)
    other.restore(method.state())
    assert torch.equal(other.explain(images)["reconstruction"], shown)
    assert "reconstruction" not in tiny.explain(images)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 18}, "4 divides; 18"),
        ({"heads": 3}, "3 does not divide 16"),
        ({"patch": 3}, "squares of 12 pixels"),
        ({"patch": 0}, "patch is 1 or more"),
        ({"clusters": 0}, "clusters is 1 or more"),
        ({"epochs": 0}, "epochs is 1 or more"),
        ({"decoder_epochs": -1}, "decoder_epochs is 0 or more; -1"),
        ({"smoothing": -1.0}, "smoothing is 0 or more; -1.0"),
        ({"lr": -1e-3}, "lr is 0 or more; -0.001"),
        ({"mask_ratio": 1.0}, "mask_ratio is 'uniform' or a fraction"),
        ({"test_ratio": -0.1}, "test_ratio is a fraction"),
        ({"mask_at_test": "complementary", "test_subsets": 5}, "5 subsets of 2 x 2 cells"),
    ],
)
def test_settings_that_contradict_themselves_are_refused_at_once(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        AMINet(replace(TINY, **changes), SETUP)


def test_a_size_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(BenchError, match="36 x 32 can't be cut"):
        AMINet(TINY, replace(SETUP, size=(36, 32)))


def test_memory_grows_with_images_until_the_budget_is_reached() -> None:
    paper = Settings()
    estimates = [AMINet.memory(paper, (256, 256), images) for images in (2, 8, 100, 1000, 2000)]
    assert estimates == sorted(estimates)
    assert estimates[3] == estimates[4]  # beyond the budget nothing more is kept
    assert 2e9 < estimates[0] < estimates[3] < 10e9


def test_inputs_tell_the_backbone() -> None:
    assert AMINet.inputs(TINY, None) == {"backbone": "random"}
