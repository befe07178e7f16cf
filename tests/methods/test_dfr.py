"""DFR against the reference data, PCA by scikit-learn, and regional features by plain resizing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.dfr import DFR, Settings, autoencoder, to_rows
from bench.methods.parts.features import FrozenFeatures
from bench.methods.parts.regional_features import ReflectedVGG, regional_features, tapped_backbone

SETUP = Setup((64, 64), torch.device("cpu"), seed=0)
SETTINGS = Settings(backbone="tf_efficientnet_lite0")  # of the reference data
TINY = replace(SETTINGS, cell=8, epochs=3, latent=8)
Reference = dict[str, Tensor]
LoadShapes = Callable[[str, str], list[tuple[str, tuple[int, ...]]]]


@pytest.fixture(scope="module")
def reference(load_reference: Callable[[str], Reference]) -> Reference:
    return load_reference("dfr")


@pytest.fixture
def method(load_shapes: LoadShapes, by_rule: Callable[..., Tensor]) -> DFR:
    """The method with the weights of the reference data."""
    network = autoencoder(192, 16)
    entries = enumerate(load_shapes("dfr", "param"))
    tensors = [
        by_rule(name, shape, j).flatten(1) if len(shape) > 1 else by_rule(name, shape, j)
        for j, (name, shape) in entries
    ]
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(keys, tensors, strict=True)), strict=False)
    method = DFR(SETTINGS, SETUP)
    method.network = network.eval()
    return method


# ---- The reference data: numbers computed with the authors' code ----


def test_regional_features_equal_the_reference(
    method: DFR, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    assert_relative(method.extract(reference["test"]), reference["features_test"])
    assert_relative(method.extract(reference["train"]).mean(dim=(0, 2, 3)), reference["features_train_mean"])


def test_the_number_of_components_equals_the_reference(
    method: DFR, reference: Reference, in_memory: Callable[[Tensor], object]
) -> None:
    images = in_memory(reference["train"])
    features = FrozenFeatures(lambda part: [method.extract(part)], images, setup=SETUP)  # type: ignore[arg-type]
    assert method.principal_components(features, 6) == int(reference["latent_dim"])


@torch.no_grad()
def test_reconstruction_maps_and_scores_equal_the_reference(
    method: DFR, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    restored = method.network(to_rows(method.extract(reference["test"])))
    assert_relative(restored.view(2, 16, 16, 192).permute(0, 3, 1, 2), reference["reconstruction"])
    assert_relative(method.image_errors(reference["test"]).mean(dim=3), reference["energy"])
    prediction = method.predict(reference["test"])
    assert_relative(prediction.maps, reference["map"])
    assert_relative(prediction.scores, reference["score"])


def test_loss_and_gradients_equal_the_reference(
    method: DFR, reference: Reference, assert_relative: Callable[..., None]
) -> None:
    network = method.network.train()
    loss = method.errors(network, method.extract(reference["train"][:4])).mean()
    assert_relative(loss, reference["train_loss"])
    loss.backward()
    norms = torch.stack([parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None])
    assert_relative(norms, reference["grad_norms"], tolerance=1e-3)


def vgg(by_rule: Callable[..., Tensor], blocks: Sequence[Sequence[int]]) -> list[nn.Module]:
    """The layers of a VGG with these channels per block, and the weights of the reference data."""
    layers, inputs, k = list[nn.Module](), 3, 0
    for block, widths in enumerate(blocks):
        layers += [nn.MaxPool2d(2)] if block else []
        for outputs in widths:
            convolution = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, padding=1)
            convolution.weight.data = by_rule("weight", convolution.weight.shape, 2 * k)
            convolution.bias.data = by_rule("bias", convolution.bias.shape, 2 * k + 1)
            layers += [convolution, nn.ReLU()]
            inputs, k = outputs, k + 1
    return layers


@torch.no_grad()
def test_the_taps_of_a_vgg_equal_the_reference(
    reference: Reference, by_rule: Callable[..., Tensor], assert_relative: Callable[..., None]
) -> None:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network = ReflectedVGG(vgg(by_rule, ([64] * 2, [128] * 2, [256] * 4, [512] * 4)), (0, 1, 2, 3))
    taps = network((reference["vgg_image"] - mean) / std)
    assert [tap.shape[2] for tap in taps] == reference["vgg_tap_sizes"].tolist()
    assert sum(network.channels) == sum(tap.shape[1] for tap in taps) == 3456
    statistics = [[tap.mean(), tap.std(correction=0), tap[0, 0, 0, 0], tap[0, -1, -1, -1]] for tap in taps]
    for values, expected in zip(torch.tensor(statistics), reference["vgg_tap_stats"], strict=True):
        assert_relative(values, expected)
    regions = regional_features(taps, (32, 32), 4)[0]
    assert_relative(regions.mean(dim=(1, 2)), reference["vgg_features_mean"])
    assert_relative(regions[:, 0, 0], reference["vgg_features_corner"])


# ---- Regional features and the number of components ----


@pytest.mark.parametrize("cell", [2, 4, 8])
def test_regional_features_are_resized_maps_averaged_over_cells(cell: int) -> None:
    taps = [torch.rand(2, 3, 18, 34), torch.rand(2, 5, 7, 4)]
    expected = [F.avg_pool2d(F.interpolate(tap, (16, 32), mode="bilinear", align_corners=True), cell) for tap in taps]
    assert_close(regional_features(taps, (16, 32), cell), torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_components_are_those_of_scikit_learn(method: DFR, in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(3, 3, 64, 64, generator=Generator().manual_seed(1))
    features = FrozenFeatures(lambda part: [method.extract(part)], in_memory(images), setup=SETUP)  # type: ignore[arg-type]
    method.settings = replace(SETTINGS, pca_images=2)
    for share in (0.5, 0.9, 0.99):
        method.settings = replace(method.settings, explained_variance=share)
        rows = to_rows(method.extract(images[:2])).double().numpy()
        assert method.principal_components(features, 3) == PCA(n_components=share).fit(rows).n_components_


def test_the_code_has_few_dimensions_and_the_widths_of_the_authors() -> None:
    with torch.device("meta"):
        network = autoencoder(3456, 200)
    widths = [layer.out_features for part in network for layer in part if isinstance(layer, nn.Linear)]
    assert widths == [1928, 400, 200, 400, 1928, 3456]
    assert 14.9e6 < sum(parameter.numel() for parameter in network.parameters()) < 15.1e6


@torch.no_grad()
def test_taps_are_outputs_of_reflecting_convolutions(by_rule: Callable[..., Tensor]) -> None:
    layers = vgg(by_rule, ([4, 4], [6, 6, 6], [5]))
    image = torch.randn(1, 3, 16, 16, generator=Generator().manual_seed(1))
    taps = ReflectedVGG(layers, (1, 2))(image)
    x, outputs = image, []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode, layer._reversed_padding_repeated_twice = "reflect", (1, 1, 1, 1)
        x = layer(x)
        outputs += [x] if isinstance(layer, nn.ReLU) else []
    assert [tap.shape[2] for tap in taps] == [10, 10, 8, 4]  # blocks 1 and 2 have 8 and 4 features along each axis
    for tap, expected in zip(taps, outputs[2:], strict=True):
        margin = (tap.shape[2] - expected.shape[2]) // 2
        assert_close(tap, F.pad(expected, (margin,) * 4, mode="reflect") if margin else expected)


@pytest.mark.slow  # timm initializes a classifier of 120 million parameters
def test_a_vgg_backbone_returns_its_taps() -> None:
    backbone = tapped_backbone("random:vgg11", (1, 2), SETUP)
    taps = backbone(torch.rand(1, 3, 32, 32))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(128, 16, 16), (256, 10, 10), (256, 8, 8)]
    assert backbone.channels == (128, 256, 256)
    assert "reflected" in backbone.identity


# ---- Fit ----


def test_training_reduces_the_loss(in_memory: Callable[[Tensor], object]) -> None:
    images = torch.rand(4, 3, 64, 64, generator=Generator().manual_seed(1))
    method, losses = DFR(replace(TINY, epochs=30, lr=1e-2, latent=None), SETUP), list[float]()
    method.fit(in_memory(images), lambda _done, _total, loss: losses.append(loss or 0.0))  # type: ignore[arg-type]
    assert losses[-1] < 0.7 * losses[0]
    assert method.info()["latent"] == int(method.latent) > 1
    restored = DFR(replace(TINY, latent=None), SETUP)
    restored.load_state_dict(method.state_dict())
    assert_close(restored.predict(images).maps, method.predict(images).maps)


@pytest.mark.parametrize("changes", [{"cell": 0}, {"latent": 0}, {"explained_variance": 1.0}, {"epochs": 0}], ids=str)
def test_invalid_settings_are_errors(changes: dict[str, float]) -> None:
    with pytest.raises(BenchError, match=next(iter(changes))):
        replace(TINY, **changes)


def test_a_size_that_cells_do_not_divide_is_an_error() -> None:
    with pytest.raises(BenchError, match="multiples of cell"):
        DFR(TINY, replace(SETUP, size=(60, 64)))
