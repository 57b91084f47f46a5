"""What is told of alerts, and when: over given clocks, and over random histories with crashes anywhere."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumers.incidents import Incidents
from pipeline.alerts import Alert, FeatureEvidence, Source
from pipeline.config import Config
from pipeline.control import ControlView, Expired, Feedback, Silenced, Standing
from pipeline.notifications import Notification
from pipeline.silences import Silence

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAIT, WITHIN, REPEAT = 10, 60, 600
EVENTS = {"features": ["x"], "silent_after": "30s"}
CONFIG = Config.model_validate(
    {
        "namespace": "test",
        "notify": {"wait": WAIT, "within": WITHIN, "repeat": REPEAT},
        "streams": {name: {"topic": name, "events": EVENTS} for name in ("pumps", "fans")},
    }
)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def digest(name: str, size: int = 16) -> str:
    return hashlib.blake2b(name.encode(), digest_size=size).hexdigest()


@dataclass
class World:
    """The topics and the clock that a notifier has; it may be begun again at any moment.

    Attributes:
        log: the alerts topic: each revision, and when it arrived.
        told: the notifications topic.
        committed: the group's position; None before the first commit.
    """

    now: datetime = T0
    log: list[tuple[Alert, datetime]] = field(default_factory=list)
    told: list[Notification] = field(default_factory=list)
    committed: int | None = None
    view: ControlView = field(default_factory=ControlView)
    positions: dict[str, str] = field(default_factory=dict)
    _open: dict[str, Alert] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A notifier that knows nothing but the topics."""
        self.incidents = Incidents(CONFIG, self.told)
        self.read = 0
        self._read_on()
        if self.committed is None:
            self.committed = len(self.log)
        self.incidents.forget_settled(self.committed)

    def _read_on(self) -> None:
        for offset in range(self.read, len(self.log)):
            self.incidents.take(self.log[offset][0], offset, self.log[offset][1])
        self.read = len(self.log)

    def turn(self, *, crash: bool = False) -> list[Notification]:
        """Read what is new, decide, and commit, unless it crashes before that; what was told by it."""
        self._read_on()
        told = self.incidents.decide(self.now, self.view, self.positions)
        if crash:
            self.begin()
            return []
        assert self.committed is not None
        self.told += told
        self.committed = max(self.incidents.settled(self.read), self.committed)
        return told

    def later(self, seconds: float) -> list[Notification]:
        """Let time pass, and then a turn."""
        self.now += timedelta(seconds=seconds)
        return self.turn()

    def watch(self, seconds: int) -> list[Notification]:
        """A turn each second."""
        return [each for _ in range(seconds) for each in self.later(1)]

    def fire(self, series: str = "p1", stream: str = "pumps", kind: str = "anomaly", **more: Any) -> str:  # noqa: ANN401
        """A new alert of a series; its id."""
        heat = FeatureEvidence(
            name=more.pop("feature", "heat"), unit="°C", observed=81, expected=20, contribution=1,
            window_observed=[1.0], window_expected=[2.0],
        )  # fmt: skip
        made: dict[str, Any] = {
            "id": digest(f"{stream} {series} {kind} {len(self.log)}"), "revision": 1, "kind": kind,
            "state": "firing", "reason": "error above its threshold" if kind == "anomaly" else "no events",
            "namespace": "test", "stream": stream, "series": series, "labels": {}, "started_at": self.now,
            "at": self.now, "severity": "warning", "score": 1.5, "peak_score": 1.5, "error": 0.6,
            "threshold": 0.4, "features": [heat] if kind == "anomaly" else [], "bundle": None,
            "source": Source(topic=stream, partition=0, offset=len(self.log)),
        }  # fmt: skip
        self._publish(Alert(**made | more))
        return str(made["id"])

    def worsen(self, alert: str) -> None:
        self._revise(alert, severity="critical", peak_score=3.0, reason="it got worse")

    def resolve(self, alert: str, reason: str = "recovered") -> None:
        self._revise(alert, state="resolved", reason=reason, features=[])

    def _revise(self, alert: str, **fields: Any) -> None:  # noqa: ANN401
        before = self._open[alert]
        more = {"revision": before.revision + 1, "at": self.now}
        self._publish(before.model_copy(update=more | fields))

    def _publish(self, alert: Alert) -> None:
        self.log.append((alert, self.now))
        self._open[alert.id] = alert
        if alert.state == "resolved":
            del self._open[alert.id]

    @property
    def firing(self) -> list[str]:
        return list(self._open)

    def ack(self, alert: str, who: str = "mona") -> None:
        said = Feedback(stream="pumps", at=self.now, who=who, why="", alert=alert, series="", verdict="ack")
        self.view.feedback.append((len(self.view.feedback), said))

    def silence(self, seconds: float, mode: str = "mute", **matchers: Any) -> str:  # noqa: ANN401
        """From now on, for so long."""
        name = digest(str(len(self.view.silences)), 6)
        span = {"start": self.now, "end": self.now + timedelta(seconds=seconds)}
        silence = Silence.model_validate({"matchers": matchers, "mode": mode, **span})
        made = Silenced(
            stream=silence.matchers.stream, at=self.now, who="mona", why="", id=name, silence=silence
        )
        self.view.silences[name] = Standing(made)
        return name

    def expire(self, name: str) -> None:
        before = self.view.silences[name]
        ended = Expired(stream=before.record.stream, at=self.now, who="mona", why="", id=name)
        self.view.silences[name] = Standing(before.record, ended.at)


