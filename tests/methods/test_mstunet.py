from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.mstunet import MSTUnet, Settings, focal_loss
from bench.methods.parts.similarity import ssim
from bench.methods.parts.swin_unet import PatchExpanding, SwinUNet

SETUP = Setup((32, 64), torch.device("cpu"), seed=0)
TINY = Settings(
    cell=8, width=8, depths=(1, 1), heads=(1, 2), window=4, localizer_width=2, epochs=2, batch_size=2, lr=1e-3,
    score_window=5,
)  # fmt: skip
SWIN = {"patch": 4, "width": 8, "depths": (2, 1), "heads": (2, 4), "window": 4}


def pictures(count: int = 3, seed: int = 1, size: tuple[int, int] = (32, 64)) -> Tensor:
    return torch.rand(count, 3, *size, generator=Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fit(in_memory: Any) -> Callable[..., MSTUnet]:
    def fitted(settings: Settings = TINY, setup: Setup = SETUP, images: Tensor | None = None) -> MSTUnet:
        method = MSTUnet(settings, setup)
        method.fit(in_memory(pictures(4) if images is None else images), lambda *_: None)
        return method

    return fitted


@pytest.fixture(scope="module")
def tiny(fit: Callable[..., MSTUnet]) -> MSTUnet:
    return fit()


# ---- The Swin U-Net ----


def test_patches_are_expanded_to_squares_of_positions() -> None:
    expanding, maps = PatchExpanding(3, 2, 4), torch.rand(1, 2, 5, 3)
    expanded = expanding(maps)
    assert expanded.shape == (1, 4, 10, 4)
    values = expanding.expand.weight @ maps[0, 1, 3]  # of one position, (16,)
    square = torch.stack([expanded[0, 2, 6], expanded[0, 2, 7], expanded[0, 3, 6], expanded[0, 3, 7]])
    assert_close(square, F.layer_norm(values.view(4, 4), (4,)))


def test_default_size_has_as_many_parameters_as_stated() -> None:
    with torch.device("meta"):
        network = SwinUNet((256, 256), patch=4, width=96, depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=8)
    assert sum(parameter.numel() for parameter in network.parameters()) == 27_174_183
    assert network(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 3, 256, 256)


def test_second_blocks_shift_their_windows_unless_one_window_covers_the_grid() -> None:
    network = SwinUNet((64, 64), **SWIN)
    assert [block.shift_size for block in network.encoder[0]] == [(0, 0), (2, 2)]
    assert SwinUNet((32, 32), **(SWIN | {"depths": (1, 2)})).encoder[1][1].shift_size == (0, 0)


def test_encoder_output_reaches_the_decoder_by_the_skip_connection() -> None:
    network, images = SwinUNet((32, 32), **SWIN), torch.rand(1, 3, 32, 32)
    torch.nn.init.zeros_(network.expanding[0].norm.weight)  # nothing comes from the coarser stage
    assert (network(images) - network(images + 1)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 5}, "multiples of 10"),
        ({"heads": (3, 4)}, "divisor of its width"),
        ({"heads": (2,)}, "heads per stage"),
    ],
)
def test_sizes_that_do_not_fit_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        SwinUNet((32, 32), **(SWIN | changes))


# ---- Defects, masks and losses ----


def test_simulated_defects_change_masked_pixels_only(tiny: MSTUnet) -> None:
    images, sources = pictures(8), pictures(8, seed=2)
    clean, defective, defects = tiny.make_defects(images, sources, Generator().manual_seed(0))
    assert torch.equal(clean, images)
    assert torch.equal(torch.where(defects[:, None], clean, defective), clean)
    assert (defective != clean).any(dim=1)[defects].float().mean() > 0.9
    assert 0 < defects.flatten(1).any(dim=1).float().mean() < 1  # some images stay clean


