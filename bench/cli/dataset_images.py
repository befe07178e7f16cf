"""Test images for reports: read from the folders of the datasets and preprocessed as for the methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bench import registry
from bench.data.decoding import decode, file_errors
from bench.data.fingerprint import category_fingerprints
from bench.data.preprocessing import preprocess
from bench.data.value_range import stored_value_range
from bench.dataset import Sample
from bench.errors import BenchError
from bench.preprocessing import Preprocessing
from bench.record import Record

OWN_IMAGES = "folder"
"""The dataset of own images; a record names it "folder-" and the name of the folder."""


@dataclass(frozen=True, slots=True)
class _Dataset:
    """The test images of a dataset by `Sample.id`, and the fingerprints of its categories."""

    samples: Mapping[str, Sample]
    fingerprints: Mapping[str, str]


class DatasetImages:
    """Reads the test images of records; several threads may call it.

    Implements `bench.report_format.ImageSource`.

    Args:
        folders: folders of datasets by the name in the record.
        layout: layout of own images; "" is the default layout.
    """

    def __init__(self, folders: Mapping[str, Path], layout: str = "") -> None:
        # Listed here, because a plug-in must not run in several threads.
        self._datasets = {name: _list_samples(name, folder, layout) for name, folder in folders.items()}

    def __call__(self, record: Record, file: str) -> Image.Image | str:
        """Return a test image at the size of the input, or the reason why it is missing."""
        name, category = record.run.dataset, record.category
        dataset = self._datasets[name]
        if isinstance(dataset, str):
            return dataset
        if dataset.fingerprints.get(category) != record.run.data_fingerprints.get(category):
            return f"the images of {category} in the folder of {name} are not those of the record"
        if file not in dataset.samples:
            return f"the folder of {name} does not contain it"
        path = dataset.samples[file].image
        try:
            preprocessing = stored_value_range(Preprocessing.from_record(record.run.preprocessing), record.data_report)
            with file_errors(path, "An image"):
                return preprocess(decode(path, preprocessing), preprocessing)
        except BenchError as error:
            return f"it cannot be read: {error}"


def _list_samples(name: str, folder: Path, layout: str) -> _Dataset | str:
    """Return the dataset of this name in records, or the reason why it cannot be listed."""
    if not folder.is_dir():
        return f"the folder of {name} is not known; `bench report --data DIR` names it"
    is_own = name.startswith(f"{OWN_IMAGES}-")
    module_name = OWN_IMAGES if is_own else name
    try:
        module = registry.load("datasets", module_name)
        with registry.plugin_call("datasets", module_name):
            samples = list(module.samples(folder, layout) if is_own and layout else module.samples(folder))
    except BenchError as error:
        return f"the folder of {name} cannot be listed: {error}"
    tests = {sample.id: sample for sample in samples if sample.split == "test"}
    return _Dataset(tests, category_fingerprints(samples))
