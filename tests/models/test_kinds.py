"""Each kind obeys its constraint, on several series with a seed each, and would not without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models import Autoencoder, ModelSpec, SeriesRows, kinds, load, save, train
from models.fitting import Check, fit
from models.kinds import _ACTIVITY, _CONTRACTION, KINDS, misfit
from models.lessons import Lesson
from models.samples import split
from models.scaling import Scaling
from models.stack import Stack
from pipeline.errors import ConfigError
from pipeline.ports import Windows

SEEDS, ROWS, FEATURES, STEPS = 5, 16, 2, 1_200
WIDTH = ROWS * FEATURES
WHEN = "2026-01-01T00:00:00Z"


def waves(seed: int, rows: int = 1_200) -> np.ndarray:
    """Two sums of sines, of periods and phases of their own for each seed, and a little noise."""
    random = np.random.default_rng([seed, 9])
    angle = 2 * np.pi * np.arange(rows)[:, None] / random.uniform(9, 30, 3) + random.uniform(0, 6, 3)
    first, second, third = np.sin(angle).T
    values = np.stack([first + 0.5 * second, second + 0.5 * third], axis=1)
    return values + random.normal(0, 0.05, (rows, FEATURES))


def lesson(seed: int) -> Lesson:
    values = waves(seed)
    parts = split(np.zeros(len(values), np.int32), ROWS)
    rows = Scaling.fit(values).apply(0, values)
    return Lesson(np.random.default_rng(seed), rows, parts.train, parts.held_out)


def windows_of(part: Callable[[Lesson], np.ndarray]) -> Tensor:
    """Scaled windows float32[SEEDS, n, WIDTH]."""
    lessons = map(lesson, range(SEEDS))
    cut = [[each.rows[start : start + ROWS].ravel() for start in part(each)] for each in lessons]
    return torch.from_numpy(np.array(cut))


SEEN = windows_of(lambda each: each.train)
HELD_OUT = windows_of(lambda each: each.held_out)


def nothing(_: Check) -> None: ...


FREED_BY = {"sparse": "_ACTIVITY_WEIGHT", "variational": "_DECODER_VARIANCE"}
"""The weight of each kind's constraint; the others are plain ones at a weight of 0."""


@cache
def trained(kind: str, *, free: bool = False) -> Autoencoder:
    """One network for each seed; ``free`` of what keeps its kind from copying."""
    spec = ModelSpec(features=("a", "b"), window_rows=ROWS, kind=kind, steps=STEPS)
    with pytest.MonkeyPatch.context() as patch:
        if free:
            patch.setattr(kinds, FREED_BY[kind], 0.0)
        return fit([lesson(seed) for seed in range(SEEDS)], spec, nothing)


def lost(network: Autoencoder, inputs: Tensor) -> Tensor:
    """The root of the mean squared difference from the clean held-out windows, float32[SEEDS]."""
    with torch.inference_mode():
        return (network.reconstruct(inputs) - HELD_OUT).square().mean((1, 2)).sqrt()


def codes(network: Autoencoder) -> Tensor:
    with torch.inference_mode():
        return network.encode(HELD_OUT)


def test_the_denoiser_restores_what_noise_spoilt_better_than_the_plain_one() -> None:
    """Not by being better at everything: on clean windows the plain one is."""
    noisy = HELD_OUT + 0.5 * torch.randn(HELD_OUT.shape, generator=torch.Generator().manual_seed(0))
    denoising, plain = trained("denoising"), trained("undercomplete")

    assert (lost(denoising, noisy) < 0.8 * lost(plain, noisy)).all()
    assert (lost(plain, HELD_OUT) < lost(denoising, HELD_OUT)).all()


def test_a_sparse_code_is_as_active_as_its_target_and_a_free_one_is_not() -> None:
    sparse, free = codes(trained("sparse")), codes(trained("sparse", free=True))

    assert ((sparse.mean((1, 2)) - _ACTIVITY).abs() < 0.02).all()
    assert ((sparse.mean(1) - _ACTIVITY).abs() < 0.1).all()  # each unit, not only all together
    assert (free.mean((1, 2)) > 3 * _ACTIVITY).all()


def test_a_sparse_code_tells_windows_apart() -> None:
    """Units at their target all the time would be no code."""
    assert (lost(trained("sparse"), HELD_OUT) < 0.35).all()
    assert (codes(trained("sparse")).std(1) > 0.05).all()


