"""AE and AE-SSIM: their layers, augmentation, stitching of patches, and training."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import NOT_FITTED, Images, Setup
from bench.methods.autoencoder import Autoencoder, Settings, build_layers, epoch_indices, patch_offsets
from bench.methods.parts.similarity import ssim

CPU = torch.device("cpu")
SETUP = Setup((32, 32), CPU, seed=0)
TINY = Settings(latent=4, samples_per_epoch=4, epochs=2, batch_size=2, patch=16, stride=8, lr=1e-3)


@pytest.fixture(scope="module")
def fitted(in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]) -> Callable[..., Autoencoder]:
    """Return the function that fits a method."""

    def fit(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> Autoencoder:
        method = Autoencoder(settings, setup)
        method.fit(in_memory(random_images(size=setup.size) if images is None else images), lambda *_: None)
        return method

    return fit


# ---- The network ----

AT_128 = [  # output shape of each convolution, from the image to the latent values and back
    (32, 64, 64), (32, 32, 32), (32, 32, 32), (64, 16, 16), (64, 16, 16), (128, 8, 8), (64, 8, 8), (32, 8, 8),
    (100, 1, 1), (32, 8, 8), (64, 8, 8), (128, 8, 8), (64, 16, 16), (64, 16, 16), (32, 32, 32), (32, 32, 32),
    (32, 64, 64), (3, 128, 128),
]  # fmt: skip
AT_256 = [(32, 128, 128), (32, 64, 64), *AT_128[1:-2], (32, 64, 64), (32, 128, 128), (3, 256, 256)]


@pytest.mark.parametrize(
    ("side", "shapes", "weights"),
    [
        # Weights and biases from the image to the latent values: 1,568 + 16,416 + 9,248 + 32,832 + 36,928 + 131,200
        # + 73,792 + 18,464 + 204,900; and back: 204,832 + 18,496 + 73,856 + 131,136 + 36,928 + 32,800 + 9,248 + 16,416
        # + 1,539.
        (128, AT_128, 525_348 + 525_251),
        (
            256,
            AT_256,
            525_348 + 525_251 + 2 * 16_416,
        ),  # one more 4 x 4 convolution of 32 channels in encoder and decoder
    ],
)
def test_the_layers_have_the_shapes_of_the_paper(side: int, shapes: list[tuple[int, ...]], weights: int) -> None:
    with torch.device("meta"):
        network, output_shapes = build_layers(Settings(), (side, side)), []
    maps = torch.empty(1, 3, side, side, device="meta")
    for layer in network:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            output_shapes.append(tuple(maps.shape[1:]))
    assert output_shapes == shapes
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    kinds = [type(layer).__name__ for layer in network]
    slopes = [layer.negative_slope for layer in network if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * (len(shapes) - 2)  # after all but the latent values and the image
    latent = next(i for i, layer in enumerate(network) if getattr(layer, "out_channels", 0) == 100)
    assert kinds[latent + 1] == "ConvTranspose2d"
    assert kinds[-1] == "Sigmoid"


def test_info_has_the_size_of_the_network_and_of_its_input(fitted: Callable[..., Autoencoder]) -> None:
    method = fitted(replace(TINY, mode="texture", epochs=1))
    n_parameters = sum(parameter.numel() for parameter in build_layers(TINY, (16, 16)).parameters())
    assert method.info() == {"trainable_parameters": n_parameters, "mode": "texture", "input_pixels": 256}


# ---- Texture mode: patches and their stitching ----


def test_patches_cover_a_side_and_the_last_one_ends_at_its_end() -> None:
    assert patch_offsets(10, 4, 3) == [0, 3, 6]
    assert patch_offsets(11, 4, 3) == [0, 3, 6, 7]
    assert patch_offsets(4, 4, 3) == [0]
    assert patch_offsets(256, 128, 30) == [0, 30, 60, 90, 120, 128]


def test_overlapping_patches_are_averaged_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network returns the number of the patch: 0 to 3 for columns 0, 8 and rows 0, 8 of 24 x 24 pixels."""
    method = Autoencoder(replace(TINY, mode="texture"), replace(SETUP, size=(24, 24)))
    number = torch.arange(4.0).view(4, 1, 1, 1)
    monkeypatch.setattr(method, "reconstruct", lambda _network, patches: number.expand_as(patches))
    stitched = method.stitch_patches(nn.Sequential(), torch.zeros(1, 3, 24, 24))
    by_hand = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]])  # of each 8 x 8 square
    assert torch.equal(stitched, by_hand.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, 24, 24))


