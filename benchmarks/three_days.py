"""Three simulated days of a stream that trains itself, on a real Kafka: what happened, checked and drawn.

Event time is compressed. The worker is the program's own process, and so is the retrainer, but for its wall
clock, which is the newest record's time. What people decide they decide through the program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

STREAM, TOPIC = "plant", "plant"
START = datetime(2026, 3, 2, tzinfo=UTC)
"""When it begins to be watched; the topic holds a day before that."""
HISTORY = timedelta(days=1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WINDOW = 32
PATIENCE_S = 240.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Something that is true of some series for some time.

    Attributes:
        series: numbers of the series.
        odd: whether people would call it an anomaly.
    """

    what: str
    series: tuple[int, ...]
    start: timedelta
    end: timedelta
    odd: bool = True


@dataclass(frozen=True, slots=True)
class Story:
    """What happens in a run; times are since ``START``.

    Attributes:
        faults: that are over after a while.
        regime: from when on every series behaves otherwise, which is normal then.
        accepted: when people say so.
        polluted: rows that somebody later calls normal by mistake.
        mistaken: when somebody does.
        overruled, rolled_back: when somebody puts the refused model to use, and takes that back.
        end: of the run.
    """

    series: int
    steps: int
    faults: tuple[Stretch, ...]
    regime: timedelta
    accepted: timedelta
    polluted: Stretch
    mistaken: timedelta
    overruled: timedelta
    rolled_back: timedelta
    end: timedelta


def story(series: int = 6) -> Story:
    """The story that is told in docs/three-days.md."""
    everywhere = tuple(range(series))
    return Story(
        series=series,
        steps=400,
        faults=(
            Stretch("level shift", (2,), 6 * HOUR, 7 * HOUR),
            Stretch("stuck", (4,), DAY + 2 * HOUR, DAY + 4 * HOUR),
            Stretch("level shift", (1,), 2 * DAY + 12 * HOUR, 2 * DAY + 13 * HOUR),
        ),
        regime=12 * HOUR,
        accepted=14 * HOUR,
        polluted=Stretch("polluted rows", everywhere, DAY + 5 * HOUR, DAY + 16 * HOUR),
        mistaken=DAY + 15 * HOUR,
        overruled=DAY + 20 * HOUR,
        rolled_back=DAY + 22 * HOUR,
        end=3 * DAY,
    )


def values(told: Story) -> NDArray[np.float64]:
    """float64[minutes, series], from where the topic begins to the end."""
    minutes = np.arange(int((HISTORY + told.end) / MINUTE))
    at = minutes[:, None] / 1_440.0
    number = np.arange(told.series)
    random = np.random.default_rng(7).normal(size=(len(minutes), told.series))
    noise = np.apply_along_axis(_smoothed, 0, random)
    day = np.sin(2 * np.pi * (at - number / 17)) + 0.35 * np.sin(2 * np.pi * (4 * at + number / 5))
    watched = minutes - int(HISTORY / MINUTE)
    changed = watched >= told.regime / MINUTE
    made = 40 + 4 * number + np.where(changed[:, None], 16 * day + 14, 10 * day) + noise
    for each in (*told.faults, told.polluted):
        inside = (watched >= each.start / MINUTE) & (watched < each.end / MINUTE)
        for n in each.series:
            made[inside, n] = _spoiled(each.what, made[inside, n], n)
    return made


def _smoothed(white: NDArray[np.float64]) -> NDArray[np.float64]:
    made = np.zeros(len(white))
    for n in range(1, len(white)):
        made[n] = 0.6 * made[n - 1] + 0.5 * white[n]
    return made


