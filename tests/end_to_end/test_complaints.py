"""What users of such systems complain of, on recorded series: each with what answers it, and once without."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from working import STREAM, TOPIC, Plant, Running, plant_at, revisions

from consumers import replayer
from consumers.explainer import Explainer
from consumers.incidents import Incidents
from consumers.replayer import Replayer, compare
from consumers.tracer import Line, Trace
from models import Registry, StackScorer
from models.episodes import LeftOut
from models.history import Part
from models.learning import Source
from offbeat.show import facts
from offbeat.silencing import silences_of
from offbeat.training import learn
from pipeline.alerts import Alert, timestamp
from pipeline.config import Config
from pipeline.control import ControlView, Decisions, Silenced, Standing
from pipeline.detect import Detector, Scores
from pipeline.notifications import Notification
from pipeline.records import RecordBatch, TopicPartition
from pipeline.series import PartitionState
from pipeline.silences import Matchers, Silence

Event = dict[str, Any]

TWEETS, TRAFFIC = "realTweets/Twitter_volume_", "realTraffic/"
APPLE, SEARCH, FRIENDS = (f"{TWEETS}{name}.csv" for name in ("AAPL", "GOOG", "FB"))
SPEED, OCCUPANCY, NEW = (f"{TRAFFIC}{name}.csv" for name in ("speed_t4013", "occupancy_t4013", "speed_7578"))
"""The last one is too short, when learned from, for an autoencoder of its own."""
LEARNED_ROWS = 750
ONE: dict[str, Any] = {"events": {"features": ["value"]}}
MACHINE: dict[str, Any] = {
    "events": {"features": [f"m{number}" for number in range(1, 39)]},
    "model": {"window": 8},
    "training": {"steps": 400},
}
NEVER = "3650d"
MINUTE_S, HOUR = 60, timedelta(hours=1)


# The recorded series, and models that the program trains on what stands before the rows that are watched


def config(**sections: Any) -> Config:  # noqa: ANN401 - whatever YAML holds
    threshold = {"policy": "ewma", **sections.pop("threshold", {})}  # whose line is the error's own
    stream = {"topic": TOPIC, **ONE, **sections, "threshold": threshold}
    return Config.model_validate({"namespace": "test", "streams": {STREAM: stream}})


def batch(events: Sequence[Event], sent_s: Iterable[float] | None = None) -> RecordBatch:
    """Records that were sent when they happened, or at other times."""
    stamps = (event["time"] for event in events) if sent_s is None else sent_s
    records = [
        (None, json.dumps(event).encode(), round(stamp * 1_000))
        for event, stamp in zip(events, stamps, strict=True)
    ]
    return RecordBatch.of(TopicPartition(TOPIC, 0), 0, records)


def trained(folder: Path, histories: Iterable[Sequence[Event]], **sections: Any) -> StackScorer:  # noqa: ANN401
    made = config(**sections).model_copy(update={"registry": str(folder)})
    source = Source([partial(opened, each) for each in histories], None, {})
    learned = learn(
        made, STREAM, source, Part(10_000), lambda _: None, left_out=LeftOut(), promote=lambda _: None
    )
    return StackScorer(Registry(folder).load(STREAM, learned.bundle_id))


def opened(history: Sequence[Event]) -> Iterator[RecordBatch]:
    return iter([batch(history)])


@dataclass(frozen=True)
class Benchmark:
    """Series of the Numenta benchmark as events, and their labelled windows."""

    folder: Path

    def events(self, series: str) -> list[Event]:
        with (self.folder / series).open(newline="") as file:
            return [
                {"series": series, "time": moment(row["timestamp"]).timestamp(), "value": float(row["value"])}
                for row in csv.DictReader(file)
            ]

    def windows(self, series: str) -> list[tuple[datetime, datetime]]:
        labels = json.loads((self.folder / "windows.json").read_text())
        return [(moment(first), moment(last)) for first, last in labels[series]]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def nab(recorded: Path) -> Benchmark:
    return Benchmark(recorded / "nab")


@pytest.fixture(scope="module")
def scorer(nab: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> StackScorer:
    series = [nab.events(name) for name in (APPLE, SEARCH, FRIENDS, SPEED, OCCUPANCY, NEW)]
    histories = [events[: min(len(events) * 15 // 100, LEARNED_ROWS)] for events in series]
    return trained(tmp_path_factory.mktemp("models"), histories)


@dataclass(frozen=True)
class Machine:
    """A server of the Server Machine Dataset: 38 metrics, a row a minute, and what caused its anomalies."""

    rows: list[Event]
    causes: dict[tuple[int, int], set[str]]
    scorer: StackScorer

    def row(self, at: datetime) -> int:
        return round(at.timestamp() - float(self.rows[0]["time"])) // MINUTE_S


@pytest.fixture(scope="module")
def machine(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    found = np.load(recorded / "smd" / "machine-1-7.npz")
    before, rows = (
        metrics(found["train"][-2_000:], 1_500_000_000),
        metrics(found["test"][:8_700], 1_600_000_000),
    )
    causes = {}
    for line in (recorded / "smd" / "machine-1-7.causes.txt").read_text().splitlines():
        rows_text, _, numbers = line.partition(":")
        first, last = map(int, rows_text.split("-"))
        causes[first, last] = {f"m{number}" for number in numbers.split(",")}
    return Machine(rows, causes, trained(tmp_path_factory.mktemp("machine"), [before], **MACHINE))


INCIDENT = (2_959, 4_174)
"""Rows of the machine's longest incident: 20 hours."""