@pytest.mark.parametrize("size", [(40, 32), (35, 51)])
def test_stitching_equals_a_slow_loop(
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    fitted: Callable[..., Autoencoder],
    random_images: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr("bench.methods.autoencoder.TEST_BATCH", 5)  # so that there are several batches
    setup = replace(SETUP, size=size)
    method = fitted(replace(TINY, mode="texture", stride=7), setup)
    images = random_images(2, size, seed=5)
    total, count = torch.zeros_like(images), torch.zeros(size)
    for top in [*range(0, size[0] - 16, 7), size[0] - 16]:
        for left in [*range(0, size[1] - 16, 7), size[1] - 16]:
            with torch.no_grad():
                restored = method.network(images[:, :, top : top + 16, left : left + 16])
            total[:, :, top : top + 16, left : left + 16] += restored
            count[top : top + 16, left : left + 16] += 1
    assert count.min() == 1
    assert_close(method.predict(images).maps, (images - total / count).square().mean(dim=1), rtol=1e-4, atol=1e-6)


def test_training_patches_are_crops_at_all_positions() -> None:
    rows, columns = torch.arange(32.0)[:, None] / 64, torch.arange(32.0) / 64
    image = torch.stack(
        [rows.expand(32, 32), columns.expand(32, 32), torch.zeros(32, 32)]
    )  # the color encodes the position
    method = Autoencoder(replace(TINY, mode="texture", rotation=0.0), SETUP)
    views = method.augment(image.expand(400, -1, -1, -1).contiguous(), Generator().manual_seed(0))
    tops, lefts = (views[:, axis, 0, 0] * 64 for axis in (0, 1))
    for offsets in (tops, lefts):  # whole pixels, from the first to the last possible offset
        assert_close(offsets, offsets.round(), rtol=0, atol=1e-3)
        assert offsets.round().unique().tolist() == list(range(17))
    for view, top, left in zip(views, tops.round().int(), lefts.round().int(), strict=True):
        assert_close(view, image[:, top : top + 16, left : left + 16], rtol=0, atol=1e-5)


# ---- Object mode: rotation and translation ----


def test_without_augmentation_a_view_equals_the_image(random_images: Callable[..., Tensor]) -> None:
    images = random_images()
    for changes in ({"rotation": 0.0, "translation": 0.0}, {"augment_probability": 0.0, "flips": True}):
        views = Autoencoder(replace(TINY, **changes), SETUP).augment(images, Generator())
        assert_close(views, images, rtol=0, atol=1e-5)


def test_shifts_are_whole_pixels_up_to_the_setting_with_reflected_borders(random_images: Callable[..., Tensor]) -> None:
    images = random_images(1).expand(600, -1, -1, -1).contiguous()
    method = Autoencoder(replace(TINY, rotation=0.0, translation=0.1), SETUP)  # 3 of 32 pixels
    views = method.augment(images, Generator().manual_seed(0))
    reflected = F.pad(images[:1], (3, 3, 3, 3), mode="replicate")
    reflected[..., :3, :], reflected[..., -3:, :] = reflected[..., 3:6, :].flip(2), reflected[..., -6:-3, :].flip(2)
    reflected[..., :3], reflected[..., -3:] = reflected[..., 3:6].flip(3), reflected[..., -6:-3].flip(3)
    crops = {
        (row, column): reflected[0, :, row : row + 32, column : column + 32]
        for row in range(7) for column in range(7)
    }  # fmt: skip
    shifts = [
        next((shift for shift, crop in crops.items() if (view - crop).abs().max() < 1e-4), None) for view in views
    ]
    assert None not in shifts
    assert len(set(shifts)) == 49  # every shift by -3 to 3 pixels in both directions


def test_a_rotation_is_about_the_center_and_at_most_the_setting() -> None:
    columns, rows = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="xy")
    image = torch.stack([columns, rows, torch.zeros_like(rows)]) / 64
    method = Autoencoder(replace(TINY, rotation=90.0, translation=0.0), replace(SETUP, size=(48, 48)))
    method.input_size = (33, 33)
    views = method.augment(image.expand(300, -1, -1, -1).contiguous(), Generator().manual_seed(0)) * 64
    assert_close(views[:, :, 16, 16], torch.zeros(300, 3), rtol=0, atol=1e-3)  # the center does not move
    arm = views[:, :2, 16, 26]  # 10 pixels to the right of the center
    assert_close(arm.norm(dim=1), torch.full((300,), 10.0), rtol=0, atol=1e-2)
    angles = torch.rad2deg(torch.atan2(arm[:, 1], arm[:, 0]))
    assert -90.5 < angles.min() < -85
    assert 85 < angles.max() < 90.5
    assert angles.abs().min() < 3


