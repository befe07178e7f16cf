"""UniAD: neck, mask, transformer, map, scores and gradients of the authors' code; its mask and jitter by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.neighbor_masked_transformer import EncoderLayer, neighbor_mask
from bench.methods.uniad import Settings, UniAD, build_network, to_tokens

CPU = torch.device("cpu")
TINY = Settings(
    backbone="tf_efficientnet_lite0", neighborhood=(3, 3), width=16, heads=2, mlp_width=32, encoder_depth=1,
    decoder_depth=2, epochs=3, batch_size=2, lr=1e-3,
)  # fmt: skip
REFERENCE = replace(TINY, neighborhood=(3, 5), width=32, heads=4, mlp_width=64, encoder_depth=2, dropout=0.0)


@pytest.fixture
def reference(load_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return load_reference("uniad")


@pytest.fixture
def method(fill_by_rule: Callable[..., None]) -> UniAD:
    """A UniAD with the weights of the reference."""
    method = UniAD(REFERENCE, Setup((128, 128), CPU, seed=0))
    network = method.build_network()
    fill_by_rule(network, "uniad", "param")
    method.network = network.eval()
    return method


def test_neck_mask_and_positions_equal_the_authors_code(
    method: UniAD, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    features = method.extract(reference["images"])[0]
    assert_relative(features, reference["feature_align"])
    assert torch.equal(method.network.attn_mask, reference["neighbour_hidden"])
    assert_close(method.network.pos_embed(), reference["pos_embed"])


def test_restored_features_map_and_scores_equal_the_authors_code(
    method: UniAD, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    tokens, network = to_tokens(reference["feature_align"]), method.network
    with torch.no_grad():
        encoded = network.encode(tokens, network.pos_embed())
        assert_relative(encoded.transpose(0, 1), reference["encoder_out"])
        assert_relative(network(tokens), to_tokens(reference["feature_rec"]))
    for score in ("max", "std", "mean"):
        scored = UniAD(replace(REFERENCE, score=score), method.setup)
        scored.network = network
        prediction = scored.predict(reference["images"])
        assert_relative(prediction.maps, reference["map"])
        assert_relative(prediction.scores, reference[f"score_{score}"])


def test_loss_and_gradients_with_jitter_equal_the_authors_code(
    method: UniAD, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    tokens, noise = to_tokens(reference["feature_align"]), reference["train_noise"].transpose(0, 1)
    jitter = tokens + noise * torch.linalg.vector_norm(tokens, dim=2, keepdim=True) / tokens.shape[2] * 20
    network = method.network.train()
    assert_relative(network(jitter), to_tokens(reference["train_rec"]))
    loss = method.loss(network, jitter, tokens)
    assert_close(loss.detach().double(), reference["train_loss"], rtol=1e-4, atol=0)
    loss.backward()
    norms = torch.stack([parameter.grad.norm() for parameter in network.parameters()])
    assert_relative(norms.norm(), reference["grad_total"], 1e-3)
    assert_close(norms.double(), reference["grad_norms"], rtol=1e-3, atol=1e-3 * float(reference["grad_total"]) / 100)


def test_a_token_attends_to_all_but_its_neighborhood() -> None:
    mask = neighbor_mask((4, 5), (3, 1)).view(4, 5, 4, 5)
    assert mask[0, 0].nonzero().tolist() == [[0, 0], [1, 0]]
    assert mask[2, 3].nonzero().tolist() == [[1, 3], [2, 3], [3, 3]]
    assert not neighbor_mask((4, 5), (0, 0)).any()
    with pytest.raises(BenchError, match="must leave tokens"):
        neighbor_mask((7, 7), (7, 7))


def test_attention_equals_a_loop_over_heads_and_tokens() -> None:
    layer, mask = EncoderLayer(8, 2, 16, dropout=0.0).eval(), neighbor_mask((3, 3), (1, 3))
    tokens, pos_embed = torch.randn(1, 9, 8), torch.randn(9, 8)
    weights, biases = layer.attention.in_proj_weight.split(8), layer.attention.in_proj_bias.split(8)
    queries, keys = (F.linear(tokens[0] + pos_embed, weights[i], biases[i]) for i in range(2))
    values = F.linear(tokens[0], weights[2], biases[2])
    attended = torch.zeros(9, 8)
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(9):
            visible = [j for j in range(9) if not mask[i, j]]
            scores = torch.stack([queries[i, head] @ keys[j, head] / 2 for j in visible]).softmax(dim=0)
            attended[i, head] = sum(score * values[j, head] for score, j in zip(scores, visible, strict=True))
    expected = layer.norm1(tokens[0] + layer.attention.out_proj(attended))
    expected = layer.norm2(expected + layer.linear2(F.relu(layer.linear1(expected))))
    assert_close(layer(tokens, pos_embed, mask)[0], expected, rtol=1e-4, atol=1e-5)


def test_layers_start_with_equal_queries_and_packed_weights_but_other_linear_layers() -> None:
    network = UniAD(TINY, Setup((64, 64), CPU, seed=0)).build_network()
    first, second = network.decoder
    assert torch.equal(first.queries, second.queries)
    assert torch.equal(first.memory_attention.in_proj_weight, second.memory_attention.in_proj_weight)
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert not torch.equal(first.memory_attention.out_proj.weight, second.memory_attention.out_proj.weight)


def test_the_default_network_has_the_parameters_of_the_authors_code() -> None:
    settings = Settings()
    with torch.device("meta"):
        network = build_network(settings, (14, 14), channels=272)
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_717_392
    activations = UniAD.estimate_memory(settings, (224, 224), 8) - UniAD.estimate_memory(settings, (224, 224), 4)
    assert activations > 4 * 12 * 8 * 4 * 196**2  # four images, twelve attentions of eight heads, float32


def test_the_score_is_the_maximum_of_the_mean_over_windows(method: UniAD, reference: dict[str, Tensor]) -> None:
    prediction = method.predict(reference["images"])
    means = [uniform_filter(map_.numpy(), 16)[8:121, 8:121].max() for map_ in prediction.maps]
    assert_close(prediction.scores, torch.tensor(means), rtol=1e-4, atol=0)


def test_training_reduces_the_loss_and_depends_on_jitter_and_dropout(in_memory: Callable[..., object]) -> None:
    images = torch.rand(4, 3, 64, 64).cumsum(dim=3) / 64
    losses: dict[str, list[float]] = {}
    for name, settings in {
        "default": replace(TINY, epochs=10),
        "no jitter": replace(TINY, epochs=10, jitter_probability=0.0),
        "zero jitter": replace(TINY, epochs=10, jitter_scale=0.0),
        "no dropout": replace(TINY, epochs=10, dropout=0.0),
    }.items():
        torch.manual_seed(0)
        trained = UniAD(settings, Setup((64, 64), CPU, seed=0))
        losses[name] = []
        trained.fit(in_memory(images), lambda _done, _total, loss, name=name: losses[name].append(loss))
    assert losses["default"][-1] < losses["default"][0]
    assert losses["no jitter"] == losses["zero jitter"]
    assert losses["no jitter"] != losses["default"] != losses["no dropout"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 3}, "width"), ({"neighborhood": (2, 3)}, "neighborhood"), ({"dropout": 1.0}, "dropout")],
)
def test_invalid_settings_raise_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        replace(TINY, **changes)


def test_a_window_larger_than_the_image_raises_an_error() -> None:
    with pytest.raises(BenchError, match="score_window"):
        UniAD(replace(TINY, score_window=65), Setup((64, 64), CPU, seed=0))
