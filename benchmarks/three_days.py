"""Three simulated days of a stream that trains itself, on a real Kafka: what happened, checked and drawn.

Event time is compressed. The worker is the program's own process, and so is the retrainer, but for its wall
clock, which is the newest record's time. What people decide they decide through the program.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402 - the path comes first
import yaml  # noqa: E402
from days_picture import draw  # noqa: E402
from labelled import write_page  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from servers import NO_KAFKA, kafka_broker  # noqa: E402

from consumers import retrainer  # noqa: E402
from offbeat import app  # noqa: E402
from offbeat.bundles import before  # noqa: E402
from offbeat.cli.stopping import stopping  # noqa: E402
from offbeat.controls import Control  # noqa: E402
from pipeline.alerts import Alert  # noqa: E402
from pipeline.config import load  # noqa: E402
from pipeline.control import Champion, Refused  # noqa: E402
from pipeline.journal import InForce, JournalLog  # noqa: E402
from pipeline.notifications import published  # noqa: E402
from pipeline.reading import stretch  # noqa: E402
from pipeline.records import Send, TopicPartition  # noqa: E402

STREAM, TOPIC = "plant", "plant"
START = datetime(2026, 3, 2, tzinfo=UTC)
"""When it begins to be watched; the topic holds two days before that."""
HISTORY = timedelta(days=2)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WINDOW = 32
SHOWN = (0, 1, 2, 4)
"""Series in the picture."""
ANN, ROLLED_BACK = "ann", "rolled back"
PATIENCE_S = 240.0
WORKER_LOOKS_S = 3.0
"""Within this time a worker has seen what was decided."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Something that is true of some series for some time.

    Attributes:
        series: numbers of the series.
    """

    what: str
    series: tuple[int, ...]
    start: timedelta
    end: timedelta


@dataclass(frozen=True, slots=True)
class Story:
    """What happens in a run; times are since ``START``.

    Attributes:
        faults: that are over after a while.
        regime: from when on every series behaves otherwise, which is normal then.
        accepted: when people say so.
        polluted: rows that say little of how things are.
        mistaken: when somebody calls all alerts of them normal, so that training takes them in.
        overruled, rolled_back: when somebody puts the refused model to use, and takes that back.
        end: of the run.
    """

    series: int
    steps: int
    faults: tuple[Stretch, ...]
    regime: timedelta
    accepted: timedelta
    polluted: Stretch
    mistaken: tuple[timedelta, ...]
    overruled: timedelta
    rolled_back: timedelta
    end: timedelta

    @property
    def odd(self) -> list[Stretch]:
        """All that people would call out of the ordinary."""
        regime = Stretch("new regime", tuple(range(self.series)), self.regime, self.accepted)
        return [*self.faults, self.polluted, regime]


def story(series: int = 10) -> Story:
    """The story that is told in docs/three-days.md."""
    everywhere = tuple(range(series))
    return Story(
        series=series,
        steps=1_200,
        faults=(
            Stretch("level shift", (2,), 3 * HOUR, 4 * HOUR),
            Stretch("level shift", (4,), DAY + 9 * HOUR, DAY + 10 * HOUR),
            Stretch("level shift", (1,), 2 * DAY + 22 * HOUR, 2 * DAY + 23 * HOUR),
        ),
        regime=6 * HOUR,
        accepted=8 * HOUR,
        polluted=Stretch("polluted rows", everywhere, 2 * DAY + 4 * HOUR, 2 * DAY + 14 * HOUR),
        mistaken=(2 * DAY + 5 * HOUR, 2 * DAY + 8 * HOUR, 2 * DAY + 11 * HOUR),
        overruled=2 * DAY + 17 * HOUR,
        rolled_back=2 * DAY + 19 * HOUR,
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
    changed = (watched - told.regime / MINUTE).clip(0, 60)[:, None] / 60  # within an hour
    made = 40 + 4 * number + (10 + 6 * changed) * day + 14 * changed + noise
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
        return good + 40
    random = np.random.default_rng(100 + n).normal(size=len(good))
    return good + random * np.linspace(4, 12, len(good))


@dataclass
class Run:
    """A run in a folder: the installation, its processes, and what they said."""

    told: Story
    folder: Path
    bus: str
    at: timedelta = timedelta()
    champion: str | None = None
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
            "threshold": {"k": 6},
            "training": {"steps": self.told.steps, "drift_every": 0.1, "replay": "1d"},
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
        with self._opened:
            self.config = load(self.config_file)
            self._opened.enter_context(app.open_state(self.config))
            self.broker = self._opened.enter_context(app.open_bus(self.config.bus))
            self.admin, self.reader = self.broker.admin(), self.broker.reader()
            self.producer = self.broker.producer()
            self.admin.create(app.input_topics(self.config, [STREAM], 1))
            self.control = Control(self.config, self.broker, ANN, now=lambda: START + self.at)
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
        if (champion := self.control.view().champions.get(STREAM)) != self.champion:
            self.champion = champion
            time.sleep(WORKER_LOOKS_S)

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
        """Let time pass, an hour at once."""
        while self.at < at:
            self.produce(self.at, min(self.at + HOUR, at))
            self.settle()

    def alerts(self) -> list[Alert]:
        """The last revision of each alert."""
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
        for at in told.mistaken:
            run.until(at)
            run.call_normal(told.polluted.start, "took it for the new machine")
        run.until(told.overruled)
        refused = run.control.view().refusals[STREAM][-1]
        run.control.promote(STREAM, refused.bundle or "", "it looked better to me")
        run.settle()
        run.until(told.rolled_back)
        run.control.promote(STREAM, before(run.control.view(), STREAM), f"{ROLLED_BACK}: it finds nothing")
        run.settle()
        run.until(told.end)
        view, alerts = run.control.view(), run.alerts()
        end = run.reader.bounds(TOPIC)[0].end_offset
        run.worker.terminate()
        run.worker.wait(30)
        last = [each for each in lines(run.folder / "worker.log") if each.get("event") == "status"][-1]
        changes = _changes(run)
    decisions = [*view.promotions[STREAM], *view.refusals.get(STREAM, [])]
    times = np.arange(int(HISTORY / MINUTE), len(run.values), 5)
    report = {
        "seconds": round(time.monotonic() - began),
        "hours": told.end / HOUR,
        "records": run.sent,
        "in_topic": end,
        "bins": last["bins"],
        "accepted": accepted,
        "decisions": [_decision(each) for each in sorted(decisions, key=lambda each: each.at)],
        "changes": changes,
        "alerts": [_alert(each) for each in alerts],
        "truth": [_true(each) for each in told.odd],
        "drift": run.drift,
        "values": {
            "hours": ((times - HISTORY / MINUTE) / 60).round(3).tolist(),
            "series": {str(n): run.values[times, n].round(1).tolist() for n in range(told.series)},
        },
    }
    return report | {"after_changes": after_changes(report), "broken": broken(report, told)}


def _decision(each: Champion | Refused) -> dict[str, Any]:
    what = "refused" if isinstance(each, Refused) else "promoted"
    if each.who == ANN:
        what = "rolled back" if each.why.startswith(ROLLED_BACK) else "by hand"
    hour = (each.at - START) / HOUR
    return {"what": what, "hour": hour, "who": each.who, "bundle": each.bundle, "why": each.why}


def _true(each: Stretch) -> dict[str, Any]:
    return {"what": each.what, "series": each.series, "start": each.start / HOUR, "end": each.end / HOUR}


def after_changes(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The alerts that began within a window after the worker changed model, and not in anything injected."""
    found = []
    for alert in report["alerts"]:
        near = any(0 <= alert["start"] - each["hour"] < WINDOW / 60 for each in report["changes"])
        reason = any(
            alert["series"] in [f"unit-{n}" for n in each["series"]]
            and each["start"] <= alert["start"] <= each["end"] + WINDOW / 60
            for each in report["truth"]
        )
        if near and not reason:
            found.append(alert)
    return found


