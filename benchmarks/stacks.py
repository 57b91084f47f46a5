"""Measures what it is worth to stack small autoencoders, for build/stacks.json and docs/performance.md.

`make stacks` trains 1,000 of them (window 32, 4 features, 128-32-8-32-128, 2,000 rows each) as the program
does, by two threads, and around each part of that work a few of the same networks one after the other: by
PyTorch's operators, and as the program trains a single one. Then it scores windows by all of them. Both are
held against nothing but the matrix products. It takes some two minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numba  # noqa: E402 - the path comes first
import numpy as np  # noqa: E402
import torch  # noqa: E402
from labelled import publish  # noqa: E402

from models import ModelSpec, Progress  # noqa: E402
from models.autoencoder import Autoencoder, helpers  # noqa: E402
from models.blocks import fit_blocks  # noqa: E402
from models.descent import one_thread  # noqa: E402
from models.fitting import CPU, Check, fit, teach  # noqa: E402
from models.learners import Operators  # noqa: E402
from models.lessons import Lesson  # noqa: E402
from models.samples import split  # noqa: E402
from models.scaling import Scaling  # noqa: E402
from models.stack import _VALUES_AT_ONCE, Stack, _blocks  # noqa: E402
from pipeline.ports import Int32s, Windows  # noqa: E402

FEATURES = ("a", "b", "c", "d")
WINDOW, ROWS, THREADS = 32, 2_000, 2
PARTS = 5
"""Of the stack's work, around which networks are trained alone: what else the machine does meets both."""
BATCH = 64
POLL = 50_000
"""Windows that are scored at once: the most that the detect step hands over."""
SKEW = 1.1
"""Exponent of Zipf's law: with 1,000 networks the first gets about a sixth of all windows."""


def main() -> int:
    """Measure, print the table, write the file and the page."""
    options = _options()
    spec = ModelSpec(features=FEATURES, window_rows=WINDOW, steps=options.steps)
    load_before = os.getloadavg()
    trained, network = train(spec, options.networks, options.sample)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report = {
        "machine": {
            "cores": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "load_before": load_before,
        },
        "networks": options.networks,
        "layers": spec.widths(),
        "rows": ROWS,
        "steps": options.steps,
        "training": trained | {"peak_gib": peak},
        "scoring": score(network, options.rounds),
    }
    table = _table(report)
    print(table)
    publish(report, options.output, options.page, "stacks", table)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=1_000)
    parser.add_argument("--sample", type=int, default=20, help="networks trained one after the other")
    parser.add_argument("--steps", type=int, default=1_200, help="optimiser steps at most")
    parser.add_argument("--rounds", type=int, default=15, help="of scoring")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "stacks.json")
    parser.add_argument("--page", type=Path, help="write the table into this page; make stacks does")
    return parser.parse_args()


def lesson(number: int) -> Lesson:
    """A noisy rhythm of four features, in units of its own spread."""
    random = np.random.default_rng(number)
    angle = np.arange(ROWS)[:, None] * random.uniform(0.05, 0.6, 4) + random.uniform(0, 2 * np.pi, 4)
    values = np.sin(angle) + random.normal(0, 0.2, (ROWS, 4))
    parts = split(np.zeros(ROWS, np.int32), WINDOW)
    rows = Scaling.fit(values).apply(0, values)
    return Lesson(np.random.default_rng(number), rows, parts.train, parts.held_out)