def metrics(rows: Any, start_s: int) -> list[Event]:  # noqa: ANN401 - an array
    return [
        {"series": "machine", "time": start_s + MINUTE_S * n}
        | {f"m{number}": value for number, value in enumerate(row, 1)}
        for n, row in enumerate(rows.astype(float).tolist())
    ]


# What came of watching them


@dataclass(frozen=True)
class Watched:
    """All that came of a partition."""

    alerts: list[Alert]
    state: PartitionState
    scores: list[Scores]

    @property
    def fired(self) -> list[Alert]:
        return [each for each in self.alerts if each.revision == 1]

    @property
    def last(self) -> dict[str, Alert]:
        """Each alert as it stands at the end."""
        return {each.id: each for each in self.alerts}

    @property
    def bins(self) -> dict[str, int]:
        return {name: count for name, count in self.state.counters.named().items() if count}

    def threshold(self, at_s: float) -> float:
        """The line that the row of a time was held against."""
        [found] = [
            float(each.threshold[row]) for each in self.scores
            for row in np.flatnonzero(each.time_ns == round(at_s) * 10**9)
        ]  # fmt: skip
        return found


def watch(
    scorer: StackScorer,
    rows: Sequence[Event],
    sent_s: Iterable[float] | None = None,
    /,
    **sections: Any,  # noqa: ANN401
) -> Watched:
    detector = Detector("test", STREAM, config(**sections).stream(STREAM))
    state = detector.fresh("topic-1", 0)
    state.adopt(scorer, "bundle-1")
    outputs = detector.step(state, batch(rows, sent_s), scorer)
    return Watched(outputs.alerts, state, outputs.scores)


@pytest.fixture(scope="module")
def apple(nab: Benchmark, scorer: StackScorer) -> Watched:
    """Two months of one series, with alerts that are over soon: many of an hour lie within a silence."""
    return watch(scorer, nab.events(APPLE), alerts={"recovery": 8})


def by_time(*series: Sequence[Event]) -> list[Event]:
    return sorted((event for events in series for event in events), key=lambda event: event["time"])


def events_of(**events: Any) -> dict[str, Any]:  # noqa: ANN401
    """Settings of ``events``."""
    return {"events": {**ONE["events"], **events}}


# Trivial deviations


def test_what_deviates_too_little_is_no_alert(apple: Watched, nab: Benchmark, scorer: StackScorer) -> None:
    """Many alerts are within 2,000 tweets of what was expected, and somebody says that these are none."""
    least = 2_000

    asked = watch(scorer, nab.events(APPLE), alerts={"min_deviation": least})

    assert sum(deviation(each) < least for each in apple.fired) > len(apple.fired) / 3
    assert asked.fired
    assert all(deviation(each) >= least for each in asked.fired)