def test_clean_fraction_and_opacity_are_followed() -> None:
    images, sources = pictures(6), pictures(6, seed=2)
    simulate = lambda **changes: MSTUnet(replace(TINY, **changes), SETUP).make_defects(
        images, sources, Generator().manual_seed(1)
    )
    assert not simulate(clean_fraction=1.0)[2].any()
    opaque, defects = simulate(clean_fraction=0.0, opacity=(1.0, 1.0))[1:]
    assert defects.any()
    assert_close(opaque, images)  # the image's share in a defect is 1


def test_random_masks_hide_squares_of_a_fraction_within_the_range(tiny: MSTUnet) -> None:
    masks = tiny.random_masks(50, Generator().manual_seed(0))
    cells = masks.view(50, 4, 8, 8, 8)
    assert torch.equal(cells.amax(dim=(2, 4)), cells.amin(dim=(2, 4)))
    fractions = masks.float().mean(dim=(1, 2))
    assert 0.25 <= fractions.min() < 0.3
    assert 0.45 < fractions.max() <= 0.5 + 1 / 32


def test_focal_loss_equals_the_definition() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[1.0, -1.0]]]])  # (1, 2, 1, 2)
    p = logits.softmax(dim=1)[0, :, 0]
    true = torch.stack([p[1, 0], p[0, 1]])  # a defect, a good pixel
    expected = -((1 - true) ** 2 * true.log()).mean()
    assert_close(focal_loss(logits, torch.tensor([[[True, False]]])), expected)


def test_losses_are_those_of_the_inpainted_image_and_of_the_defects(tiny: MSTUnet) -> None:
    clean, defective, defects = tiny.make_defects(pictures(2), pictures(2, seed=2), Generator().manual_seed(3))
    masks = tiny.random_masks(2, Generator().manual_seed(4))
    networks = tiny.inpainter, tiny.localizer
    with torch.no_grad():
        losses = tiny.losses(*networks, clean, defective, defects, masks=masks)
        restored = networks[0](defective * ~masks[:, None]).contiguous()
        logits = networks[1](torch.cat([restored, defective], dim=1))
    assert_close(losses["mse"], (restored - clean).square().mean())
    assert_close(losses["ssim"], 1 - ssim(clean, restored).mean())
    assert_close(losses["total"], losses["mse"] + losses["ssim"] + focal_loss(logits, defects))


# ---- Predictions ----


def test_complementary_passes_are_combined_from_what_each_hid(tiny: MSTUnet) -> None:
    images = pictures(2)
    assert torch.equal(tiny.test_masks[0], ~tiny.test_masks[1])
    with torch.no_grad():
        restored, maps = tiny.restore_and_localize(images)
        expected = torch.zeros_like(images)
        for i, image in enumerate(images):
            for mask in tiny.test_masks:
                expected[i] += mask * tiny.inpainter((image * ~mask)[None])[0]
        logits = tiny.localizer(torch.cat([expected, images], dim=1))
    assert_close(restored, expected, rtol=1e-4, atol=1e-5)
    assert_close(maps, logits.softmax(dim=1)[:, 1], rtol=1e-4, atol=1e-5)


def test_an_inpainted_pixel_does_not_depend_on_its_own_value(tiny: MSTUnet) -> None:
    images = pictures(1).requires_grad_()
    restored = tiny.inpainter(images * ~tiny.test_masks[:1, None])
    (restored * tiny.test_masks[:1, None]).sum().backward()
    assert not images.grad[0, :, tiny.test_masks[0]].any()
    assert images.grad[0, :, ~tiny.test_masks[0]].any()


def test_score_is_the_maximum_of_the_mean_over_windows(tiny: MSTUnet) -> None:
    prediction = tiny.predict(pictures())
    means = F.avg_pool2d(prediction.maps[:, None], 5, stride=1, padding=2)
    assert_close(prediction.scores, means.amax(dim=(1, 2, 3)))
    assert prediction.maps.min() >= 0
    assert prediction.maps.max() <= 1


# ---- The method ----


