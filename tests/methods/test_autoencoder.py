"""AE and AE-SSIM: their layers by hand, what they see, how patches are joined, and that they learn."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import NOT_FITTED, Setup
from bench.methods.autoencoder import Autoencoder, Settings, _network, _starts, _walk
from bench.methods.parts.similarity import ssim

CPU = torch.device("cpu")
SETUP = Setup((32, 32), CPU, seed=0)
TINY = Settings(latent=4, samples=4, epochs=2, batch=2, patch=16, stride=8, lr=1e-3)


class Pictures:
    """Good images in memory."""

    digest = "pictures"

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Tensor]:
        yield from (self.images if order is None else self.images[order]).split(size)


def pictures(count: int = 3, size: tuple[int, int] = (32, 32), seed: int = 1) -> Tensor:
    return torch.rand(count, 3, *size, generator=Generator().manual_seed(seed))


def fitted(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> Autoencoder:
    method = Autoencoder(settings, setup)
    method.fit(Pictures(pictures(size=setup.size) if images is None else images), lambda *_: None)
    return method


# ---- The network ----

AT_128 = [  # what each convolution gives, from the image to the latent numbers and back
    (32, 64, 64), (32, 32, 32), (32, 32, 32), (64, 16, 16), (64, 16, 16), (128, 8, 8), (64, 8, 8), (32, 8, 8),
    (100, 1, 1), (32, 8, 8), (64, 8, 8), (128, 8, 8), (64, 16, 16), (64, 16, 16), (32, 32, 32), (32, 32, 32),
    (32, 64, 64), (3, 128, 128),
]  # fmt: skip
AT_256 = [(32, 128, 128), (32, 64, 64), *AT_128[1:-2], (32, 64, 64), (32, 128, 128), (3, 256, 256)]


@pytest.mark.parametrize(
    ("side", "shapes", "weights"),
    [
        # Weights and biases from the image to the latent numbers: 1,568 + 16,416 + 9,248 + 32,832 + 36,928 + 131,200
        # + 73,792 + 18,464 + 204,900; and back: 204,832 + 18,496 + 73,856 + 131,136 + 36,928 + 32,800 + 9,248 + 16,416
        # + 1,539.
        (128, AT_128, 525_348 + 525_251),
        (256, AT_256, 525_348 + 525_251 + 2 * 16_416),  # one more 4 x 4 convolution of 32 channels each way
    ],
)
def test_the_layers_are_those_of_the_paper(side: int, shapes: list[tuple[int, ...]], weights: int) -> None:
    network, found = _network(Settings(), (side, side), "meta"), []
    maps = torch.empty(1, 3, side, side, device="meta")
    for layer in network:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            found.append(tuple(maps.shape[1:]))
    assert found == shapes
    assert sum(parameter.numel() for parameter in network.parameters()) == weights
    kinds = [type(layer).__name__ for layer in network]
    slopes = [layer.negative_slope for layer in network if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * (len(shapes) - 2)  # behind all but the latent numbers and the image
    latent = next(i for i, layer in enumerate(network) if getattr(layer, "out_channels", 0) == 100)
    assert kinds[latent + 1] == "ConvTranspose2d"
    assert kinds[-1] == "Sigmoid"


def test_facts_count_the_weights_that_are_learned() -> None:
    method = Autoencoder(replace(TINY, mode="texture"), SETUP)
    assert method.facts() == {
        "trainable_parameters": sum(p.numel() for p in _network(TINY, (16, 16), "cpu").parameters()),
        "mode": "texture", "seen_pixels": 256,
    }  # fmt: skip


# ---- Texture mode: patches and how they are joined ----


def test_patches_cover_a_side_and_the_last_one_ends_with_it() -> None:
    assert _starts(10, 4, 3) == [0, 3, 6]
    assert _starts(11, 4, 3) == [0, 3, 6, 7]
    assert _starts(4, 4, 3) == [0]
    assert _starts(256, 128, 30) == [0, 30, 60, 90, 120, 128]


def test_overlapping_patches_are_averaged_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that numbers the patches it is given: 0 to 3 over columns 0, 8 and rows 0, 8 of 24 x 24 pixels."""
    method = Autoencoder(replace(TINY, mode="texture"), replace(SETUP, size=(24, 24)))
    number = torch.arange(4.0).view(4, 1, 1, 1)
    monkeypatch.setattr(method, "_pass", lambda _network, windows: number.expand_as(windows))
    joined = method._joined(nn.Sequential(), torch.zeros(1, 3, 24, 24))
    by_hand = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]])  # of each 8 x 8 square
    assert torch.equal(joined, by_hand.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, 24, 24))


