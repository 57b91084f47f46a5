"""The stage table on both buses, against raw confluent-kafka, bytewax and quixstreams on the same topic.

Every pass of every bus and engine runs once in each round, so that what else the machine does meets all of
them alike; what counts are the ratios within a round and the CPU seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments import OTHERS, NotThere, python_of
from place import Place, environment, spread
from stages import PASSES

from offbeat.benchmark.installation import SCOPES, Readings
from offbeat.benchmark.passes import Job, Taken, measure

RAW = "confluent-kafka"
ENGINES = ("bytewax", "quixstreams")
PATIENCE_S = 120.0
Round = dict[tuple[str, str, str], Taken]
"""What was taken, by bus or engine, stage and scope."""


def run(place: Place) -> dict[str, Any]:
    """Measure all rounds; the keys of the result are those of the file."""
    buses = {
        "embedded": (place.embedded, Readings.about(place.sizes.embedded_records)),
        "kafka": (place.kafka, Readings.about(place.sizes.kafka_records)),
    }
    for name, (bus, readings) in buses.items():
        place.say(f"filling the {name} bus with {readings.records:,} records")
        place.fill("path", readings, bus=bus)
    place.say("training a thousand models, and one")
    place.teach()
    engines, left_out = _engines(place)
    rounds: list[Round] = []
    for number in range(place.sizes.rounds):
        place.say(
            f"round {number + 1} of {place.sizes.rounds}: every stage on both buses, {', '.join(engines)}"
        )
        taken: Round = {}
        for name, (bus, readings) in buses.items():
            for label, scope, stage in PASSES:
                job = Job(place.config("path", bus=bus), scope or "shared", readings)
                taken[name, label, scope] = measure(stage(job), readings.warm)
        for name, interpreter in engines.items():
            taken[name, "", ""] = other(place, name, interpreter, buses["kafka"][1])
        rounds.append(taken)
    return _report(rounds, engines) | {
        "path": {
            "records": {name: readings.records for name, (_, readings) in buses.items()},
            "rounds": len(rounds),
            "buses": {name: _stages(rounds, name) for name in buses},
            "engines": {name: _row([one[name, "", ""] for one in rounds]) for name in engines} | left_out,
        }
    }


def other(place: Place, name: str, interpreter: Path, readings: Readings) -> Taken:
    """One pass of another engine, in a process and an environment of its own."""
    script = "raw" if name == RAW else f"{name}_zscore"
    records = readings.records if name == RAW else min(readings.records, place.sizes.others_records)
    command = [interpreter, "-W", "ignore", OTHERS / f"{script}.py", place.servers, place.topic("path")]
    done = subprocess.run(
        [*command, str(readings.warm), str(records)],
        env=environment() if name == RAW else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2_000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Taken(found["records"], found["wall_s"], found["cpu_s"])


def _engines(place: Place) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    """The interpreter of each engine that can be had here, and why the others cannot."""
    engines, left_out = {RAW: Path(sys.executable)}, {}
    for name in ENGINES:
        try:
            engines[name] = python_of(
                name, OTHERS / f"{name}.txt", place.say, make=place.sizes.makes_environments
            )
        except NotThere as error:
            left_out[name] = {"skipped": str(error)}
            place.say(f"{name} is left out: {error}")
    return engines, left_out


def _report(rounds: list[Round], engines: Mapping[str, Path]) -> dict[str, Any]:
    """What the design holds the whole path to."""
    whole = "kafka", "whole path"

    def ratios(engine: str) -> dict[str, Any]:
        return {
            scope: spread(
                [one[*whole, scope].records_per_s / one[engine, "", ""].records_per_s for one in rounds]
            )
            for scope in SCOPES
        }

    return {
        "whole_path_ratio": ratios(RAW),
        "cpu_s_per_million": {
            scope: spread([one[*whole, scope].cpu_s_per_million for one in rounds]) for scope in SCOPES
        },
        **{f"x_{name}": ratios(name) if name in engines else None for name in ENGINES},
    }


def _stages(rounds: list[Round], bus: str) -> list[dict[str, Any]]:
    """Each pass of a bus, and its rate against consuming alone in the same round."""
    rows = []
    for label, scope, _ in PASSES:
        ratios = [
            one[bus, label, scope].records_per_s / one[bus, "consume", ""].records_per_s for one in rounds
        ]
        measured = _row([one[bus, label, scope] for one in rounds])
        rows.append({"stage": label, "models": scope, **measured, "ratio_to_consume": spread(ratios)})
    return rows


def _row(passes: list[Taken]) -> dict[str, Any]:
    return {
        "records_per_s": spread([one.records_per_s for one in passes]),
        "cpu_s_per_million": spread([one.cpu_s_per_million for one in passes]),
    }
