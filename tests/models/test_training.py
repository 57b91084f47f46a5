"""Training: it finds structure, each network as if alone, the same from the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import Bundle, ModelSpec, Progress, SeriesRows, StackScorer, rows_needed, train
from models.autoencoder import Autoencoder
from models.fitting import _CHECK_STEPS, Check, fit
from models.kinds import misfit
from models.learners import drop
from models.lessons import Lesson
from models.samples import split
from models.scaling import Scaling
from models.training import _calibrate
from pipeline.errors import TooFewRows
from pipeline.ports import Errors, Windows

WHEN = "2026-01-01T00:00:00Z"


def score_rows(scorer: StackScorer, series: str, values: np.ndarray, window_rows: int) -> Errors:
    """Errors of every window of the rows."""
    raw = np.lib.stride_tricks.sliding_window_view(values, window_rows, axis=0).transpose(0, 2, 1)
    anchor = raw[:, -1]
    model = scorer.assign([series] * len(raw)).model
    return scorer.score(Windows((raw - anchor[:, None]).astype(np.float32), anchor, model))


def line_of(scorer: StackScorer, series: str) -> tuple[float, float]:
    """Six deviations above the mean of the calibration, for the window and the last row."""
    mean, deviation, last_mean, last_deviation, _ = scorer.assign([series]).calibration[0]
    return mean + 6 * deviation, last_mean + 6 * last_deviation


def lesson(seed: int, values: np.ndarray, window_rows: int) -> Lesson:
    parts = split(np.zeros(len(values), np.int32), window_rows)
    rows = Scaling.fit(values).apply(0, values)
    return Lesson(np.random.default_rng(seed), rows, parts.train, parts.held_out)


def sines(random: np.random.Generator, rows: int = 300) -> np.ndarray:
    return np.sin(np.arange(rows)[:, None] * 0.5) + random.normal(0, 0.05, (rows, 1))


def test_structure_is_learnt_and_noise_is_not() -> None:
    """A code a quarter as wide holds a sine, and cannot hold noise."""
    random = np.random.default_rng(0)
    spec = ModelSpec(features=("a",), window_rows=16, steps=500)
    flat = np.zeros(400, np.int32)
    rows = {
        "sine": SeriesRows(sines(random, 400), flat),
        "noise": SeriesRows(random.normal(size=(400, 1)), flat),
    }

    scorer = StackScorer(train(rows, spec, source={}, created_at=WHEN))

    sine, noise = scorer.assign(["sine", "noise"]).calibration[:, 0]
    assert sine**2 < noise**2 / 3


@pytest.mark.parametrize("series", ["pump-1", "pump-2", "newcomer"])
def test_live_rows_like_the_training_rows_stay_below_the_line(
    bundle: Bundle, history: dict[str, SeriesRows], series: str
) -> None:
    scorer = StackScorer(bundle)

    errors = score_rows(scorer, series, history[series].values, 8)

    assert np.quantile(errors.window, 0.95) < line_of(scorer, series)[0]


def test_a_spike_and_a_level_shift_stand_out(bundle: Bundle, history: dict[str, SeriesRows]) -> None:
    scorer = StackScorer(bundle)
    spike = history["pump-1"].values[-60:].copy()
    shift = spike.copy()
    spike[30, 0] += 6
    shift[30:] += 4

    window_line, last_line = line_of(scorer, "pump-1")

    assert score_rows(scorer, "pump-1", spike, 8).last[30 - 7] > last_line
    assert (score_rows(scorer, "pump-1", shift, 8).window[35:] > window_line).all()


def test_the_same_seed_gives_the_same_bundle_and_another_seed_another(
    bundle: Bundle, history: dict[str, SeriesRows], spec: ModelSpec
) -> None:
    turned = dict(reversed(history.items()))
    again = train(turned, spec, source=bundle.manifest.source, created_at=bundle.manifest.created_at)
    other = train(history, replace(spec, seed=4, steps=1), source={}, created_at=WHEN)

    assert again.sha == bundle.sha
    first = [train(history, replace(spec, steps=1), source={}, created_at=WHEN), other]
    assert not torch.equal(first[0].network.weights[0], first[1].network.weights[0])


def test_a_stacked_network_learns_as_it_would_alone() -> None:
    spec = ModelSpec(features=("a",), window_rows=8, steps=20)
    random = np.random.default_rng(0)
    values = [sines(random), random.normal(size=(200, 1)), random.uniform(size=(350, 1))]

    def nothing(_: Check) -> None: ...

    together = fit([lesson(i, each, 8) for i, each in enumerate(values)], spec, nothing)
    for i, each in enumerate(values):
        alone = fit([lesson(i, each, 8)], spec, nothing)
        for stacked, single in zip(together.tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(stacked[i : i + 1], single, atol=1e-4, rtol=1e-3)


def test_networks_leave_when_done_and_keep_their_best_weights() -> None:
    """Memorising thirty windows of noise makes the held-out loss worse: the best check is an early one."""
    random = np.random.default_rng(0)
    spec = ModelSpec(features=("a",), window_rows=8, hidden=(64,), code=7, steps=1_200)
    noise, sine = random.normal(size=(60, 1)), sines(random, 600)
    checks: list[Check] = []

    network = fit([lesson(0, noise, 8), lesson(1, sine, 8)], spec, checks.append)

    finished = [check.finished for check in checks]
    assert finished == sorted(finished)
    assert finished.index(1) * _CHECK_STEPS < 600
    losses = [float(check.best_loss.mean()) for check in checks]
    assert losses == sorted(losses, reverse=True)
    kept = [held_out_loss(network, 0, lesson(0, noise, 8)), held_out_loss(network, 1, lesson(1, sine, 8))]
    assert np.mean(kept) == pytest.approx(losses[-1], rel=0.05)
    alone = fit([lesson(1, sine, 8)], spec, lambda _: None)
    assert kept[1] == pytest.approx(held_out_loss(alone, 0, lesson(1, sine, 8)), rel=0.2)
    curve = np.array([check.held_out_loss for check in checks])
    done = np.isnan(curve[:, 0])
    assert done.tolist() == [n > finished.index(1) for n in range(len(checks))]
    np.testing.assert_allclose(np.nanmin(curve, axis=0), checks[-1].best_loss)
    noise_seen = np.array([check.loss for check in checks])[~done, 0]
    assert noise_seen[-1] < noise_seen[0], "it memorises what it sees"


def test_a_network_goes_on_as_it_was_when_another_leaves() -> None:
    first = Autoencoder.initial((4, 2, 4), [np.random.default_rng(i) for i in range(2)])
    target = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))

    def learn(network: Autoencoder, optimiser: torch.optim.Optimizer, rows: torch.Tensor) -> None:
        for _ in range(5):
            optimiser.zero_grad()
            misfit(network, rows).sum().backward()
            optimiser.step()

    def start(models: slice) -> tuple[Autoencoder, torch.optim.Optimizer]:
        tensors = [tensor[models].clone().requires_grad_() for tensor in first.tensors()]
        return first.of(tensors), torch.optim.AdamW(tensors, lr=0.01, fused=True)

    both, their_optimiser = start(slice(0, 2))
    learn(both, their_optimiser, target)
    drop(their_optimiser, torch.tensor([1]))
    learn(both, their_optimiser, target[1:])
    alone, own_optimiser = start(slice(1, 2))
    learn(alone, own_optimiser, target[1:])
    learn(alone, own_optimiser, target[1:])

    for left, single in zip(both.tensors(), alone.tensors(), strict=True):
        torch.testing.assert_close(left, single, atol=1e-5, rtol=1e-4)


def test_a_series_learns_the_same_whoever_is_trained_beside_it(
    history: dict[str, SeriesRows], spec: ModelSpec
) -> None:
    """And two series of the same rows start from different weights."""
    few = replace(spec, steps=20)
    rows = {"a": history["pump-1"], "b": history["pump-1"]}
    one = train({"a": rows["a"]}, few, source={}, created_at=WHEN)
    two = train(rows, few, source={}, created_at=WHEN)
    in_two = StackScorer(two).assign(["a", "b"]).model.tolist()

    for single, stacked in zip(one.network.tensors(), two.network.tensors(), strict=True):
        torch.testing.assert_close(single[0], stacked[in_two[0]], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(two.network.weights[0][0], two.network.weights[0][1], atol=1e-2)


def test_held_out_errors_all_alike_leave_room_above_them() -> None:
    alike = Errors(np.full(5, 2.0), np.zeros(5))

    assert _calibrate(alike).tolist() == pytest.approx([2, 0.1 + 1e-6, 0, 1e-6, 5])


def held_out_loss(network: Autoencoder, model: int, each: Lesson) -> float:
    target = torch.from_numpy(np.stack([each.rows[start : start + 8, 0] for start in each.held_out]))
    with torch.no_grad():
        output = network.pick(slice(model, model + 1)).reconstruct(target[None].clamp(-5, 5))
    return float(torch.nn.functional.huber_loss(output[0], target))


def test_calibration_is_what_scoring_the_held_out_windows_gives(
    bundle: Bundle, history: dict[str, SeriesRows]
) -> None:
    scorer = StackScorer(bundle)
    held_out = split(history["pump-1"].segment, 8).held_out

    errors = score_rows(scorer, "pump-1", history["pump-1"].values, 8)

    mean, deviation, last_mean, _, rows = scorer.assign(["pump-1"]).calibration[0]
    assert mean == pytest.approx(errors.window[held_out].mean(), rel=1e-5)
    assert deviation == pytest.approx(max(errors.window[held_out].std(), 0.05 * mean + 1e-6), rel=1e-4)
    assert last_mean == pytest.approx(errors.last[held_out].mean(), rel=1e-5)
    assert rows == len(held_out)


def test_held_out_rows_teach_neither_the_scaling_nor_the_weights(
    history: dict[str, SeriesRows], spec: ModelSpec
) -> None:
    parts = split(history["pump-1"].segment, 8)
    changed = dict(history)
    values = history["pump-1"].values.copy()
    values[parts.held_out[0] :] *= 50
    changed["pump-1"] = SeriesRows(values, history["pump-1"].segment)
    first_check = replace(spec, steps=1)

    one = train(history, first_check, source={}, created_at=WHEN)
    two = train(changed, first_check, source={}, created_at=WHEN)

    assert np.array_equal(one.scaling.median, two.scaling.median)
    assert np.array_equal(one.scaling.spread, two.scaling.spread)
    assert all(map(torch.equal, one.network.tensors(), two.network.tensors()))


def test_a_constant_feature_is_learnt_and_its_first_move_is_an_anomaly() -> None:
    random = np.random.default_rng(0)
    spec = ModelSpec(features=("a", "still"), window_rows=8, steps=200)
    values = np.concatenate([sines(random), np.full((300, 1), 7.0)], axis=1)
    rows = {"s": SeriesRows(values, np.zeros(300, np.int32))}

    scorer = StackScorer(train(rows, spec, source={}, created_at=WHEN))

    moved = values[-8:].copy()
    moved[-1, 1] = 7.5
    assert score_rows(scorer, "s", moved, 8).last[0] > line_of(scorer, "s")[1]


def test_too_few_rows_are_refused_with_numbers(spec: ModelSpec) -> None:
    rows = {"s": SeriesRows(np.zeros((50, 2)), np.zeros(50, np.int32))}

    with pytest.raises(TooFewRows, match="50 of 56 rows") as refused:
        train(rows, spec, source={}, created_at=WHEN)

    assert (refused.value.have, refused.value.need) == (50, rows_needed(spec))
    with pytest.raises(TooFewRows, match="0 of 56 rows"):
        train({}, spec, source={}, created_at=WHEN)


def test_many_short_series_make_a_fallback_and_nothing_else(spec: ModelSpec) -> None:
    random = np.random.default_rng(0)
    rows = {f"s{i}": SeriesRows(random.normal(size=(12, 2)), np.zeros(12, np.int32)) for i in range(60)}
    rows["empty"] = SeriesRows(np.zeros((0, 2)), np.zeros(0, np.int32))

    bundle = train(rows, replace(spec, steps=50), source={}, created_at=WHEN)

    assert bundle.manifest.models == 1
    assert StackScorer(bundle).assign(["s1"]).model.tolist() == [0]


@pytest.mark.parametrize("values", [np.zeros((300, 3)), np.full((300, 2), np.nan)])
def test_rows_that_do_not_fit_are_refused(spec: ModelSpec, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="series 's'"):
        train({"s": SeriesRows(values, np.zeros(300, np.int32))}, spec, source={}, created_at=WHEN)


def test_progress_rises_to_one_and_what_it_raises_ends_training(
    history: dict[str, SeriesRows], spec: ModelSpec
) -> None:
    seen: list[Progress] = []
    train(history, replace(spec, steps=120), source={}, created_at=WHEN, on_progress=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert seen[-1].networks == 3

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(history, spec, source={}, created_at=WHEN, on_progress=stop)


def test_values_near_the_end_of_float64_train_and_score_in_finite_numbers(spec: ModelSpec) -> None:
    values = np.random.default_rng(0).choice([-1e308, 1e308], (200, 2))
    rows = {"s": SeriesRows(values, np.zeros(200, np.int32))}

    bundle = train(rows, replace(spec, steps=1), source={}, created_at=WHEN)

    assert np.isfinite(bundle.calibration).all()
    still = Windows(np.zeros((1, 8, 2), np.float32), np.full((1, 2), 1e308), np.zeros(1, np.int32))
    assert np.isfinite(StackScorer(bundle).score(still).window).all()
    assert np.isfinite(StackScorer(bundle).explain(still).contribution).all()
