"""What a trace says of a row is what live work made of it, and a record without a row is told why."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from working import NORMAL, ODD, START_S, STREAM, TOPIC, Plant, Running, plant_at, settings, silence_id

from consumers.explainer import Explainer
from consumers.replayer import Parts
from consumers.tracer import RULES, Judgement, Trace
from pipeline.alerts import nanoseconds, timestamp
from pipeline.errors import NotFound
from pipeline.ports import Errors, Windows
from pipeline.silences import Matchers, Silence
from pipeline.status import Processed
from pipeline.testing import FakeScorer


def explain(plant: Plant, series: str, time: datetime, **parts: Any) -> Trace:  # noqa: ANN401 - fields of Parts
    broker = plant.broker
    seams = broker.reader(), broker.admin(), plant.snapshots(), plant.desk.shelf
    return Explainer(Parts(plant.config, STREAM, *seams, **parts)).explain(series, time)


def at(second: float) -> datetime:
    """So long after the first record."""
    return datetime.fromtimestamp(START_S, UTC) + timedelta(seconds=second)


def event(second: float, x: object = NORMAL, series: str = "a", **more: object) -> bytes:
    return json.dumps({"series": series, "time": START_S + second, "x": x, **more}).encode()


class Judged(NamedTuple):
    """What live work made of a row."""

    error: float
    score: float
    last_score: float
    threshold: float
    rule: str


@dataclass
class Live:
    """All rows that live work judged, by series and time, in order."""

    rows: dict[tuple[str, int], Judged] = field(default_factory=dict)

    def __call__(self, done: Processed) -> None:
        for scores in done.outputs.scores:
            columns = (
                scores.slot, scores.time_ns, scores.error, scores.score, scores.last_score, scores.threshold,
                scores.rule,
            )  # fmt: skip
            for slot, time_ns, *figures, rule in zip(*(each.tolist() for each in columns), strict=True):
                name = done.names[slot]
                if name is not None:  # else it was forgotten in the same batch
                    self.rows[name, time_ns] = Judged(*figures, RULES[rule])

    def by_rule(self) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for key, row in self.rows.items():
            found.setdefault(row.rule, []).append(key)
        return found


# A story in which people decide, told with and without a grid

RULES_OF_ALERTS = {
    "for": 2,
    "recovery": 2,
    "refractory": "20s",
    "min_deviation": 4.5,
    "raise_by": 0.2,
    "raise_most": 0.5,
}
WATCHED: dict[str, Any] = {
    "events": {"features": ["x"], "silent_after": "60s", "forget_after": "200s"},
    "threshold": {"k": 5, "memory": "5m"},
    "alerts": RULES_OF_ALERTS,
}
GRID = {**WATCHED["events"], "every": "2s", "late": "4s"}


def feed(plant: Plant, luck: random.Random, count: int) -> None:
    """Readings of three series, normal ones and stretches of odd ones, a few late or unreadable."""
    sent = []
    for number in range(count):
        second, series = plant.sent + number, luck.choice("aaabbbc")
        odd = (second // 15 + ord(series)) % 4 == 0
        value = luck.uniform(3, 9) if odd or luck.random() < 0.05 else luck.uniform(0.7, 1.3)
        second -= 40 if luck.random() < 0.04 else 0
        sent.append(b"not JSON" if luck.random() < 0.01 else event(second, value, series))
    plant.produce(*sent)


def decide(plant: Plant, step: int) -> None:
    """What people say in the course of it."""
    desk = plant.desk
    if step == 2:
        desk.promote("bundle-2", FakeScorer(level=0.2, normal_error=0.8))
    elif step == 3:
        desk.say("false alarm", "a", "1" * 32)
        desk.say("false alarm", "b", "2" * 32)
    elif step == 4:
        begin = at(plant.sent)
        freeze = Silence(matchers=Matchers(series="b"), mode="freeze", start=begin, end=begin + timedelta(60))
        desk.silence("works", freeze)
        desk.say("accept", "c")
    elif step == 6:
        desk.expire("works")
        desk.say("accept", "c")
        desk.apply(settings(**{**plant.stream, "threshold": {"policy": "quantile", "q": 0.9}}))  # type: ignore[attr-defined]
    elif step == 8:
        desk.promote("bundle-3", FakeScorer(level=0.1))
        desk.say("confirm", "a", "1" * 32)
    elif step == 10:
        desk.apply(settings(**plant.stream, model={"window": 3}))  # type: ignore[attr-defined]


@contextmanager
def told(valkey_url: str, **stream: Any) -> Iterator[tuple[Plant, Live]]:  # noqa: ANN401
    """The story, all of it committed, by owners that come and go."""
    with plant_at(valkey_url, **stream) as plant:
        plant.stream = stream  # type: ignore[attr-defined]
        luck, live = random.Random(6), Live()
        running = plant.worker(max_records=37, observe=live).read_all()
        for step in range(12):
            if step in {4, 6}:
                plant.produce(*[ODD] * 16, series="c")
                running.later(1)
            decide(plant, step)
            running.later(1)
            feed(plant, luck, 60)
            running.later(0.5)
            if step in {3, 7, 9}:
                running.leave()
                running = plant.worker(max_records=luck.choice([11, 100]), observe=live).read_all()
            running.later(1)
        running.read_all().later(5).stop()
        yield plant, live


JOINT = {"policy": "joint", "line": 1.5, "memory": "5m", "adapt_after": "6h"}
STORIES = {"records": {}, "a grid": {"events": GRID}, "a joined score": {"threshold": JOINT}}


@pytest.fixture(scope="module", params=STORIES)
def story(valkey_url: str, request: pytest.FixtureRequest) -> Iterator[tuple[Plant, Live]]:
    with told(valkey_url, **{**WATCHED, **STORIES[request.param]}) as made:
        yield made


def test_the_story_has_all_that_it_should(story: tuple[Plant, Live]) -> None:
    plant, live = story

    assert live.by_rule().keys() == set(RULES)
    assert {alert.reason for alert in plant.alerts()} >= {"recovered", "accepted"}
    assert {alert.bundle for alert in plant.alerts()} == {"bundle-1", "bundle-2", "bundle-3"}


def test_every_figure_and_rule_of_a_trace_is_that_of_live_work(story: tuple[Plant, Live]) -> None:
    plant, live = story
    luck = random.Random(1)
    chosen = [key for keys in live.by_rule().values() for key in luck.sample(keys, min(5, len(keys)))]

    for series, time_ns in [*chosen, *luck.sample(list(live.rows), 20)]:
        trace = explain(plant, series, timestamp(time_ns))

        found, row = trace.judgement, live.rows[series, time_ns]
        assert found is not None, (series, time_ns)
        figures = found.error, found.score, found.last_score, found.line.value, found.rule
        assert Judged(*figures) == row, (series, time_ns)
        assert (trace.exact, trace.found, trace.bin) == (True, True, "scored")
        if found.joined is None:
            assert found.last_error / found.line.last_value == found.last_score
            _is_the_line(trace)
        else:
            _is_joined(found)


def _is_the_line(trace: Trace) -> None:
    """The moments that are told are those that the line was made of."""
    assert trace.judgement is not None
    line = trace.judgement.line
    if line.policy.policy == "ewma":
        assert line.mean is not None
        assert line.sd is not None
        height = line.mean + line.policy.k * max(line.sd, 0.05 * line.mean) + 1e-9
    else:
        assert line.policy.policy == "quantile"
        assert line.quantile is not None
        height = line.policy.margin * line.quantile
    assert line.value == pytest.approx(line.raised * height, rel=1e-12)


def _is_joined(found: Judgement) -> None:
    """The channels that are told are those that the score was made of."""
    assert found.joined is not None
    assert found.joined.rarity is not None
    assert found.line.grown is not None
    z = {each.name: max(each.z, 0.0) for each in found.joined.channels}
    fourth = (z["autoencoder"] / 2.25) ** 4 + (z["level"] / 4.7) ** 4 + (z["shapes"] / 2.7) ** 4
    whole = min(fourth**0.25, 50.0) * found.joined.rarity**0.5
    assert whole / found.line.value == pytest.approx(found.score, rel=1e-9)
    assert found.line.value == pytest.approx(found.line.raised * 1.5 * (1 + found.line.grown), rel=1e-12)


# What is told of one row fits what is told of the next one.
def test_a_threshold_stands_still_where_a_row_is_said_to_have_taught_nothing(valkey_url: str) -> None:
    with told(valkey_url, **WATCHED) as (plant, live):
        keys = [key for key in live.rows if key[0] == "b"][:220]
        traces = [explain(plant, series, timestamp(time_ns)) for series, time_ns in keys]

    held = set[str]()
    for before, after in pairwise(traces):
        here, there = before.judgement, after.judgement
        assert here is not None
        assert there is not None
        if before.policy != after.policy or before.bundle != after.bundle or there.line.accepted:
            continue
        assert there.before == here.after
        if here.line.policy.policy == "ewma":
            assert (there.line.mean == here.line.mean) != here.taught
        if not here.taught:
            held.add("silence" if here.frozen_by else "anomaly")
    assert held == {"silence", "anomaly"}
    frozen = next(each.judgement.frozen_by for each in traces if each.judgement and each.judgement.frozen_by)
    assert (frozen.id, frozen.who, frozen.why) == (silence_id("works"), "a test", "to see")


def test_the_alert_of_a_row_is_the_one_that_was_published(story: tuple[Plant, Live]) -> None:
    plant, live = story
    published = {(alert.id, alert.revision): alert for alert in plant.alerts()}

    for rule in ("fires", "open", "recovers", "ends"):
        for series, time_ns in live.by_rule()[rule][:3]:
            found = explain(plant, series, timestamp(time_ns)).judgement
            assert found is not None
            assert found.alert is not None
            alert = published[found.alert.id, found.alert.revision]
            assert (alert.state, alert.severity, alert.started_at) == (
                found.alert.state,
                found.alert.severity,
                found.alert.started_at,
            )
            if rule in {"fires", "ends"}:
                assert alert.at == timestamp(time_ns)


def test_false_alarms_are_told_with_what_they_raise(story: tuple[Plant, Live]) -> None:
    plant, live = story

    seen = {
        (found.line.false_alarms, found.line.raised)
        for series, time_ns in random.Random(2).sample(list(live.rows), 30)
        if (found := explain(plant, series, timestamp(time_ns)).judgement)
    }

    assert seen == {(0, 1.0), (2, 1.4), (1, 1.2)}


def test_an_accepted_row_says_that_the_line_begins_with_it(story: tuple[Plant, Live]) -> None:
    plant, live = story
    accepted = next(alert for alert in plant.alerts() if alert.reason == "accepted")

    near = [
        explain(plant, series, timestamp(time_ns)).judgement
        for series, time_ns in live.rows
        if series == accepted.series and abs(time_ns - nanoseconds(accepted.at)) < 20_000_000_000
    ]
    [found] = [each for each in near if each is not None and each.line.accepted]
    assert found.line.mean == found.error
    assert found.before.state == "none"


# Rules, one by one


def one_row(valkey_url: str, values: list[float], row: int, **stream: Any) -> Trace:  # noqa: ANN401
    """The trace of one of these rows, of which the window holds two."""
    with plant_at(valkey_url, **stream) as plant:
        plant.produce(*values)
        plant.worker().read_all().stop()
        return explain(plant, "a", at(row))


def test_a_deviation_that_is_too_small_is_told_with_what_was_asked_for(valkey_url: str) -> None:
    events = {"features": {"x": {"unit": "C"}}}
    asks = {"min_deviation": 20.0, "direction": "below"}

    found = one_row(valkey_url, [NORMAL, NORMAL, ODD], 2, events=events, alerts=asks).judgement

    assert found is not None
    assert found.rule == "trivial"
    assert found.taught
    assert found.deviation is not None
    assert found.deviation.model_dump() == {
        "feature": "x", "unit": "C", "by": ODD, "least": 20.0, "direction": "below", "enough": False,
    }  # fmt: skip


def test_a_row_that_waits_says_how_many_it_waits_for(valkey_url: str) -> None:
    found = one_row(valkey_url, [NORMAL, NORMAL, ODD, ODD], 3, alerts={"for": 3}).judgement

    assert found is not None
    assert (found.rule, found.before.rows, found.after.rows, found.rules.for_rows) == ("waits", 1, 2, 3)
    assert (found.before.state, found.after.state, found.alert) == ("pending", "pending", None)


def test_a_refractory_time_is_told_with_its_end(valkey_url: str) -> None:
    values = [NORMAL, NORMAL, ODD, NORMAL, NORMAL, ODD]

    found = one_row(valkey_url, values, 5, alerts={"recovery": 1, "refractory": "30s"}).judgement

    assert found is not None
    assert (found.rule, found.after.quiet_until) == ("quiet", at(33))


def test_what_a_row_shows_is_its_window_as_observed_and_as_expected(valkey_url: str) -> None:
    found = one_row(valkey_url, [NORMAL, NORMAL, ODD], 2).judgement

    assert found is not None
    [feature] = found.features
    assert (feature.observed, feature.expected, feature.contribution) == (ODD, 0.0, 1.0)
    assert (feature.window_observed, feature.window_expected) == ([NORMAL, ODD], [0.0, 0.0])


# Why not


def sent(plant: Plant, *events: bytes | float) -> Running:
    plant.produce(*events)
    return plant.worker().read_all().later(2)


def test_a_window_that_fills_says_how_full_it_is(valkey_url: str) -> None:
    trace = one_row(valkey_url, [NORMAL] * 5, 2, model={"window": 4})

    assert (trace.bin, trace.judgement, trace.window_filled, trace.window_rows) == ("warming", None, 3, 4)


def test_a_window_that_began_anew_says_how_full_it_is_now(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "gap": "5s"}, model={"window": 4}) as plant:
        sent(plant, *map(event, (0, 1, 2, 20, 21))).stop()

        trace = explain(plant, "a", at(21))

    assert (trace.bin, trace.window_filled) == ("warming", 2)


# Here the window begins anew with the row itself.
def test_the_first_row_of_a_window_is_one_row(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "gap": "5s"}, model={"window": 4}) as plant:
        sent(plant, *map(event, (0, 1, 2, 20))).stop()

        assert explain(plant, "a", at(20)).window_filled == 1


def test_a_row_that_cannot_be_completed_says_so(valkey_url: str) -> None:
    events = {"features": {"x": {"transform": "rate"}}}

    trace = one_row(valkey_url, [NORMAL] * 3, 0, events=events)

    assert (trace.bin, trace.window_filled) == ("warming", 0)


def test_without_a_model_nothing_is_judged(valkey_url: str) -> None:
    with plant_at(valkey_url, champion=None) as plant:
        sent(plant, *[NORMAL] * 4).stop()

        trace = explain(plant, "a", at(3))

    assert (trace.bin, trace.bundle, trace.judgement, trace.window_filled) == ("waiting_model", None, None, 2)


def test_an_event_outside_the_condition_is_told_with_it(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "when": "on"}) as plant:
        sent(plant, event(0, on=True), event(1, on=True), event(2, ODD, on=False), event(3, on=True)).stop()

        assert (explain(plant, "a", at(2)).bin, explain(plant, "a", at(2)).reason) == ("outside", "on")
        assert explain(plant, "a", at(3)).bin == "scored"


@pytest.mark.parametrize(
    ("events", "late", "second"),
    [({}, 2, 2), ({"every": "2s", "late": "2s"}, 3, 2)],
    ids=["records", "a grid"],
)
def test_a_late_record_is_told_where_its_time_has_no_row(
    valkey_url: str, events: dict[str, str], late: float, second: float
) -> None:
    with plant_at(valkey_url, events={"features": ["x"], **events}) as plant:
        newer = [event(20 + number) for number in range(21_000)]  # more than are read at once
        sent(plant, event(0), event(1), *newer, event(late)).stop()

        trace = explain(plant, "a", at(late))

    assert (trace.bin, trace.found, trace.at, trace.source.offset) == ("late", True, at(second), 21_002)


def test_a_reading_told_twice_has_the_row_of_its_first_telling(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, event(0), event(1), event(1, ODD)).stop()

        trace = explain(plant, "a", at(1))

    assert (trace.bin, trace.source.offset) == ("scored", 1)


@pytest.mark.parametrize(
    ("bad", "says"),
    [(event(2, "nine"), "a field is wrong"), (event(2, None), "`missing` is `reject`")],
    ids=["type", "null"],
)
@pytest.mark.parametrize("kind", ["records", "a grid"])
def test_a_dead_letter_is_told_with_its_reason_and_a_second_telling_makes_the_row(
    valkey_url: str, bad: bytes, says: str, kind: str
) -> None:
    events = {"features": ["x"], "missing": "reject", **({"every": "1s"} if kind == "a grid" else {})}
    with plant_at(valkey_url, events=events) as plant:
        running = sent(plant, event(0), event(1), bad)
        trace = explain(plant, "a", at(2))
        plant.produce(event(2), *(event(second) for second in range(4, 20)))
        running.later(2).stop()
        again = explain(plant, "a", at(2))

    assert (trace.bin, trace.found, trace.source.offset) == ("dead_lettered", True, 2)
    assert says in (trace.reason or "")
    assert (again.bin, again.at, again.source.offset) == ("scored", at(2), 3)


# Its neighbours' readings are found all the same.
def test_a_wrong_clock_is_told_at_its_own_time_only(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, event(0), event(1), event(9_000), event(3)).stop()

        wrong, right = explain(plant, "a", at(9_000)), explain(plant, "a", at(4))

    assert (wrong.bin, wrong.found, wrong.source.offset) == ("dead_lettered", True, 2)
    assert "ahead of its record's timestamp" in (wrong.reason or "")
    assert (right.bin, right.found, right.source.offset) == ("scored", False, 3)


def test_a_series_over_the_limit_is_told_so(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "max_series": 1}) as plant:
        sent(plant, event(0), event(1), event(2, series="b")).stop()

        assert explain(plant, "b", at(2)).bin == "over_limit"


def test_an_open_cell_is_pending_and_its_readings_have_one_row(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "every": "10s"}) as plant:
        sent(plant, *[NORMAL] * 52, event(41)).stop()

        closed, pending = explain(plant, "a", at(24)), explain(plant, "a", at(44))

    assert (closed.bin, closed.found, closed.cell_s, closed.at) == ("scored", True, 10.0, at(20))
    assert (pending.bin, pending.found, pending.judgement, pending.at) == ("pending", True, None, at(40))


def test_a_silent_series_is_told_with_its_alert(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "silent_after": "20s"}) as plant:
        sent(plant, event(0), event(1), *(event(second, series="b") for second in range(2, 60))).stop()
        [alert] = plant.alerts()

        early, asked, other = (explain(plant, *of) for of in (("a", at(20)), ("a", at(40)), ("b", at(40))))

    assert (asked.found, asked.at, asked.bin) == (False, at(1), "scored")
    assert asked.silent is not None
    assert (asked.silent.id, asked.silent.started_at, asked.silent.state) == (alert.id, at(21), "firing")
    assert early.silent is None
    assert other.silent is None


def test_silences_that_hold_are_told_and_others_are_not(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        mute = {"mode": "mute", "start": at(2), "end": at(5)}
        plant.desk.silence("ours", Silence(matchers=Matchers(series="a*"), **mute))
        plant.desk.silence("theirs", Silence(matchers=Matchers(series="b"), **mute))
        sent(plant, *[NORMAL] * 6).stop()

        during, behind = explain(plant, "a", at(4)), explain(plant, "a", at(5))

    assert [(each.id, each.mode, each.start, each.end) for each in during.silences] == [
        (silence_id("ours"), "mute", at(2), at(5))
    ]
    assert during.judgement is not None
    assert during.judgement.frozen_by is None
    assert behind.silences == []


# What is asked for, and what is found


def test_without_a_row_at_that_time_it_is_about_the_newest_before(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, event(0), event(10), event(3_000, series="b")).stop()

        between, behind = explain(plant, "a", at(9)), explain(plant, "a", at(2_000_000))

    assert (between.found, between.at) == (False, at(0))
    assert (behind.found, behind.at) == (False, at(10))


def test_a_whole_second_stands_for_all_of_it_and_a_fraction_for_itself(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, event(0), event(1.25), event(1.75), event(2), event(2.5), event(3.5)).stop()

        asked = {second: explain(plant, "a", at(second)) for second in (1, 1.25, 1.5, 2, 3)}

    assert {second: (each.at, each.found) for second, each in asked.items()} == {
        1: (at(1.75), True),
        1.25: (at(1.25), True),
        1.5: (at(1.25), False),
        2: (at(2), True),
        3: (at(3.5), True),
    }


def test_the_record_is_looked_for_far_back_and_in_every_partition(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.explainer._BACK_RECORDS", 7)
    with plant_at(valkey_url, partitions=3) as plant:
        plant.produce(NORMAL, NORMAL, NORMAL, series="far", partition=2)
        for partition in (2, 0, 1):
            plant.produce(*[NORMAL] * 300, series=f"near-{partition}", partition=partition)
        plant.worker().read_all().stop()

        far, near = explain(plant, "far", at(900)), explain(plant, "near-1", at(700))

    assert (far.found, far.at, far.source.partition) == (False, at(2), 2)
    assert (near.found, near.at, near.source.partition) == (True, at(700), 1)


@pytest.mark.parametrize(
    ("series", "second", "says"),
    [
        ("c", 2, "stream 'pumps' has no series 'c' in its topic; it has a, b$"),
        ("b", 2, r"no record of series 'b' at or before .*; its oldest is of 2023-11-14 22:13:24 UTC"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    valkey_url: str, series: str, second: float, says: str
) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, *[NORMAL] * 4, event(4, series="b"), event(5)).stop()

        with pytest.raises(NotFound, match=says):
            explain(plant, series, at(second))


def test_a_stream_that_nobody_read_has_nothing_to_explain(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        plant.produce(NORMAL)

        with pytest.raises(NotFound, match=r"no worker has read stream 'pumps' yet.*`offbeat detect pumps`"):
            explain(plant, "a", at(0))


def test_a_record_from_before_live_work_was_never_judged(valkey_url: str) -> None:
    with plant_at(valkey_url, start="latest") as plant:
        plant.produce(*[NORMAL] * 5)
        running = plant.worker().read_all()
        plant.produce(*[NORMAL] * 5)
        running.later(1).stop()

        with pytest.raises(NotFound, match=r"was never judged: live work on readings\[0\] began at offset 5"):
            explain(plant, "a", at(3))


# What it rests on


def test_what_is_approximate_says_so(valkey_url: str) -> None:
    with plant_at(valkey_url, start="latest") as plant:
        plant.produce(*[NORMAL] * 50)
        running = plant.worker().read_all()
        plant.produce(*[NORMAL] * 40)
        running.later(1).stop()
        exact = explain(plant, "a", at(80))
        shutil.rmtree(plant.folder / "snapshots")

        trace = explain(plant, "a", at(80), rewind_records=8)

    assert not trace.exact
    assert "from an empty state at offset 72" in trace.basis
    assert exact.exact == (exact.basis.startswith("from the snapshot") or "began" in exact.basis)


def test_a_record_that_no_worker_committed_is_judged_as_it_would_be(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, NORMAL, NORMAL, NORMAL).stop()
        plant.produce(ODD)

        committed, next_ = explain(plant, "a", at(2)), explain(plant, "a", at(3))

    assert committed.notes == []
    [note] = next_.notes
    assert note == "live work has come to offset 3; the records behind it are judged as it would next"
    assert next_.judgement is not None
    assert next_.judgement.rule == "fires"


class Wobbling(FakeScorer):
    """As a matrix product of other batches rounds otherwise."""

    def score(self, windows: Windows) -> Errors:
        found, wobble = super().score(windows), 1 + 1e-7 * (1 if len(windows) > 1 else -1)
        return Errors(found.window * wobble, found.last * wobble)


# By itself a replay of that one record would leave the row below the line.
def test_a_row_at_the_line_did_what_live_work_journaled_and_it_is_said(valkey_url: str) -> None:
    with plant_at(valkey_url, champion=None, threshold={"policy": "static", "value": 5}) as plant:
        plant.desk.promote("wobbling", Wobbling())
        sent(plant, NORMAL, 5.0, 5.0, NORMAL).stop()

        trace = explain(plant, "a", at(2))

    found = trace.judgement
    assert found is not None
    assert found.score < 1
    assert (found.rule, found.after.state) == ("fires", "firing")
    assert found.alert is not None
    assert any("within 1e-05 of the line" in note for note in trace.notes)
    assert (found.line.mean, found.line.rows) == (None, None)


def test_nothing_is_written(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, NORMAL, NORMAL, ODD).stop()

        def held() -> object:
            topics = plant.broker.admin().describe().topics
            return {topic: dict(plant.broker.reader().bounds(topic)) for topic in topics}, plant.committed()

        before = held()
        explain(plant, "a", at(2))
        assert held() == before


def test_reading_is_told_as_it_goes_on(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        sent(plant, *[NORMAL] * 50).stop()
        told: list[int] = []
        seams = plant.broker.reader(), plant.broker.admin(), plant.snapshots(), plant.desk.shelf
        on_records: Callable[[int], None] = told.append

        Explainer(Parts(plant.config, STREAM, *seams), on_records).explain("a", at(40))

    assert sum(told) == 50 + 41


def test_the_topic_of_a_trace_is_the_streams(valkey_url: str) -> None:
    assert one_row(valkey_url, [NORMAL] * 3, 2).source.topic == TOPIC