@pytest.mark.parametrize("size", [(40, 32), (35, 51)])
def test_texture_is_put_together_as_a_slow_loop_does(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.methods.autoencoder.WINDOWS", 5)  # so that patches come in several batches
    setup = replace(SETUP, size=size)
    method = fitted(replace(TINY, mode="texture", stride=7), setup)
    images = pictures(2, size, seed=5)
    total, count = torch.zeros_like(images), torch.zeros(size)
    for top in [*range(0, size[0] - 16, 7), size[0] - 16]:
        for left in [*range(0, size[1] - 16, 7), size[1] - 16]:
            with torch.no_grad():
                restored = method._network(images[:, :, top : top + 16, left : left + 16])
            total[:, :, top : top + 16, left : left + 16] += restored
            count[top : top + 16, left : left + 16] += 1
    assert count.min() == 1
    assert_close(method.predict(images).maps, (images - total / count).square().mean(dim=1), rtol=1e-4, atol=1e-6)


def test_training_patches_are_cut_from_the_image_and_lie_anywhere_in_it() -> None:
    rows, columns = torch.arange(32.0)[:, None] / 64, torch.arange(32.0) / 64
    image = torch.stack([rows.expand(32, 32), columns.expand(32, 32), torch.zeros(32, 32)])  # tells where it is
    method = Autoencoder(replace(TINY, mode="texture", rotation=0.0), SETUP)
    views = method._augmented(image.expand(400, -1, -1, -1).contiguous(), Generator().manual_seed(0))
    tops, lefts = (views[:, axis, 0, 0] * 64 for axis in (0, 1))
    for starts in (tops, lefts):  # whole pixels, every place from the first to the last that fits
        assert_close(starts, starts.round(), rtol=0, atol=1e-3)
        assert starts.round().unique().tolist() == list(range(17))
    for view, top, left in zip(views, tops.round().int(), lefts.round().int(), strict=True):
        assert_close(view, image[:, top : top + 16, left : left + 16], rtol=0, atol=1e-5)


# ---- Object mode: how images are turned and shifted ----


def test_without_augmentation_the_image_is_seen_as_it_is() -> None:
    images = pictures()
    for calm in ({"rotation": 0.0, "translation": 0.0}, {"chance": 0.0, "flips": True}):
        views = Autoencoder(replace(TINY, **calm), SETUP)._augmented(images, Generator())
        assert_close(views, images, rtol=0, atol=1e-5)


def test_shifts_are_whole_pixels_up_to_the_setting_and_mirrored_beyond_the_edge() -> None:
    images = pictures(1).expand(600, -1, -1, -1).contiguous()
    method = Autoencoder(replace(TINY, rotation=0.0, translation=0.1), SETUP)  # 3 of 32 pixels
    views = method._augmented(images, Generator().manual_seed(0))
    mirrored = F.pad(images[:1], (3, 3, 3, 3), mode="replicate")
    mirrored[..., :3, :], mirrored[..., -3:, :] = mirrored[..., 3:6, :].flip(2), mirrored[..., -6:-3, :].flip(2)
    mirrored[..., :3], mirrored[..., -3:] = mirrored[..., 3:6].flip(3), mirrored[..., -6:-3].flip(3)
    places = {
        (down, across): mirrored[0, :, down : down + 32, across : across + 32]
        for down in range(7) for across in range(7)
    }  # fmt: skip
    found = [
        next((place for place, shown in places.items() if (view - shown).abs().max() < 1e-4), None) for view in views
    ]
    assert None not in found
    assert len(set(found)) == 49  # every shift by -3 to 3 pixels down and across has come


def test_a_turn_is_about_the_middle_and_as_large_as_the_setting_at_most() -> None:
    columns, rows = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="xy")
    image = torch.stack([columns, rows, torch.zeros_like(rows)]) / 64
    method = Autoencoder(replace(TINY, rotation=90.0, translation=0.0), replace(SETUP, size=(48, 48)))
    method._seen = (33, 33)
    views = method._augmented(image.expand(300, -1, -1, -1).contiguous(), Generator().manual_seed(0)) * 64
    assert_close(views[:, :, 16, 16], torch.zeros(300, 3), rtol=0, atol=1e-3)  # the middle stays
    arm = views[:, :2, 16, 26]  # 10 pixels to the right of the middle
    assert_close(arm.norm(dim=1), torch.full((300,), 10.0), rtol=0, atol=1e-2)
    angles = torch.rad2deg(torch.atan2(arm[:, 1], arm[:, 0]))
    assert -90.5 < angles.min() < -85
    assert 85 < angles.max() < 90.5
    assert angles.abs().min() < 3


