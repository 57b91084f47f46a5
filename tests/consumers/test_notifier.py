"""The notifier on real buses: one commit for what is told and how far was read, whatever happens round it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from working import Clock, Desk, SeenBus

from consumers import notifier
from consumers.notifier import Notifier, Parts
from pipeline.alerts import Alert, Source
from pipeline.bus import connect
from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config
from pipeline.errors import BusDown, BusFull, NotFound, Unreadable
from pipeline.notifications import Notification, published
from pipeline.ports import Broker, Reader
from pipeline.reading import stretch
from pipeline.records import Bounds, RecordBatch, Send, TopicPartition, TopicSpec
from pipeline.silences import Silence

WAIT = 10


def config(**notify: Any) -> Config:  # noqa: ANN401 - whatever YAML holds
    pumps = {"topic": "readings", "events": {"features": ["x"], "silent_after": "30s"}}
    made = {"wait": WAIT, "within": 60, "repeat": 3600, **notify}
    return Config.model_validate({"namespace": "test", "notify": made, "streams": {"pumps": pumps}})


@dataclass
class Member:
    """A notifier, its bus, and what it said."""

    notifier: Notifier
    bus: SeenBus
    clock: Clock
    told: list[Notification]
    notices: list[str]
    leave: Callable[[], object]


@dataclass
class House:
    """An installation's topics and clock, and those who tell what happens there."""

    broker: Broker
    config: Config = field(default_factory=config)
    skew: timedelta = timedelta()

    def __post_init__(self) -> None:
        topics = (self.config.alerts_topic, self.config.notifications_topic, "readings")
        self.broker.admin().create([TopicSpec(topic, 1) for topic in topics])
        self.desk = Desk(self.broker, self.config)
        self.producer, self.reader = self.broker.producer(), self.broker.reader()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skew

    def member(self, broker: Broker | None = None) -> Member:
        broker, clock = broker or self.broker, Clock()
        found = broker.bus(
            group=self.config.notifier_group,
            topics=[self.config.alerts_topic],
            transactional_id=uuid.uuid4().hex,
        )
        bus, told, notices = SeenBus(found), list[Notification](), list[str]()
        parts = Parts(
            self.config, bus, broker.reader(),
            observe=told.append, notice=notices.append, wait=clock.wait, clock=clock, now=self.now,
        )  # fmt: skip
        return Member(Notifier(parts), bus, clock, told, notices, found.close)  # type: ignore[attr-defined]

    def later(self, member: Member, seconds: float = 0, turns: int = 3) -> list[Notification]:
        """Let time pass, and then some turns; what was told in them."""
        before = len(member.told)
        self.skew += timedelta(seconds=seconds)
        member.clock.now_s += seconds
        for _ in range(turns):
            member.notifier.turn()
        return member.told[before:]

    def fire(self, series: str = "p1", *, timestamp_ms: int | None = None, **more: Any) -> Alert:  # noqa: ANN401
        made: dict[str, Any] = {
            "id": uuid.uuid4().hex, "revision": 1, "kind": "anomaly", "state": "firing",
            "reason": "error above its threshold", "namespace": "test", "stream": "pumps", "series": series,
            "labels": {}, "started_at": self.now(), "at": self.now(), "severity": "warning", "score": 1.5,
            "peak_score": 1.5, "error": 0.6, "threshold": 0.4, "features": [], "bundle": None,
            "source": Source(topic="readings", partition=0, offset=1),
        }  # fmt: skip
        alert = Alert(**made | more)
        self.write(alert.send(self.config.alerts_topic), timestamp_ms)
        return alert

    def resolve(self, alert: Alert) -> None:
        over = {"revision": alert.revision + 1, "state": "resolved", "reason": "recovered"}
        self.write(alert.model_copy(update=over).send(self.config.alerts_topic))

    def write(self, send: Send, timestamp_ms: int | None = None) -> None:
        """At the house's time, as a broker that stamps what it stores."""
        stamp = timestamp_ms or round(self.now().timestamp() * 1_000)
        self.producer.send([replace(send, timestamp_ms=stamp)])
        self.producer.flush()

    def published(self) -> list[Notification]:
        """What the topic holds."""
        at = TopicPartition(self.config.notifications_topic, 0)
        bounds = self.reader.bounds(at.topic)[0]
        return [
            each
            for batch in stretch(self.reader, at, bounds.first_offset, bounds.end_offset)
            for _, each in published(batch, Notification)[0]
        ]

    def committed(self) -> int | None:
        found = self.broker.admin().committed(self.config.notifier_group, self.config.alerts_topic)
        return found.get(0)


