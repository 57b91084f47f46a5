"""Scoring: the error as defined, the same in any batch, for seen and unseen series."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import Autoencoder, Bundle, SeriesRows, StackScorer, autoencoder
from models import stack as module
from models.scaling import Scaling
from models.stack import Stack, _blocks
from pipeline.ports import Scorer, Windows

MODELS, ROWS, FEATURES = 40, 4, 3
ONE = np.zeros(1, np.int32)


@pytest.fixture(scope="module")
def stack() -> Stack:
    random = np.random.default_rng(0)
    generators = [np.random.default_rng(i) for i in range(MODELS)]
    scaling = Scaling(random.normal(size=(MODELS, FEATURES)), random.uniform(0.5, 2, (MODELS, FEATURES)))
    network = Autoencoder.initial((ROWS * FEATURES, 6, 2, 6, ROWS * FEATURES), generators)
    return Stack(network, scaling, np.arange(MODELS, dtype=np.int32))


def some_windows(models: np.ndarray) -> Windows:
    random = np.random.default_rng(len(models))
    tail = random.normal(0, 4, (len(models), ROWS, FEATURES)).astype(np.float32)
    return Windows(tail, random.normal(0, 3, (len(models), FEATURES)), models.astype(np.int32))


def by_definition(stack: Stack, windows: Windows) -> np.ndarray:
    """Window and last-row error of each window, one by one, in plain NumPy."""
    found = []
    for tail, anchor, model in zip(windows.tail, windows.anchor, windows.model, strict=True):
        scaled = (anchor + tail - stack.scaling.median[model]) / stack.scaling.spread[model]
        hidden = scaled.clip(-5, 5).ravel()
        for layer, (weight, bias) in enumerate(
            zip(stack.network.weights, stack.network.biases, strict=True), 1
        ):
            hidden = hidden @ weight[model].numpy() + bias[model, 0].numpy()
            hidden = np.tanh(hidden) if layer < len(stack.network.weights) else hidden
        residual = np.abs(scaled.clip(-50, 50) - hidden.reshape(scaled.shape))
        found.append((np.sqrt(residual.mean()), np.sqrt(residual[-1].mean())))
    return np.array(found)


def test_its_kernel_is_compiled_before_records_wait_for_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(autoencoder, "tanh", lambda values: shapes.append(values.shape))

    Stack(stack.network, stack.scaling, stack.network_of)

    assert shapes


@pytest.mark.parametrize(
    "models",
    [
        np.zeros(300),
        np.full(7, MODELS - 1),
        np.arange(400) % MODELS,
        np.arange(MODELS),
        np.random.default_rng(1).integers(0, MODELS, 500),
        np.random.default_rng(2).geometric(0.2, 900).clip(0, MODELS - 1),
        np.repeat([0, 2, 5], 3),
        np.repeat([0, 2, 5], 30),
        np.zeros(0),
    ],
    ids=[
        *("one model", "the last model", "even", "one each", "random", "skewed"),
        *("few of models apart", "many of models apart", "none"),
    ],
)
def test_errors_are_those_of_the_definition_in_any_mix_of_models(stack: Stack, models: np.ndarray) -> None:
    windows = some_windows(models)

    errors = stack.score(windows)

    expected = by_definition(stack, windows).reshape(-1, 2)
    np.testing.assert_allclose(errors.window, expected[:, 0], rtol=2e-6)
    np.testing.assert_allclose(errors.last, expected[:, 1], rtol=2e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, MODELS - 1), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_a_window_has_the_same_error_in_another_batch_and_order(
    stack: Stack, models: list[int], random: object
) -> None:
    windows = some_windows(np.array(models))
    order = list(range(len(models)))
    random.shuffle(order)  # type: ignore[attr-defined]
    order = order[: len(order) // 2 + 1]

    whole = stack.score(windows)
    part = stack.score(Windows(windows.tail[order], windows.anchor[order], windows.model[order]))

    np.testing.assert_allclose(part.window, whole.window[order], rtol=1e-6)
    np.testing.assert_allclose(part.last, whole.last[order], rtol=1e-6)


class TestManyBlocks:
    """Two threads share what is worth it."""

    WINDOWS = some_windows(np.arange(400) % MODELS)

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_VALUES_AT_ONCE", 20 * ROWS * FEATURES)

    @pytest.fixture
    def both_at_work(self, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
        """The threads that have scored; none goes on before the other has begun."""
        reconstruct, begun, seen = stack._reconstruct, threading.Barrier(2), set[threading.Thread]()

        def meeting(models: np.ndarray, inputs: torch.Tensor) -> torch.Tensor:
            if threading.current_thread() not in seen:
                begun.wait(10)
                seen.add(threading.current_thread())
            return reconstruct(models, inputs)

        monkeypatch.setattr(stack, "_reconstruct", meeting)
        return seen

    def test_two_threads_find_what_the_definition_says(
        self, stack: Stack, both_at_work: set[threading.Thread]
    ) -> None:
        errors = stack.score(self.WINDOWS)

        assert len(both_at_work) == 2
        expected = by_definition(stack, self.WINDOWS)
        np.testing.assert_allclose(errors.window, expected[:, 0], rtol=2e-6)
        np.testing.assert_allclose(errors.last, expected[:, 1], rtol=2e-6)

    @pytest.mark.usefixtures("both_at_work")
    @pytest.mark.parametrize("here", [True, False], ids=["the caller", "the helper"])
    def test_what_fails_in_either_fails_for_the_caller(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch, *, here: bool
    ) -> None:
        def compare(*_: object) -> None:
            if (threading.current_thread() is threading.main_thread()) == here:
                raise MemoryError

        monkeypatch.setattr(module, "compare", compare)

        with pytest.raises(MemoryError):
            stack.score(self.WINDOWS)

    def test_a_helper_that_is_busy_elsewhere_is_not_waited_for(self, stack: Stack) -> None:
        over = threading.Event()
        elsewhere = module._helper.submit(over.wait, 10)

        errors = stack.score(self.WINDOWS)

        assert not elsewhere.done()
        over.set()
        np.testing.assert_allclose(errors.window, by_definition(stack, self.WINDOWS)[:, 0], rtol=2e-6)


def test_a_neighbour_of_any_size_changes_nothing(stack: Stack) -> None:
    windows = some_windows(np.array([3, 3, 3, 8]))
    wild = windows.tail.copy()
    wild[1] = 1e30
    anchor = windows.anchor.copy()
    anchor[2] = -1e300

    calm, beside = stack.score(windows), stack.score(Windows(wild, anchor, windows.model))

    np.testing.assert_allclose(beside.window[[0, 3]], calm.window[[0, 3]], rtol=1e-6)
    assert np.isfinite(beside.window).all()


@given(st.lists(st.integers(0, 90_000), min_size=1, max_size=300), st.integers(1, 100))
def test_blocks_hold_every_row_and_each_under_its_own_network(models: list[int], per_block: int) -> None:
    model = np.array(models, np.int32)

    seen: set[int] = set()
    for block_models, members in _blocks(model, per_block):
        assert (model[members] == block_models[:, None]).all()
        assert members.size <= max(per_block, members.shape[1])
        seen.update(members.ravel().tolist())

    assert seen == set(range(len(models)))


def test_a_spread_however_small_gives_numbers() -> None:
    network = Autoencoder.initial((4, 1, 4), [np.random.default_rng(0)])
    stack = Stack(network, Scaling(np.zeros((1, 2)), np.full((1, 2), 1e-300)), ONE)
    windows = Windows(np.ones((1, 2, 2), np.float32), np.array([[0.0, 1e308]]), np.zeros(1, np.int32))

    assert np.isfinite(stack.score(windows).window).all()
    assert np.isfinite(stack.explain(windows).contribution).all()


def test_input_is_clipped_at_five_and_target_at_fifty() -> None:
    """The output of a network of zeros is 0: the error is the target's own size."""
    network = Autoencoder.initial((2, 1, 2), [np.random.default_rng(0)])
    for tensor in network.tensors():
        tensor.zero_()
    stack = Stack(network, Scaling(np.zeros((1, 1)), np.ones((1, 1))), ONE)
    tail = np.array([0, 20, 70], np.float32).repeat(2).reshape(3, 2, 1)

    errors = stack.score(Windows(tail, np.zeros((3, 1)), np.zeros(3, np.int32)))
    np.testing.assert_allclose(errors.window**2, [0, 20, 50], rtol=1e-6)

    network.weights[0].fill_(1)
    network.weights[1].fill_(1)
    inside = np.tanh(2 * np.float32(5))
    errors = stack.score(Windows(tail, np.zeros((3, 1)), np.zeros(3, np.int32)))
    np.testing.assert_allclose(errors.window**2, [0, 20 - inside, 50 - inside], rtol=1e-6)