def test_flips_come_half_of_the_time_at_most_in_each_direction() -> None:
    images = pictures(1).expand(400, -1, -1, -1).contiguous()
    method = Autoencoder(replace(TINY, rotation=0.0, translation=0.0, flips=True, chance=0.5), SETUP)
    views = method._augmented(images, Generator().manual_seed(0))
    kinds = [images[0], images[0].flip(1), images[0].flip(2), images[0].flip(1, 2)]
    counts = [sum(bool((view - kind).abs().max() < 1e-4) for view in views) for kind in kinds]
    assert sum(counts) == 400
    assert all(70 < count < 130 for count in counts)  # 100 each, with a standard deviation of 8.7


def test_every_image_is_seen_as_often_as_any_other_but_for_once() -> None:
    order = _walk(5, 13, Generator().manual_seed(0))
    assert len(order) == 13
    assert sorted(order.bincount(minlength=5).tolist()) == [2, 2, 3, 3, 3]
    assert sorted(order[:5].tolist()) == list(range(5))


# ---- The measure, which is loss and map ----


@pytest.mark.parametrize("loss", ["l2", "ssim"])
@pytest.mark.parametrize("mode", ["object", "texture"])
def test_the_loss_is_the_sum_of_the_map_over_an_image(loss: str, mode: str) -> None:
    """With one patch that is the whole image, nothing augmented and no learning, the two must be the same number."""
    calm = {"rotation": 0.0, "translation": 0.0, "lr": 1e-30, "weight_decay": 0.0}
    settings = replace(TINY, loss=loss, mode=mode, patch=32, samples=3, batch=3, epochs=1, **calm)
    told: list[float | None] = []
    method = Autoencoder(settings, SETUP)
    method.fit(Pictures(pictures()), lambda _done, _total, value: told.append(value))
    assert told == [pytest.approx(float(method.predict(pictures()).maps.sum(dim=(1, 2)).mean()), rel=1e-4)]


@pytest.mark.parametrize("loss", ["l2", "ssim"])
def test_the_map_is_the_measure_averaged_over_colours_and_the_score_its_largest_value(loss: str) -> None:
    method, images = fitted(replace(TINY, loss=loss)), pictures(seed=4)
    restored = method.explain(images)["reconstruction"]
    expected = (images - restored).square() if loss == "l2" else 1 - ssim(images, restored)
    found = method.predict(images)
    assert_close(found.maps, expected.mean(dim=1))
    assert torch.equal(found.scores, found.maps.amax(dim=(1, 2)))
    assert_close(method.explain(images)["difference"], found.maps)


def test_smoothing_and_a_smaller_image_leave_the_map_at_full_size() -> None:
    method, images = fitted(replace(TINY, reduce=2, smoothing=2.0)), pictures(seed=4)
    small = F.avg_pool2d(images, 2)
    with torch.no_grad():
        unlike = (small - method._network(small)).square().mean(dim=1)
    told = method.explain(images)
    enlarged = F.interpolate(unlike[:, None], (32, 32), mode="bilinear")[:, 0]
    assert_close(told["difference"], enlarged)
    assert told["reconstruction"].shape == images.shape
    found = method.predict(images).maps
    assert found.std() < enlarged.std()
    assert float(found.mean()) == pytest.approx(float(enlarged.mean()), rel=0.05)


# ---- Fitting ----


def stripes() -> Tensor:
    """Eight pictures of diagonal stripes, each shifted otherwise, with a little noise."""
    places, shifts = torch.arange(32.0), torch.arange(8.0)[:, None, None]
    waves = 0.5 + 0.3 * torch.sin((places[:, None] + places + 2 * shifts) * 2 * math.pi / 16)  # (8, 32, 32)
    return (waves[:, None] + 0.02 * torch.randn(8, 3, 32, 32, generator=Generator().manual_seed(0))).clamp(0, 1)


@pytest.mark.parametrize(("loss", "part"), [("l2", 0.25), ("ssim", 0.5)])
def test_it_gives_back_stripes_far_better_than_grey_would_be(loss: str, part: float) -> None:
    """The best grey misses the variance by L2 and nearly 1 by SSIM, whose mean, unlike its sum, teaches nothing."""
    settings = replace(TINY, loss=loss, mode="texture", latent=16, stride=16, samples=64, batch=4, epochs=10)
    method, images = fitted(settings, images=stripes()), stripes()
    grey = images.mean(dim=(1, 2, 3), keepdim=True).expand_as(images)
    worst = (images - grey).square().mean() if loss == "l2" else (1 - ssim(images, grey)).mean()
    missed = method.predict(images).maps.mean()
    assert missed < part * worst


