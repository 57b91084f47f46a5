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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import msgspec  # noqa: E402 - the path comes first
import numpy as np  # noqa: E402
import yaml  # noqa: E402
from days_picture import draw  # noqa: E402
from labelled import write_page  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from servers import NO_KAFKA, kafka_broker  # noqa: E402

from consumers import retrainer  # noqa: E402
from consumers.replayer import Replayer  # noqa: E402
from offbeat import app, cli, controls  # noqa: E402
from offbeat.cli.stopping import stopping  # noqa: E402
from offbeat.stored_alerts import StoredAlerts  # noqa: E402
from pipeline.alerts import Alert  # noqa: E402
from pipeline.config import load  # noqa: E402
from pipeline.control import Begun, Champion, ControlLog, Feedback, Refused, Silenced  # noqa: E402
from pipeline.journal import InForce, JournalLog  # noqa: E402
from pipeline.reading import stretch  # noqa: E402
from pipeline.records import Send, TopicPartition  # noqa: E402

STREAM, TOPIC = "plant", "plant"
START = datetime(2026, 3, 2, tzinfo=UTC)
"""When it begins to be watched; the topic holds two days before that."""
HISTORY = timedelta(days=2)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WINDOW = 32
"""Rows, as the program has it where nothing is set."""
SEEDS = (7, 8, 9)
"""Of the noise; the first is drawn."""
SHOWN = (0, 4, 7, 8)
"""Series in the picture."""
PATIENCE_S = 240.0
BY_CLOCK, BY_DRIFT = "since the last decision", "the stream has drifted"
"""What a retrainer says of why it trains."""


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
        regime: from its start on some series behave otherwise, which is normal then; people say so at its
            end.
        polluted: rows that say nothing of how things are, of which nobody says anything while they come.
        overruled: when somebody puts the refused model to use.
        mended: when somebody takes that back, and says that the polluted rows are to teach nothing.
        end: of the run.
    """

    series: int
    faults: tuple[Stretch, ...]
    regime: Stretch
    polluted: Stretch
    overruled: timedelta
    mended: timedelta
    end: timedelta

    @property
    def odd(self) -> list[Stretch]:
        """All that people would call out of the ordinary."""
        return [*self.faults, self.polluted, self.regime]


def story(series: int = 10) -> Story:
    """The story that is told in docs/three-days.md."""
    return Story(
        series=series,
        faults=(
            Stretch("level shift", (7,), 20 * HOUR, 21 * HOUR),
            Stretch("level shift", (8,), 33 * HOUR, 34 * HOUR),
            Stretch("level shift", (4,), 60 * HOUR, 61 * HOUR),
        ),
        regime=Stretch("new regime", tuple(range(series // 2)), 2 * HOUR, 4 * HOUR),
        polluted=Stretch("polluted rows", tuple(range(series)), 39 * HOUR, 45 * HOUR),
        overruled=46 * HOUR,
        mended=47 * HOUR,
        end=3 * DAY,
    )


def values(told: Story, seed: int) -> NDArray[np.float64]:
    """float64[minutes, series], from where the topic begins to the end."""
    minutes = np.arange(int((HISTORY + told.end) / MINUTE))
    at = minutes[:, None] / 1_440.0
    number = np.arange(told.series)
    random = np.random.default_rng(seed).normal(size=(len(minutes), told.series))
    noise = np.apply_along_axis(_smoothed, 0, random)
    day = np.sin(2 * np.pi * (at - number / 17)) + 0.35 * np.sin(2 * np.pi * (4 * at + number / 5))
    watched = minutes - int(HISTORY / MINUTE)
    passed = (watched - told.regime.start / MINUTE).clip(0, 60)[:, None] / 60  # within an hour
    changed = passed * np.isin(number, told.regime.series)
    made = 40 + 4 * number + (10 + 6 * changed) * day + 14 * changed + noise
    for each in (*told.faults, told.polluted):
        inside = (watched >= each.start / MINUTE) & (watched < each.end / MINUTE)
        for n in each.series:
            made[inside, n] = _spoiled(each.what, made[inside, n], np.random.default_rng([seed, n]))
    return made


def _smoothed(white: NDArray[np.float64]) -> NDArray[np.float64]:
    made = np.zeros(len(white))
    for n in range(1, len(white)):
        made[n] = 0.6 * made[n - 1] + 0.5 * white[n]
    return made


def _spoiled(what: str, good: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """A fault of 40, or three readings in ten that arrive as 0."""
    if what == "level shift":
        return good + 40
    return np.where(random.random(len(good)) < 0.3, 0.0, good)


@dataclass
class Run:
    """A run in a folder: the installation, its processes, and what they said."""

    told: Story
    seed: int
    folder: Path
    bus: str
    at: timedelta = timedelta()
    sent: int = 0
    drift: list[tuple[float, float]] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.values = values(self.told, self.seed)
        self.topic = f"{TOPIC}-{self.seed}"
        self.config_file = self.folder / "offbeat.yaml"
        self.clock_file = self.folder / "clock"
        stream = {
            "topic": self.topic,
            "events": {"features": {"load": {"path": "load"}}},
            "training": {"drift_every": 0.05},  # an hour passes in about a second
        }
        settings = {
            "namespace": f"seed-{self.seed}",
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
            self.admin.create([*app.input_topics(self.config, [STREAM], 1), *app.output_topics(self.config)])
            self.journal = JournalLog(self.reader, self.config.journal_topic(STREAM))
            self.control = ControlLog(self.reader, self.config.control_topic)
            self.produce(-HISTORY, timedelta())
            self.tell_time()
            settings = ["--config", str(self.config_file)]
            self.worker = self._start("worker", "-m", "offbeat", "detect", STREAM, "--json", *settings)
            self.retrainer = self._start("retrainer", __file__, "--retrainer", str(self.folder))
            yield

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        out = self._opened.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._opened.callback(process.wait)
        self._opened.callback(process.terminate)
        return process

    def decide(self, *command: str, why: str) -> None:
        """Let somebody use the program, and wait until what it decided is in force."""
        arguments = [*command, "--why", why, "--config", str(self.config_file)]
        subprocess.run(
            [sys.executable, __file__, "--clock", self.clock_file, "--command", *arguments],
            check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.settle()

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
                    Send(self.topic, b"unit", json.dumps(event).encode(), timestamp_ms=at_ms, partition=0)
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
        end = self.reader.bounds(self.topic)[0].end_offset
        self._await(lambda: self.admin.committed(group, self.topic).get(0) == end, "the worker is behind")
        self.tell_time()
        now = (START + self.at).isoformat()
        self._await(lambda: self._retrainer_rests(now), "the retrainer works")
        self._await(self._all_in_force, "what was decided is not in force")
        share = lines(self.folder / "retrainer.log")[-1]["drift"]
        if share is not None:
            self.drift.append((self.at / HOUR, share))

    def _retrainer_rests(self, now: str) -> bool:
        """Whether it found nothing to do at two looks: the first may have begun before the clock moved on."""
        told = lines(self.folder / "retrainer.log")[-2:]
        return [(each.get("now"), each.get("doing")) for each in told] == [(now, "waiting")] * 2

    def _all_in_force(self) -> bool:
        view = self.control.refresh()
        found = [each for each in self.journal.entries(0, settled=False)[0] if isinstance(each, InForce)][-1:]
        wanted = (view.champions.get(STREAM), view.decided(STREAM))
        return [(each.bundle_sha, each.decided) for each in found] == [wanted]

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
        return [
            revisions[-1]
            for revisions in StoredAlerts(self.reader, self.config.alerts_topic).revisions().values()
        ]

    def asked(self) -> dict[datetime, str]:
        """Why the retrainer began to train, by when."""
        topic = self.config.control_topic
        batches = stretch(self.reader, TopicPartition(topic, 0), 0, self.reader.bounds(topic)[0].end_offset)
        records = [json.loads(batch.value(row) or b"{}") for batch in batches for row in range(len(batch))]
        begun = [Begun.model_validate(each) for each in records if each["kind"] == "begun"]
        return {each.at: each.why for each in begun}


def lines(log: Path) -> list[dict[str, Any]]:
    """What a process said, as JSON."""
    whole = log.read_text().split("\n")[:-1]
    return [json.loads(line) for line in whole if line.startswith("{")]


def live(run: Run) -> dict[str, Any]:
    """Let the story happen; returns all that is to be told of it."""
    told, began = run.told, time.monotonic()
    with run.working():
        run.settle()
        run.until(told.regime.end)
        new = [each.id for each in run.alerts() if each.started_at >= START + told.regime.start]
        run.decide("alerts", "accept", *new, why="half of the line runs faster since two")
        run.until(told.overruled)
        refused = [each.bundle for each in run.control.view.refusals.get(STREAM, []) if each.bundle]
        for bundle in refused[-1:]:
            run.decide("models", "promote", STREAM, bundle, why="it knows the newest rows")
        run.until(told.mended)
        if refused:
            run.decide("models", "rollback", STREAM, why="it learned from a loose contact")
        start, end = ((START + at).isoformat() for at in (told.polluted.start, told.polluted.end))
        freeze = ("silences", "add", "--stream", STREAM, "--mode", "freeze", "--start", start, "--end", end)
        run.decide(*freeze, why="a loose contact at the gateway")
        run.until(told.end)
        view, alerts, asked = run.control.refresh(), run.alerts(), run.asked()
        end_offset = run.reader.bounds(run.topic)[0].end_offset
        run.worker.terminate()
        run.worker.wait(30)
        last = [each for each in lines(run.folder / "worker.log") if each.get("event") == "status"][-1]
        changes = _changes(run)
    models = [_decision(each, asked) for each in (*view.promotions[STREAM], *view.refusals.get(STREAM, []))]
    accepted = [_said("accepted", each) for _, each in view.feedback]
    frozen = [_said("frozen", each.record) for each in view.silences.values()]
    times = np.arange(int(HISTORY / MINUTE), len(run.values), 5)
    report = {
        "seed": run.seed,
        "seconds": round(time.monotonic() - began),
        "hours": told.end / HOUR,
        "records": run.sent,
        "in_topic": end_offset,
        "bins": last["bins"],
        "accepted": len(accepted),
        "decisions": sorted([*models, *accepted[:1], *frozen], key=lambda each: each["hour"]),
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


def _decision(each: Champion | Refused, asked: Mapping[datetime, str]) -> dict[str, Any]:
    what, why = "refused" if isinstance(each, Refused) else "promoted", asked.get(each.at, "")
    if "offbeat models" in each.who:
        what, why = "rolled back" if "rollback" in each.who else "by hand", ""
    cause = "daily" if BY_CLOCK in why else "drift" if BY_DRIFT in why else ""
    return _said(what, each) | {"asked": why, "cause": cause, "bundle": each.bundle}


def _said(what: str, each: Champion | Refused | Feedback | Silenced) -> dict[str, Any]:
    hour = (each.at - START) / HOUR
    return {"what": what, "hour": hour, "who": each.who, "why": each.why, "asked": "", "cause": ""}


def _true(each: Stretch) -> dict[str, Any]:
    return {"what": each.what, "series": each.series, "start": each.start / HOUR, "end": each.end / HOUR}


def after_changes(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The alerts within a window after a change of model that the change made.

    Not those in anything injected, and not those that the series raises without the change as well.
    """
    found = []
    for change in report["changes"]:
        anyway = {each["series"] for each in change["without"]}
        for alert in report["alerts"]:
            near = 0 <= alert["start"] - change["hour"] < WINDOW / 60
            reason = any(
                alert["series"] in [f"unit-{n}" for n in each["series"]]
                and each["start"] <= alert["start"] <= each["end"] + WINDOW / 60
                for each in report["truth"]
            )
            if near and not reason and alert["series"] not in anyway:
                found.append(alert)
    return found