@pytest.fixture
def world() -> World:
    return World()


def events(told: list[Notification]) -> list[tuple[str, int]]:
    return [(each.event, each.sequence) for each in told]


class TestIncidents:
    def test_alerts_of_many_series_that_open_together_are_told_in_one_after_the_wait(
        self, world: World
    ) -> None:
        world.fire("p1")
        world.later(4)
        world.fire("p2", severity="critical", peak_score=2.5)
        world.fire("p3", peak_score=1.9)

        assert world.later(WAIT - 4 - 1) == []
        [told] = world.later(1)

        assert events([told]) == [("opened", 1)]
        assert [each.series for each in told.alerts] == ["p2", "p3", "p1"]
        assert (told.count, told.open, told.severity, told.started_at) == (3, 3, "critical", T0)
        assert told.title == "3 series of pumps are anomalous, worst p2: heat 81 °C, expected 20"
        assert told.at == world.now

    def test_what_opens_later_than_within_the_last_one_is_an_incident_of_its_own(self, world: World) -> None:
        world.fire("p1")
        world.later(WITHIN)
        world.fire("p2")
        world.later(WITHIN + 1)
        world.fire("p3")
        world.later(WITHIN)

        assert [each.count for each in world.told] == [1, 2, 1]
        assert events(world.told) == [("opened", 1), ("changed", 2), ("opened", 1)]
        assert len({each.id for each in world.told}) == 2

    def test_streams_and_kinds_are_told_apart(self, world: World) -> None:
        world.fire("p1")
        world.fire("p1", kind="silent")
        world.fire("p1", stream="fans")

        told = world.later(WAIT)

        assert {(each.stream, each.kind) for each in told} == {
            ("pumps", "anomaly"), ("pumps", "silent"), ("fans", "anomaly"),
        }  # fmt: skip
        assert "p1 of pumps is silent" in {each.title for each in told}

    def test_joining_and_worsening_are_told_once_each_within(self, world: World) -> None:
        first = world.fire("p1")
        world.watch(WAIT)
        world.fire("p2")
        world.watch(10)
        world.worsen(first)
        world.fire("p3")

        told = world.watch(2 * WITHIN)

        assert events(told) == [("changed", 2)]
        assert told[0].at == T0 + timedelta(seconds=WAIT + WITHIN)
        assert (told[0].count, told[0].severity) == (3, "critical")
        assert told[0].title.startswith("3 series of pumps are now anomalous, worst p1")

    def test_worsening_alone_is_told(self, world: World) -> None:
        first = world.fire("p1")
        world.watch(WAIT)
        world.worsen(first)

        assert events(world.watch(2 * WITHIN)) == [("changed", 2)]

    def test_it_is_over_when_all_its_alerts_are(self, world: World) -> None:
        first, second = world.fire("p1"), world.fire("p2")
        world.later(WAIT)
        world.resolve(first)
        assert world.later(1) == []
        world.resolve(second)

        [told] = world.later(1)

        assert (told.event, told.sequence, told.count, told.open) == ("resolved", 2, 2, 0)
        assert told.title == "2 series of pumps are no longer anomalous, worst p1: heat 81 °C, expected 20"
        assert world.later(10 * REPEAT) == []

    def test_what_was_over_before_it_was_told_is_told_once_as_over(self, world: World) -> None:
        world.resolve(world.fire("p1"))

        assert world.later(WAIT - 1) == []
        assert events(world.later(1)) == [("resolved", 1)]
        assert world.later(10 * REPEAT) == []

    def test_an_incident_shows_its_worst_and_counts_all(self, world: World) -> None:
        for n in range(70):
            world.fire(f"p{n}", peak_score=1 + n / 100)

        [told] = world.later(WAIT)

        assert (len(told.alerts), told.count, told.open, len(told.members)) == (50, 70, 70, 70)
        assert told.alerts[0].series == "p69"

    def test_a_record_has_a_bound_and_so_has_an_incident(self, world: World) -> None:
        for n in range(5_001):
            world.fire(f"p{n}")

        assert sorted(each.count for each in world.later(WAIT)) == [1, 5_000]

    def test_series_that_are_gone_are_said_to_be_gone(self, world: World) -> None:
        silent = world.fire("p1", kind="silent")
        world.later(WAIT)
        world.resolve(silent, "gone")

        assert world.later(1)[0].title == "p1 of pumps is gone, after sending nothing for too long"

    # Retention may take an alert away that never ended; it does not keep its incident open for ever.
    def test_alerts_that_their_topic_retains_no_more_count_as_over(self, world: World) -> None:
        world.fire("p1")
        world.later(WAIT)
        world.log.clear()
        world.begin()

        [told] = world.later(1)

        assert (told.event, told.sequence, told.count, told.alerts) == ("resolved", 2, 1, [])
        assert told.title == "series of pumps are no longer anomalous"