def jacobian(network: Autoencoder) -> Tensor:
    """The mean squared Frobenius norm of the code's Jacobian at held-out windows, exactly, float32[SEEDS]."""
    inputs = HELD_OUT[:, ::7].clone().requires_grad_()
    code = network.encode(inputs)
    rows = [torch.autograd.grad(each.sum(), inputs, retain_graph=True)[0] for each in code.unbind(2)]
    return sum(row.square().sum(2).mean(1) for row in rows)  # type: ignore[return-value]


def test_a_contractive_code_moves_less_with_its_input_than_a_plain_one() -> None:
    """Also by its own size: it is no plain code made small."""
    contractive, plain = trained("contractive"), trained("undercomplete")
    size = [codes(each).var(1).sum(1) for each in (contractive, plain)]

    assert (jacobian(contractive) < 0.3 * jacobian(plain)).all()
    assert (jacobian(contractive) / size[0] < 0.5 * jacobian(plain) / size[1]).all()
    assert (lost(contractive, HELD_OUT) < 1.2 * lost(plain, HELD_OUT)).all()


def test_what_contraction_costs_is_the_norm_on_average() -> None:
    network, many = trained("undercomplete"), HELD_OUT[:, ::7].repeat(1, 60, 1)
    noise = torch.randn(*many.shape[:2], network.code, generator=torch.Generator().manual_seed(0))

    contractive = KINDS["contractive"].loss
    assert contractive is not None
    estimated = (contractive(network, many, noise) - misfit(network, many)) / _CONTRACTION

    torch.testing.assert_close(estimated.detach(), jacobian(network), rtol=0.05, atol=0)


def moments(network: Autoencoder) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the code over all training windows [SEEDS, code], and the divergence [SEEDS]."""
    with torch.inference_mode():
        mean, log_variance = network.distribution(SEEN)
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(2).mean(1)
        return mean.mean(1), mean.var(1) + log_variance.exp().mean(1), nats


def test_a_variational_code_fills_its_prior_and_a_free_one_does_not() -> None:
    mean, variance, nats = moments(trained("variational"))
    assert (mean.abs() < 0.1).all()
    assert ((variance - 1).abs() < 0.2).all()
    assert ((nats > 1) & (nats < 9)).all()

    _, variance, nats = moments(trained("variational", free=True))
    assert (variance > 1.4).all()
    assert (nats > 9).all()


def test_a_variational_code_is_the_mean_and_the_same_each_time() -> None:
    network = trained("variational")

    assert torch.equal(codes(network), codes(network))
    with torch.inference_mode():
        assert torch.equal(codes(network), network.distribution(HELD_OUT)[0])


def generated(network: Autoencoder) -> Tensor:
    """Windows float32[SEEDS, 1000, WIDTH] decoded from draws of the prior."""
    drawn = torch.randn(SEEDS, 1_000, network.code, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network.decode(drawn)


def test_generated_windows_vary_as_real_ones_do() -> None:
    """Their covariance over positions and features is the data's, which that of a free decoder is not."""

    def apart(made: Tensor) -> float:
        pairs = [(torch.cov(a.T), torch.cov(b.T)) for a, b in zip(made, SEEN, strict=True)]
        return float(np.mean([(a - b).norm() / b.norm() for a, b in pairs]))

    assert apart(generated(trained("variational"))) < 0.3
    assert apart(generated(trained("variational", free=True))) > 0.4


def test_generated_windows_are_nearer_to_real_ones_than_draws_with_the_same_moments() -> None:
    random = np.random.default_rng(0)

    for made, real in zip(generated(trained("variational")), SEEN, strict=True):
        drawn = random.multivariate_normal(real.mean(0).numpy(), torch.cov(real.T).numpy(), len(made))
        far = torch.cdist(torch.from_numpy(drawn).float(), real).min(1).values
        assert torch.cdist(made, real).min(1).values.mean() < 0.93 * far.mean()