def broken(report: dict[str, Any], told: Story) -> list[str]:
    """What did not come out as it has to, in sentences."""
    what = [each["what"] for each in report["decisions"]]
    learned = (told.accepted / HOUR, told.polluted.start / HOUR)
    kept = [each for each in report["decisions"] if each["what"] == "promoted"]
    polluted = [
        each["what"]
        for each in report["decisions"]
        if told.polluted.start / HOUR < each["hour"] < told.overruled / HOUR
    ]
    must = {
        "records in the topic, sent and in the bins are not equally many": (
            report["records"] == report["in_topic"] == sum(report["bins"].values())
        ),
        "no model after the change of regime was promoted": any(
            learned[0] <= each["hour"] < learned[1] for each in kept
        ),
        "no challenger of polluted rows was made, or one was promoted": set(polluted) == {"refused"},
        "nothing was put to use by hand and rolled back": what.count("by hand")
        == what.count("rolled back")
        == 1,
        "an alert followed a change of the model": not after_changes(report),
    }
    return [sentence for sentence, holds in must.items() if not holds]


def _alert(alert: Alert) -> dict[str, Any]:
    return {
        "series": alert.series,
        "kind": alert.kind,
        "start": (alert.started_at - START) / HOUR,
        "end": (alert.at - START) / HOUR if alert.state == "resolved" else None,
        "severity": alert.severity,
    }


