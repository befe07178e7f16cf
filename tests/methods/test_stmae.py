from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.maps import gaussian_filter, upsample
from bench.methods.parts.siamese_transformer import SiameseTransformer, halves_of, random_halves
from bench.methods.parts.similarity import cosine_distance
from bench.methods.parts.statistics import channel_statistics
from bench.methods.parts.transformer import patchify, unpatchify
from bench.methods.stmae import STMAE, Settings

SETUP = Setup((64, 64), torch.device("cpu"), seed=0)
TINY = Settings(
    backbone="tf_efficientnet_lite0", stages=(1, 2), width=16, depth=2, heads=2, decoder_width=8, decoder_depth=1,
    decoder_heads=2, epochs=2, batch_size=2, lr=1e-3,
)  # fmt: skip


def pictures(count: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fit(in_memory: Any) -> Callable[..., STMAE]:
    def fitted(settings: Settings = TINY, setup: Setup = SETUP) -> STMAE:
        method = STMAE(settings, setup)
        method.fit(in_memory(pictures(4)), lambda *_: None)
        return method

    return fitted


@pytest.fixture(scope="module")
def tiny(fit: Callable[..., STMAE]) -> STMAE:
    return fit()


# ---- The network of the re-implementation ----


@pytest.fixture(scope="module")
def stored(contiguous_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return contiguous_reference("stmae")


def reference_network(formula_weights: Callable[..., dict[str, Tensor]], **options: bool) -> SiameseTransformer:
    """Return our network with the weights of the re-implementation's by formula."""
    stacks = {"encoder": (48, 3), "decoder": (32, 2)}

    def blocks(stack: str) -> list[tuple[str, tuple[int, ...]]]:
        width, depth = stacks[stack]
        return [
            (f"{stack}.{block}.{name}", shape)
            for block in range(depth)
            for name, shape in (
                ("attn.qkv.weight", (3 * width, width)), ("attn.proj.weight", (width, width)),
                ("attn.proj.bias", (width,)), ("mlp.fc1.weight", (4 * width, width)), ("mlp.fc1.bias", (4 * width,)),
                ("mlp.fc2.weight", (width, 4 * width)), ("mlp.fc2.bias", (width,)),
            )
        ]  # fmt: skip

    shapes = [
        ("encoder.norm.weight", (48,)), ("encoder.norm.bias", (48,)), *blocks("encoder"), ("unused", (64, 32)),
        ("decoder.norm.weight", (32,)), ("decoder.norm.bias", (32,)), ("decoder_embedding.weight", (32, 48)),
        ("decoder_embedding.bias", (32,)), *blocks("decoder"), ("convolution.weight", (48, 64, 4, 4)),
        ("embedding.bias", (48,)), ("pos_embed", (64, 48)), ("token_norm.weight", (48,)), ("token_norm.bias", (48,)),
        ("transposed.weight", (32, 64, 4, 4)), ("transposed.bias", (64,)),
    ]  # fmt: skip
    assert len(shapes) == 49
    tensors = formula_weights(shapes, 1.0)
    del tensors["unused"]
    tensors["embedding.weight"] = patchify(tensors.pop("convolution.weight"), 4)[:, 0]
    tensors["prediction.weight"] = patchify(tensors.pop("transposed.weight"), 4)[:, 0].T
    tensors["prediction.bias"] = tensors.pop("transposed.bias").repeat(16)
    for stack, (width, depth) in stacks.items():
        norm = {leaf: tensors.pop(f"{stack}.norm.{leaf}") for leaf in ("weight", "bias")}
        for block in range(depth):
            tensors[f"{stack}.{block}.attn.qkv.bias"] = torch.zeros(3 * width)
            tensors |= {f"{stack}.{block}.norm{i}.{leaf}": norm[leaf] for i in (1, 2) for leaf in norm}
    network = SiameseTransformer(
        1024, 64, width=48, depth=3, heads=4, decoder_width=32, decoder_depth=2, decoder_heads=4, **options
    )
    network.load_state_dict(tensors)
    return network.eval()


def sorted_halves(second_half: Tensor) -> Tensor:
    """Return both halves (b, 2, 32): the first ascending, the second in the order of `second_half`."""
    mask = torch.zeros(len(second_half), 64).scatter(1, second_half, 1)
    return torch.stack([halves_of(mask.bool())[:, 0], second_half], dim=1)


def test_formula_has_the_values_of_the_specification(uniform: Callable[[int, int], Tensor]) -> None:
    assert uniform(2, 0).tolist() == pytest.approx([-0.4013799, 0.4605703], abs=1e-7)
    assert float(uniform(4, 5)[3]) == pytest.approx(-0.1588443, abs=1e-7)


@torch.no_grad()
def test_network_matches_the_re_implementation_with_patches_at_their_positions(
    stored: dict[str, Tensor], formula_weights: Any
) -> None:
    network = reference_network(formula_weights, joint=True, shared_norm=True)
    patches, halves = patchify(stored["features"], 4), sorted_halves(stored["second_half"].sort(dim=1).values)
    tokens = network.embed(patches)
    latents = network.encode(tokens, halves)
    assert_close(tokens, stored["tokens"], rtol=1e-4, atol=1e-4)
    assert_close(latents.transpose(0, 1)[[1, 0]].flatten(0, 1), stored["encoded"], rtol=1e-4, atol=1e-4)
    assert_close(network.decode(latents, halves), stored["decoded"], rtol=1e-4, atol=1e-4)
    assert_close(unpatchify(network(patches, halves), 4, 8), stored["restored"], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_network_matches_the_re_implementation_in_slot_order(stored: dict[str, Tensor], formula_weights: Any) -> None:
    network = reference_network(formula_weights, joint=True, shared_norm=True, slot_order=True)
    patches, unsorted = patchify(stored["features"], 4), sorted_halves(stored["second_half"])
    latents = network.encode(network.embed(patches), sorted_halves(stored["second_half"].sort(dim=1).values))
    restored = network.prediction(network.decode(latents, unsorted))
    assert_close(unpatchify(restored, 4, 8), stored["code_restored"], rtol=1e-3, atol=1e-3)
    assert_close(float((restored - patches).square().mean()), float(stored["code_mse"]), rtol=1e-4, atol=0)


@torch.no_grad()
def test_losses_and_map_match_the_re_implementation(
    stored: dict[str, Tensor], formula_weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = STMAE(replace(TINY, smoothing=0.0), replace(SETUP, size=(128, 128)))
    network = reference_network(formula_weights, joint=True, shared_norm=True)
    halves = sorted_halves(stored["second_half"].sort(dim=1).values)
    losses = method.losses(network, patchify(stored["features"], 4), halves)
    for name in ("mse", "total"):
        assert_close(float(losses[name]), float(stored[f"loss_{name}"]), rtol=1e-4, atol=0)
    assert_close(float(losses["cosine"]), float(stored["loss_cos"]), rtol=1e-4, atol=0)

    method.network, method.mean, method.std = network, torch.zeros(64), torch.ones(64)
    for image in range(2):  # the reference has other halves for each image
        method.test_halves = halves[image : image + 1]
        monkeypatch.setattr(method, "extract", lambda _images, image=image: [stored["features"][image : image + 1]])
        ((squared, cosine),) = method.differences(stored["images"][image : image + 1])
        assert_close((squared * cosine)[0], stored["map"][image], rtol=1e-4, atol=1e-4)


# ---- Halves and decoding ----


def test_halves_are_disjoint_ascending_and_cover_all_positions() -> None:
    halves = random_halves(5, 16, Generator().manual_seed(3))
    assert halves.shape == (5, 2, 8)
    assert torch.equal(halves.flatten(1).sort(dim=1).values, torch.arange(16).expand(5, -1))
    assert (halves.diff(dim=2) > 0).all()
    assert not torch.equal(halves[0], halves[1])


def test_checkerboard_alternates_along_rows_and_columns() -> None:
    method = STMAE(replace(TINY, mask_at_test="checkerboard"), SETUP)  # 4 x 4 patches
    assert method.test_halves.tolist() == [[[0, 2, 5, 7, 8, 10, 13, 15], [1, 3, 4, 6, 9, 11, 12, 14]]]


@pytest.mark.parametrize("joint", [False, True])
def test_network_equals_a_loop_over_images_and_halves(joint: bool) -> None:
    options = {"width": 8, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    network = SiameseTransformer(12, 16, joint=joint, **options)
    patches, halves = torch.rand(3, 16, 12), random_halves(3, 16, Generator().manual_seed(1))
    expected = torch.zeros_like(patches)
    for image in range(3):
        tokens = network.token_norm(network.embedding(patches[image]) + network.pos_embed)
        first, second = halves[image]
        parts = [
            network.encoder(tokens[visible][None])[0] + network.pos_embed[masked]
            for masked, visible in ((first, second), (second, first))
        ]
        decode = lambda part: network.prediction(network.decoder(network.decoder_embedding(part)[None]))[0]
        restored = decode(torch.cat(parts)) if joint else torch.cat([decode(part) for part in parts])
        expected[image, torch.cat([first, second])] = restored
    assert_close(network(patches, halves), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("joint", "depends"), [(False, False), (True, True)])
def test_only_joint_decoding_restores_a_patch_from_itself(joint: bool, depends: bool) -> None:
    options = {"width": 8, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    network = SiameseTransformer(12, 16, joint=joint, **options)
    patches = torch.rand(1, 16, 12, requires_grad=True)
    halves = random_halves(1, 16, Generator().manual_seed(1))
    network(patches, halves)[0, halves[0, 0]].sum().backward()  # what is restored of the first half
    assert (patches.grad[0, halves[0, 1]].abs().sum(dim=1) > 0).all()
    assert bool((patches.grad[0, halves[0, 0]] != 0).any()) == depends


# ---- The method ----


def test_statistics_equal_those_of_all_features_at_once() -> None:
    maps = 100 + torch.rand(5, 3, 4, 6) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    mean, std = channel_statistics(maps.split(2))
    assert_close(mean, maps.double().mean(dim=(0, 2, 3)).float())
    assert_close(std, maps.double().std(dim=(0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)
    with pytest.raises(BenchError, match="at least one image"):
        channel_statistics([])


def test_features_are_standardized_and_resized_without_corner_alignment(tiny: STMAE) -> None:
    stages = tiny.extract(pictures(4))
    assert [stage.shape[2] for stage in stages] == [16, 8]
    assert_close(tiny.fuse(stages)[:, 24:], torch.nn.functional.interpolate(stages[1], (16, 16), mode="bilinear"))
    patches = tiny.to_patches(stages).view(-1, 64)
    assert_close(patches.mean(dim=0), torch.zeros(64), rtol=0, atol=1e-4)
    assert (patches.std(dim=0) <= 1.001).all()
    finer = STMAE(replace(TINY, stride=8, patch=2), SETUP)
    assert [stage.shape[2] for stage in finer.extract(pictures(1))] == [8, 8]


def test_map_is_the_product_of_both_differences_averaged_over_splits(fit: Callable[..., STMAE]) -> None:
    method, images = fit(replace(TINY, test_splits=2, smoothing=1.5)), pictures(2)
    patches = method.to_patches(method.extract(images))
    maps = []
    for halves in method.test_halves:
        with torch.no_grad():
            restored = method.network(patches, halves[None].expand(2, -1, -1))
        original, output = (unpatchify(values, 4, 4).permute(0, 2, 3, 1) for values in (patches, restored))
        maps.append((original - output).square().mean(dim=3) * cosine_distance(original, output))
    expected = gaussian_filter(upsample((maps[0] + maps[1]) / 2, (64, 64), align_corners=False), 1.5)
    prediction = method.predict(images)
    assert_close(prediction.maps, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(prediction.scores, prediction.maps.amax(dim=(1, 2)))


def test_training_reduces_the_loss_and_depends_on_the_seed_alone(in_memory: Any) -> None:
    losses: list[float] = []
    method = STMAE(replace(TINY, epochs=12), SETUP)
    method.fit(in_memory(pictures(4)), lambda _done, _total, loss: losses.append(loss or 0))
    assert losses[-1] < 0.9 * losses[0]
    before = method.predict(pictures(1)).maps
    torch.manual_seed(9)
    method.fit(in_memory(pictures(4)), lambda *_: None)
    assert torch.equal(method.predict(pictures(1)).maps, before)


@pytest.mark.parametrize(
    "changes",
    [{"decoding": "joint"}, {"slot_order": True}, {"shared_norm": True}, {"normalization": "none"}, {"test_splits": 2},
     {"mask_at_test": "checkerboard"}, {"test_seed": 1}, {"cosine_weight": 0.0}, {"smoothing": 0.0}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_maps(tiny: STMAE, fit: Callable[..., STMAE], changes: dict[str, Any]) -> None:
    maps = fit(replace(TINY, **changes)).predict(pictures()).maps
    assert torch.isfinite(maps).all()
    assert not torch.equal(maps, tiny.predict(pictures()).maps)


def test_state_with_a_shared_norm_restores(fit: Callable[..., STMAE]) -> None:
    settings = replace(TINY, shared_norm=True)
    fitted, restored = fit(settings), STMAE(settings, SETUP)
    restored.load_state_dict(fitted.state_dict())
    assert restored.network.encoder[1].norm2 is restored.network.encoder[0].norm1
    assert torch.equal(restored.predict(pictures()).maps, fitted.predict(pictures()).maps)


def test_explain_shows_the_second_half_and_both_differences(tiny: STMAE) -> None:
    explanation = tiny.explain(pictures(2))
    assert list(explanation) == ["mask", "squared difference", "cosine distance"]
    assert {tuple(picture.shape) for picture in explanation.values()} == {(2, 64, 64)}
    patches = explanation["mask"][0, ::16, ::16].flatten()
    assert patches.nonzero().flatten().tolist() == tiny.test_halves[0, 1].tolist()


def test_half_precision_gives_similar_maps(fit: Callable[..., STMAE], tiny: STMAE) -> None:
    maps = fit(setup=replace(SETUP, precision="bfloat16")).predict(pictures()).maps
    expected = tiny.predict(pictures()).maps
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().max() < 0.2 * expected.max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 0}, "width must be >= 1"), ({"heads": 3}, "heads must divide width"), ({"lr": -1.0}, "lr must be >= 0"),
     ({"mask_at_test": "checkerboard", "test_splits": 2}, "must be 1"), ({"patch": 3}, "multiples of 12")],
    ids=str,
)  # fmt: skip
def test_settings_that_contradict_each_other_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        STMAE(replace(TINY, **changes), SETUP)


def test_an_odd_number_of_patches_and_other_sizes_raise(tiny: STMAE) -> None:
    with pytest.raises(BenchError, match="must be even"):
        STMAE(TINY, replace(SETUP, size=(48, 48)))
    with pytest.raises(BenchError, match="64 x 64 pixels"):
        tiny.predict(torch.rand(1, 3, 32, 32))


def test_memory_grows_with_width_and_images() -> None:
    small = STMAE.estimate_memory(TINY, (64, 64), 4)
    assert (
        small < STMAE.estimate_memory(TINY, (64, 64), 8) < STMAE.estimate_memory(replace(TINY, width=32), (64, 64), 8)
    )
