"""Measures each stage of the way of a batch, on both buses, and writes build/bench.json.

Every stage of every bus is measured in each round, so that what else the machine does meets all of them
alike; what counts are the ratios within a round and the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402 - the path comes first
from installation import FEATURES, SCOPES, SERIES, WINDOW, Readings, fill, settings, teach  # noqa: E402
from servers import NO_KAFKA, kafka_broker  # noqa: E402
from stages import Stage, Taken, consume, decode, detect, measure, whole, windows  # noqa: E402

PASSES: list[tuple[str, str, Stage]] = [
    ("consume", "", consume),
    ("consume, decode", "", decode),
    ("consume, decode, windows", "", windows),
    *(("consume, decode, windows, score", scope, detect) for scope in SCOPES),
    *(("whole path", scope, whole) for scope in SCOPES),
]
TARGET = 250_000
"""Records a second of the whole path in one process on the embedded bus."""


def main() -> None:
    """Measure, print the table, write the file."""
    options = _options()
    report: dict[str, Any] = {
        "machine": _machine(),
        "scope": {"series": SERIES, "features": FEATURES, "window": WINDOW, "partitions": 1, "processes": 1},
        "rounds": options.rounds,
        "buses": {},
    }
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="offbeat-bench-")))
        buses = {"embedded": (f"sqlite:///{folder / 'bus.db'}", options.records)}
        broker = opened.enter_context(kafka_broker(folder / "kafka"))
        if broker:
            buses["kafka"] = (f"kafka://{broker}", options.kafka_records)
        else:
            report["buses"]["kafka"] = {"skipped": NO_KAFKA}
        for name, (records, rounds) in _measured(buses, folder, options.rounds).items():
            report["buses"][name] = {"records": records, "stages": _stages(rounds)}
    report["machine"]["load_after"] = os.getloadavg()
    _print_table(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {options.output}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=800_000, help="on the embedded bus")
    parser.add_argument("--kafka-records", type=int, default=160_000, help="on Kafka")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    return parser.parse_args()


def _measured(
    buses: dict[str, tuple[str, int]], folder: Path, rounds: int
) -> dict[str, tuple[int, list[dict[tuple[str, str], Taken]]]]:
    """Fill the buses, then run every pass of every bus in each round; a pass has a group of its own."""
    sizes = {}
    run = f"bench-{uuid.uuid4().hex[:8]}"  # a broker that was given may hold topics of an earlier run
    for name, (url, records) in buses.items():
        readings = Readings(max(records // SERIES, 2 * WINDOW))
        config = settings(run, url, folder)
        print(f"filling the {name} bus with {readings.records:,} records ...", flush=True)
        fill(config, readings)
        sizes[name] = readings.records
    print(f"training {SERIES:,} models, and one ...", flush=True)
    teach(settings(run, "sqlite://", folder))
    taken: dict[str, tuple[int, list[dict[tuple[str, str], Taken]]]] = {
        name: (size, []) for name, size in sizes.items()
    }
    numbers = count()
    for number in range(rounds):
        for name, (url, _) in buses.items():
            passes = {}
            for label, scope, stage in PASSES:
                print(f"round {number + 1} of {rounds}, {name}: {label} {scope}", flush=True)
                config = settings(f"{run}.{next(numbers)}", url, folder)
                passes[label, scope] = measure(stage(config, scope or "shared", sizes[name]))
            taken[name][1].append(passes)
    return taken


def _stages(rounds: list[dict[tuple[str, str], Taken]]) -> list[dict[str, object]]:
    """Each pass with its medians and spread, and its rate against consuming alone in the same round."""
    rows: list[dict[str, object]] = []
    for label, scope, _ in PASSES:
        passes = [one[label, scope] for one in rounds]
        ratios = [one[label, scope].records_per_s / one["consume", ""].records_per_s for one in rounds]
        rows.append(
            {
                "stage": label,
                "models": scope,
                "records_per_s": _spread([one.records_per_s for one in passes]),
                "cpu_s_per_million": _spread([one.cpu_s_per_million for one in passes]),
                "ratio_to_consume": _spread(ratios),
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg(),
    }


def _print_table(report: dict[str, Any]) -> None:
    line = "{:<10}{:<34}{:<9}{:>11}{:>24}{:>9}{:>7}"
    print("\n" + line.format("bus", "stage", "models", "records/s", "(min to max)", "CPU s/M", "ratio"))
    for name, bus in report["buses"].items():
        if "skipped" in bus:
            print(f"{name:<10}skipped: {bus['skipped']}")
            continue
        for row in bus["stages"]:
            rate, cpu, ratio = (
                row[key] for key in ("records_per_s", "cpu_s_per_million", "ratio_to_consume")
            )
            spread = f"{rate['min']:,.0f} to {rate['max']:,.0f}"
            print(
                line.format(
                    name,
                    row["stage"],
                    row["models"],
                    f"{rate['median']:,.0f}",
                    spread,
                    f"{cpu['median']:.2f}",
                    f"{ratio['median']:.2f}",
                )
            )
    slowest = min(
        row["records_per_s"]["median"]
        for row in report["buses"]["embedded"]["stages"]
        if row["stage"] == "whole path"
    )
    print(f"\nwhole path on the embedded bus: {slowest:,.0f} records/s or more; {TARGET:,} is to be held")


if __name__ == "__main__":
    main()