def test_flips_have_half_of_the_augment_probability(random_images: Callable[..., Tensor]) -> None:
    images = random_images(1).expand(400, -1, -1, -1).contiguous()
    method = Autoencoder(replace(TINY, rotation=0.0, translation=0.0, flips=True, augment_probability=0.5), SETUP)
    views = method.augment(images, Generator().manual_seed(0))
    kinds = [images[0], images[0].flip(1), images[0].flip(2), images[0].flip(1, 2)]
    counts = [sum(bool((view - kind).abs().max() < 1e-4) for view in views) for kind in kinds]
    assert sum(counts) == 400
    assert all(70 < count < 130 for count in counts)  # 100 each, with a standard deviation of 8.7


def test_the_frequencies_of_the_images_in_an_epoch_differ_by_one_at_most() -> None:
    order = epoch_indices(5, 13, Generator().manual_seed(0))
    assert len(order) == 13
    assert sorted(order.bincount(minlength=5).tolist()) == [2, 2, 3, 3, 3]
    assert sorted(order[:5].tolist()) == list(range(5))


# ---- The difference: loss and map ----


@pytest.mark.parametrize("loss", ["l2", "ssim"])
@pytest.mark.parametrize("mode", ["object", "texture"])
def test_the_loss_is_the_sum_of_the_map_over_an_image(
    loss: str, mode: str, in_memory: Callable[[Tensor], Images], random_images: Callable[..., Tensor]
) -> None:
    """With one patch of the size of the image, no augmentation and no training, both are the same number."""
    changes = {"rotation": 0.0, "translation": 0.0, "lr": 1e-30, "weight_decay": 0.0}
    settings = replace(TINY, loss=loss, mode=mode, patch=32, samples_per_epoch=3, batch_size=3, epochs=1, **changes)
    losses: list[float | None] = []
    method = Autoencoder(settings, SETUP)
    method.fit(in_memory(random_images()), lambda _done, _total, value: losses.append(value))
    assert losses == [pytest.approx(float(method.predict(random_images()).maps.sum(dim=(1, 2)).mean()), rel=1e-4)]


