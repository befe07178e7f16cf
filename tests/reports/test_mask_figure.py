"""The figure "masks": which image and which masks it shows, of stored pictures that are made here."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench import registry
from bench.evaluation.summary import groups
from bench.report_format import Figure
from bench.reports.parts import picture_figures
from bench.reports.parts.picture_figures import StoredMasks, common_image
from bench.reports.parts.prediction_data import EXAMPLES, collect_figure_data
from bench.store import Store

Simulate = Callable[..., Store]

HALF = np.repeat(np.array([0, 255], np.uint8), 12)[:, None].repeat(24, axis=1)
"""A mask (24, 24) of the lower half."""


def save_with_masks(
    store: Store, title: str, mask_of: Callable[[int], NDArray[np.uint8]], names: Sequence[str] = EXAMPLES
) -> None:
    """Store the n-th example image of these names and its mask with each record of this title."""
    for record in [record for record in store.records() if record.run.title == title]:
        image = np.full((24, 24, 3), 128, np.uint8)
        pictures = {f"{name}.image": image for name in names}
        pictures |= {f"{name}.mask": mask_of(number) for number, name in enumerate(names)}
        store.save(record, store.predictions(record), pictures=pictures)


def mask_figures(store: Store) -> list[Figure]:
    members = groups(store.records())
    figure = picture_figures.mask_figure("parts · one-for-one", members, collect_figure_data(members, store), store)
    return [figure] if figure else []


def masks(images: dict[str, int], *, with_defect: bool = False) -> StoredMasks:
    """Return pictures of 2 x 2 pixels; each mask has one value."""
    return StoredMasks(
        images={file: np.zeros((2, 2, 3), np.uint8) for file in images},
        masks={file: np.full((2, 2), value, np.uint8) for file, value in images.items()},
        defects={file: np.ones((2, 2), bool) for file in images if with_defect},
    )


def test_the_figure_has_a_row_per_category_and_a_column_per_method_with_masks(simulate: Simulate) -> None:
    store = simulate(("bolt", "cap"), ("A", "B", "C"))
    assert mask_figures(store) == []
    save_with_masks(store, "A", lambda _: HALF)
    save_with_masks(store, "C", lambda _: HALF.T)
    all_figures = registry.report_content().draw_figures(list(store.records()), store, "")
    (figure,) = (figure for figure in all_figures if figure.kind == "masks")
    assert figure.name == "masks-parts-one-for-one"
    assert "white is masked" in figure.caption
    with Image.open(io.BytesIO(figure.files["png"])) as image:
        pixels = np.asarray(image.convert("L"))
    below_title = pixels[90:]
    assert 0.1 < np.mean(below_title < 5) < 0.4  # black halves of 4 masks
    svg = figure.files["svg"].decode()
    assert svg.count("<image") == 6  # of 2 categories: the image and two masks


def test_a_mask_that_is_equal_in_all_pictures_is_shown_for_any_image() -> None:
    assert np.array_equal(masks({"a": 255, "b": 255}).mask_of("c"), np.full((2, 2), 255))
    adaptive = masks({"a": 255, "b": 0})
    assert adaptive.mask_of("c") is None
    assert np.array_equal(adaptive.mask_of("b"), np.zeros((2, 2)))
    assert masks({"a": 255}).mask_of("c") is None  # one picture does not show that all are equal


def test_the_image_is_the_one_that_most_adaptive_methods_have() -> None:
    fixed = masks({"a": 9, "b": 9})
    assert common_image([fixed, masks({"b": 1, "c": 2}), masks({"c": 1, "d": 2}, with_defect=True)]) == "c"
    assert common_image([fixed, masks({"b": 1, "d": 2}), masks({"b": 3, "d": 4}, with_defect=True)]) == "b"
    assert common_image([masks({"a": 1, "b": 2}), masks({"b": 2, "c": 1}, with_defect=True)]) == "b"


def test_of_two_images_that_all_methods_have_the_defective_one_is_shown() -> None:
    both = [masks({"a": 1, "b": 2}), masks({"b": 1, "a": 2})]
    assert common_image(both) == "a"
    defective = replace(both[1], defects={"b": np.array([[True, False], [False, False]])})
    assert common_image([both[0], defective]) == "b"


def test_a_method_without_a_picture_of_the_image_has_an_empty_cell(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A", "B"))
    save_with_masks(store, "A", lambda number: np.roll(HALF, number), names=("worst", "good"))
    save_with_masks(store, "B", lambda number: np.roll(HALF, number), names=("best", "median"))
    (figure,) = mask_figures(store)
    assert figure.files["svg"].count(b"<image") == 2  # the image and the mask of one method
    save_with_masks(store, "B", lambda _: HALF, names=("best", "median"))
    (figure,) = mask_figures(store)
    assert figure.files["svg"].count(b"<image") == 3


@pytest.mark.parametrize("content", [b"no image", None])
def test_damaged_masks_are_omitted_and_logged(
    simulate: Simulate, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    store = simulate(("bolt",), ("A", "B"))
    save_with_masks(store, "A", lambda _: HALF)
    save_with_masks(store, "B", lambda _: HALF)
    record = next(record for record in store.records() if record.run.title == "A")
    paths = [path for name, path in store.pictures(record).items() if name.endswith(".mask")]
    for n_images, path in zip((3, 3, 3, 2), paths, strict=True):  # the image and one or two masks
        path.write_bytes(content) if content else path.unlink()
        (figure,) = mask_figures(store)
        assert figure.files["svg"].count(b"<image") == n_images
    assert "A picture of A" in caplog.text


def test_more_categories_than_rows_are_counted_in_the_caption(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_figures, "MAX_MASK_ROWS", 1)
    store = simulate(("bolt", "cap", "disc"), ("A",))
    save_with_masks(store, "A", lambda _: HALF)
    (figure,) = mask_figures(store)
    assert figure.caption.endswith("2 more categories are omitted.")


def test_oracle_records_are_not_shown(simulate: Simulate) -> None:
    store = simulate(("bolt",), ("A",))
    save_with_masks(store, "A", lambda _: HALF)
    for record in list(store.records()):
        store.save(replace(record, selection="oracle", eval_every=5), store.predictions(record))
    (figure,) = mask_figures(store)
    assert figure.files["svg"].count(b"<image") == 2