def test_a_far_level_costs_no_precision() -> None:
    """Unix times in nanoseconds have no room in float32; the offset is taken in float64."""
    network = Autoencoder.initial((8, 2, 8), [np.random.default_rng(0)])
    near = Stack(network, Scaling(np.zeros((1, 1)), np.ones((1, 1))), ONE)
    far = Stack(network, Scaling(np.full((1, 1), 1.7e18), np.ones((1, 1))), ONE)
    tail = np.random.default_rng(1).normal(size=(5, 8, 1)).astype(np.float32)

    at_zero = near.score(Windows(tail, np.zeros((5, 1)), np.zeros(5, np.int32)))
    away = far.score(Windows(tail, np.full((5, 1), 1.7e18), np.zeros(5, np.int32)))

    assert away.window.tolist() == at_zero.window.tolist()


def test_every_series_gets_its_own_model_and_an_unseen_one_the_fallback(bundle: Bundle) -> None:
    scorer: Scorer = StackScorer(bundle)

    given_out = scorer.assign(["pump-2", "never seen", "pump-1", "newcomer"])

    assert sorted(given_out.model[[0, 2]].tolist()) == [0, 1]
    assert given_out.model[[1, 3]].tolist() == [2, 2]
    assert given_out.calibration.shape == (4, 5)
    assert (given_out.calibration > 0).all()
    assert scorer.assign([]).model.shape == (0,)