def test_pca_restores_what_numpys_decomposition_restores() -> None:
    """Of the clipped training windows, of each network by itself; on windows that it has not seen."""
    network = trained("pca")

    restored = network.reconstruct(HELD_OUT)

    assert [each.shape[1:] for each in network.weights] == [(WIDTH, 4), (4, WIDTH)]
    for windows, unseen, found in zip(SEEN, HELD_OUT, restored, strict=True):
        seen = windows.double().clamp(-5, 5).numpy()
        _, _, directions = np.linalg.svd(seen - seen.mean(0))
        kept = directions[:4]
        expected = (unseen.numpy() - seen.mean(0)) @ kept.T @ kept + seen.mean(0)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_pca_is_solved_for_few_windows_of_many_values_too() -> None:
    """Where there are fewer windows than directions are asked for, the rest of them is 0."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 3)).astype(np.float32)
    each = Lesson(random, rows, np.arange(0, 20, 5), np.arange(20, 22))
    spec = ModelSpec(features=("a", "b", "c"), window_rows=5, kind="pca", code=10)

    network = fit([each], spec, nothing)

    seen = torch.from_numpy(np.stack([rows[start : start + 5].ravel() for start in each.train]))[None]
    torch.testing.assert_close(network.reconstruct(seen), seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_any_kind_learns_as_it_would_alone(kind: str) -> None:
    """Noise included: it is drawn from the network's own generator."""
    spec = ModelSpec(features=("a", "b"), window_rows=ROWS, kind=kind, steps=60)

    together = fit([lesson(seed) for seed in range(3)], spec, nothing)

    for seed in range(3):
        alone = fit([lesson(seed)], spec, nothing)
        for stacked, single in zip(together.tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(stacked[seed : seed + 1], single, atol=2e-4, rtol=1e-3)


def by_definition(network: Autoencoder, scaling: Scaling, windows: Windows) -> np.ndarray:
    """The error of each window, one by one, in plain NumPy."""
    bends = {"tanh": np.tanh, "linear": lambda sums: sums, "sigmoid": lambda sums: 1 / (1 + np.exp(-sums))}
    middle, last = len(network.weights) // 2, len(network.weights)
    found = []
    for tail, anchor, model in zip(windows.tail, windows.anchor, windows.model, strict=True):
        scaled = (anchor + tail - scaling.median[model]) / scaling.spread[model]
        values = scaled.clip(-5, 5).ravel()
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), 1):
            values = values @ weight[model].double().numpy() + bias[model, 0].double().numpy()
            if layer == middle:
                values = bends[network.bend](values[: network.code])
            elif layer < last:
                values = np.tanh(values)
        found.append(np.sqrt(np.abs(scaled.clip(-50, 50) - values.reshape(scaled.shape)).mean()))
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "models",
    [np.arange(100) % 5, np.repeat([0, 2, 4], 3), np.repeat([0, 2, 4], 30)],
    ids=["side by side", "few of models apart", "many of models apart"],
)
def test_errors_of_any_kind_are_those_of_the_definition(kind: str, models: np.ndarray) -> None:
    random = np.random.default_rng(0)
    tail = random.normal(0, 2, (len(models), ROWS, FEATURES)).astype(np.float32)
    windows = Windows(tail, random.normal(0, 2, (len(models), FEATURES)), models.astype(np.int32))
    scaling = Scaling(random.normal(size=(SEEDS, FEATURES)), random.uniform(0.5, 2, (SEEDS, FEATURES)))

    errors = Stack(trained(kind), scaling, np.arange(len(scaling.median), dtype=np.int32)).score(windows)

    np.testing.assert_allclose(
        errors.window, by_definition(trained(kind), scaling, windows), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_of_any_kind_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    spec = ModelSpec(features=("a", "b"), window_rows=8, kind=kind, steps=50)
    rows = {f"s{seed}": SeriesRows(waves(seed, 200), np.zeros(200, np.int32)) for seed in range(2)}
    bundle = train(rows, spec, source={}, created_at=WHEN)

    save(bundle, tmp_path / "b")
    loaded = load(tmp_path / "b")

    assert loaded.sha == bundle.sha
    assert loaded.manifest.spec.kind == kind
    assert loaded.network.bend == bundle.network.bend
    assert all(map(torch.equal, loaded.network.tensors(), bundle.network.tensors()))


def test_the_variational_encoder_tells_two_numbers_for_each_of_the_code() -> None:
    network = trained("variational")

    assert [tuple(each.shape[1:]) for each in network.weights] == [(32, 16), (16, 8), (4, 16), (16, 32)]


@pytest.mark.parametrize("kind", ["undercomplete", "pca"])
def test_only_a_narrow_code_keeps_these_from_copying(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"code is 8 for an input of 8 values.*{kind}"):
        ModelSpec(features=("a",), window_rows=8, kind=kind, code=8)


@pytest.mark.parametrize("kind", ["denoising", "sparse", "contractive", "variational"])
def test_other_kinds_may_have_a_code_wider_than_their_input(kind: str) -> None:
    spec = ModelSpec(features=("a",), window_rows=8, kind=kind, hidden=(), code=12)

    assert spec.widths() == (8, 12, 8)


def test_pca_has_the_code_of_the_others_and_no_hidden_layers() -> None:
    assert ModelSpec(features=("a",), kind="pca").widths() == (32, 4, 32)
    assert ModelSpec(features=("a",)).encoder_widths()[-1] == 4
    with pytest.raises(ConfigError, match=r"hidden is \[16\], but pca"):
        ModelSpec(features=("a",), kind="pca", hidden=(16,))