@pytest.mark.parametrize("loss", ["l2", "ssim"])
def test_the_map_is_the_mean_over_colors_and_the_score_its_maximum(
    loss: str, fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    method, images = fitted(replace(TINY, loss=loss)), random_images(seed=4)
    restored = method.explain(images)["reconstruction"]
    expected = (images - restored).square() if loss == "l2" else 1 - ssim(images, restored)
    prediction = method.predict(images)
    assert_close(prediction.maps, expected.mean(dim=1))
    assert torch.equal(prediction.scores, prediction.maps.amax(dim=(1, 2)))
    assert_close(method.explain(images)["difference"], prediction.maps)


def test_with_smoothing_and_downsampling_the_map_has_full_size(
    fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    method, images = fitted(replace(TINY, downsample=2, smoothing=2.0)), random_images(seed=4)
    small = F.avg_pool2d(images, 2)
    with torch.no_grad():
        difference = (small - method.network(small)).square().mean(dim=1)
    pictures = method.explain(images)
    upsampled = F.interpolate(difference[:, None], (32, 32), mode="bilinear")[:, 0]
    assert_close(pictures["difference"], upsampled)
    assert pictures["reconstruction"].shape == images.shape
    maps = method.predict(images).maps
    assert maps.std() < upsampled.std()
    assert float(maps.mean()) == pytest.approx(float(upsampled.mean()), rel=0.05)


# ---- Training ----


def stripes() -> Tensor:
    """Return eight images of diagonal stripes with different shifts and noise."""
    index, shifts = torch.arange(32.0), torch.arange(8.0)[:, None, None]
    waves = 0.5 + 0.3 * torch.sin((index[:, None] + index + 2 * shifts) * 2 * math.pi / 16)  # (8, 32, 32)
    return (waves[:, None] + 0.02 * torch.randn(8, 3, 32, 32, generator=Generator().manual_seed(0))).clamp(0, 1)


@pytest.mark.parametrize(("loss", "fraction"), [("l2", 0.25), ("ssim", 0.5)])
def test_it_reconstructs_stripes_better_than_a_constant_image(
    loss: str, fraction: float, fitted: Callable[..., Autoencoder]
) -> None:
    """The error of the best constant image is the variance for L2, and almost 1 for SSIM."""
    settings = replace(
        TINY, loss=loss, mode="texture", latent=16, stride=16, samples_per_epoch=64, batch_size=4, epochs=10
    )
    method, images = fitted(settings, images=stripes()), stripes()
    constant = images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)
    worst = (images - constant).square().mean() if loss == "l2" else (1 - ssim(images, constant)).mean()
    assert method.predict(images).maps.mean() < fraction * worst


def test_a_fit_depends_on_the_seed_and_not_on_the_global_generator(
    fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    images = random_images(seed=5)
    expected = fitted().predict(images).maps
    torch.manual_seed(123)
    assert torch.equal(fitted().predict(images).maps, expected)
    assert not torch.equal(fitted(setup=replace(SETUP, seed=1)).predict(images).maps, expected)


@pytest.mark.parametrize(
    "changes",
    [{"loss": "ssim"}, {"mode": "texture"}, {"flips": True}, {"output": "linear"}, {"downsample": 2},
     {"augment_probability": 0.5},     {"weight_decay": 1.0}, {"smoothing": 1.0}],
    ids=str,
)  # fmt: skip
def test_every_alternative_setting_changes_the_predictions(
    changes: dict[str, object], fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    maps = fitted(replace(TINY, **changes)).predict(random_images()).maps
    assert torch.isfinite(maps).all()
    assert not torch.equal(maps, fitted().predict(random_images()).maps)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_gives_similar_float32_maps(
    precision: str, fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    prediction = fitted(setup=replace(SETUP, precision=precision)).predict(random_images())
    expected = fitted().predict(random_images())
    assert prediction.maps.dtype == prediction.scores.dtype == torch.float32
    assert_close(prediction.maps, expected.maps, rtol=0.1, atol=0.1 * float(expected.maps.max()))


# ---- Errors ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 0}, "latent must be >= 1"),
        ({"stride": 17}, "stride must be at most the patch, 16, got 17"),
        ({"rotation": 181.0}, r"in \[0, 180\]"),
        ({"translation": 1.0}, r"in \[0, 1\)"),
        ({"augment_probability": 1.1}, r"in \[0, 1\]"),
        ({"smoothing": -1.0}, "smoothing must be in"),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, (40, 32), "multiples of 16, .* got 40 x 32"),
        ({}, (264, 256), "multiples of 32, because it is halved 5 times"),
        ({"mode": "texture", "patch": 24}, (32, 32), "got 24 x 24"),
        ({"mode": "texture", "patch": 48}, (32, 64), "got 48 for images of 32 x 64"),
        ({"mode": "texture", "downsample": 4}, (32, 32), "got 16 for images of 8 x 8"),
    ],
)
def test_sizes_that_do_not_fit_the_layers_raise_an_error_before_fit(
    changes: dict[str, object], size: tuple[int, int], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        Autoencoder(replace(TINY, **changes), replace(SETUP, size=size))


def test_an_unfitted_method_wrong_sizes_and_a_loss_of_nan_raise_errors(
    fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    with pytest.raises(BenchError, match=NOT_FITTED):
        Autoencoder(TINY, SETUP).predict(random_images())
    with pytest.raises(BenchError, match="must be 32 x 32 pixels as in training, got 64 x 64"):
        fitted().predict(random_images(1, (64, 64)))
    with pytest.raises(BenchError, match="The loss must be finite, got nan in epoch 1"):
        fitted(images=random_images() * math.nan)


@pytest.mark.parametrize("settings", [TINY, replace(TINY, mode="texture", loss="ssim")])
def test_the_estimated_memory_is_between_one_and_four_times_that_of_a_step(
    settings: Settings, fitted: Callable[..., Autoencoder], random_images: Callable[..., Tensor]
) -> None:
    setup = replace(SETUP, size=(64, 64))
    settings = replace(settings, patch=64, batch_size=8, samples_per_epoch=8)
    method, saved = fitted(replace(settings, epochs=1), setup), dict[int, int]()

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = random_images(8, (64, 64))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = method.difference(images, method.reconstruct(method.network, images)).mean()
    assert loss.requires_grad
    estimate = Autoencoder.estimate_memory(settings, (64, 64), 8)
    assert sum(saved.values()) < estimate < 4 * sum(saved.values())
