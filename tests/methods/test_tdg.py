"""TDG: pyramid, networks, losses, probabilities, scores and transformations of the authors' code; the map by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bench.errors import BenchError
from bench.method import Setup
from bench.methods.parts.patch_gan import Generator
from bench.methods.tdg import ALL, ROTATIONS, TDG, Settings, Transformation

CPU = torch.device("cpu")
REFERENCE = Settings(max_side=40, width=8)
TINY = Settings(max_side=20, min_side=14, width=4, iterations=4, steps=1, lr_drop=2, batch_size=2)


@pytest.fixture(scope="module")
def reference(contiguous_reference: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return contiguous_reference("tdg")


@pytest.fixture
def method(fill_by_hash: Callable[..., None]) -> TDG:
    """A TDG whose discriminators have the weights of the reference."""
    method = TDG(REFERENCE, Setup((64, 64), CPU, seed=0))
    discriminators = method.build_discriminators()
    for scale, discriminator in enumerate(discriminators):
        fill_by_hash(discriminator, 1000 * scale)
    method.discriminators = discriminators.eval()
    return method


@pytest.fixture
def generator(fill_by_hash: Callable[..., None]) -> Generator:
    generator = Generator(8)
    fill_by_hash(generator, 500)
    return generator.train()


def test_pyramid_equals_the_authors_code(method: TDG, reference: dict[str, Tensor]) -> None:
    assert method.pyramid.sides == (26, 30, 35, 40)
    assert method.pyramid.factor == pytest.approx(float(reference["scale_factor"]), rel=1e-12)
    for scale, images in enumerate(method.pyramid.resize(reference["images"][:1])):
        assert_close(images, reference[f"pyramid{scale}"], rtol=0, atol=1e-5)
    assert_close(method.pyramid.enlarge(reference["pyramid1"], 2), reference["train_prev"], rtol=0, atol=1e-5)


def test_transformations_equal_the_authors_code(reference: dict[str, Tensor]) -> None:
    cases = ((0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, -1, 0), (0, 1, 1, 1, 3), (1, 0, -1, 0, 0), (1, 1, 0, 0, 1))
    for case, expected in zip(cases, reference["transformed"], strict=True):
        gray, flip, x, y, turns = case
        transformed = Transformation(bool(gray), bool(flip), x, y, turns)(reference["pyramid3"])
        assert_close(transformed[0], expected, rtol=0, atol=1e-5)


def test_losses_and_gradients_of_a_step_equal_the_authors_code(
    method: TDG, generator: Generator, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    discriminator, real = method.discriminators[2].train(), reference["pyramid2"]
    fake = generator(reference["train_noise"], reference["train_prev"], torch.zeros(1))
    assert_relative(fake, reference["train_fake"])
    assert_relative(method.classify(discriminator, real), reference["logits_real"])
    losses = method.discriminator_losses(discriminator, real, fake.detach())
    names = ("loss_d_real", "loss_d_fake")
    for loss, name in zip(losses, names, strict=True):
        assert_close(loss.detach().double(), reference[name], rtol=1e-4, atol=1e-5)
    sum(losses).backward()
    assert_relative(discriminator[12].weight.grad, reference["grad_d_tail"], 1e-3)
    adversarial, error = method.generator_losses(discriminator, real, fake, fake)
    assert_close(adversarial.detach().double(), reference["loss_g_adv"], rtol=1e-4, atol=1e-5)
    assert_close(error.detach().double(), reference["loss_g_rec"], rtol=1e-4, atol=1e-5)
    adversarial.backward()
    assert_relative(generator.network[12].weight.grad, reference["grad_g_tail"], 1e-3)


def test_votes_and_scores_equal_the_authors_code(
    method: TDG, reference: dict[str, Tensor], assert_relative: Callable[..., None]
) -> None:
    with torch.no_grad():
        probabilities = list(method.probabilities(reference["images"]))
    assert_relative(probabilities[0][2], reference["votes0"])
    assert_relative(probabilities[3][2], reference["votes3"])
    scores = method.scale_scores(probabilities)  # (3, 4)
    assert_close(scores.mean(dim=1).double(), reference["scores_raw"], rtol=1e-4, atol=1e-5)
    assert_close(method.predict(reference["images"]).scores, -reference["scores_raw"].float(), rtol=1e-4, atol=1e-5)
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    normalized = ((scores - low) / (high - low)).mean(dim=1)
    assert_close(normalized.double(), reference["scores_normalised"], rtol=1e-3, atol=1e-4)


def test_there_are_54_different_transformations() -> None:
    assert len(ALL) == len(set(ALL)) == 54
    assert set(ROTATIONS) <= set(ALL)
    image = torch.rand(1, 3, 20, 20)
    results = torch.stack([transform(image) for transform in ALL])
    assert len(results.flatten(1).unique(dim=0)) == 54


def test_a_shift_moves_the_content_right_and_down() -> None:
    image = torch.arange(49.0).view(1, 1, 7, 7)  # int(0.15 * 7) = 1
    assert_close(Transformation(False, False, 1, 0, 0)(image)[0, 0, 0], torch.tensor([0.0, 0, 1, 2, 3, 4, 5]))
    assert_close(Transformation(False, False, 0, -1, 0)(image)[0, 0, :, 0], torch.tensor([7.0, 14, 21, 28, 35, 42, 42]))


@pytest.mark.parametrize("transform", [t for t in ALL if not (t.x or t.y)])
def test_undo_restores_the_pose(transform: Transformation) -> None:
    images = torch.rand(2, 1, 9, 9).expand(-1, 3, -1, -1)  # gray
    assert_close(transform.undo(transform(images)[:, 0]), images[:, 0])


class VotesByBrightness(nn.Module):
    """Low probabilities for bright patches: logits of class 0 are high, others depend on pixels."""

    def forward(self, images: Tensor) -> Tensor:
        center = images[:, 0, 5:-5, 5:-5]
        return torch.stack([center] * 4 + [torch.full_like(center, 99.0)], dim=1)


def test_map_is_one_minus_the_probability_rotated_back(random_images: Callable[..., Tensor]) -> None:
    method = TDG(replace(TINY, max_side=40, min_side=39), Setup((40, 40), CPU, seed=0))
    probabilities = torch.zeros(1, 4, 30, 30)
    probabilities[:, 0, 2, 7] = 0.4  # upright
    probabilities[:, 1, 22, 2] = 0.8  # after a quarter turn: row 30 - 1 - 7, column 2
    anomaly_map = method.anomaly_map(probabilities)
    assert anomaly_map.shape == (1, 40, 40)
    assert float(anomaly_map[0, 7, 12]) == pytest.approx(1 - (0.4 + 0.8) / 4)
    assert float(anomaly_map.sum()) == pytest.approx(1600 - 0.3, abs=1e-3)
    method.discriminators = nn.ModuleList([VotesByBrightness()] * len(method.pyramid.sides))
    prediction = method.predict(random_images(2, (40, 40)))
    assert_close(prediction.maps, torch.full((2, 40, 40), 0.75))  # "fake" does not count
    assert_close(prediction.scores, torch.full((2,), -1.0))


def test_score_is_the_mean_of_the_lowest_probabilities() -> None:
    method = TDG(replace(TINY, fraction=0.25), Setup((40, 40), CPU, seed=0))
    probabilities = torch.tensor([[[0.1, 0.9], [0.8, 0.7]], [[0.5, 0.5], [0.2, 0.6]]])[None]  # (1, 2, 2, 2)
    assert_close(method.scale_scores([probabilities, probabilities + 1]), torch.tensor([[0.1 + 0.2, 2.3]]))


def fitted(in_memory: Callable[..., object], images: Tensor, settings: Settings = TINY) -> tuple[TDG, list[float]]:
    method, losses = TDG(settings, Setup((40, 40), CPU, seed=0)), []
    method.fit(in_memory(images), lambda _done, _total, loss: losses.append(loss))
    return method, losses


def gradient_images(count: int) -> Tensor:
    """Images that are brighter at the top, so that a quarter turn can be recognized."""
    shade = torch.linspace(1, 0, 40)[:, None].expand(count, 3, 40, 40)
    return (0.8 * shade + 0.2 * torch.rand(count, 3, 40, 40)).contiguous()


def test_training_learns_the_transformations(in_memory: Callable[..., object]) -> None:
    settings = replace(TINY, max_side=20, min_side=18, width=8, iterations=40, lr_drop=40, lr=5e-3)
    method, losses = fitted(in_memory, gradient_images(3), settings)
    assert losses[-1] < 0.7 * losses[0]
    good, turned = gradient_images(4), torch.rot90(gradient_images(4), 1, (2, 3))
    assert method.predict(good).scores.max() < method.predict(turned).scores.min()
    assert method.predict(good).maps.mean() < method.predict(turned).maps.mean()


def test_a_scale_starts_from_the_weights_of_the_scale_before(in_memory: Callable[..., object]) -> None:
    settings = replace(TINY, lr=0.0, max_side=40, min_side=14, scale_factor=0.8)
    method, _ = fitted(in_memory, gradient_images(2), settings)
    weights = [discriminator[0].weight for discriminator in method.discriminators]
    assert all(torch.equal(weight, weights[0]) for weight in weights[:4])
    assert [len(weight) for weight in weights] == [4, 4, 4, 4, 8, 8, 8]
    assert torch.equal(weights[4], weights[6])


def test_the_noise_of_a_scale_has_the_amplitude_of_the_error(
    in_memory: Callable[..., object], monkeypatch: Any
) -> None:
    chains: list[Any] = []
    train_scale = TDG._train_scale

    def record(self: TDG, discriminator: nn.Module, chain: Any, real: Tensor, random: Any) -> Any:
        chains.append((chain.amplitudes[-1], real, chain.reconstructions, chain.fixed_noise))
        return train_scale(self, discriminator, chain, real, random)

    monkeypatch.setattr(TDG, "_train_scale", record)
    fitted(in_memory, gradient_images(3))
    amplitudes, _, start, noise = chains[0]
    assert torch.equal(amplitudes, torch.ones(3, 1, 1, 1))
    assert not start.any()
    assert noise.std() == pytest.approx(1, abs=0.1)
    for amplitudes, real, reconstruction, noise in chains[1:]:
        for number in range(3):
            error = (real[number] - reconstruction[number]).square().sqrt().mean()
            assert_close(amplitudes[number].squeeze(), 0.1 * error)
            assert torch.equal(noise[number, 0], noise[number, 2])
            assert_close(noise[number].std(), 0.1 * error, rtol=0.2, atol=0)


def test_learning_rate_of_the_discriminator_drops(in_memory: Callable[..., object], monkeypatch: Any) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step

    def record(self: torch.optim.Adam, *arguments: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    method, _ = fitted(in_memory, gradient_images(1))
    by_scale = [5e-4, 5e-4, 5e-4, 5e-4, 5e-5, 5e-4, 5e-5, 5e-4]  # discriminator, generator, ... in 4 iterations
    assert rates == pytest.approx(by_scale * len(method.discriminators))


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ((64, 48), {}, "must be squares"), ((25, 25), {}, "of more than min_side"),
        ((64, 64), {"min_side": 10}, "min_side"), ((64, 64), {"max_side": 25}, "max_side"),
        ((64, 64), {"fraction": 0.0}, "fraction"), ((64, 64), {"scale_factor": 1.0}, "scale_factor"),
    ],
)  # fmt: skip
def test_invalid_settings_raise_an_error(size: tuple[int, int], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        TDG(replace(Settings(), **changes), Setup(size, CPU, seed=0))


def test_default_pyramid_has_five_scales() -> None:
    method = TDG(Settings(), Setup((128, 128), CPU, seed=0))
    assert method.pyramid.sides == (26, 32, 41, 51, 64)
    assert [len(network[0].weight) for network in method.build_discriminators()] == [32, 32, 32, 32, 64]
    step, images = 4 * 10 * 8 * 64 * 64**2, 3 * 10 * (26**2 + 32**2 + 41**2 + 51**2 + 64**2)
    assert TDG.estimate_memory(Settings(), (128, 128), 10) == 4 * (step + images)