class TestRepeating:
    def test_what_is_open_and_not_acknowledged_is_told_again(self, world: World) -> None:
        world.fire("p1")
        world.later(WAIT)

        assert world.later(REPEAT - 1) == []
        [told] = world.later(1)
        assert (told.event, told.sequence, told.acknowledged_by) == ("repeated", 2, None)
        assert told.title == "p1 of pumps is still anomalous: heat 81 °C, expected 20"
        assert events(world.later(REPEAT)) == [("repeated", 3)]

    def test_what_somebody_looks_after_is_not(self, world: World) -> None:
        first = world.fire("p1")
        world.fire("p2")
        world.later(WAIT)
        world.ack(first, "mona")

        assert world.later(5 * REPEAT) == []
        world.resolve(first)
        world.resolve(world.firing[0])
        [told] = world.later(1)
        assert (told.event, told.acknowledged_by) == ("resolved", "mona")

    def test_what_a_silence_covers_is_not(self, world: World) -> None:
        world.fire("p1")
        world.later(WAIT)
        world.silence(2 * REPEAT, series="p1")

        assert world.later(REPEAT) == []
        assert events(world.later(REPEAT)) == [("repeated", 2)]


class TestSilences:
    @pytest.mark.parametrize("mode", ["mute", "freeze"])
    def test_what_is_open_when_a_silence_ends_is_told_then(self, world: World, mode: str) -> None:
        world.silence(3600, mode, series="p1")
        world.fire("p1")
        world.ack(world.fire("p2"))

        [first] = world.later(WAIT)
        assert [each.series for each in first.alerts] == ["p2"]
        assert world.incidents.held == 1
        assert world.later(3600 - WAIT) == []
        [told] = world.later(WAIT)

        assert [each.series for each in told.alerts] == ["p1"]
        assert (told.event, told.after_silence, first.after_silence) == ("opened", True, False)
        assert told.title.startswith("p1 of pumps is still anomalous after a silence")

    def test_what_was_over_inside_a_silence_is_never_told(self, world: World) -> None:
        world.silence(100)
        alert = world.fire("p1")
        world.later(50)
        world.resolve(alert)

        assert world.later(1000) == []

    # Whoever reads it hours later knows that it was silenced then.
    def test_what_was_over_inside_a_silence_is_not_told_by_who_reads_it_later(self, world: World) -> None:
        world.silence(100)
        alert = world.fire("p1")
        world.now += timedelta(seconds=50)
        world.resolve(alert)

        assert world.later(1000) == []

    def test_what_a_silence_began_before_but_told_it_was_not_is_held_back(self, world: World) -> None:
        world.fire("p1")
        world.later(WAIT - 1)
        world.silence(100)

        assert world.later(50) == []
        assert events(world.later(50 + WAIT)) == [("opened", 1)]
        assert world.told[0].after_silence

    def test_a_silence_that_is_ended_early_holds_nothing_back(self, world: World) -> None:
        name = world.silence(3600)
        world.fire("p1")
        world.later(100)
        world.expire(name)

        assert world.later(0) == []
        [told] = world.later(WAIT)
        assert told.after_silence

    def test_what_silences_release_one_soon_after_the_other_is_one_incident(self, world: World) -> None:
        world.silence(3600, series="p1")
        world.silence(3600 + WITHIN, series="p2")
        world.fire("p1")
        world.fire("p2")
        world.later(3600)

        told = world.watch(3 * WITHIN)

        assert events(told) == [("opened", 1), ("changed", 2)]
        assert [each.count for each in told] == [1, 2]

    def test_what_becomes_worse_than_a_silence_covers_is_told(self, world: World) -> None:
        world.silence(3600, severity="warning")
        alert = world.fire("p1")
        world.later(100)
        world.worsen(alert)

        [told] = world.later(1)
        assert (told.event, told.severity, told.after_silence) == ("opened", "critical", False)

    @pytest.mark.parametrize(
        "matchers",
        [
            {"stream": "pu*"}, {"series": "p?"}, {"series_regex": "p[0-9]"}, {"feature": "heat"},
            {"severity": "warning"}, {"labels": {"hall": "n*"}},
        ],
    )  # fmt: skip
    def test_silences_choose_by_all_that_an_alert_is(self, world: World, matchers: dict[str, Any]) -> None:
        world.silence(3600, **matchers)
        world.fire("p1", labels={"hall": "north"})
        world.fire("q22", "fans", severity="critical", feature="speed", labels={"hall": "south"})

        told = world.later(WAIT)

        assert [each.series for one in told for each in one.alerts] == ["q22"]

    def test_what_was_told_and_is_silenced_then_is_said_to_be_over(self, world: World) -> None:
        alert = world.fire("p1")
        world.later(WAIT)
        world.silence(3600)
        world.resolve(alert)

        assert events(world.later(1)) == [("resolved", 2)]


