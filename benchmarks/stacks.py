"""Measures what it is worth to stack small autoencoders, for build/stacks.json and docs/performance.md.

`make stacks` trains 1,000 of them (window 32, 4 features, 128-32-8-32-128, 2,000 rows each) as the program
does, by two threads, and between parts of that work a few of the same networks one after the other by the
same loop; then it scores windows by all of them, beside nothing but the matrix products. It takes some five
minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the path comes first
import torch  # noqa: E402
from labelled import publish  # noqa: E402

from models import ModelSpec, Progress  # noqa: E402
from models.autoencoder import Autoencoder, helpers  # noqa: E402
from models.blocks import fit_blocks  # noqa: E402
from models.fitting import CPU, Check, Lesson, fit  # noqa: E402
from models.samples import split  # noqa: E402
from models.scaling import Scaling  # noqa: E402
from models.stack import _VALUES_AT_ONCE, Stack, _blocks  # noqa: E402
from pipeline.ports import Int32s, Windows  # noqa: E402

FEATURES = ("a", "b", "c", "d")
WINDOW, ROWS, THREADS = 32, 2_000, 2
PARTS = 4
"""Of the stack's work, between which networks are trained alone: what else the machine does meets both."""
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
    """Seconds on the wall and of the processor, over several stretches."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = 0.0, 0.0

    def run(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever the work gives
        """Do it on the clock."""
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu
        return done


def train(spec: ModelSpec, networks: int, sample: int) -> tuple[dict[str, Any], Autoencoder]:
    """The stack, some of its networks alone and some in a stack of one thread; and the trained stack."""
    clocks = {name: Clock() for name in ("stacked", "one_thread", "alone")}
    sampled = np.linspace(0, networks - 1, sample).round().astype(int)
    losses, kept = np.full(networks, np.nan), []
    apart: dict[int, float] = {}
    fit([lesson(0)], ModelSpec(features=FEATURES, window_rows=WINDOW, steps=10), lambda _: None)  # compiles

    def alone(numbers: Sequence[int]) -> None:
        for number in numbers:
            checks: list[Check] = []
            one = [lesson(number)]
            clocks["alone"].run(lambda one=one, checks=checks: fit(one, spec, checks.append))
            apart[number] = float(checks[-1].best_loss[0])

    between = np.array_split(sampled, PARTS + 1)
    for part, numbers in enumerate(np.array_split(np.arange(networks), PARTS)):
        alone(between[part].tolist())
        lessons = [lesson(number) for number in numbers.tolist()]

        def keep(progress: Progress, first: int = int(numbers[0])) -> None:
            begin = first + progress.first
            losses[begin : begin + len(progress.check.best_loss)] = progress.check.best_loss

        kept.append(
            clocks["stacked"].run(lambda each=lessons, keep=keep: fit_blocks(each, spec, CPU, THREADS, keep))
        )
        print(f"{numbers[-1] + 1:,} of {networks:,} networks in {clocks['stacked'].wall_s:.0f} s", flush=True)
    alone(between[PARTS].tolist())
    few = [lesson(number) for number in range(min(networks, 64))]
    clocks["one_thread"].run(lambda: fit_blocks(few, spec, CPU, 1, lambda _: None))

    counts = {"stacked": networks, "one_thread": len(few), "alone": sample}
    a_network = {
        name: {"wall_s": clock.wall_s / counts[name], "cpu_s": clock.cpu_s / counts[name]}
        for name, clock in clocks.items()
    }
    off = [losses[number] / loss - 1 for number, loss in apart.items()]
    found = {
        "a_network": a_network,
        "stacked_s": clocks["stacked"].wall_s,
        "alone_sample": sample,
        "alone_s": a_network["alone"]["wall_s"] * networks,
        "times": a_network["alone"]["wall_s"] / a_network["stacked"]["wall_s"],
        "times_one_thread": a_network["alone"]["cpu_s"] / a_network["one_thread"]["cpu_s"],
        "times_cpu": a_network["alone"]["cpu_s"] / a_network["stacked"]["cpu_s"],
        "loss_off": float(np.abs(off).max()),
    }
    return found, Autoencoder.join(kept)


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
    for number in range(rounds + 1):
        for name, work in works.items():
            clock = Clock()
            clock.run(work)
            if number:  # the first one warms up
                rates[name].append(POLL / clock.wall_s)
    return {
        "poll": POLL,
        "windows_per_s": {
            name: {"median": float(np.median(each)), "low": min(each), "high": max(each)}
            for name, each in rates.items()
        },
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

    rows = [
        (f"{networks} networks in a stack, {THREADS} threads", f"{training['stacked_s']:.0f} s", ""),
        (
            f"the same one after the other (from {training['alone_sample']} of them)",
            f"{training['alone_s']:,.0f} s",
            f"{training['times']:.1f} times as long; to hold: 5, aim: 20",
        ),
        (
            "CPU of one network, stacked, one thread",
            f"{one['one_thread']['cpu_s']:.3f} s",
            f"alone {one['alone']['cpu_s']:.3f} s, {training['times_one_thread']:.1f} times as much",
        ),
        (
            f"CPU of one network, stacked, {THREADS} threads",
            f"{one['stacked']['cpu_s']:.3f} s",
            f"alone {one['alone']['cpu_s']:.3f} s, {training['times_cpu']:.1f} times as much",
        ),
        ("held-out loss, stacked against alone", f"{training['loss_off']:.2%} apart at most", ""),
        ("memory of the process, training", f"{training['peak_gib']:.2f} GiB at most", "to hold: 4 GiB"),
        (
            "scoring, windows of all networks in turn",
            rate("even"),
            f"{ratio['even']:.2f} of its products alone; to hold: 1 M/s",
        ),
        (
            f"scoring, skewed (Zipf, exponent {SKEW})",
            rate("skewed"),
            f"{ratio['skewed']:.2f} of its products alone; to hold: 0.5 M/s",
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