@pytest.fixture
def house() -> Iterator[House]:
    with closing(SqliteBroker("sqlite://")) as broker:
        yield House(broker)


def events(told: list[Notification]) -> list[tuple[str, int]]:
    return [(each.event, each.sequence) for each in told]


def test_incidents_are_told_from_their_opening_to_their_end(house: House) -> None:
    member = house.member()
    alerts = [house.fire(f"p{n}") for n in range(3)]
    house.later(member)

    [told] = house.later(member, WAIT)
    for alert in alerts:
        house.resolve(alert)
    house.later(member)

    assert events(member.told) == [("opened", 1), ("resolved", 2)]
    assert (told.count, told.open) == (3, 3)
    assert house.published() == member.told
    assert house.later(member, 3600) == []
    assert house.committed() == 6


def test_nothing_is_done_for_long_by_one_that_stands_by(house: House) -> None:
    first, second = house.member(), house.member()
    house.later(first)
    assert house.later(second) == []
    assert (first.notifier.status().doing, second.notifier.status().doing) == ("watching", "standing by")
    house.fire()
    house.later(first)

    first.leave()

    assert events(house.later(second, WAIT)) == [("opened", 1)]


# Whoever comes after a crash goes on with what waits, and with nothing that was told.
def test_the_next_one_goes_on_where_the_last_one_was(house: House) -> None:
    member = house.member()
    house.later(member)
    told = house.fire("p1")
    house.later(member, WAIT)
    house.resolve(house.fire("p2"))
    house.later(member, 5)
    house.resolve(told)
    member.leave()

    after = house.member()
    house.later(after, 10)
    house.later(after, WAIT)

    assert events(house.published()) == [("opened", 1), ("resolved", 2)]
    assert house.published()[-1].count == 2  # p2 had joined within the minute
    assert house.later(after, 5) == []
    assert house.committed() == 4


def test_the_first_one_tells_what_is_open_and_not_what_was_over(house: House) -> None:
    house.resolve(house.fire("p1"))
    house.fire("p2")
    house.skew += timedelta(seconds=WAIT)

    told = house.later(house.member())

    assert [each.series for one in told for each in one.alerts] == ["p2"]


# The very first position is committed at once: what comes and goes while nobody is there is told afterwards.
def test_the_first_one_says_at_once_that_it_was_there(house: House) -> None:
    member = house.member()
    house.later(member, turns=2)
    assert house.committed() == 0
    member.leave()
    house.resolve(house.fire("p1"))

    assert events(house.later(house.member(), WAIT)) == [("resolved", 1)]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_refused_commit_loses_nothing_and_tells_nothing_twice(house: House, times: int) -> None:
    member = house.member()
    house.later(member)
    house.resolve(house.fire("p1"))
    house.later(member)
    house.skew += timedelta(seconds=WAIT)

    for _ in range(times):
        member.bus.before_commit = member.leave
        while member.bus.before_commit is not None:
            house.later(member, turns=1)
    house.later(member, turns=6)

    assert events(house.published()) == events(member.told) == [("resolved", 1)]
    assert sum("read again from the topics" in notice for notice in member.notices) == times


def test_a_member_that_was_replaced_writes_nothing(house: House) -> None:
    member = house.member()
    house.fire("p1")
    house.later(member)
    thief = house.member()

    def oust() -> None:
        member.leave()
        house.later(thief)

    member.bus.before_commit = oust
    house.later(member, WAIT)

    assert events(house.published()) == [("opened", 1)]
    assert member.told == []
    assert events(thief.told) == [("opened", 1)]


@pytest.mark.parametrize("error", [BusDown("no broker answers"), BusFull("the disk is full")])
def test_a_bus_that_fails_is_waited_for(house: House, error: BusDown) -> None:
    member = house.member()
    house.later(member)
    house.fire("p1")
    house.later(member)
    member.bus.failing = [error] * 3

    told = house.later(member, WAIT)

    assert events(told) == events(house.published()) == [("opened", 1)]
    assert member.notices == [str(error)]
    assert len(member.clock.waited) == 3
    assert member.notifier.status().doing == "watching"