class TestSilentStreams:
    def records(self, world: World, position: int) -> None:
        world.positions["pumps"] = str(position)

    def test_a_stream_without_records_is_one_incident_until_they_come_again(self, world: World) -> None:
        self.records(world, 5)
        world.turn()

        assert world.watch(29) == []
        [told] = world.watch(1)
        assert (told.event, told.kind, told.severity, told.count) == (
            "opened",
            "stream silent",
            "critical",
            0,
        )
        assert told.title == "no record of pumps since 2026-03-01 12:00:00 UTC: the whole stream is silent"
        assert told.started_at == T0
        assert events(world.watch(REPEAT)) == [("repeated", 2)]

        self.records(world, 6)
        [told] = world.watch(1)
        assert (told.event, told.sequence) == ("resolved", 3)
        assert world.watch(29) == []
        assert events(world.watch(1)) == [("opened", 1)]
        assert len({each.id for each in world.told}) == 2

    def test_whoever_begins_again_knows_it_by_its_position(self, world: World) -> None:
        self.records(world, 5)
        world.watch(31)
        assert events(world.told) == [("opened", 1)]

        world.begin()
        assert world.watch(100) == []
        self.records(world, 6)
        world.begin()

        assert events(world.watch(1)) == [("resolved", 2)]

    # Nobody watched while the bus was away or the machine slept, so nothing is known of that time.
    def test_a_time_in_which_nobody_looked_is_no_silence(self, world: World) -> None:
        self.records(world, 5)
        world.turn()

        assert world.later(3600) == []
        assert len(world.watch(20)) == 1

    def test_other_streams_are_not_concerned(self, world: World) -> None:
        for position in range(100):
            self.records(world, position)
            assert world.later(1) == []

    @pytest.mark.parametrize(
        ("matchers", "told"), [({"stream": "pu*"}, 0), ({"series": "p1"}, 1), ({"severity": "critical"}, 1)]
    )
    def test_only_silences_of_whole_streams_mute_it(
        self, world: World, matchers: dict[str, str], told: int
    ) -> None:
        self.records(world, 5)
        world.silence(100, **matchers)
        world.turn()

        assert len(world.watch(99)) == told
        assert len(world.watch(1)) == 1 - told
        assert world.told[0].after_silence is not bool(told)

    def test_it_is_watched_as_the_policy_in_force_says(self, world: World) -> None:
        stream = CONFIG.stream("pumps")
        events_ = stream.events.model_copy(update={"silent_after": None})
        world.view.settings["a"] = stream.model_copy(update={"events": events_})
        world.view.policies["pumps"] = "a"
        self.records(world, 5)

        assert world.incidents.watched(world.view) == ["fans"]
        assert world.watch(100) == []

    def test_series_that_burst_out_with_it_are_part_of_it(self, world: World) -> None:
        self.records(world, 5)
        world.watch(100)
        self.records(world, 6)
        burst = [world.fire(f"p{n}", kind="silent", started_at=T0 + timedelta(seconds=30)) for n in range(3)]
        world.watch(5)
        for alert in burst[1:]:
            world.resolve(alert)

        told = []
        for position in range(7, 100):
            self.records(world, position)
            told += world.later(1)

        # One of them stays away, which the end of the whole stream's silence does not say.
        assert events(world.told[:2]) == [("opened", 1), ("resolved", 2)]
        assert [(each.event, each.kind, each.members) for each in told] == [("opened", "silent", burst[:1])]

    def test_a_series_that_falls_silent_later_is_not(self, world: World) -> None:
        self.records(world, 5)
        world.watch(40)
        self.records(world, 6)
        world.watch(5)
        world.fire("p1", kind="silent")

        assert events(world.watch(WAIT)) == [("opened", 1)]


