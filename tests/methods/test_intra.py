from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods import intra
from bench.methods.intra import InTra, Settings
from bench.methods.parts.inpainting_transformer import (
    InpaintingTransformer,
    Skips,
    skip_sources,
    window_patches,
    window_starts,
)
from bench.methods.parts.transformer import patchify

CPU = torch.device("cpu")
SETUP = Setup((32, 40), CPU, seed=0)
TINY = Settings(
    patch=8, window=3, width=8, depth=3, heads=2, windows_per_image=6, batch_size=8, images_per_step=2, epochs=2,
    mean_filter=3, lr=1e-3,
)  # fmt: skip


def pictures(count: int = 3, seed: int = 1, size: tuple[int, int] = (32, 40)) -> Tensor:
    return torch.rand(count, 3, *size, generator=Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fit(in_memory: Any) -> Callable[..., InTra]:
    def fitted(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> InTra:
        method = InTra(settings, setup)
        method.fit(in_memory(pictures(4) if images is None else images), lambda *_: None)
        return method

    return fitted


@pytest.fixture(scope="module")
def tiny(fit: Callable[..., InTra]) -> InTra:
    return fit()


# ---- The re-implementation ----


def reference_network(formula_weights: Callable[..., dict[str, Tensor]], skips: Skips) -> InpaintingTransformer:
    """Return our network with the weights of the re-implementation's by formula."""

    def block(name: str) -> list[tuple[str, tuple[int, ...]]]:
        linear = lambda part, after, before: [
            (f"{name}.{part}.weight", (after, before)),
            (f"{name}.{part}.bias", (after,)),
        ]
        norm = lambda part: [(f"{name}.{part}.weight", (32,)), (f"{name}.{part}.bias", (32,))]
        mlps = [
            linear(f"attn.{part}.{i}", *sides)
            for part in ("query", "key")
            for i, sides in ((0, (64, 32)), (2, (16, 64)))
        ]
        others = [
            linear("attn.value", 32, 32),
            linear("attn.proj", 32, 32),
            linear("mlp.fc1", 128, 32),
            linear("mlp.fc2", 32, 128),
        ]
        return [*chain(*mlps, *others, norm("norm1"), norm("norm2"))]

    shapes = [
        ("inpaint_token", (1, 1, 32)), ("unused.local", (1, 49, 32)), ("pos_embed", (1, 64, 32)),
        ("embedding.weight", (32, 768)), ("embedding.bias", (32,)), *block("unused"),
        *chain(*(block(f"blocks.{i}") for i in range(5))), ("norm.weight", (32,)), ("norm.bias", (32,)),
        ("prediction.weight", (768, 32)), ("prediction.bias", (768,)),
    ]  # fmt: skip
    assert len(shapes) == 129
    tensors = {key: value for key, value in formula_weights(shapes, 1.0).items() if not key.startswith("unused")}
    tensors["inpaint_token"], tensors["pos_embed"] = tensors["inpaint_token"][0, 0], tensors["pos_embed"][0]
    network = InpaintingTransformer(768, 64, width=32, depth=5, heads=4, skips=skips)
    network.load_state_dict(tensors)
    return network.eval()


@pytest.fixture(scope="module")
def stored(contiguous_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return contiguous_reference("intra")


def reference_method(formula_weights: Any, **options: Any) -> InTra:
    settings = Settings(width=32, depth=5, heads=4, skips="off_by_one", **options)
    method = InTra(settings, Setup((128, 128), CPU, seed=0))
    method.network = reference_network(formula_weights, "off_by_one")
    return method


@torch.no_grad()
def test_tokens_layers_and_outputs_match_the_re_implementation(stored: dict[str, Tensor], formula_weights: Any) -> None:
    network, masked_index = reference_network(formula_weights, "off_by_one"), stored["train_hidden"]
    patches = patchify(stored["images"], 16)
    position_index = window_patches(torch.stack([stored["train_r"], stored["train_s"]], dim=1), 7, 8)
    window = patches[torch.arange(2)[:, None], position_index]  # (2, 49, 768)
    assert torch.equal(window[torch.arange(2), masked_index], stored["train_patch"])
    tokens = network.mask_tokens(network.embedding(window), masked_index, position_index)
    # The reference has the masked token first.
    order = torch.stack([torch.cat([h[None], torch.arange(49)[torch.arange(49) != h]]) for h in masked_index])
    reordered = tokens.gather(1, order[:, :, None].expand_as(tokens))
    assert_close(reordered, stored["train_tokens"], rtol=1e-4, atol=1e-4)
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda *args: outputs.append(args[2])) for block in network.blocks]
    assert_close(network(reordered), stored["train_restored"], rtol=1e-4, atol=1e-4)
    assert_close(torch.stack(outputs), stored["train_layer_outputs"], rtol=1e-4, atol=1e-4)
    for handle in handles:
        handle.remove()
    assert_close(network(tokens), stored["train_restored"], rtol=1e-4, atol=1e-4)
    mirrored = reference_network(formula_weights, "mirrored")
    assert_close(mirrored(tokens), stored["train_restored_mirrored_skips"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_losses_match_the_re_implementation(stored: dict[str, Tensor], formula_weights: Any) -> None:
    method = reference_method(formula_weights)
    losses = method.patch_losses(stored["train_patch"], stored["train_restored"])
    corners = torch.stack([stored["train_r"], stored["train_s"]], dim=1)
    patches = patchify(stored["images"], 16)
    from_windows = method.losses(method.network, patches, corners, stored["train_hidden"])
    for name in ("mse", "msgms", "ssim"):
        assert_close(float(losses[name]), float(stored[f"loss_{name}"]), rtol=1e-4, atol=0)
        assert_close(from_windows[name], losses[name], rtol=1e-4, atol=0)
    assert_close(losses["total"], losses["mse"] + 0.01 * (losses["msgms"] + losses["ssim"]))
    # The re-implementation interchanges the axes of a patch in the structural losses.
    scrambled = [
        stored[key].view(2, 3, 16, 16).permute(0, 2, 3, 1).flatten(1) for key in ("train_patch", "train_restored")
    ]
    for name, loss in method.patch_losses(*scrambled).items():
        if name != "total":
            assert_close(float(loss), float(stored[f"loss_code_{name}"]), rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(("window_at_test", "key"), [("shifted", "code"), ("centered", "centred")])
def test_whole_images_match_the_re_implementation(
    stored: dict[str, Tensor], formula_weights: Any, window_at_test: str, key: str
) -> None:
    method = reference_method(formula_weights, window_at_test=window_at_test)
    assert torch.equal(method.test_top_left.view(8, 8, 2)[:, 0, 0], stored[f"window_start_{key}"])
    restored = method.restore_images(method.network, stored["images"])
    assert_close(restored, stored[f"restored_{key}"], rtol=1e-3, atol=1e-3)
    assert_close(method.difference(stored["images"], restored), stored[f"map_{key}"], rtol=1e-4, atol=1e-4)


def test_map_and_score_match_with_one_image_as_the_training_set(
    stored: dict[str, Tensor], formula_weights: Any
) -> None:
    method = reference_method(formula_weights)
    method.normal_map = stored["map_centred"][0]
    prediction = method.predict(stored["images"][1:])
    assert_close(prediction.maps[0], stored["anomaly_map_centred"], rtol=1e-3, atol=1e-6)
    assert_close(float(prediction.scores), float(stored["anomaly_score_centred"]), rtol=1e-4, atol=0)


def test_default_size_has_the_parameters_of_the_re_implementation_that_it_uses() -> None:
    with torch.device("meta"):
        network = InpaintingTransformer(768, 256, width=512, depth=13, heads=8)
    linear = lambda before, after: before * after + after
    block = 2 * (linear(512, 1024) + linear(1024, 256)) + 2 * linear(512, 512) + linear(512, 2048) + linear(2048, 512)
    unused = block + 2 * 2 * 512 + 49 * 512
    assert sum(parameter.numel() for parameter in network.parameters()) == 59_780_352 - unused


# ---- Skips and windows ----


@pytest.mark.parametrize(
    ("depth", "skips", "expected"),
    [(5, "mirrored", [None, None, None, 1, 0]), (5, "off_by_one", [None, None, None, 2, 1]), (3, "none", [None] * 3),
     (4, "mirrored", [None, None, 1, 0]), (4, "off_by_one", [None, None, None, 1]), (1, "mirrored", [None])],
)  # fmt: skip
def test_long_skips_connect_these_blocks(depth: int, skips: Skips, expected: list[int | None]) -> None:
    assert skip_sources(depth, skips) == expected
    network = InpaintingTransformer(12, 9, width=8, depth=depth, heads=2, skips=skips)
    assert network(torch.rand(2, 9, 8)).shape == (2, 12)


def test_windows_are_centered_if_the_border_permits() -> None:
    assert window_starts(6, 3).tolist() == [0, 0, 1, 2, 3, 3]
    assert window_starts(6, 3, shifted=True).tolist() == [0, 0, 0, 1, 2, 3]
    assert window_patches(torch.tensor([[1, 2]]), 2, 5).tolist() == [[7, 8, 12, 13]]


def test_masked_patch_is_replaced_and_positions_are_added() -> None:
    network, embedded = InpaintingTransformer(12, 20, width=8, depth=1, heads=2), torch.rand(2, 4, 8)
    position_index = torch.tensor([[7, 8, 12, 13], [0, 1, 5, 6]])
    tokens = network.mask_tokens(embedded, torch.tensor([2, 0]), position_index) - network.pos_embed[position_index]
    assert_close(tokens[0, 2], network.inpaint_token)
    assert_close(tokens[1, 0], network.inpaint_token)
    assert_close(tokens[0, [0, 1, 3]], embedded[0, [0, 1, 3]])


@pytest.mark.parametrize("pos_embed", ["global", "local"])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batched_windows_equal_a_loop_over_patches(
    fit: Callable[..., InTra], monkeypatch: pytest.MonkeyPatch, pos_embed: str, batch: int
) -> None:
    monkeypatch.setattr(intra, "passes_per_batch", lambda *_: batch)
    method, images = fit(replace(TINY, pos_embed=pos_embed)), pictures(2)
    network, expected = method.network.requires_grad_(requires_grad=False), torch.zeros_like(images)
    for i, image in enumerate(images):
        for t in range(4):
            for u in range(5):
                r, s = min(max(t - 1, 0), 1), min(max(u - 1, 0), 2)  # 4 x 5 patches, windows of 3 x 3
                tokens = []
                for row in range(r, r + 3):
                    for column in range(s, s + 3):
                        patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                        is_masked = (row, column) == (t, u)
                        token = (
                            network.inpaint_token if is_masked else network.embedding(patch.permute(1, 2, 0).flatten())
                        )
                        index = row * 5 + column if pos_embed == "global" else (row - r) * 3 + column - s
                        tokens.append(token + network.pos_embed[index])
                restored = network(torch.stack(tokens)[None]).view(8, 8, 3).permute(2, 0, 1)
                expected[i, :, 8 * t : 8 * t + 8, 8 * u : 8 * u + 8] = restored
    assert_close(method.restore_images(network, images), expected, rtol=1e-4, atol=1e-5)


def test_no_patch_is_restored_from_itself(tiny: InTra) -> None:
    images = pictures(1).requires_grad_()
    restored = tiny.restore_images(tiny.network, images)
    restored[0, :, 8:16, 8:16].sum().backward()
    gradient = images.grad[0].abs().sum(dim=0)
    assert not gradient[8:16, 8:16].any()
    assert gradient[:8, :24].all()  # the window
    assert not gradient[24:].any()


def test_random_windows_cover_the_grid_and_hide_every_place(tiny: InTra) -> None:
    corners, masked_index = tiny._random_windows(2000, Generator().manual_seed(0))
    assert corners.unique(dim=0).tolist() == [[row, column] for row in range(2) for column in range(3)]
    assert masked_index.unique().tolist() == list(range(9))


# ---- The method ----


def test_normal_map_is_the_mean_difference_of_the_training_images(fit: Callable[..., InTra]) -> None:
    method, images = fit(), pictures(4)
    plain = fit(replace(TINY, subtract_normal=False))
    differences = plain.predict(images).maps
    assert_close(method.normal_map, differences.mean(dim=0), rtol=1e-4, atol=1e-6)
    assert_close(method.predict(images).maps, (differences - differences.mean(dim=0)).square(), rtol=1e-3, atol=1e-6)


def test_best_epoch_on_validation_images_is_kept_and_ends_training(
    in_memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, calls, losses = InTra(replace(TINY, epochs=9, patience=2), SETUP), [], iter([3.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(method, "validation_loss", lambda *_: next(losses))
    maps = []

    def progress(done: int, total: int, _loss: float | None) -> None:
        calls.append((done, total))
        maps.append(method.predict(pictures(1)).maps)

    method.fit(in_memory(pictures(10)), progress)
    assert calls == [(1, 9), (2, 9), (3, 9), (4, 4)]
    assert method.info()["best_epoch"] == 2
    assert torch.equal(maps[1], maps[3])
    assert not torch.equal(maps[0], maps[1])


def test_validation_loss_is_that_of_all_patches_of_the_validation_images(tiny: InTra, in_memory: Any) -> None:
    pixels = intra.FrozenFeatures(lambda images: [images], in_memory(pictures(4)), setup=SETUP)
    value = tiny.validation_loss(tiny.network, pixels, torch.tensor([1, 3]))
    losses = []
    for index in (1, 3):
        image = pictures(4)[index : index + 1]
        with torch.no_grad():
            restored = tiny.restore_images(tiny.network, image)
        losses.append(tiny.patch_losses(tiny.to_patches(image)[0], tiny.to_patches(restored)[0])["total"])
    assert value == pytest.approx(float(sum(losses)) / 2, rel=1e-5)


def test_training_reduces_the_loss_and_depends_on_the_seed_alone(in_memory: Any) -> None:
    losses: list[float] = []
    method = InTra(replace(TINY, epochs=12, windows_per_image=16, lr=3e-3), SETUP)
    method.fit(in_memory(pictures(4)), lambda _done, _total, loss: losses.append(loss or 0))
    assert losses[-1] < 0.5 * losses[0]
    before = method.predict(pictures(1)).maps
    torch.manual_seed(9)
    method.fit(in_memory(pictures(4)), lambda *_: None)
    assert torch.equal(method.predict(pictures(1)).maps, before)


@pytest.mark.parametrize(
    "changes",
    [{"attention": "msa"}, {"pos_embed": "local"}, {"skips": "none"}, {"skips": "off_by_one"}, {"gms_weight": 1.0},
     {"ssim_weight": 1.0}, {"window": 2}, {"window_at_test": "shifted"}, {"subtract_normal": False},
     {"mean_filter": 1}, {"windows_per_image": 3}, {"weight_decay": 0.1}, {"downsample": 2, "patch": 4}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_maps(tiny: InTra, fit: Callable[..., InTra], changes: dict[str, Any]) -> None:
    maps = fit(replace(TINY, **changes)).predict(pictures()).maps
    assert maps.shape == (3, 32, 40)
    assert torch.isfinite(maps).all()
    assert not torch.equal(maps, tiny.predict(pictures()).maps)


def test_explain_shows_the_window_of_the_central_patch_and_the_restoration(tiny: InTra) -> None:
    explanation = tiny.explain(pictures(2))
    window = explanation["mask"][0, ::8, ::8]
    assert window.tolist() == [
        [0, 0, 0, 0, 0], [0, 0.5, 0.5, 0.5, 0], [0, 0.5, 1, 0.5, 0], [0, 0.5, 0.5, 0.5, 0]
    ]  # fmt: skip
    assert explanation["restored"].shape == (2, 3, 32, 40)
    assert_close(
        (explanation["gradient difference"] - explanation["mean of good images"]).square(),
        tiny.predict(pictures(2)).maps,
        rtol=1e-3, atol=1e-6,
    )  # fmt: skip


def test_half_precision_gives_similar_restorations(fit: Callable[..., InTra], tiny: InTra) -> None:
    half, images = fit(setup=replace(SETUP, precision="bfloat16")), pictures(2)
    restored, expected = (method.explain(images)["restored"] for method in (half, tiny))
    assert restored.dtype == torch.float32
    assert (restored - expected).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"depth": 0}, "depth must be >= 1"), ({"heads": 3}, "a multiple of 6"), ({"window": 1}, "must be >= 2"),
     ({"patch": 6}, "multiple of 4"), ({"mean_filter": 4}, "odd"), ({"window": 5}, "at least 40"),
     ({"patch": 12}, "multiples of 12"), ({"validation_fraction": 1.0}, r"in \[0, 1\)")],
    ids=str,
)  # fmt: skip
def test_settings_that_contradict_each_other_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        InTra(replace(TINY, **changes), SETUP)


def test_memory_grows_with_batch_and_depth() -> None:
    small = InTra.estimate_memory(TINY, (32, 40), 4)
    more = replace(TINY, batch_size=16)
    assert small < InTra.estimate_memory(more, (32, 40), 4) < InTra.estimate_memory(replace(more, depth=5), (32, 40), 4)