def test_a_poll_that_fails_is_tried_again_and_told_once(house: House) -> None:
    member = house.member()
    house.later(member)
    member.bus.failing_polls = [BusDown("no broker answers")] * 2

    member.notifier.turn()
    member.notifier.turn()
    assert member.notices == ["no broker answers"]
    status = member.notifier.status()
    assert (status.doing, status.message) == ("waiting for the bus", "no broker answers")

    member.notifier.turn()
    assert member.notifier.status().doing == "watching"


# Damage that the bus is set to stop at holds up what comes behind it, and not what is known.
def test_what_is_known_is_told_while_the_log_is_damaged(house: House) -> None:
    member = house.member()
    house.fire("p1")
    house.later(member)
    member.bus.failing_polls = [Unreadable("offset 1 cannot be read")] * 5

    told = house.later(member, WAIT)

    assert events(told) == [("opened", 1)]
    assert member.notices == ["offset 1 cannot be read"]
    assert member.notifier.status().doing == "stopped at damage"


def test_asked_to_stop_while_it_waits_it_writes_nothing(house: House) -> None:
    member = house.member()
    house.fire("p1")
    house.later(member)
    member.bus.failing = [BusDown("no broker answers")] * 5
    member.clock.stopping = True

    house.later(member, WAIT, turns=1)

    assert house.published() == member.told == []
    assert len(member.clock.waited) == 1


def test_records_that_are_no_alerts_are_counted_and_passed_over(house: House) -> None:
    member = house.member()
    house.later(member)
    for value in (b"{}", None, b"\xff"):
        house.write(Send(house.config.alerts_topic, None, value))
    house.fire("p1")

    told = house.later(member, WAIT) + house.later(member, WAIT)

    assert [each.count for each in told] == [1]
    assert member.notifier.status().unreadable == 3
    assert any("3 records are damaged, or no alerts" in notice for notice in member.notices)
    assert house.committed() == 4


def test_records_that_are_no_notifications_are_told_of(house: House) -> None:
    house.write(Send(house.config.notifications_topic, None, b"{}"))
    member = house.member()
    house.later(member)

    assert "up to offset 0, 1 record is damaged, or no notifications" in member.notices[0]


def test_a_notification_that_is_too_large_is_told_without_its_list(house: House) -> None:
    member = house.member()
    for n in range(20):
        house.fire(f"p{n}")
    house.later(member)
    member.bus.most = {house.config.notifications_topic: 3_000}

    [told] = house.later(member, WAIT)

    assert (told.alerts, told.count, len(told.members)) == ([], 20, 20)
    assert "without its list of alerts" in member.notices[0]


def test_one_that_is_too_large_even_so_waits_for_a_topic_that_takes_it(house: House) -> None:
    member = house.member()
    house.fire("p1")
    house.later(member)
    topic = house.config.notifications_topic
    member.bus.most = {topic: 10}
    member.clock.on_wait = lambda: member.bus.most.pop(topic, None)

    told = house.later(member, WAIT)

    assert events(told) == [("opened", 1)]


def test_silences_and_acknowledgements_are_followed_as_they_come(house: House) -> None:
    member = house.member()
    house.later(member)
    span = {"start": house.now(), "end": house.now() + timedelta(hours=1)}
    house.desk.silence("night", Silence.model_validate({"matchers": {"series": "p1"}, **span}))
    house.fire("p1")
    known = house.fire("p2")
    house.later(member)

    [told] = house.later(member, WAIT)
    house.desk.say("ack", "p2", known.id)
    after = house.later(member, 3600) + house.later(member, WAIT)

    assert [each.series for each in told.alerts] == ["p2"]
    assert [(each.event, each.after_silence) for each in after] == [("opened", True)]


@pytest.mark.parametrize("timestamp_ms", [4_000_000_000_000, 2**62, -1])
def test_records_of_another_time_are_told_in_time(house: House, timestamp_ms: int) -> None:
    member = house.member()
    house.fire("p1", timestamp_ms=timestamp_ms)

    assert events(house.later(member) + house.later(member, WAIT)) == [("opened", 1)]