class TestBeginning:
    def test_the_first_one_tells_what_is_open_and_not_what_was_over(self, world: World) -> None:
        world.resolve(world.fire("p1"))
        world.fire("p2")
        world.later(3600)
        world.told.clear()
        world.committed = None
        world.begin()

        [told] = world.turn()
        assert [each.series for each in told.alerts] == ["p2"]

    def test_what_waits_is_told_by_the_next_one(self, world: World) -> None:
        world.resolve(world.fire("p1"))
        world.later(1)
        world.begin()

        assert events(world.later(WAIT)) == [("resolved", 1)]

    def test_the_position_stays_before_what_waits(self, world: World) -> None:
        world.silence(3600, series="p1")
        world.fire("p1")
        world.fire("p2")
        world.later(1)
        assert world.committed == 1

        world.later(WAIT)
        assert world.committed == 2

    def test_what_is_over_is_not_told_again_by_who_reads_it_again(self, world: World) -> None:
        world.fire("p1")
        world.later(WAIT)
        world.fire("p2")  # joins, and is told a minute later
        other = world.fire("f1", "fans")
        world.later(WAIT)
        world.resolve(other)
        world.later(1)
        assert world.committed == 1
        world.begin()

        assert [(each.stream, each.event) for each in world.later(WITHIN)] == [("pumps", "changed")]

    # A group that was set back publishes the same revisions once more.
    def test_what_is_published_twice_is_told_once(self, world: World) -> None:
        world.resolve(world.fire("p1"))
        world.log += world.log[:1]

        assert events(world.later(WAIT)) == [("resolved", 1)]
        assert world.told[0].alerts[0].state == "resolved"
        assert world.later(WITHIN) == []


