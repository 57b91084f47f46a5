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
from contextlib import ExitStack
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


Rounds = list[list[Taken]]
"""By round, then by pass as in PASSES."""


def main() -> None:
    """Measure, print the table, write the file."""
    options = _options()
    report: dict[str, Any] = {
        "machine": _machine(),
        "scope": {"series": SERIES, "features": FEATURES, "window": WINDOW, "partitions": 1, "processes": 1},
        "buses": {},
    }
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="offbeat-bench-")))
        buses = {"embedded": (f"sqlite:///{folder / 'bus.db'}", options.rows)}
        if broker := opened.enter_context(kafka_broker(folder / "kafka")):
            buses["kafka"] = (f"kafka://{broker}", options.kafka_rows)
        for name, rounds in _measured(buses, folder, options.rounds).items():
            report["buses"][name] = {"records": rounds[0][0].records, "stages": _stages(rounds)}
    if "kafka" not in report["buses"]:
        report["buses"]["kafka"] = {"skipped": NO_KAFKA}
    report["machine"]["load_after"] = os.getloadavg()
    _print(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written to {options.output}.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=800, help="of each series, on the embedded bus")
    parser.add_argument("--kafka-rows", type=int, default=160, help="the same on Kafka")
    parser.add_argument("--rounds", type=int, default=5, help="each measures every stage once")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    if min(options.rows, options.kafka_rows) < 2 * WINDOW or options.rounds < 1:
        parser.error(
            f"at least {2 * WINDOW} rows, of which the first {WINDOW} fill the windows, and one round"
        )
    return options


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg(),
    }


def _measured(buses: dict[str, tuple[str, int]], folder: Path, rounds: int) -> dict[str, Rounds]:
    """Fill the buses, train the models, and pass over each bus by each stage, round by round."""
    run = f"bench-{uuid.uuid4().hex[:8]}"
    for name, (url, rows) in buses.items():
        print(f"Writing {SERIES * rows} records to the {name} bus ...", flush=True)
        fill(settings(run, url, folder), Readings(rows))
    print(f"Training one shared model and {SERIES} of their own ...", flush=True)
    teach(settings(run, next(iter(buses.values()))[0], folder))
    taken: dict[str, Rounds] = {name: [] for name in buses}
    for number in range(rounds):
        print(f"Round {number + 1} of {rounds} ...", flush=True)
        for name, (url, rows) in buses.items():
            row = []
            for place, (_, scope, stage) in enumerate(PASSES):
                config = settings(f"{run}.{number}.{place}", url, folder)
                row.append(measure(stage(config, scope or next(iter(SCOPES)), SERIES * rows)))
            taken[name].append(row)
    return taken


def _stages(rounds: Rounds) -> list[dict[str, Any]]:
    """Medians over the rounds with the least and the most; ratios are taken within a round."""
    stages = []
    for place, (stage, scope, _) in enumerate(PASSES):
        mine = [row[place] for row in rounds]
        stages.append(
            {
                "stage": stage,
                "models": scope or None,
                "records_per_s": _spread([taken.records_per_s for taken in mine]),
                "cpu_s_per_million": _spread([taken.cpu_s_per_million for taken in mine]),
                "cpu_to_consume": _spread(
                    [
                        taken.cpu_s_per_million / row[0].cpu_s_per_million
                        for taken, row in zip(mine, rounds, strict=True)
                    ]
                ),
            }
        )
    return stages


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _print(report: dict[str, Any]) -> None:
    scope = report["scope"]
    size = f"{scope['series']} series x {scope['features']} features, window {scope['window']}"
    print(f"\n{size}, every row scored; one process, one partition")
    print("medians, in brackets the least and the most")
    for name, bus in report["buses"].items():
        if "skipped" in bus:
            print(f"\n{name}: skipped ({bus['skipped']})")
            continue
        print(f"\n{name} bus, {bus['records']} records a pass")
        print(f"  {'stage':<32}{'models':<9}{'k records/s':>18}{'CPU s/million':>22}{'to consume':>12}")
        for stage in bus["stages"]:
            rate, cpu = stage["records_per_s"], stage["cpu_s_per_million"]
            rates = f"{rate['median'] / 1e3:.0f} ({rate['min'] / 1e3:.0f}-{rate['max'] / 1e3:.0f})"
            seconds = f"{cpu['median']:.2f} ({cpu['min']:.2f}-{cpu['max']:.2f})"
            ratio = f"{stage['cpu_to_consume']['median']:.1f} x"
            print(f"  {stage['stage']:<32}{stage['models'] or '':<9}{rates:>18}{seconds:>22}{ratio:>12}")
    slowest = min(
        stage["records_per_s"]["median"]
        for stage in report["buses"]["embedded"]["stages"]
        if stage["stage"] == "whole path"
    )
    print(f"\nWhole path, embedded: {slowest / 1e3:.0f} k records/s; to be held: {TARGET / 1e3:.0f} k.")


if __name__ == "__main__":
    main()