def test_the_seed_decides_all_and_the_global_generator_nothing() -> None:
    images = pictures(seed=5)
    usual = fitted().predict(images).maps
    torch.manual_seed(123)
    assert torch.equal(fitted().predict(images).maps, usual)
    assert not torch.equal(fitted(setup=replace(SETUP, seed=1)).predict(images).maps, usual)


@pytest.mark.parametrize(
    "changes",
    [{"loss": "ssim"}, {"mode": "texture"}, {"flips": True}, {"output": "linear"}, {"reduce": 2}, {"chance": 0.5},
     {"weight_decay": 1.0}, {"smoothing": 1.0}],
    ids=str,
)  # fmt: skip
def test_every_alternative_fits_and_answers_otherwise(changes: dict[str, object]) -> None:
    found, usual = fitted(replace(TINY, **changes)).predict(pictures()), fitted().predict(pictures())
    assert torch.isfinite(found.maps).all()
    assert not torch.equal(found.maps, usual.maps)


def test_state_gives_the_same_answers_back_and_other_settings_are_refused() -> None:
    method, other = fitted(), Autoencoder(TINY, SETUP)
    other.restore(method.state())
    assert torch.equal(other.predict(pictures()).maps, method.predict(pictures()).maps)
    with pytest.raises(BenchError, match="needs the settings that it was fitted with"):
        Autoencoder(replace(TINY, latent=5), SETUP).restore(method.state())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_answers_much_the_same_in_float32(precision: str) -> None:
    found, usual = fitted(setup=replace(SETUP, precision=precision)).predict(pictures()), fitted().predict(pictures())
    assert found.maps.dtype == found.scores.dtype == torch.float32
    assert_close(found.maps, usual.maps, rtol=0.1, atol=0.1 * float(usual.maps.max()))


# ---- What is refused ----


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"latent": 0}, "1 or more"), ({"stride": 17}, "its patch, 16; 17 came"), ({"rotation": 181.0}, "0 to 180"),
        ({"translation": 1.0}, "below 1"), ({"chance": 1.1}, "0 to 1"), ({"smoothing": -1.0}, "0 or more"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(BenchError, match=rule):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "size", "rule"),
    [
        ({}, (40, 32), "16 divides height and width; 40 x 32"),
        ({}, (264, 256), "halves what it sees 5 times, so 32 divides"),
        ({"mode": "texture", "patch": 24}, (32, 32), "24 x 24 can't be halved"),
        ({"mode": "texture", "patch": 48}, (32, 64), "48 x 48 pixels don't in 32 x 64"),
        ({"mode": "texture", "reduce": 4}, (32, 32), "16 x 16 pixels don't in 8 x 8"),
    ],
)
def test_sizes_that_do_not_come_out_even_are_refused_before_fitting(
    changes: dict[str, object], size: tuple[int, int], rule: str
) -> None:
    with pytest.raises(BenchError, match=rule):
        Autoencoder(replace(TINY, **changes), replace(SETUP, size=size))


def test_before_fit_at_another_size_and_at_a_loss_without_end_it_says_so() -> None:
    with pytest.raises(BenchError, match=NOT_FITTED):
        Autoencoder(TINY, SETUP).predict(pictures())
    with pytest.raises(BenchError, match=r"\(32, 32\) pixels; \(64, 64\) came"):
        fitted().predict(pictures(1, (64, 64)))
    with pytest.raises(BenchError, match=r"A loss must be finite; the autoencoder's is nan"):
        fitted(images=pictures() * math.nan)


@pytest.mark.parametrize("settings", [TINY, replace(TINY, mode="texture", loss="ssim")])
def test_the_memory_told_is_enough_for_what_a_step_keeps_and_not_many_times_it(settings: Settings) -> None:
    setup = replace(SETUP, size=(64, 64))
    settings = replace(settings, patch=64, batch=8, samples=8)
    method, kept = fitted(replace(settings, epochs=1), setup), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = pictures(8, (64, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = method._unlike(images, method._pass(method._network, images)).mean()
    assert loss.requires_grad
    told = Autoencoder.memory(settings, (64, 64), images=8)
    assert sum(kept.values()) < told < 4 * sum(kept.values())
