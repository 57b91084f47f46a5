"""A stack trains each of its networks as if it were alone, whatever the threads and the device."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from models import Autoencoder, ModelSpec, Progress, SeriesRows, blocks, fitting, gradients, learners, train
from models.fitting import CPU, Check, device_for, fit, teach
from models.gradients import mean_huber, tangent
from models.learners import Compiled, Operators, Windows, compiled
from models.lessons import Lesson
from models.losses import Curves
from models.samples import split
from pipeline.errors import ConfigError

WHEN = "2026-01-01T00:00:00Z"
NETWORKS = 24
WIDE = ModelSpec(features=("a", "b", "c", "d"), window_rows=8)
"""Batches of stacked networks have enough values for the compiled loops, those of one alone too few."""


def lesson(seed: int, rows: int = 300) -> Lesson:
    random = np.random.default_rng(seed)
    angle = np.arange(rows)[:, None] * random.uniform(0.1, 0.6, 4) + random.uniform(0, 6, 4)
    values = (1.3 * np.sin(angle) + random.normal(0, 0.2, (rows, 4))).astype(np.float32)
    parts = split(np.zeros(rows, np.int32), 8)
    return Lesson(np.random.default_rng(seed), values, parts.train, parts.held_out)


def learner_of(way: str, lessons: list[Lesson], spec: ModelSpec) -> Compiled | Operators:
    """As :func:`fit` makes them: here on the processor, there on a GPU."""
    drawn = Autoencoder.initial(spec.widths(), [each.random for each in lessons])
    if way == "compiled":
        return Compiled(drawn, lessons, spec)
    return Operators(drawn, lessons, spec, CPU)


def learned(way: str, seeds: range, steps: int) -> tuple[Autoencoder, Check]:
    """The networks, and how they stood when they were done."""
    checks: list[Check] = []
    spec = ModelSpec(features=WIDE.features, window_rows=8, steps=steps)
    lessons = [lesson(seed) for seed in seeds]
    return teach(learner_of(way, lessons, spec), lessons, spec, checks.append), checks[-1]


WAYS = pytest.mark.parametrize("way", ["compiled", "operators"])


def many(networks: int = NETWORKS) -> torch.Tensor:
    return torch.randn(networks, 64, 32, generator=torch.Generator().manual_seed(0))


def test_the_two_ways_to_compute_are_both_tried_here() -> None:
    assert many(1).numel() < gradients._MANY <= many().numel()


def test_plain_kinds_are_compiled_on_the_processor_and_others_are_not() -> None:
    kinds = [replace(WIDE, kind=kind) for kind in ("undercomplete", "denoising", "sparse", "variational")]

    assert [compiled(spec, CPU) for spec in kinds] == [True, True, False, False]
    assert not compiled(WIDE, torch.device("cuda"))


@WAYS
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_first_steps_of_a_stacked_network_are_those_of_the_same_alone(way: str, steps: int) -> None:
    stacked, _ = learned(way, range(NETWORKS), steps)
    for seed in (0, 7, NETWORKS - 1):
        alone, _ = learned(way, range(seed, seed + 1), steps)

        for one, other in zip(stacked.pick(slice(seed, seed + 1)).tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@WAYS
def test_the_final_loss_of_a_stacked_network_is_that_of_the_same_alone_within_two_percent(way: str) -> None:
    _, together = learned(way, range(NETWORKS), 150)
    apart = [learned(way, range(seed, seed + 1), 150)[1].best_loss[0] for seed in range(2)]

    np.testing.assert_allclose(together.best_loss[:2], apart, rtol=0.02)


def test_compiled_networks_are_the_same_bit_by_bit_in_a_stack_and_alone() -> None:
    stacked, _ = learned("compiled", range(5), 150)
    alone, _ = learned("compiled", range(3, 4), 150)

    assert all(map(torch.equal, stacked.pick(slice(3, 4)).tensors(), alone.tensors()))


@pytest.mark.parametrize("kind", ["undercomplete", "denoising"])
@pytest.mark.parametrize("hidden", [(), (16,), (24, 12)])
def test_compiled_steps_are_those_of_pytorchs_gradients_and_of_its_adam(
    kind: str, hidden: tuple[int, ...]
) -> None:
    """Noise, losses and checks included, with values on both sides of either clip."""
    spec = ModelSpec(
        features=WIDE.features,
        window_rows=8,
        kind=kind,
        hidden=hidden,
        code=5,
        steps=2 * fitting._CHECK_STEPS,
    )
    checks: dict[str, list[Check]] = {"compiled": [], "operators": []}

    def learn(way: str) -> Autoencoder:
        wild = [replace(each, rows=each.rows * np.float32(4)) for each in map(lesson, range(3))]
        return teach(learner_of(way, wild, spec), wild, spec, checks[way].append)

    one, other = map(learn, checks)

    for found, expected in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for here, there in zip(*checks.values(), strict=True):
        np.testing.assert_allclose(here.loss, there.loss, rtol=1e-4)
        np.testing.assert_allclose(here.held_out_loss, there.held_out_loss, rtol=1e-4)


@WAYS
def test_a_finished_network_costs_nothing(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """After each check, windows are cut for the networks that go on, and for no other."""
    cut: list[int] = []
    at, descend = Windows.at, learners.descend

    def operated(windows: Windows, networks: np.ndarray, starts: np.ndarray) -> torch.Tensor:
        cut.append(starts.size)
        return at(windows, networks, starts)

    def descended(rows: np.ndarray, picks: np.ndarray, *rest: object) -> float:
        cut.append(picks.size)
        return descend(rows, picks, *rest)

    monkeypatch.setattr(Windows, "at", operated)
    monkeypatch.setattr(learners, "descend", descended)
    few = [lesson(seed, rows=60) for seed in range(4)]
    spec = ModelSpec(features=WIDE.features, window_rows=8, hidden=(16,), code=12, steps=1_200)
    left, sums = [4], [0]

    def check(found: Check) -> None:
        left.append(len(few) - found.finished)
        sums.append(sum(cut))

    teach(learner_of(way, few, spec), few, spec, check)

    each = fitting._CHECK_STEPS * fitting._BATCH + 2 * learners.CHECK_WINDOWS
    assert np.diff(sums).tolist() == [networks * each for networks in left[:-1]]
    assert len(set(left)) > 2


class TestGradients:
    """They are those of PyTorch's own operators."""

    @pytest.mark.parametrize("by", [torch.linspace(-1, 1, NETWORKS), torch.ones(NETWORKS)])
    def test_of_the_mean_huber_loss(self, by: torch.Tensor) -> None:
        target, output = many(), 2 * many().flip(0)
        found, expected = (output.clone().requires_grad_() for _ in range(2))

        losses = mean_huber(found, target)
        (losses * by).sum().backward()
        plain = torch.nn.functional.huber_loss(expected, target, reduction="none").mean((1, 2))
        (plain * by).sum().backward()

        torch.testing.assert_close(losses, plain, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-9)

    def test_of_the_tangent_and_of_its_gradient(self) -> None:
        found, expected = (many().requires_grad_() for _ in range(2))

        (slope,) = torch.autograd.grad(tangent(found * 1).sum(), found, create_graph=True)
        slope.square().sum().backward()
        (plain,) = torch.autograd.grad(torch.tanh(expected).sum(), expected, create_graph=True)
        plain.square().sum().backward()

        torch.testing.assert_close(slope, plain, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)