@dataclass
class Unsettled:
    """A reader before which a commit of the notifications topic stands open, at first."""

    reader: Reader
    topic: str
    looks: int = 2

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        found = self.reader.bounds(topic)
        if topic != self.topic or not self.looks:
            return found
        self.looks -= 1
        return {number: replace(each, written_offset=each.end_offset + 1) for number, each in found.items()}

    def read(self, *where: Any) -> RecordBatch:  # noqa: ANN401
        return self.reader.read(*where)


# What is being told by one that was killed may be there in a moment.
def test_a_commit_that_is_not_settled_is_waited_for(house: House) -> None:
    member = house.member()
    parts = member.notifier._parts
    parts.reader = Unsettled(parts.reader, house.config.notifications_topic)  # type: ignore[assignment]

    house.later(member)
    assert member.notifier.status().doing == "waiting for the bus"
    assert "is not settled yet" in member.notices[0]

    house.later(member)
    assert member.notifier.status().doing == "watching"


def test_a_stream_without_records_is_told_and_told_to_be_back(house: House) -> None:
    member = house.member()
    house.write(Send("readings", None, b"{}"))
    told = [each for _ in range(40) for each in house.later(member, 1, turns=1)]

    house.write(Send("readings", None, b"{}"))
    told += house.later(member, 3)

    assert [(each.event, each.kind) for each in told] == [
        ("opened", "stream silent"), ("resolved", "stream silent"),
    ]  # fmt: skip


@pytest.mark.parametrize("made", [True, False])
def test_a_topic_without_any_record_yet_is_not_silent(house: House, made: bool) -> None:  # noqa: FBT001
    if not made:
        house.broker.admin().delete(["readings"])
    member = house.member()

    assert [each for _ in range(40) for each in house.later(member, 1, turns=1)] == []


def test_a_control_topic_that_is_gone_is_no_fault_to_wait_for(house: House) -> None:
    house.broker.admin().delete([house.config.control_topic])
    member = house.member()

    with pytest.raises(NotFound):
        house.later(member)


def test_the_role_runs_until_it_is_asked_to_stop(house: House) -> None:
    member = house.member()
    turns, statuses = iter([False, False, False, True]), []

    last = notifier.run(member.notifier._parts, should_stop=lambda: next(turns), on_status=statuses.append)

    assert [each.doing for each in statuses] == ["standing by", "watching", "watching"]
    assert last == statuses[-1]


def evict(bootstrap: str, group: str) -> None:
    """Throw every member out of a group, as a missed session would."""
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        members = [each["member_id"] for each in admin.describe_groups([group])[group]["members"]]
        admin.remove_group_members(group, [MemberToRemove(each) for each in members])


@pytest.mark.kafka
def test_on_kafka_what_is_told_and_how_far_was_read_are_one(kafka_bootstrap: str) -> None:
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    with closing(connect(f"kafka://{kafka_bootstrap}")) as broker:
        house = House(broker, config().model_copy(update={"namespace": namespace}))
        span = {"start": house.now(), "end": house.now() + timedelta(days=1)}
        house.desk.silence("night", Silence.model_validate({"matchers": {"series": "p2"}, **span}))
        house.fire("p2")
        house.skew += timedelta(seconds=WAIT)
        member = house.member()
        told: list[Notification] = []
        alert = house.fire("p1")
        turns = 0
        while not told:
            told = house.later(member, 1, turns=1)
            turns += 1
            assert turns < 200, member.notices
        member.bus.before_commit = lambda: evict(kafka_bootstrap, house.config.notifier_group)
        house.resolve(alert)
        while not any(each.event == "resolved" for each in house.published()):
            house.later(member, 0.1, turns=1)
            turns += 1
            assert turns < 400, member.notices
        assert any("read again from the topics" in notice for notice in member.notices)
        member.leave()

        with closing(connect(f"kafka://{kafka_bootstrap}")) as other:
            after = house.member(other)
            for _ in range(200):
                house.later(after, 0.1, turns=1)
                if after.notifier.status().doing == "watching":
                    break
            assert house.later(after, WAIT, turns=5) == []
            after.leave()

        assert events(house.published()) == [("opened", 1), ("resolved", 2)]
        assert {each.series for one in house.published() for each in one.alerts} == {"p1"}