class Clock:
    """Seconds on the wall and of the processor, of stretches of work on so many networks or windows each."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, float, float]] = []

    def run(self, work: Callable[[], Any], many: int = 1) -> Any:  # noqa: ANN401 - whatever the work gives
        """Do it on the clock."""
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        self._stretches.append((many, time.perf_counter() - wall, time.process_time() - cpu))
        return done

    def each(self, last: int = 0) -> dict[str, float]:
        """Seconds for one of them, over all stretches or the ``last`` ones."""
        many, wall, cpu = np.sum(self._stretches[-last:], axis=0).tolist()
        return {"wall_s": wall / many, "cpu_s": cpu / many}


def train(spec: ModelSpec, networks: int, sample: int) -> tuple[dict[str, Any], Autoencoder]:
    """The stack, some of its networks alone in two ways and some in one thread; and the trained stack."""
    clocks = {name: Clock() for name in ("stacked", "one_thread", "alone", "alone_by_pytorch")}
    ways = {"alone": fit, "alone_by_pytorch": _by_operators}
    losses, kept = np.full(networks, np.nan), []
    apart: dict[str, dict[int, float]] = {name: {} for name in ways}
    short = replace(spec, steps=10)
    for way in ways.values():
        way([lesson(0)], short, lambda _: None)  # compiles

    def alone(name: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            checks: list[Check] = []
            one = [lesson(number)]
            clocks[name].run(lambda one=one, checks=checks: ways[name](one, spec, checks.append))
            apart[name][number] = float(checks[-1].best_loss[0])

    ratios: list[dict[str, float]] = []
    for numbers in np.array_split(np.arange(networks), PARTS):
        chosen = numbers[np.linspace(0, len(numbers) - 1, sample // PARTS).round().astype(int)].tolist()
        half = len(chosen) // 2
        for name in ways:
            alone(name, chosen[:half])
        lessons = [lesson(number) for number in numbers.tolist()]

        def keep(progress: Progress, first: int = int(numbers[0])) -> None:
            begin = first + progress.first
            losses[begin : begin + len(progress.check.best_loss)] = progress.check.best_loss

        work = partial(fit_blocks, lessons, spec, CPU, THREADS, keep)
        kept.append(clocks["stacked"].run(work, len(lessons)))
        for name in ways:
            alone(name, chosen[half:])
        stacked = clocks["stacked"].each(1)["wall_s"]
        ratios.append({name: clocks[name].each(len(chosen))["wall_s"] / stacked for name in ways})
        print(f"{numbers[-1] + 1:,} of {networks:,} networks trained", flush=True)
    few = [lesson(number) for number in range(min(networks, 64))]
    clocks["one_thread"].run(lambda: fit_blocks(few, spec, CPU, 1, lambda _: None), len(few))

    a_network = {name: clock.each() for name, clock in clocks.items()}
    found = {
        "a_network": a_network,
        "alone_sample": len(apart["alone"]),
        "all_s": {name: each["wall_s"] * networks for name, each in a_network.items()},
        "times": {name: _spread([each[name] for each in ratios]) for name in ways},
        "times_cpu": {name: a_network[name]["cpu_s"] / a_network["stacked"]["cpu_s"] for name in ways},
        "loss_off": {
            name: max(abs(losses[number] / loss - 1) for number, loss in each.items())
            for name, each in apart.items()
        },
        "products_s": _step_products(spec) * spec.steps,
    }
    return found, Autoencoder.join(kept)


def _by_operators(lessons: list[Lesson], spec: ModelSpec, report: Callable[[Check], None]) -> Autoencoder:
    """Train as the program does on a GPU, by PyTorch's operators and optimiser, here on the processor."""
    drawn = Autoencoder.initial(spec.widths(), [each.random for each in lessons])
    return teach(Operators(drawn, lessons, spec, CPU), lessons, spec, report)


def _spread(found: list[float]) -> dict[str, float]:
    return {"median": float(np.median(found)), "low": min(found), "high": max(found)}


@numba.njit
def _multiply(steps: int, values: Sequence[Any], weights: Sequence[Any]) -> None:
    """The products of so many steps of training: forward, by the weights, and by all inputs but the first."""
    for _ in range(steps):
        for layer in range(len(weights)):
            np.dot(values[layer], weights[layer], values[layer + 1])
        for layer in range(len(weights) - 1, -1, -1):
            np.dot(values[layer].T, values[layer + 1], weights[layer])
            if layer:
                np.dot(values[layer + 1], weights[layer].T, values[layer])


def _step_products(spec: ModelSpec) -> float:
    """CPU seconds of the products of one step of one network, in cache, by one thread: the best of many."""
    widths, steps, taken = spec.widths(), 200, []
    values = tuple(np.zeros((BATCH, width), np.float32) for width in widths)
    weights = tuple(np.zeros(each, np.float32) for each in pairwise(widths))
    with one_thread():
        for _ in range(30):
            before = time.thread_time()
            _multiply(steps, values, weights)
            taken.append(time.thread_time() - before)
    return min(taken) / steps


def score(network: Autoencoder, rounds: int) -> dict[str, Any]:
    """Windows a second, in turn and skewed, and of the products alone that they take; all in each round."""
    random, networks = np.random.default_rng(0), len(network)
    scaling = Scaling(random.normal(size=(networks, 4)), random.uniform(0.5, 2, (networks, 4)))
    stack = Stack(network, scaling, np.arange(networks, dtype=np.int32))
    tail = random.normal(size=(POLL, WINDOW, 4)).astype(np.float32)
    anchor = random.normal(size=(POLL, 4))
    share = np.arange(1, networks + 1) ** -SKEW
    ranks = random.choice(networks, POLL, p=share / share.sum())
    mixes = {"even": np.arange(POLL) % networks, "skewed": random.permutation(networks)[ranks]}
    works: dict[str, Callable[[], object]] = {}
    for name, mix in mixes.items():
        windows = Windows(tail, anchor, mix.astype(np.int32))
        works[name] = lambda windows=windows: stack.score(windows)
        works[f"{name}_products"] = _products(network, windows.model)
    rates: dict[str, list[float]] = {name: [] for name in works}
    cpu_s: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            clock = Clock()
            clock.run(work, POLL)
            if number:  # the first one warms up
                taken = clock.each()
                rates[name].append(1 / taken["wall_s"])
                cpu_s[name].append(taken["cpu_s"] * 1e6)
    return {
        "poll": POLL,
        "windows_per_s": {name: _spread(each) for name, each in rates.items()},
        "cpu_s_per_million": {name: _spread(each) for name, each in cpu_s.items()},
        "to_products": {
            name: float(np.median(np.divide(rates[name], rates[f"{name}_products"]))) for name in mixes
        },
    }


