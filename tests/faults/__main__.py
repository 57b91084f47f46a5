"""Runs the whole kill suite, prints its table, and writes build/faults.json: ``python -m faults``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from servers import NO_KAFKA, kafka_broker

from . import load
from .place import ROOT
from .suite import Fault, Outcome, faults, suffer

REPORT = ROOT / "build" / "faults.json"
COLUMNS = (
    "{fault:58} {bus:7} {variant:8} {tries:>5} {lost:>5} {doubled:>7} {wrong_states:>12} {recovery_s:>10}"
)


def main() -> int:
    """Do everything that is asked for, both buses side by side; 1 where something did not hold."""
    options = _options()
    began = time.monotonic()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="offbeat-faults-")))
        kafka = opened.enter_context(kafka_broker(folder / "kafka")) if "kafka" in options.bus else None
        if kafka is None and "kafka" in options.bus:
            _say(NO_KAFKA)
        chosen = [each for each in faults() if options.only in each.name]
        buses = [None] * ("sqlite" in options.bus) + [kafka] * (kafka is not None)
        bundles = load.learn(folder / "models")
        _say(COLUMNS.format_map({name: name for name in _NAMES}))

        def one_after_another(bus: str | None) -> list[Outcome]:
            return list(_suffered(chosen, bus, folder, bundles))

        with ThreadPoolExecutor(len(buses) or 1) as pool:
            outcomes = list(chain.from_iterable(pool.map(one_after_another, buses)))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps([each.row() for each in outcomes], indent=1) + "\n", encoding="utf-8")
    failed = [each for each in outcomes if not each.held]
    _say(f"{len(outcomes)} faults in {time.monotonic() - began:.0f} s, {len(failed)} not held: {REPORT}")
    required = "kafka" in options.bus and os.environ.get("OFFBEAT_REQUIRE_KAFKA") == "1"
    return int(bool(failed) or not outcomes or (required and kafka is None))


_NAMES = ("fault", "bus", "variant", "tries", "lost", "doubled", "wrong_states", "recovery_s")


def _suffered(
    chosen: Sequence[Fault], kafka: str | None, folder: Path, bundles: tuple[str, str]
) -> Iterator[Outcome]:
    for number, fault in enumerate(chosen):
        place = folder / f"{'kafka' if kafka else 'sqlite'}-{number}"
        outcome = suffer(fault, kafka, place, folder / "models", bundles)
        row = outcome.row()
        _say(
            COLUMNS.format_map(row | {"recovery_s": "-" if row["recovery_s"] is None else row["recovery_s"]})
        )
        if not outcome.held:
            ties = [f"{outcome.verdict.ties} rows lie too close to their line"] * bool(outcome.verdict.ties)
            for sentence in ["this did not hold", *ties, *outcome.verdict.wrong[:10]]:
                _say(f"    {sentence}")
        yield outcome


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--bus", nargs="+", choices=("sqlite", "kafka"), default=("sqlite", "kafka"))
    parser.add_argument("--only", default="", help="faults whose name holds this")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
