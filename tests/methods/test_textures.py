"""Textures of simulated defects: drawn ones, those of a folder, and each change of color."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.testing import assert_close

from bench.errors import BenchError
from bench.methods.parts import textures
from bench.methods.parts.textures import AUGMENTATIONS, TextureFolder, augment, draw_textures


def gradient(size: tuple[int, int] = (24, 32)) -> Tensor:
    rows, columns = (torch.linspace(0, 1, side) for side in size)
    return torch.stack([rows[:, None].expand(size), columns.expand(size), (rows[:, None] + columns) / 2])


def test_drawn_textures_are_images_that_differ_from_their_sources() -> None:
    sources = gradient().expand(12, -1, -1, -1)
    one, same = (draw_textures(sources, Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, same)
    assert one.shape == sources.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert ((one - sources).abs().mean(dim=(1, 2, 3)) > 0.02).all()
    assert len({float(texture.mean()) for texture in one}) == 12


@pytest.mark.parametrize("index", range(len(AUGMENTATIONS)))
def test_each_change_returns_another_image_of_the_same_size(index: int) -> None:
    image = textures._to_pillow(gradient() + 0.1 * torch.randn(3, 24, 32))
    generator = Generator().manual_seed(0)
    changed = [AUGMENTATIONS[index](image, generator) for _ in range(4)]
    assert all(one.size == image.size and one.mode == "RGB" for one in changed)
    assert any(one.tobytes() != image.tobytes() for one in changed)


def test_three_different_changes_are_applied_to_each_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[int] = []
    recorded = tuple(
        lambda image, generator, index=index: (applied.append(index), image)[1] for index in range(len(AUGMENTATIONS))
    )
    monkeypatch.setattr(textures, "AUGMENTATIONS", recorded)
    batch = gradient()[None].expand(20, -1, -1, -1)
    assert_close(augment(batch, Generator().manual_seed(0)), batch, rtol=0, atol=0.5 / 255 + 1e-6)
    triples = [applied[start : start + 3] for start in range(0, 60, 3)]
    assert all(len(set(triple)) == 3 for triple in triples)
    assert set(applied) == set(range(10))


def test_a_folder_gives_its_images_resized_and_a_hash_of_their_contents(tmp_path: Path) -> None:
    for number, level in enumerate((50, 200)):
        (tmp_path / str(number)).mkdir()
        Image.new("L", (10, 20), level).save(tmp_path / str(number) / "texture.png")
    folder = TextureFolder(tmp_path)
    loaded = folder.load(16, (4, 6), Generator().manual_seed(0))
    assert loaded.shape == (16, 3, 4, 6)
    assert {round(float(value) * 255) for value in loaded.flatten()} == {50, 200}
    before = folder.sha256()
    Image.new("L", (10, 20), 60).save(tmp_path / "0" / "texture.png")
    assert TextureFolder(tmp_path).sha256() != before


def test_a_folder_without_images_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="must be a folder with images"):
        TextureFolder(tmp_path)
