"""The network: mirrored, narrow in the middle, and its halves usable apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import Autoencoder, ModelSpec
from models.residuals import tanh
from pipeline.errors import ConfigError


def stack(widths: tuple[int, ...], models: int = 3) -> Autoencoder:
    return Autoencoder.initial(widths, [np.random.default_rng(seed) for seed in range(models)])


@pytest.mark.parametrize(
    ("features", "widths"),
    [(1, (32, 16, 4, 16, 32)), (4, (128, 32, 8, 32, 128)), (38, (1216, 152, 38, 152, 1216))],
)
def test_widths_follow_the_stated_rule_and_are_mirrored(features: int, widths: tuple[int, ...]) -> None:
    spec = ModelSpec(features=tuple(f"f{i}" for i in range(features)))

    assert spec.widths() == widths
    assert spec.widths() == spec.widths()[::-1]


def test_given_widths_are_taken_as_they_are() -> None:
    spec = ModelSpec(features=("a",), hidden=(64, 20), code=5)

    assert spec.widths() == (32, 64, 20, 5, 20, 64, 32)
    assert ModelSpec(features=("a",), hidden=()).widths() == (32, 8, 32)


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": ()},
        {"window_rows": 1},
        {"steps": 0},
        {"seed": -1},
        {"kind": "magic"},
        {"code": 32},
        {"code": 0},
        {"hidden": (1 << 20,)},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ModelSpec(**{"features": ("a",), **wrong})  # type: ignore[arg-type]


def test_encode_then_decode_is_reconstruct_with_equal_width_and_a_narrow_code() -> None:
    network = stack((12, 6, 2, 6, 12))
    inputs = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))

    codes = network.encode(inputs)
    outputs = network.reconstruct(inputs)

    assert codes.shape == (3, 5, 2)
    assert outputs.shape == inputs.shape
    assert torch.equal(network.decode(codes), outputs)


def test_networks_of_a_stack_do_not_see_each_other() -> None:
    network = stack((12, 6, 2, 6, 12))
    inputs = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))
    together = network.reconstruct(inputs)

    alone = [network.pick(slice(i, i + 1)).reconstruct(inputs[i : i + 1]) for i in range(3)]

    assert torch.allclose(torch.cat(alone), together, atol=1e-6)


def test_the_compiled_tangent_is_the_real_one_to_rounding() -> None:
    values = np.concatenate([np.linspace(-12, 12, 100_001), [0.0, 1e30, -1e30]]).astype(np.float32)
    real = np.tanh(values.astype(np.float64))

    tanh(values)

    np.testing.assert_allclose(values, real, rtol=0, atol=4e-7)


def test_networks_give_the_same_with_gradients_and_without() -> None:
    network, inputs = stack((8, 4, 2, 4, 8)), torch.linspace(-5, 5, 3 * 6 * 8).view(3, 6, 8)

    with torch.enable_grad():
        learned = network.reconstruct(inputs)
    with torch.inference_mode():
        scored = network.reconstruct(inputs)

    torch.testing.assert_close(scored, learned, rtol=0, atol=2e-6)