def test_training_reduces_the_loss_and_depends_on_the_seed_alone(in_memory: Any) -> None:
    losses: list[float] = []
    method = MSTUnet(replace(TINY, epochs=10, lr=5e-3), SETUP)
    method.fit(in_memory(pictures(4)), lambda _done, _total, loss: losses.append(loss or 0))
    assert losses[-1] < 0.9 * losses[0]
    before = method.predict(pictures(1)).maps
    torch.manual_seed(9)
    method.fit(in_memory(pictures(4)), lambda *_: None)
    assert torch.equal(method.predict(pictures(1)).maps, before)


@pytest.mark.parametrize(
    "changes",
    [{"mask_at_test": "none"}, {"test_seed": 1}, {"cell": 16}, {"mask_ratio": (0.5, 0.5)}, {"opacity": (0.9, 1.0)},
     {"clean_fraction": 0.0}, {"perlin_threshold": 0.1}, {"ssim_weight": 0.0}, {"focal_weight": 10.0},
     {"lr_drop_epochs": (1,)}, {"window": 2}, {"depths": (1, 2)}],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_maps(tiny: MSTUnet, fit: Callable[..., MSTUnet], changes: dict[str, Any]) -> None:
    maps = fit(replace(TINY, **changes)).predict(pictures()).maps
    assert maps.shape == (3, 32, 64)
    assert torch.isfinite(maps).all()
    assert not torch.equal(maps, tiny.predict(pictures()).maps)


def test_textures_of_a_folder_are_used_and_hashed(tiny: MSTUnet, fit: Callable[..., MSTUnet], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    settings = replace(TINY, textures=str(tmp_path))
    method = fit(settings)
    assert not torch.equal(method.predict(pictures()).maps, tiny.predict(pictures()).maps)
    assert MSTUnet.file_hashes(settings, None).keys() == {"textures"}
    assert MSTUnet.file_hashes(TINY, None) == {}
    assert (method.info()["texture_source"], tiny.info()["texture_source"]) == ("folder", "generated")


def test_downsampled_maps_and_pictures_have_the_size_of_the_images(fit: Callable[..., MSTUnet]) -> None:
    size = (64, 64)
    method = fit(replace(TINY, downsample=2), replace(SETUP, size=size), pictures(2, size=size))
    assert method.predict(pictures(1, size=size)).maps.shape == (1, *size)
    assert {picture.shape[-2:] for picture in method.explain(pictures(2, size=size)).values()} == {size}


def test_explain_shows_mask_inpainted_image_and_a_simulated_defect(tiny: MSTUnet) -> None:
    explanation, images = tiny.explain(pictures(2)), pictures(2)
    defects = explanation["mask of the simulated defect"].bool()
    defective = explanation["simulated defect"]
    assert torch.equal(torch.where(defects[:, None], images, defective), images)
    assert torch.equal(explanation["mask"][0].bool(), tiny.test_masks[0])
    assert explanation["inpainted"].shape == (2, 3, 32, 64)


def test_half_precision_gives_similar_maps(fit: Callable[..., MSTUnet], tiny: MSTUnet) -> None:
    maps = fit(setup=replace(SETUP, precision="bfloat16")).predict(pictures()).maps
    assert maps.dtype == torch.float32
    assert (maps - tiny.predict(pictures()).maps).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 0}, "width must be >= 1"), ({"textures": ""}, "must be a folder"), ({"downsample": 2}, "of 64"),
     ({"opacity": (0.5, 0.1)}, "must be a range"), ({"mask_ratio": (0.5, 1.0)}, "must be a range"),
     ({"depths": (2,)}, "two or more"), ({"score_window": 4}, "odd"), ({"heads": (3, 4)}, "divisor of its width")],
    ids=str,
)  # fmt: skip
def test_settings_that_contradict_each_other_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        MSTUnet(replace(TINY, **changes), SETUP)


def test_memory_grows_with_width_and_batch() -> None:
    small = MSTUnet.estimate_memory(TINY, (32, 64), 1)
    assert small < MSTUnet.estimate_memory(TINY, (32, 64), 2)
    assert small < MSTUnet.estimate_memory(replace(TINY, width=16), (32, 64), 1)