def _spoiled(what: str, good: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    if what == "level shift":
        return good + 15
    if what == "stuck":
        return np.full(len(good), good[0])
    random = np.random.default_rng(100 + n).normal(size=len(good))
    return good + random * np.linspace(0.5, 12, len(good))


@dataclass
class Run:
    """A run in a folder: the installation, its processes, and what they said."""

    told: Story
    folder: Path
    bus: str
    at: timedelta = timedelta()
    sent: int = 0
    drift: list[tuple[float, float]] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.values = values(self.told)
        self.config_file = self.folder / "offbeat.yaml"
        self.clock_file = self.folder / "clock"
        stream = {
            "topic": TOPIC,
            "events": {"features": {"load": {"path": "load"}}},
            "model": {"window": WINDOW},
            "training": {"steps": self.told.steps, "drift_every": 0.1},
        }
        settings = {
            "bus": self.bus,
            "state": f"embedded:///{self.folder}/state",
            "registry": f"{self.folder}/models",
            "snapshots": f"{self.folder}/snapshots",
            "streams": {STREAM: stream},
        }
        self.config_file.write_text(yaml.safe_dump(settings))

    @contextmanager
    def working(self) -> Iterator[None]:
        """The worker and the retrainer at work."""
        from offbeat import app
        from offbeat.controls import Control
        from pipeline.config import load

        with self._opened:
            self.config = load(self.config_file)
            self._opened.enter_context(app.open_state(self.config))
            self.broker = self._opened.enter_context(app.open_bus(self.config.bus))
            self.admin, self.reader = self.broker.admin(), self.broker.reader()
            self.producer = self.broker.producer()
            self.admin.create(app.input_topics(self.config, [STREAM], 1))
            self.control = Control(self.config, self.broker, "ann (three days)")
            self.produce(-HISTORY, timedelta())
            self.tell_time()
            self.worker = self._start("worker", "-m", "offbeat", "detect", STREAM, "--json")
            self.retrainer = self._start("retrainer", str(Path(__file__)), "--retrainer", str(self.folder))
            yield

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *arguments]
        if name == "worker":
            command += ["--config", str(self.config_file)]
        out = self._opened.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._opened.callback(process.wait)
        self._opened.callback(process.terminate)
        return process

    def produce(self, since: timedelta, until: timedelta) -> None:
        """All rows of some time, in the order of time."""
        from pipeline.records import Send

        minutes = np.arange(int((HISTORY + since) / MINUTE), int((HISTORY + until) / MINUTE))
        rows = self.values[minutes]
        sends = []
        for minute, row in zip(minutes.tolist(), rows.tolist(), strict=True):
            at_ms = round((START - HISTORY + minute * MINUTE).timestamp() * 1_000)
            for n, value in enumerate(row):
                event = {"series": f"unit-{n}", "time": at_ms / 1_000, "load": round(value, 3)}
                sends.append(
                    Send(TOPIC, b"unit", json.dumps(event).encode(), timestamp_ms=at_ms, partition=0)
                )
        self.producer.send(sends)
        self.producer.flush()
        self.sent += len(sends)
        self.at = until

    def tell_time(self) -> None:
        """What the retrainer's clock shows from now on."""
        draft = self.clock_file.with_suffix(".new")
        draft.write_text((START + self.at).isoformat())
        draft.replace(self.clock_file)

    def settle(self) -> None:
        """Wait until the worker has committed all there is, and the retrainer has done all that is due."""
        group = self.config.group(STREAM)
        end = self.reader.bounds(TOPIC)[0].end_offset
        self._await(lambda: self.admin.committed(group, TOPIC).get(0) == end, "the worker is behind")
        self.tell_time()
        now = (START + self.at).isoformat()
        self._await(lambda: self._retrainer_rests(now), "the retrainer works")

    def _retrainer_rests(self, now: str) -> bool:
        told = lines(self.folder / "retrainer.log")
        if not told or told[-1].get("now") != now or told[-1].get("doing") != "waiting":
            return False
        if told[-1]["drift"] is not None:
            self.drift.append((self.at / HOUR, told[-1]["drift"]))
        return True

    def _await(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            for name, process in (("worker", self.worker), ("retrainer", self.retrainer)):
                if process.poll() is not None:
                    raise RuntimeError(
                        f"the {name} ended: {(self.folder / f'{name}.log').read_text()[-2000:]}"
                    )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} for {PATIENCE_S:g} s, at {self.at}")
            time.sleep(0.05)

    def until(self, at: timedelta) -> None:
        """Let time pass, half an hour at once."""
        while self.at < at:
            self.produce(self.at, min(self.at + 30 * MINUTE, at))
            self.settle()

    def alerts(self) -> list[Any]:
        """The last revision of each alert."""
        from pipeline.alerts import Alert
        from pipeline.notifications import published
        from pipeline.reading import stretch
        from pipeline.records import TopicPartition

        bounds = self.reader.bounds(self.config.alerts_topic)[0]
        last: dict[str, Alert] = {}
        at = TopicPartition(self.config.alerts_topic, 0)
        for batch in stretch(self.reader, at, bounds.first_offset, bounds.end_offset):
            last |= {alert.id: alert for _, alert in published(batch, Alert)[0]}
        return list(last.values())

    def call_normal(self, since: timedelta, why: str) -> int:
        """Accept every alert that began since then as a new normal."""
        found = [each for each in self.alerts() if each.started_at >= START + since]
        for each in found:
            self.control.feedback(each, "accept", why)
        return len(found)

    def decide(self, *arguments: str) -> None:
        """A command of the program."""
        command = [sys.executable, "-m", "offbeat", *arguments, "--config", str(self.config_file)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)