def broken(report: dict[str, Any], told: Story) -> list[str]:
    """What did not come out as it has to, in sentences."""
    what = [each["what"] for each in report["decisions"]]
    causes = [each["cause"] for each in report["decisions"]]

    def made(since: timedelta, until: timedelta) -> set[str]:
        """What became of the challengers of some time."""
        asked = [each for each in report["decisions"] if each["cause"]]
        return {each["what"] for each in asked if since / HOUR < each["hour"] <= until / HOUR}

    must = {
        "records in the topic, sent and in the bins are not equally many": (
            report["records"] == report["in_topic"] == sum(report["bins"].values())
        ),
        "fewer than two trainings were the daily ones": causes.count("daily") >= 2,
        "no training followed a drift": "drift" in causes,
        "no model after the change of regime was promoted": (
            "promoted" in made(told.regime.end, told.polluted.start)
        ),
        "no challenger of polluted rows was made, or one was promoted": (
            made(told.polluted.start, told.overruled) == {"refused"}
        ),
        "nothing was put to use by hand and rolled back": what.count("by hand")
        == what.count("rolled back")
        == 1,
        "no model was promoted when the polluted rows were frozen": "promoted" in made(told.mended, told.end),
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
    found, before = list[dict[str, Any]](), None
    for entry in run.journal.entries(0, settled=False)[0]:
        if isinstance(entry, InForce) and entry.bundle_sha != before:
            hour = (entry.next_offset // run.told.series * MINUTE - HISTORY) / HOUR
            without = [] if before is None else _without(run, entry.next_offset, before)
            before = entry.bundle_sha
            found.append({"bundle": before, "hour": hour, "without": without})
    return found


def _without(run: Run, offset: int, bundle: str) -> list[dict[str, Any]]:
    """The alerts that begin within two windows from ``offset`` on where the model before it goes on."""
    with app.open_replay(run.config, STREAM) as parts:
        topic = parts.reader.bounds(run.topic)[0]
        end = min(offset + 2 * WINDOW * run.told.series, topic.end_offset)
        asked = dataclasses.replace(topic, first_offset=offset - 1, end_offset=end)
        [replay], _ = Replayer(parts).prepare({0: asked})
        changes = [
            msgspec.structs.replace(each, bundle_sha=bundle) if each.next_offset >= offset else each
            for each in replay.past.changes
        ]
        replay.past, replay.imposed_to = dataclasses.replace(replay.past, changes=changes), 0
        told = [alert for read in replay.run() for alert in read.alerts]
        return [_alert(each) for each in told if each.revision == 1 and each.source.offset >= offset]


def clock(file: Path) -> Callable[[], datetime]:
    """The story's wall clock, which stands in a file."""
    return lambda: datetime.fromisoformat(file.read_text())


def retrain(folder: Path) -> None:
    """The child process: the program's retrainer, with the newest record's time for a wall clock."""
    now = clock(folder / "clock")

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


def command(clock_file: Path, arguments: list[str]) -> None:
    """A child process: a command of the program; what it decides is stamped by the story's clock."""
    controls.Control = partial(controls.Control, now=clock(clock_file))  # type: ignore[misc,assignment]
    sys.argv = ["offbeat", *arguments]
    cli.main()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--retrainer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clock", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "three-days.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the noise, a run each")
    parser.add_argument(
        "--bus", help="the URL of a bus of its own, in place of a Kafka that is started for it"
    )
    parser.add_argument("--page", type=Path, help="write the picture and the table of decisions there, too")
    asked = parser.parse_args()
    if asked.retrainer:
        retrain(asked.retrainer)
        return
    if asked.command:
        command(asked.clock, asked.command)
        return
    with TemporaryDirectory() as name, ExitStack() as opened:
        folder, bus = Path(name), asked.bus
        if bus is None:
            bootstrap = opened.enter_context(kafka_broker(folder / "kafka"))
            if bootstrap is None:
                sys.exit(NO_KAFKA)
            bus = f"kafka://{bootstrap}"
        reports = []
        for seed in asked.seeds:
            (own := folder / str(seed)).mkdir()
            reports.append(live(Run(story(), seed, own, bus)))
    asked.output.parent.mkdir(exist_ok=True)
    asked.output.write_text(json.dumps(reports, indent=1))
    if asked.page:
        asked.page.with_suffix(".svg").write_text(draw(reports[0], SHOWN))
        write_page(asked.page, "three-days", table(reports))
    wrong = [f"seed {each['seed']}: {sentence}" for each in reports for sentence in each["broken"]]
    if wrong:
        sys.exit("; ".join(wrong))


def table(reports: Sequence[dict[str, Any]]) -> str:
    """What was decided in the first run, and what was counted in each, for the page."""
    rows = ["| Hour | What | Asked for by | Why, as the audit log has it |", "|---|---|---|---|"]
    rows += [
        f"| {each['hour']:.0f} | {each['what']} | {each['asked'] or 'people'} | {each['why']} |"
        for each in reports[0]["decisions"]
    ]
    rows += [
        "",
        "| Seed | Sent, in topic, in bins | Promoted | Refused | Daily | Alerts | At changes | As wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [_outcome(each) for each in reports]
    return "\n".join(rows)


def _outcome(report: dict[str, Any]) -> str:
    def hours(wanted: Callable[[dict[str, Any]], bool]) -> str:
        return ", ".join(f"{each['hour']:.0f}" for each in report["decisions"] if wanted(each))

    cells = [
        report["seed"],
        f"{report['records']:,}, {report['in_topic']:,}, {sum(report['bins'].values()):,}",
        hours(lambda each: each["what"] == "promoted"),
        hours(lambda each: each["what"] == "refused"),
        hours(lambda each: each["cause"] == "daily"),
        len(report["alerts"]),
        len(report["after_changes"]),
        "; ".join(report["broken"]) or "yes",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