def deviation(alert: Alert) -> float:
    worst = alert.features[0]
    return float(np.abs(np.subtract(worst.window_observed, worst.window_expected)).max())


@pytest.mark.parametrize(
    ("series", "odd", "other"), [(SPEED, "below", "above"), (OCCUPANCY, "above", "below")]
)
def test_only_one_direction_hurts(
    nab: Benchmark, scorer: StackScorer, series: str, odd: str, other: str
) -> None:
    """In a traffic jam speed is low and the road is full; that it is empty is nothing to be told of."""
    both, one, none = (
        watch(scorer, nab.events(series), alerts={"direction": each}) for each in ("both", odd, other)
    )

    assert [each.id for each in one.fired] == [each.id for each in both.fired] != []
    assert none.fired == []


# Stuck in initialising


def test_a_new_series_is_judged_once_its_window_is_full(
    nab: Benchmark, scorer: StackScorer, tmp_path: Path, valkey_url: str
) -> None:
    """By the shared model, and by its own later; until then it is said what is missing."""
    rows = nab.events(NEW)
    with plant_at(valkey_url, champion=None, **ONE, model={"window": 32}) as plant:
        plant.desk.promote("bundle-1", scorer)
        bins = sent(plant, rows[:50]).bins
        early, later = (explained(plant, rows[n]) for n in (9, 40))
    with plant_at(valkey_url, champion=None, **ONE, model={"window": 32}) as plant:
        without_model = sent(plant, rows[:50]).bins
        nothing = explained(plant, rows[40])
    own = trained(tmp_path, [rows[: len(rows) // 2]])

    assert bins == {"warming": 31, "scored": 19}
    assert (early.bin, early.window_filled, early.window_rows) == ("warming", 10, 32)
    assert later.judgement is not None
    assert (without_model, nothing.bin, nothing.judgement) == ({"waiting_model": 50}, "waiting_model", None)
    unseen = scorer.assign(["never seen"]).model
    assert scorer.assign([NEW]).model == unseen != scorer.assign([APPLE]).model
    assert own.assign([NEW]).model != own.assign(["never seen"]).model


def sent(plant: Plant, events: Sequence[Event], running: Running | None = None) -> Running:
    """Let a worker read these events, and commit."""
    plant.produce(*(json.dumps(event).encode() for event in events))
    return (running or plant.worker()).read_all().later(5)


def explained(plant: Plant, event: Event) -> Trace:
    time = datetime.fromtimestamp(event["time"], UTC)
    return Explainer(replay_parts(plant)).explain(event["series"], time)


def replay_parts(plant: Plant) -> replayer.Parts:
    broker = plant.broker
    return replayer.Parts(
        plant.config, STREAM, broker.reader(), broker.admin(), plant.snapshots(), plant.desk.shelf
    )


# Silence is not zero


@pytest.fixture(scope="module")
def pair(nab: Benchmark) -> tuple[list[Event], list[Event]]:
    """A day and a half of two series."""
    return nab.events(APPLE)[1_200:1_650], nab.events(SEARCH)[1_200:1_650]


def test_a_series_that_sends_nothing_is_an_alert(
    pair: tuple[list[Event], list[Event]], scorer: StackScorer
) -> None:
    apple, search = pair
    holed = apple[:100] + apple[130:]

    told = watch(scorer, by_time(holed, search), **events_of(silent_after="1h"))
    untold = watch(scorer, by_time(holed, search))

    silent = [each for each in told.alerts if each.kind == "silent"]
    assert [(each.series, each.state) for each in silent] == [(APPLE, "firing"), (APPLE, "resolved")]
    assert silent[0].started_at.timestamp() == pytest.approx(apple[99]["time"] + 3_600)
    assert silent[1].at.timestamp() == apple[130]["time"]
    assert [each for each in untold.alerts if each.kind == "silent"] == []


@pytest.mark.parametrize(("silent_after", "expected"), [("1h", ["opened", "resolved"]), (None, [])])
def test_a_stream_that_sends_nothing_is_told_as_one(
    pair: tuple[list[Event], list[Event]], scorer: StackScorer, silent_after: str | None, expected: list[str]
) -> None:
    """And not once for each of its series, when these are found to have been silent."""
    made = config(**events_of(silent_after=silent_after))
    holed = [each[:100] + each[130:] for each in pair]
    watched = watch(scorer, by_time(*holed), **events_of(silent_after=silent_after))
    incidents, view, told = Incidents(made, []), ControlView(), list[Notification]()
    stopped, back = (datetime.fromtimestamp(pair[0][row]["time"], UTC) for row in (99, 130))

    now, bursts = stopped, [each for each in watched.alerts if each.kind == "silent"]
    while now < back + HOUR:
        position = "topic-1 200" if now < back else "topic-1 201"
        if now >= back:
            for offset, alert in enumerate(bursts):
                incidents.take(alert, offset, back)
        told += incidents.decide(now, view, dict.fromkeys(incidents.watched(view), position))
        now += timedelta(seconds=10)

    assert [each.event for each in told] == expected
    assert {each.kind for each in told} <= {"stream silent"}
    assert bool(bursts) is bool(silent_after)


# The incident becomes normal, and a lasting change does not


def test_an_incident_does_not_become_normal(machine: Machine) -> None:
    first, last = INCIDENT
    early, late = (machine.rows[row]["time"] for row in (first + 10, last))

    frozen = watch(machine.scorer, machine.rows[:4_300], **MACHINE, threshold={"adapt_after": NEVER})
    taught = watch(machine.scorer, machine.rows[:4_300], **MACHINE, threshold={"adapt_after": "0s"})

    assert frozen.threshold(late) == frozen.threshold(early)
    assert taught.threshold(late) > 2 * taught.threshold(early)
    [found] = [each for each in frozen.fired if first <= machine.row(each.at) <= last]
    assert machine.row(frozen.last[found.id].at) >= last
    assert all(machine.row(each.at) < first + 120 for each in taught.alerts)


def test_a_lasting_change_is_learned_after_a_time(machine: Machine) -> None:
    """What takes longer than `adapt_after` is learned, and its alert ends; without it never does."""
    first, _ = INCIDENT
    rows = machine.rows[: first + 900]

    learned = watch(machine.scorer, rows, **MACHINE, threshold={"adapt_after": "6h"})
    never = watch(machine.scorer, rows, **MACHINE, threshold={"adapt_after": NEVER})

    [found] = [each for each in never.fired if machine.row(each.at) >= first]
    assert never.last[found.id].state == "firing"
    after = machine.row(learned.last[found.id].at) - machine.row(found.at)
    assert learned.last[found.id].reason == "recovered"
    assert 6 * 60 <= after < 12 * 60


@pytest.mark.parametrize("accepts", [True, False])
def test_a_lasting_change_is_learned_at_once_when_it_is_accepted(
    machine: Machine, valkey_url: str, *, accepts: bool
) -> None:
    first, _ = INCIDENT
    with plant_at(valkey_url, champion=None, **{**MACHINE, "alerts": {}}) as plant:
        plant.desk.promote("bundle-1", machine.scorer)
        running = sent(plant, machine.rows[: first + 40])
        before = plant.alerts()
        [found] = [each for each in before if machine.row(each.at) >= first]
        if accepts:
            plant.desk.say("accept", found.series, found.id)
            running.later(1)
        sent(plant, machine.rows[first + 40 : first + 240], running)
        after = plant.alerts()[len(before) :]
        found_later = explained(plant, machine.rows[first + 239]).judgement

    assert [(each.id, each.reason) for each in after] == [(found.id, "accepted")] * accepts
    assert found_later is not None
    assert (found_later.score < 1, found_later.before.state) == (accepts, "none" if accepts else "firing")


# Feedback


def test_false_alarms_raise_the_line_within_bounds(
    nab: Benchmark, scorer: StackScorer, valkey_url: str
) -> None:
    rows = nab.events(FRIENDS)

    said, later, line, most = after_false_alarms(scorer, valkey_url, rows, raise_by=0.05)
    _, unheard, same_line, _ = after_false_alarms(scorer, valkey_url, rows, raise_by=0.0)

    assert said >= 2
    assert line.false_alarms == said
    assert line.raised == pytest.approx(1 + 0.05 * said)
    assert most.raised == pytest.approx(1.4)
    assert same_line.raised == 1.0
    assert later < unheard


def after_false_alarms(
    scorer: StackScorer, valkey_url: str, rows: Sequence[Event], raise_by: float
) -> tuple[int, int, Line, Line]:
    """All alerts of the first rows are called false: how many these are, how many come later, and the line;
    and the line after a hundred false alarms more."""
    rules = {"raise_by": raise_by, "raise_most": 0.4}
    with plant_at(valkey_url, champion=None, **ONE, model={"window": 32}, alerts=rules) as plant:
        plant.desk.promote("bundle-1", scorer)
        running = sent(plant, rows[:900])
        before = {each.id for each in plant.alerts()}
        for number in before:
            plant.desk.say("false alarm", FRIENDS, number)
        running.later(1)
        sent(plant, rows[900:6_000], running)
        later = {each.id for each in plant.alerts()} - before
        line = line_of(explained(plant, rows[5_999]))
        for more in range(100):
            plant.desk.say("false alarm", FRIENDS, f"{more:032x}")
        running.later(1)
        sent(plant, rows[6_000:6_010], running)
        return len(before), len(later), line, line_of(explained(plant, rows[6_009]))


def line_of(trace: Trace) -> Line:
    assert trace.judgement is not None
    return trace.judgement.line


# Scores that change later


def test_a_score_never_changes_once_it_is_published(
    nab: Benchmark, scorer: StackScorer, tmp_path: Path, valkey_url: str
) -> None:
    """After two false alarms and another model a replay comes to what was told; what holds today does not."""
    rows = nab.events(FRIENDS)
    other = trained(tmp_path, [rows[:LEARNED_ROWS]], training={"seed": 1})
    with plant_at(valkey_url, champion=None, **ONE, model={"window": 32}, alerts={}) as plant:
        plant.desk.promote("bundle-1", scorer)
        running = sent(plant, rows[:5_012])
        for number in ("1" * 32, "2" * 32):
            plant.desk.say("false alarm", FRIENDS, number)
        running.later(1)
        sent(plant, rows[5_012:5_200], running)
        plant.desk.promote("bundle-2", other)
        running.later(1)
        sent(plant, rows[5_200:8_000], running)
        bounds = plant.broker.reader().bounds(TOPIC)[0]
        [replay], _ = Replayer(replay_parts(plant)).prepare({0: bounds})
        again = [alert for read in replay.run(333) for alert in read.alerts]
        compared = compare([replay], plant.alerts())
        published, today = plant.alerts(), plant.uninterrupted()[0]

    assert compared.differences == []
    assert compared.same == len(published) > 10
    for told, replayed in zip(published, again, strict=True):
        assert told.model_dump(exclude={"features", "score", "peak_score", "error", "threshold"}) == (
            replayed.model_dump(exclude={"features", "score", "peak_score", "error", "threshold"})
        )
        for figure in ("score", "peak_score", "error", "threshold"):
            assert getattr(replayed, figure) == pytest.approx(getattr(told, figure), rel=1e-5)
    assert revisions(today) != revisions(published)


# Which sensor


def test_the_evidence_ranks_the_sensors_at_fault_first(machine: Machine) -> None:
    """Of g sensors at fault, more are among the first g than by chance, and one of them is the first."""
    found = [
        (causes, [feature.name for feature in alert.features])
        for alert in watch(machine.scorer, machine.rows, **MACHINE).fired
        for (first, last), causes in machine.causes.items()
        if first <= machine.row(alert.at) <= last
    ]

    assert len(found) >= 5
    hits = [len(causes & set(ranked[: len(causes)])) / len(causes) for causes, ranked in found]
    by_chance = [len(causes) / 38 for causes, _ in found]
    assert np.mean(hits) > 1.5 * np.mean(by_chance)
    assert sum(ranked[0] in causes for causes, ranked in found) > 0.75 * len(found)


# Late data


def test_what_comes_late_counts_until_its_cell_is_closed(nab: Benchmark, scorer: StackScorer) -> None:
    in_order = nab.events(SEARCH)[4_200:4_700]
    every_third = [(n + 2.5 if n % 3 == 0 else n, event) for n, event in enumerate(in_order)]
    as_they_came = [event for _, event in sorted(every_third, key=lambda each: each[0])]
    arrivals = [event["time"] for event in in_order]

    ordered, waited, hasty = (
        watch(scorer, events, arrivals, **events_of(every="5m", late=late, ahead="1h"))
        for events, late in ((in_order, "15m"), (as_they_came, "15m"), (as_they_came, "0s"))
    )

    assert (
        [(each.id, each.revision) for each in waited.alerts]
        == [(each.id, each.revision) for each in ordered.alerts]
        != []
    )
    assert "late" not in waited.bins
    assert hasty.bins["late"] > len(in_order) / 4
    for each in (ordered, waited, hasty):
        assert each.state.counters.records_read == len(in_order)


# Flapping


@pytest.mark.parametrize(
    "calming", [{"recovery": 8}, {"recovery_line": 0.4}, {"recovery_for": "1h"}, {"refractory": "2h"}]
)
@pytest.mark.parametrize("series", [APPLE, SEARCH])
def test_an_incident_is_one_alert_and_not_many(
    nab: Benchmark, scorer: StackScorer, series: str, calming: dict[str, Any]
) -> None:
    rows = nab.events(series)[:5_200]
    flapping = watch(scorer, rows, alerts={"recovery": 1})
    calm = watch(scorer, rows, alerts={"recovery": 1, **calming})

    assert len(calm.fired) < len(flapping.fired)
    assert found_windows(nab, series, calm) == found_windows(nab, series, flapping) != set()


def found_windows(nab: Benchmark, series: str, watched: Watched) -> set[datetime]:
    return {
        first
        for first, last in nab.windows(series)
        if any(first <= each.at <= last for each in watched.fired)
    }


# Silences


def silenced(start: datetime, end: datetime, **more: Any) -> ControlView:  # noqa: ANN401
    """What people decided: one silence."""
    silence = Silence(matchers=Matchers(series="*AAPL*"), start=start, end=end, **more)
    made = Silenced(stream="*", at=start, who="mona", why="maintenance", id="0123456789ab", silence=silence)
    view = ControlView()
    view.silences[made.id] = Standing(made)
    return view


def told_of(alerts: Sequence[Alert], view: ControlView) -> dict[str, Notification]:
    """What a notifier tells of each alert first, if each arrives when it happens."""
    made = config()
    wait = timedelta(seconds=made.notify.wait)
    first, last = alerts[0].at.replace(minute=0, second=0), alerts[-1].at + timedelta(days=1)
    hours = [first + n * HOUR for n in range((last - first) // HOUR)]
    moments = sorted(
        {each + more for each in [*hours, *(one.at for one in alerts)] for more in (0 * wait, wait)}
    )
    incidents, left, found = Incidents(made, []), list(enumerate(alerts)), dict[str, Notification]()
    for now in moments:
        while left and left[0][1].at <= now:
            offset, alert = left.pop(0)
            incidents.take(alert, offset, alert.at)
        for each in incidents.decide(now, view, {}):
            found |= {number: each for number in each.members if number not in found}
    return found


def spans(watched: Watched) -> dict[str, tuple[datetime, datetime]]:
    return {each.id: (each.at, watched.last[each.id].at) for each in watched.fired}


def test_what_is_over_within_a_silence_is_not_told_and_history_shows_both(apple: Watched) -> None:
    number, (start, end) = next(iter(spans(apple).items()))
    view = silenced(start - HOUR, end + HOUR)

    told, untold = told_of(apple.alerts, ControlView()), told_of(apple.alerts, view)

    assert number in told
    assert told.keys() - untold.keys() == {number}
    kept = [each for each in apple.alerts if each.id == number]
    shown = [name for name, _ in facts(kept, [], silences_of(kept[-1], view.silences.values(), end + HOUR))]
    assert [name for name in shown if name in {"firing", "resolved", "silenced"}] == [
        "firing", "resolved", "silenced",
    ]  # fmt: skip


def test_what_is_open_when_a_silence_ends_is_told_then(apple: Watched) -> None:
    number, (start, end) = max(spans(apple).items(), key=lambda each: each[1][1] - each[1][0])
    until = (start + (end - start) / 2).replace(minute=0, second=0)

    silent, plain = told_of(apple.alerts, silenced(start - HOUR, until)), told_of(apple.alerts, ControlView())

    assert (plain[number].after_silence, plain[number].at - start) == (False, timedelta(seconds=10))
    assert (silent[number].after_silence, silent[number].event) == (True, "opened")
    assert timedelta() <= silent[number].at - until <= timedelta(minutes=1)


def test_maintenance_windows_recur_in_their_own_time_zone(apple: Watched) -> None:
    """Nobody is told of what comes and goes about the close of the exchange; its clocks change on 8 March."""
    zone = ZoneInfo("America/New_York")
    first = datetime(2015, 3, 2, 15, tzinfo=zone)
    daily, wrong_zone, once = (
        told_of(apple.alerts, silenced(first, first + 3 * HOUR, **more))
        for more in (
            {"rrule": "FREQ=DAILY", "zone": "America/New_York"}, {"rrule": "FREQ=DAILY", "zone": "UTC"}, {},
        )
    )  # fmt: skip

    inside = {
        number
        for number, (start, end) in spans(apple).items()
        if start > first and all(15 <= each.astimezone(zone).hour < 18 for each in (start, end))
    }
    told = told_of(apple.alerts, ControlView())
    assert len(inside) >= 4
    assert told.keys() - daily.keys() == inside
    assert inside & wrong_zone.keys()
    assert once.keys() == told.keys()


def test_a_freeze_recurs_and_teaches_nothing(nab: Benchmark, scorer: StackScorer) -> None:
    """The rush hour of each day, frozen, moves no threshold; frozen once, all other days do."""
    rows = nab.events(SPEED)
    detector = Detector("test", STREAM, config().stream(STREAM))
    start = timestamp(round(rows[0]["time"]) * 10**9).replace(hour=8, minute=0)
    taught = []
    for rrule in ("FREQ=DAILY", None):
        state = detector.fresh("topic-1", 0)
        state.adopt(scorer, "bundle-1")
        silence = Silence(
            matchers=Matchers(series=SPEED), mode="freeze", start=start, end=start + HOUR, rrule=rrule
        )
        made = Silenced(stream="*", at=start, who="mona", why="", id="0123456789ab", silence=silence)
        state.decisions = Decisions(freezes=(Standing(made),))
        [scores] = detector.step(state, batch(rows), scorer).scores
        rush = np.array([timestamp(int(each)).hour == 8 for each in scores.time_ns])
        taught.append(int((rush & ~scores.silenced).sum()))
        assert not (scores.silenced & ~rush).any()

    assert taught[0] == 0 < taught[1]


# A device with a wrong clock


def test_a_wrong_clock_harms_no_neighbour(pair: tuple[list[Event], list[Event]], scorer: StackScorer) -> None:
    """A year ahead from some row on, while the records are sent when they happen."""
    apple, search = pair
    year_s = 365 * 24 * 3_600.0
    wrong = [event | {"time": event["time"] + year_s * (n >= 100)} for n, event in enumerate(search)]
    order = sorted(zip([*apple, *search], [*apple, *wrong], strict=True), key=lambda each: each[0]["time"])
    sent_s, events = [right["time"] for right, _ in order], [event for _, event in order]

    guarded, trusting = (
        watch(scorer, events, sent_s, **events_of(every="5m", ahead=ahead)) for ahead in ("60s", NEVER)
    )
    alone = watch(scorer, apple, **events_of(every="5m"))

    assert guarded.bins["dead_lettered"] == len(search) - 100
    assert "late" not in guarded.bins
    assert (
        [each.id for each in guarded.alerts if each.series == APPLE]
        == [each.id for each in alone.alerts]
        != []
    )
    assert trusting.bins["late"] > len(apple) / 2