def lines(log: Path) -> list[dict[str, Any]]:
    """What a process said, as JSON."""
    whole = log.read_text().split("\n")[:-1]
    return [json.loads(line) for line in whole if line.startswith("{")]


def live(run: Run) -> dict[str, Any]:
    """Let the story happen; returns all that is to be told of it."""
    told, began = run.told, time.monotonic()
    with run.working():
        run.settle()
        run.until(told.accepted)
        accepted = run.call_normal(told.regime, "more is made since noon")
        run.until(told.mistaken)
        mistaken = run.call_normal(told.polluted.start, "took it for the new machine")
        run.until(told.overruled)
        refused = run.control.view().refusals.get(STREAM, [])
        polluted = [each for each in refused if each.bundle and each.at >= START + told.mistaken]
        if polluted:
            run.decide(
                "models", "promote", STREAM, str(polluted[-1].bundle), "--why", "it looked better to me"
            )
        run.until(told.rolled_back)
        if polluted:
            run.decide("models", "rollback", STREAM, "--why", "it finds nothing")
        run.until(told.end)
        view, alerts = run.control.view(), run.alerts()
        run.worker.terminate()
        run.worker.wait(30)
        last = [each for each in lines(run.folder / "worker.log") if each.get("event") == "status"][-1]
        changes = _changes(run)
        decisions = [
            {
                "kind": each.kind,
                "at": each.at.isoformat(),
                "who": each.who,
                "bundle": each.bundle,
                "why": each.why,
            }
            for each in sorted(
                [*view.promotions.get(STREAM, []), *view.refusals.get(STREAM, [])], key=lambda each: each.at
            )
        ]
    return {
        "records": run.sent, "bins": last["bins"], "decisions": decisions, "changes": changes,
        "alerts": [_alert(each) for each in alerts], "drift": run.drift, "accepted": accepted,
        "mistaken": mistaken, "seconds": round(time.monotonic() - began),
    }  # fmt: skip


def _alert(alert: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "series": alert.series,
        "kind": alert.kind,
        "start": (alert.started_at - START) / HOUR,
        "end": (alert.at - START) / HOUR if alert.state == "resolved" else None,
        "peak": alert.peak_score,
    }


def _changes(run: Run) -> list[dict[str, Any]]:
    """When the worker changed model: the journal's entries, by the event time of the record they stand before."""
    from pipeline.journal import InForce, JournalLog

    log = JournalLog(run.reader, run.config.journal_topic(STREAM))
    found, before = [], None
    for entry in log.entries(0)[0]:
        if isinstance(entry, InForce) and entry.bundle_sha != before:
            before = entry.bundle_sha
            minute = entry.next_offset // run.told.series - HISTORY / MINUTE
            found.append({"bundle": before, "hour": minute / 60})
    return found


def retrain(folder: Path) -> None:
    """The child process: the program's retrainer, with the newest record's time for a wall clock."""
    import dataclasses

    from consumers import retrainer
    from offbeat import app
    from offbeat.cli.stopping import stopping
    from pipeline.config import load

    clock_file = folder / "clock"

    def now() -> datetime:
        return datetime.fromisoformat(clock_file.read_text())

    def say(value: dict[str, Any]) -> None:
        print(json.dumps({"now": now().isoformat(), **value}, default=str), flush=True)  # noqa: T201

    with (
        stopping() as stop,
        app.open_retrainer(
            load(folder / "offbeat.yaml"), STREAM, "the retrainer", should_stop=stop,
            notice=lambda message: say({"notice": message}), wait=lambda s: stop.wait(min(s, 0.1)),
        ) as parts,
    ):  # fmt: skip
        parts.now = now
        retrainer.run(parts, on_status=lambda status: say(dataclasses.asdict(status)))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--retrainer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "three-days.json")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--bus", help="another bus than a Kafka of its own")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.retrainer:
        retrain(asked.retrainer)
        return
    from servers import kafka_broker

    with ExitStack() as opened:
        folder = asked.folder or Path(opened.enter_context(TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        bus = asked.bus
        if bus is None:
            bus = f"kafka://{opened.enter_context(kafka_broker(folder / 'kafka'))}"
        report = live(Run(story(), folder, bus))
    asked.output.parent.mkdir(exist_ok=True)
    asked.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
