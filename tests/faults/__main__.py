"""Runs the whole kill suite, prints its table, and writes build/faults.json: ``python -m faults``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from servers import NO_KAFKA, kafka_broker

from . import load
from .check import Verdict
from .place import ROOT, Grounds
from .seam import Fault, Outcome
from .suite import faults

REPORT = ROOT / "build" / "faults.json"
WIDTHS = {"fault": -58, "bus": -7, "variant": -8, "tries": 5, "lost": 5, "doubled": 8, "wrong_states": 13}
"""Of the table's columns, those of text to the left; the seconds stand last."""


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
        _say(_line({name: name for name in [*WIDTHS, "recovery_s"]}))

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


def _suffered(
    chosen: Sequence[Fault], kafka: str | None, folder: Path, bundles: tuple[str, str]
) -> Iterator[Outcome]:
    """One after another; whatever goes wrong in one is its row's, and the rest goes on."""
    for number, fault in enumerate(chosen):
        place = folder / f"{'kafka' if kafka else 'sqlite'}-{number}"
        grounds = Grounds(kafka, place, folder / "models", bundles)
        if grounds.bus not in fault.buses:
            continue
        try:
            outcome = fault.suffer(grounds)
        except Exception as error:  # noqa: BLE001 - a worker hung, or the bus did: all of it did not hold
            outcome = Outcome(fault, grounds.bus, Verdict(wrong=[f"{type(error).__name__}: {error}"]))
        shutil.rmtree(place, ignore_errors=True)
        _tell(outcome)
        yield outcome


def _tell(outcome: Outcome) -> None:
    sentences = [outcome.fault.given_up] * bool(outcome.fault.given_up)
    if outcome.figures:
        sentences.append(", ".join(f"{name}: {figure:.2f}" for name, figure in outcome.figures.items()))
    if not outcome.held:
        ties = [f"{outcome.verdict.ties} rows lie too close to their line"] * bool(outcome.verdict.ties)
        sentences += ["this did not hold", *ties, *outcome.verdict.wrong[:10]]
    _say("\n    ".join([_line(outcome.row()), *sentences]))


def _line(row: Mapping[str, object]) -> str:
    cells = [
        f"{row[name]!s:<{-width}}" if width < 0 else f"{row[name]!s:>{width}}"
        for name, width in WIDTHS.items()
    ]
    seconds = row["recovery_s"]
    return " ".join([*cells, f"{'-' if seconds is None else seconds!s:>11}"])


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
