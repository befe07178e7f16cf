"""Small copies of VisA, MPDD, KolektorSDD2, MVTec LOCO and MVTec 3D in their official layouts."""

import logging
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import registry
from bench.data.masks import sample_mask
from bench.dataset import Sample
from bench.errors import BenchError
from bench.method import Preprocessing

ksdd2 = import_module("bench.datasets.ksdd2")
mpdd = import_module("bench.datasets.mpdd")
mvtec_3d = import_module("bench.datasets.mvtec_3d")
mvtec_loco = import_module("bench.datasets.mvtec_loco")
visa = import_module("bench.datasets.visa")

ORIGINAL_SIZE = Preprocessing(height=4, width=6)


def create_images(root: Path, *names: str) -> None:
    for name in names:
        save(root / name, np.full((4, 6), 128, np.uint8))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def spot(row: int, value: int = 255) -> np.ndarray:
    """Return a black mask of 4 x 6 pixels with one pixel of this value in this row."""
    mask = np.zeros((4, 6), np.uint8)
    mask[row, 2] = value
    return mask


def listing(samples: list[Sample], root: Path) -> list[tuple[str, ...]]:
    return [
        (s.category, s.split, s.defect, str(s.image.relative_to(root)), *(str(m.relative_to(root)) for m in s.masks))
        for s in samples
    ]


def has_warning(caplog: pytest.LogCaptureFixture, start: str) -> bool:
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return any(message.startswith(start) for message in messages)