def _products(network: Autoencoder, of: Int32s) -> Callable[[], None]:
    """Nothing but the products of such windows: in the same blocks, by two threads that share them."""
    shapes = [members.shape for _, members in _blocks(of, _VALUES_AT_ONCE // (WINDOW * len(FEATURES)))]
    room = max(groups * rows for groups, rows in shapes)
    widths = [weight.shape[1] for weight in network.weights] + [network.weights[-1].shape[2]]
    layers = [[torch.randn(room * width) for width in widths] for _ in range(2)]
    helper = helpers(1, "products")

    def multiply(left: Iterator[tuple[int, int]], values: list[torch.Tensor]) -> None:
        with torch.inference_mode():
            for groups, rows in left:
                layer = [
                    each[: groups * rows * width].view(groups, rows, width)
                    for each, width in zip(values, widths, strict=True)
                ]
                for weight, (inputs, outputs) in zip(network.weights, pairwise(layer), strict=True):
                    torch.bmm(inputs, weight[:groups], out=outputs)

    def both() -> None:
        left = iter(shapes)
        other = helper.submit(multiply, left, layers[1])
        multiply(left, layers[0])
        other.result()

    return both


def _table(report: dict[str, Any]) -> str:
    machine, training, scoring = report["machine"], report["training"], report["scoring"]
    one, networks = training["a_network"], f"{report['networks']:,}"
    rates, ratio = scoring["windows_per_s"], scoring["to_products"]

    def rate(name: str) -> str:
        found = {key: each / 1e6 for key, each in rates[name].items()}
        return f"{found['median']:.2f} M/s ({found['low']:.2f} to {found['high']:.2f})"

    def cpu(name: str) -> str:
        found = scoring["cpu_s_per_million"][name]
        return f"CPU of a million {found['median']:.2f} s ({found['low']:.2f} to {found['high']:.2f})"

    def times(name: str) -> str:
        found = training["times"][name]
        return f"{found['median']:.1f} times as long ({found['low']:.1f} to {found['high']:.1f})"

    of, sample = training["all_s"], training["alone_sample"]
    rows = [
        (f"{networks} networks in a stack, {THREADS} threads", f"{of['stacked']:.0f} s", ""),
        (
            f"one after the other, by PyTorch's operators (from {sample} of them)",
            f"{of['alone_by_pytorch']:,.0f} s",
            f"{times('alone_by_pytorch')}; to hold: 5, aim: 20",
        ),
        (
            f"one after the other, as the program trains a single one (from {sample})",
            f"{of['alone']:,.0f} s",
            times("alone"),
        ),
        *(
            (f"CPU of one network, {what}", f"{one[name]['cpu_s']:.3f} s", "")
            for what, name in (
                (f"stacked, {THREADS} threads", "stacked"),
                ("stacked, one thread", "one_thread"),
                ("alone", "alone"),
                ("alone, by PyTorch's operators", "alone_by_pytorch"),
            )
        ),
        (
            "matrix products of one network's steps alone, one thread",
            f"{training['products_s']:.3f} s",
            f"alone, by operators: {one['alone_by_pytorch']['cpu_s'] / training['products_s']:.0f} times",
        ),
        ("held-out loss, stacked against alone", f"{training['loss_off']['alone']:.2%} apart at most", ""),
        (
            "the same against PyTorch's operators",
            f"{training['loss_off']['alone_by_pytorch']:.2%} apart at most",
            "",
        ),
        ("memory of the process, training", f"{training['peak_gib']:.2f} GiB at most", "to hold: 4 GiB"),
        (
            "scoring, windows of all networks in turn",
            rate("even"),
            f"{ratio['even']:.2f} of its products alone; {cpu('even')}; to hold: 1 M/s",
        ),
        (
            f"scoring, skewed (Zipf, exponent {SKEW})",
            rate("skewed"),
            f"{ratio['skewed']:.2f} of its products alone; {cpu('skewed')}; to hold: 0.5 M/s",
        ),
        ("matrix products alone, in turn", rate("even_products"), ""),
        ("matrix products alone, skewed", rate("skewed_products"), ""),
    ]
    measured = (
        f"Measured on {machine['cores']} cores ({machine['architecture']}), Python {machine['python']}, "
        f"torch {machine['torch']}; the load before was {machine['load_before'][0]:.1f}.\nNetworks "
        f"{'-'.join(map(str, report['layers']))}, {report['rows']:,} rows each, {report['steps']:,} steps at "
        f"most with early stopping, batches of 64; {scoring['poll']:,}\nwindows scored at a time, medians, "
        "in brackets the slowest and the fastest round."
    )
    lines = [measured, "", "| What | Measured | So it is |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {what} | {figure} | {verdict} |" for what, figure, verdict in rows])


if __name__ == "__main__":
    sys.exit(main())