class Histories(RuleBasedStateMachine):
    """Alerts, silences and acknowledgements in any order, and a notifier that may crash before any commit."""

    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule(series=st.sampled_from(["p1", "p2", "p3"]), stream=st.sampled_from(["pumps", "fans"]))
    def fire(self, series: str, stream: str) -> None:
        self.world.fire(series, stream)

    @rule(data=st.data())
    def worsen(self, data: st.DataObject) -> None:
        if self.world.firing:
            self.world.worsen(data.draw(st.sampled_from(self.world.firing)))

    @rule(data=st.data())
    def resolve(self, data: st.DataObject) -> None:
        if self.world.firing:
            self.world.resolve(data.draw(st.sampled_from(self.world.firing)))

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        if self.world.firing:
            self.world.ack(data.draw(st.sampled_from(self.world.firing)))

    @rule(series=st.sampled_from(["p1", "p*"]), seconds=st.sampled_from([5, 50, 500]))
    def silence(self, series: str, seconds: int) -> None:
        self.world.silence(seconds, series=series)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        world = self.world
        world.now += timedelta(seconds=1)  # what ended while it held was silenced
        active = [key for key, each in world.view.silences.items() if each.active(world.now)]
        if active:
            world.expire(data.draw(st.sampled_from(active)))

    @rule(seconds=st.sampled_from([1, 7, 30, 61, 700]), crash=st.booleans())
    def later(self, seconds: int, crash: bool) -> None:  # noqa: FBT001
        self.world.now += timedelta(seconds=seconds)
        self.world.turn(crash=crash)

    @rule(crash=st.booleans())
    def turn(self, crash: bool) -> None:  # noqa: FBT001
        self.world.turn(crash=crash)

    @rule()
    def stop_for_long(self) -> None:
        self.world.now += timedelta(seconds=5000)
        self.world.begin()

    @invariant()
    def nothing_is_told_twice(self) -> None:
        if not hasattr(self, "world"):
            return
        numbers: dict[str, list[int]] = {}
        for each in self.world.told:
            numbers.setdefault(each.id, []).append(each.sequence)
        assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())
        members = {each.id: each.members for each in self.world.told}
        assert max(Counter(one for found in members.values() for one in found).values(), default=1) == 1

    @invariant()
    def a_crash_loses_no_incident(self) -> None:
        if hasattr(self, "world"):
            last = {each.id: each.event for each in self.world.told}
            known = set(Incidents(CONFIG, self.world.told)._open)
            assert known == {key for key, event in last.items() if event != "resolved"}

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.later(1000)  # no silence holds any more
        world.later(WAIT)
        world.later(WITHIN)
        told = {one for each in world.told for one in each.members}
        assert set(world.firing) <= told
        for alert in world.firing:
            world.resolve(alert)
        world.later(1)
        world.later(WAIT)
        told = {one for each in world.told for one in each.members}
        for alert, ended in world.log:
            assert (
                alert.id in told
                or alert.state == "firing"
                or any(
                    each.record.silence.matchers.cover_alert(alert) and each.active(ended)
                    for each in world.view.silences.values()
                )
            )
        assert {each.event for each in {each.id: each for each in world.told}.values()} <= {"resolved"}
        assert all(each.open > 0 for each in world.told if each.event != "resolved")
        assert world.committed == len(world.log)
        assert not world.incidents._alerts
        self.nothing_is_told_twice()


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
