"""A stack trains each of its networks as if it were alone, whatever the threads and the device."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Final

import numpy as np
import pytest
import torch

from models import Autoencoder, ModelSpec, Progress, SeriesRows, blocks, fitting, gradients, train
from models.fitting import CPU, Check, Lesson, _Windows, device_for, fit
from models.gradients import mean_huber, tangent
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


def learned(seeds: range, steps: int) -> tuple[Autoencoder, Check]:
    """The networks, and how they stood when they were done."""
    checks: list[Check] = []
    spec = ModelSpec(features=WIDE.features, window_rows=8, steps=steps)
    return fit([lesson(seed) for seed in seeds], spec, checks.append), checks[-1]


def many(networks: int = NETWORKS) -> torch.Tensor:
    return torch.randn(networks, 64, 32, generator=torch.Generator().manual_seed(0))


def test_the_two_ways_to_compute_are_both_tried_here() -> None:
    assert many(1).numel() < gradients._MANY <= many().numel()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_first_steps_of_a_stacked_network_are_those_of_the_same_alone(steps: int) -> None:
    stacked, _ = learned(range(NETWORKS), steps)
    for seed in (0, 7, NETWORKS - 1):
        alone, _ = learned(range(seed, seed + 1), steps)

        for one, other in zip(stacked.pick(slice(seed, seed + 1)).tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_final_loss_of_a_stacked_network_is_that_of_the_same_alone_within_two_percent() -> None:
    _, together = learned(range(NETWORKS), 150)
    apart = [learned(range(seed, seed + 1), 150)[1].best_loss[0] for seed in range(2)]

    np.testing.assert_allclose(together.best_loss[:2], apart, rtol=0.02)


def test_a_finished_network_is_out_of_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each check, batches hold windows of the networks that go on, and of no other."""
    sizes: list[int] = []
    at = _Windows.at

    def counted(windows: _Windows, starts: np.ndarray) -> torch.Tensor:
        sizes.append(len(starts))
        return at(windows, starts)

    monkeypatch.setattr(_Windows, "at", counted)
    left: list[int] = []
    few = [lesson(seed, rows=60) for seed in range(4)]
    spec = ModelSpec(features=WIDE.features, window_rows=8, hidden=(16,), code=12, steps=1_200)

    def check(found: Check) -> None:
        left.append(len(few) - found.finished)

    fit(few, spec, check)

    each_check = fitting._CHECK_STEPS + 2
    between = np.array(sizes).reshape(-1, each_check)
    assert (between == between[:, :1]).all()
    assert between[:, 0].tolist() == [4, *left[:-1]]
    assert len(set(left)) > 1


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
        windows = _Windows(lessons, WIDE, CPU)

        found = windows.at(windows.base[:, None] + np.array([[0, 5], [7, 292]]))

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
        monkeypatch.setattr(blocks, "_NETWORKS_AT_ONCE", {"cpu": 2})

    def test_the_same_bundle_comes_of_any_number_of_them(self) -> None:
        one, three = (
            train(self.ROWS, self.FEW, source={}, created_at=WHEN, threads=threads) for threads in (1, 3)
        )

        assert one.sha == three.sha

    def test_blocks_are_at_work_at_the_same_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both, reconstruct = threading.Barrier(2), Autoencoder.reconstruct
        met = threading.local()

        def meeting(network: Autoencoder, inputs: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() and not hasattr(met, "once"):
                met.once = both.wait(10)
            return reconstruct(network, inputs)

        monkeypatch.setattr(Autoencoder, "reconstruct", meeting)

        train(self.ROWS, self.FEW, source={}, created_at=WHEN, threads=2)

        assert not both.broken

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