class TestDevice:
    """Where networks are trained."""

    def test_the_processor_may_always_be_asked_for(self) -> None:
        assert device_for("cpu") == CPU

    @pytest.mark.parametrize(("found", "kind"), [(True, "cuda"), (False, "cpu")])
    def test_auto_is_a_gpu_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, kind: str, *, found: bool
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: found)

        assert device_for("auto").type == kind
        assert device_for("cpu").type == "cpu"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_said_before_training(self) -> None:
        rows = {"s": SeriesRows(np.zeros((300, 4)), np.zeros(300, np.int32))}

        with pytest.raises(ConfigError, match=r"training\.device is cuda.*finds no GPU"):
            train(rows, WIDE, source={}, created_at=WHEN, device="cuda")

    @pytest.mark.parametrize("gradients", [True, False])
    def test_no_compiled_loop_is_asked_where_its_memory_is_not_this_machines(
        self, *, gradients: bool
    ) -> None:
        """The device `meta` has shapes and no numbers: whoever reaches for them fails, as on a GPU."""
        drawn = Autoencoder.initial(WIDE.widths(), [np.random.default_rng(i) for i in range(NETWORKS)])
        network = drawn.of([tensor.to("meta").requires_grad_(gradients) for tensor in drawn.tensors()])

        with torch.set_grad_enabled(gradients):
            losses = mean_huber(network.reconstruct(many().to("meta")), many().to("meta"))
        if gradients:
            losses.sum().backward()

        assert losses.shape == (NETWORKS,)
        assert all((tensor.grad is not None) == gradients for tensor in network.tensors())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_a_gpu_learns_what_the_processor_learns(self) -> None:
        spec = ModelSpec(features=WIDE.features, window_rows=8, steps=5)

        here, there = (
            fit([lesson(seed) for seed in range(3)], spec, lambda _: None, torch.device(device))
            for device in ("cpu", "cuda")
        )

        for one, other in zip(here.tensors(), there.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

    def test_windows_cut_by_the_compiled_loop_are_those_of_the_rows(self) -> None:
        lessons = [lesson(seed) for seed in range(2)]

        found = Windows(lessons, WIDE, CPU).at(np.arange(2), np.array([[0, 5], [7, 292]]))

        assert found.shape == (2, 2, 32)
        assert np.array_equal(found[0, 1].numpy(), lessons[0].rows[5:13].ravel())
        assert np.array_equal(found[1, 1].numpy(), lessons[1].rows[292:300].ravel())


class TestThreads:
    """Each trains blocks of networks of its own."""

    ROWS: Final = {
        f"s{i}": SeriesRows(lesson(i).rows.astype(float), np.zeros(300, np.int32)) for i in range(7)
    }
    FEW: Final = ModelSpec(features=WIDE.features, window_rows=8, steps=100)

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocks, "networks_at_once", lambda *_: 2)

    def test_the_same_bundle_comes_of_any_number_of_them(self) -> None:
        one, three = (
            train(self.ROWS, self.FEW, source={}, created_at=WHEN, threads=threads) for threads in (1, 3)
        )

        assert one.sha == three.sha

    def test_blocks_are_at_work_at_the_same_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both, descend = threading.Barrier(2), learners.descend
        met = threading.local()

        def meeting(*arguments: object) -> float:
            if not hasattr(met, "once"):
                met.once = both.wait(10)
            return descend(*arguments)

        monkeypatch.setattr(learners, "descend", meeting)

        train(self.ROWS, self.FEW, source={}, created_at=WHEN, threads=2)

        assert not both.broken

    def test_they_share_no_product_while_they_train(self) -> None:
        """BLAS has a team of its own for large ones, for which threads would wait in line."""

        def threads() -> set[int]:
            return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

        with threadpool_limits(2, "blas"):
            meanwhile: set[int] = set()
            train(
                self.ROWS,
                self.FEW,
                source={},
                created_at=WHEN,
                on_progress=lambda _: meanwhile.update(threads()),
            )

            assert meanwhile == {1}
            assert threads() == {2}

    def test_progress_is_told_by_the_callers_thread_of_all_blocks_together(self) -> None:
        seen: list[Progress] = []
        tellers: set[threading.Thread] = set()

        def tell(progress: Progress) -> None:
            seen.append(progress)
            tellers.add(threading.current_thread())

        train(self.ROWS, self.FEW, source={}, created_at=WHEN, threads=3, on_progress=tell)

        assert tellers == {threading.current_thread()}
        fractions = [each.fraction for each in seen]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert {each.first for each in seen} == {0, 2, 4, 6}
        assert seen[-1].networks == 8

    def test_losses_stand_in_the_order_of_networks_whichever_block_is_checked_first(self) -> None:
        curves = Curves()
        for first in (2, 0, 2):
            loss = np.array([first, first + 1], np.float32)
            curves.add(Progress(0.5, 0, 4, first, Check(0.5, 0, loss, loss, loss.astype(float))))

        found = curves.losses().held_out

        assert found[0].tolist() == [0, 1, 2, 3]
        assert np.isnan(found[1]).tolist() == [True, True, False, False]

    def test_what_is_raised_while_they_work_ends_them_all(self) -> None:
        def stop(_: Progress) -> None:
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            train(self.ROWS, WIDE, source={}, created_at=WHEN, threads=2, on_progress=stop)

        assert threading.active_count() == before

    def test_a_block_that_fails_fails_for_the_caller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> Autoencoder:
            raise MemoryError("no room")

        monkeypatch.setattr(blocks, "fit", fail)

        with pytest.raises(MemoryError, match="no room"):
            train(self.ROWS, self.FEW, source={}, created_at=WHEN, threads=2)


def test_a_helper_computes_with_one_thread_as_its_caller_does() -> None:
    """PyTorch lets a new thread whose first work is a product begin a team of one thread for each core."""
    asked = """
import psutil, torch
from models.autoencoder import helpers

x, w, out = torch.ones(64, 64, 128), torch.ones(64, 128, 32), torch.ones(64, 64, 32)
before = psutil.Process().num_threads()
with helpers(1, "helper") as pool:
    pool.submit(torch.bmm, x, w, out=out).result()
    print(psutil.Process().num_threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "1"