def _changes(run: Run) -> list[dict[str, Any]]:
    """When the worker changed model, as the journal has it: the event time of the next record."""
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
    clock_file = folder / "clock"

    def now() -> datetime:
        return datetime.fromisoformat(clock_file.read_text())

    def say(value: dict[str, Any]) -> None:
        print(json.dumps({"now": now().isoformat(), **value}, default=str), flush=True)

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
    parser.add_argument(
        "--bus", help="the URL of a bus of its own, in place of a Kafka that is started for it"
    )
    parser.add_argument("--page", type=Path, help="write the picture and the table of decisions there, too")
    asked = parser.parse_args()
    if asked.retrainer:
        retrain(asked.retrainer)
        return
    with TemporaryDirectory() as folder, ExitStack() as opened:
        bus = asked.bus
        if bus is None:
            bootstrap = opened.enter_context(kafka_broker(Path(folder) / "kafka"))
            if bootstrap is None:
                sys.exit(NO_KAFKA)
            bus = f"kafka://{bootstrap}"
        report = live(Run(story(), Path(folder), bus))
    asked.output.parent.mkdir(exist_ok=True)
    asked.output.write_text(json.dumps(report, indent=1))
    if asked.page:
        asked.page.with_suffix(".svg").write_text(draw(report, SHOWN))
        write_page(asked.page, "three-days", table(report))
    if report["broken"]:
        sys.exit("; ".join(report["broken"]))


def table(report: dict[str, Any]) -> str:
    """What was decided and what was counted, for the page."""
    rows = ["| Hour | What | Why, as the audit log has it |", "|---|---|---|"]
    rows += [f"| {each['hour']:.0f} | {each['what']} | {each['why']} |" for each in report["decisions"]]
    counted = (
        f"{report['records']:,} records were sent, {report['in_topic']:,} stand in the topic, and the "
        f"worker's bins hold {sum(report['bins'].values()):,}. {len(report['alerts'])} alerts were told. "
        f"The model changed {len(report['changes'])} times; {len(report['after_changes'])} alerts began "
        f"within a window ({WINDOW} rows) after a change where nothing was injected."
    )
    return "\n".join([*rows, "", fill(counted, 120)])


if __name__ == "__main__":
    main()