VISA = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0836.JPG,
candle,train,normal,candle/Data/Images/Normal/0451.JPG,
candle,test,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
"""


@pytest.fixture
def visa_root(tmp_path: Path) -> Path:
    create_images(tmp_path, *(f"candle/Data/Images/Normal/{name}.JPG" for name in ("0836", "0451", "0000")))
    create_images(tmp_path, "candle/Data/Images/Anomaly/000.JPG")
    save(tmp_path / "candle/Data/Masks/Anomaly/000.png", spot(1, value=3))
    (tmp_path / "candle/image_anno.csv").write_text("image,label,mask\n")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(VISA)
    return tmp_path


def test_visa_uses_its_one_class_split(visa_root: Path, caplog) -> None:
    assert listing(visa.samples(visa_root), visa_root) == [
        ("candle", "train", "good", "candle/Data/Images/Normal/0451.JPG"),
        ("candle", "train", "good", "candle/Data/Images/Normal/0836.JPG"),
        ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png"),
        ("candle", "test", "good", "candle/Data/Images/Normal/0000.JPG"),
    ]
    assert has_warning(caplog, "candle: expected 900 training, 100 good test and 100 defective test images; ")
    assert has_warning(caplog, "VisA: 11 of 12 categories are missing")


def test_a_class_index_in_a_visa_mask_is_a_defect(visa_root: Path) -> None:
    (defective,) = (sample for sample in visa.samples(visa_root) if sample.is_anomalous)
    assert np.argwhere(sample_mask(defective, ORIGINAL_SIZE).mask).tolist() == [[1, 2]]


def test_visa_warns_about_missing_images(visa_root: Path, caplog) -> None:
    (visa_root / "candle/Data/Images/Normal/0836.JPG").unlink()
    assert len(visa.samples(visa_root)) == 3
    assert has_warning(caplog, "VisA: 1 images of 1cls.csv are missing: candle/Data/Images/Normal/0836.JPG")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("object,split,label,image\ncandle,train,normal,a.JPG\n", "line 2 lacks one"),
        (VISA + "lamp,test,normal,candle/a.JPG,\n", "line 6 has lamp, test, normal"),
        (VISA + "candle,train,anomaly,candle/a.JPG,\n", "line 6 has an anomaly"),
        (VISA + "candle,train,normal,../../secret.JPG,\n", "got ../../secret.JPG"),
        ("object,split,label,image,mask\n", "needs training and test images"),
        ("\0\xff", "1cls.csv"),
    ],
)
def test_an_invalid_visa_table_is_an_error_with_its_line(visa_root: Path, table: str, message: str) -> None:
    (visa_root / "split_csv" / "1cls.csv").write_text(table)
    with pytest.raises(BenchError, match=message):
        visa.samples(visa_root)


def test_mpdd_has_the_layout_of_mvtec(tmp_path: Path) -> None:
    create_images(tmp_path, "connector/train/good/000.png", "connector/test/good/000.png")
    create_images(
        tmp_path, "connector/test/parts_mismatch/000.png", "connector/ground_truth/parts_mismatch/000_mask.png"
    )
    assert listing(mpdd.samples(tmp_path), tmp_path) == [
        ("connector", "train", "good", "connector/train/good/000.png"),
        ("connector", "test", "good", "connector/test/good/000.png"),
        ("connector", "test", "parts_mismatch", "connector/test/parts_mismatch/000.png",
         "connector/ground_truth/parts_mismatch/000_mask.png"),
    ]  # fmt: skip


def test_ksdd2_labels_come_from_masks_and_training_images_are_good(tmp_path: Path, caplog) -> None:
    for split, number, mask in (
        ("train", 10000, spot(0, 0)), ("train", 10001, spot(1)), ("test", 20000, spot(0, 0)), ("test", 20001, spot(2)),
    ):  # fmt: skip
        create_images(tmp_path, f"{split}/{number}.png")
        save(tmp_path / split / f"{number}_GT.png", mask)
    create_images(tmp_path, "train/10301 (copy).png", "train/10301_GT (copy).png", "test/20002.png")
    assert listing(ksdd2.samples(tmp_path), tmp_path) == [
        ("kolektorsdd2", "train", "good", "train/10000.png"),
        ("kolektorsdd2", "test", "defect", "test/20001.png", "test/20001_GT.png"),
        ("kolektorsdd2", "test", "good", "test/20000.png"),
    ]
    assert has_warning(caplog, "KolektorSDD2: 1 images of test/ have no mask")
    assert has_warning(caplog, "KolektorSDD2: 1 defective images of train/ are not used")
    assert has_warning(caplog, "kolektorsdd2: expected 2085 training, 894 good test and 110 defective test images; ")
    (tmp_path / "train" / "10000_GT.png").write_bytes(b"no image")
    with pytest.raises(BenchError, match=r"10000_GT\.png is not"):
        ksdd2.samples(tmp_path)


def test_mvtec_loco_uses_the_union_of_masks_and_warns_about_validation(tmp_path: Path, caplog) -> None:
    create_images(
        tmp_path, "pushpins/train/good/000.png", "pushpins/validation/good/000.png", "pushpins/test/good/000.png"
    )
    create_images(tmp_path, "pushpins/test/logical_anomalies/000.png", "pushpins/test/structural_anomalies/000.png")
    save(tmp_path / "pushpins/ground_truth/logical_anomalies/000/000.png", spot(0, 255))
    save(tmp_path / "pushpins/ground_truth/logical_anomalies/000/001.png", spot(3, 243))
    save(tmp_path / "pushpins/ground_truth/structural_anomalies/000/000.png", spot(2, 250))
    (tmp_path / "pushpins" / "defects_config.json").write_text("[]")
    samples = mvtec_loco.samples(tmp_path)
    truth = "pushpins/ground_truth/logical_anomalies/000"
    assert listing(samples, tmp_path) == [
        ("pushpins", "train", "good", "pushpins/train/good/000.png"),
        ("pushpins", "test", "good", "pushpins/test/good/000.png"),
        ("pushpins", "test", "logical_anomalies", "pushpins/test/logical_anomalies/000.png",
         f"{truth}/000.png", f"{truth}/001.png"),
        ("pushpins", "test", "structural_anomalies", "pushpins/test/structural_anomalies/000.png",
         "pushpins/ground_truth/structural_anomalies/000/000.png"),
    ]  # fmt: skip
    assert np.argwhere(sample_mask(samples[2], ORIGINAL_SIZE).mask).tolist() == [[0, 2], [3, 2]]
    assert has_warning(caplog, "MVTec LOCO AD: validation/ is not used (pushpins)")


def test_mvtec_3d_uses_color_images_and_their_masks(tmp_path: Path, caplog) -> None:
    create_images(tmp_path, *(f"tire/{split}/good/rgb/000.png" for split in ("train", "validation", "test")))
    create_images(tmp_path, "tire/test/good/gt/000.png", "tire/test/hole/rgb/000.png", "tire/test/hole/gt/000.png")
    create_images(tmp_path, "tire/test/cut/rgb/000.png", "tire/test/cut/gt/000.png", "tire/train/good/xyz/000.tiff")
    assert listing(mvtec_3d.samples(tmp_path), tmp_path) == [
        ("tire", "train", "good", "tire/train/good/rgb/000.png"),
        ("tire", "test", "cut", "tire/test/cut/rgb/000.png", "tire/test/cut/gt/000.png"),
        ("tire", "test", "good", "tire/test/good/rgb/000.png"),
        ("tire", "test", "hole", "tire/test/hole/rgb/000.png", "tire/test/hole/gt/000.png"),
    ]
    assert has_warning(caplog, "MVTec 3D-AD (color): validation/ is not used (tire)")
    assert mvtec_3d.samples(tmp_path / "tire")[0].category == "tire"


@pytest.mark.parametrize(
    ("module", "sums"),
    [
        (visa, (12, 8659, 962, 1200)),
        (mpdd, (6, 888, 176, 282)),
        (mvtec_loco, (5, 1778, 575, 993)),
        (mvtec_3d, (10, 2656, 249, 948)),
        (ksdd2, (1, 2085, 894, 110)),
    ],
)
def test_the_official_counts_have_the_published_sums(module, sums: tuple[int, ...]) -> None:
    assert (len(module.COUNTS), *map(sum, zip(*module.COUNTS.values(), strict=True))) == sums


@pytest.mark.parametrize("name", [name for name in registry.names("datasets") if name not in {"demo", "folder"}])
def test_the_error_for_a_missing_dataset_has_its_page_license_and_layout(name: str, tmp_path: Path) -> None:
    module = registry.load("datasets", name)
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BenchError) as error:
            module.samples(root)
        assert module.ABOUT in str(error.value)
        assert "--data DIR" in str(error.value)
    assert "https://" in module.ABOUT
    assert "CC BY" in module.ABOUT