def test_a_spike_is_explained_by_its_own_feature_in_its_own_units(
    bundle: Bundle, history: dict[str, SeriesRows]
) -> None:
    scorer = StackScorer(bundle)
    values = history["pump-2"].values[100:108].copy()
    values[-1, 1] += 30
    anchor = values[-1:]
    model = scorer.assign(["pump-2"]).model

    why = scorer.explain(Windows((values - anchor)[None].astype(np.float32), anchor, model))

    np.testing.assert_allclose(why.observed[0], values, rtol=1e-6)
    assert why.contribution[0].argmax() == 1
    np.testing.assert_allclose(why.contribution.sum(axis=1), 1)
    assert abs(why.observed[0, -1, 1] - why.expected[0, -1, 1]) > 20
    assert np.abs(why.observed[0, :, 0] - why.expected[0, :, 0]).max() < 5


def test_explanations_and_scores_agree(stack: Stack) -> None:
    windows = some_windows(np.array([3, 9, 3]))

    why = stack.explain(windows)
    errors = stack.score(windows)

    spread = stack.scaling.spread[windows.model][:, None]
    residual = np.abs((why.observed - why.expected) / spread)
    np.testing.assert_allclose(np.sqrt(residual.mean(axis=(1, 2))), errors.window, rtol=1e-5)
    np.testing.assert_allclose(why.contribution, residual.sum(1) / residual.sum((1, 2))[:, None], rtol=1e-6)


def test_a_perfect_reconstruction_is_explained_by_all_features_alike() -> None:
    network = Autoencoder.initial((4, 1, 4), [np.random.default_rng(0)])
    for tensor in network.tensors():
        torch.nn.init.zeros_(tensor)
    stack = Stack(network, Scaling(np.zeros((1, 2)), np.ones((1, 2))), ONE)

    why = stack.explain(Windows(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2)), np.zeros(1, np.int32)))

    assert why.contribution.tolist() == [[0.5, 0.5]]
