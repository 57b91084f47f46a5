"""The anomalies of the past, as the stream's journal and the people who looked after its alerts have them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime

import pytest
from kafka import KafkaProducer

from models.episodes import OPEN_NS, Episode, LeftOut, called_normal, called_right, told_episodes
from pipeline import config
from pipeline.alerts import Transition
from pipeline.bus import connect
from pipeline.control import ControlView, Feedback, Verdict, send
from pipeline.errors import BusDown
from pipeline.journal import Entry, InForce, JournalLog, Transitions, sends
from pipeline.ports import Broker
from pipeline.records import RecordBatch, Send, TopicPartition, TopicSpec

TOPIC, JOURNAL = "t", "j"
DEADLINE_S = 20.0


@contextmanager
def bus(entries: int = 0) -> Iterator[Broker]:
    """An input topic of two partitions with so many records in each, and a journal."""
    broker = connect("sqlite://")
    broker.admin().create([TopicSpec(TOPIC, 2), TopicSpec(JOURNAL, 2)])
    producer = broker.producer()
    producer.send([Send(TOPIC, b"a", b"{}", partition=n % 2) for n in range(2 * entries)])
    producer.flush()
    yield broker
    broker.close()


def write(broker: Broker, partition: int, *entries: Entry) -> None:
    producer = broker.producer()
    producer.send(sends(JOURNAL, partition, entries))
    producer.flush()


def in_force(broker: Broker, next_offset: int, topic_id: str | None = None) -> InForce:
    topic_id = topic_id or broker.reader().bounds(TOPIC)[0].topic_id
    return InForce(
        topic_id=topic_id,
        next_offset=next_offset,
        control_offset=0,
        bundle_sha="b",
        policy_sha="p",
        partitions=(2,),
    )


def change(ident: str, revision: int, state: str, at: int, **more: object) -> Transition:
    fields: dict[str, object] = {
        "id": ident,
        "revision": revision,
        "alert": "anomaly",
        "state": state,
        "series": f"series-{ident}",
        "labels": {},
        "started_ns": 5,
        "at_ns": at,
        "offset": 0,
        "judged": True,
    }
    return Transition(**(fields | more))  # type: ignore[arg-type]


def told(broker: Broker, *normal: str) -> list[Episode]:
    return told_episodes(broker.reader(), TOPIC, JOURNAL, normal)


def test_an_episode_goes_from_its_first_row_to_the_one_that_resolved_it() -> None:
    with bus(10) as broker:
        write(
            broker,
            0,
            in_force(broker, 0),
            Transitions(through=3, changes=[change("a", 1, "firing", 6), change("b", 1, "firing", 7)]),
            Transitions(through=5, changes=[change("a", 2, "firing", 8, severity="critical")]),
            Transitions(through=8, changes=[change("a", 3, "resolved", 20, severity="critical")]),
        )
        write(broker, 1, in_force(broker, 0), Transitions(through=2, changes=[change("c", 1, "firing", 9)]))

        found = {each.series: each for each in told(broker, "c")}

    assert found == {
        "series-a": Episode("series-a", 5, 20, critical=True, normal=False),
        "series-b": Episode("series-b", 5, OPEN_NS, critical=False, normal=False),
        "series-c": Episode("series-c", 5, OPEN_NS, critical=False, normal=True),
    }


# That nothing came is no value that could be learned; what a group set back told is told no more.
def test_silence_and_what_was_taken_back_are_none() -> None:
    with bus(10) as broker:
        write(
            broker,
            0,
            in_force(broker, 0),
            Transitions(through=2, changes=[change("silent", 1, "firing", 6, alert="silent")]),
            Transitions(through=9, changes=[change("back", 1, "firing", 6)]),
            in_force(broker, 4),
            Transitions(through=10, changes=[change("kept", 1, "firing", 6)]),
        )

        assert [each.series for each in told(broker)] == ["series-kept"]


def test_a_topic_made_again_and_a_stream_nobody_watched_have_none() -> None:
    with bus(10) as broker:
        write(
            broker,
            0,
            in_force(broker, 0, "another"),
            Transitions(through=2, changes=[change("a", 1, "firing", 6)]),
        )

        assert told(broker) == []
        assert told_episodes(broker.reader(), TOPIC, "none", ()) == []
        assert told_episodes(broker.reader(), "none", JOURNAL, ()) == []


def heard(said: list[Verdict]) -> ControlView:
    """What people said of one alert, and of another stream's."""
    about = {"at": datetime(2026, 1, 1, tzinfo=UTC), "who": "mona", "why": "a test", "series": "x"}
    records = [Feedback(stream="s", alert="0" * 32, verdict=verdict, **about) for verdict in said]
    records.append(Feedback(stream="other", alert="1" * 32, verdict="accept", **about))
    sent = [send(each, "control") for each in records]
    view = ControlView()

    view.take(RecordBatch.of(TopicPartition("control", 0), 0, [(each.key, each.value, 0) for each in sent]))
    return view


@pytest.mark.parametrize(
    ("said", "normal"),
    [
        (["false alarm"], True),
        (["false alarm", "confirm"], False),
        (["confirm", "false alarm"], True),
        (["accept"], True),
        (["accept", "confirm"], True),
        (["ack"], False),
    ],
)
def test_what_people_said_last_holds(said: list[Verdict], normal: bool) -> None:  # noqa: FBT001 - a parameter
    assert called_normal(heard(said), "s") == ({"0" * 32} if normal else set())


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (["ack"], False),
        (["confirm"], True),
        (["confirm", "ack"], True),
        (["confirm", "false alarm"], False),
        (["false alarm", "confirm"], True),
        (["confirm", "accept"], True),
    ],
)
def test_what_was_confirmed_last_was_right(said: list[Verdict], right: bool) -> None:  # noqa: FBT001 - a parameter
    assert called_right(heard(said), "s") == ({"0" * 32} if right else set())


def test_episodes_say_which_of_them_were_confirmed() -> None:
    with bus(10) as broker:
        write(broker, 0, in_force(broker, 0))
        write(
            broker,
            0,
            Transitions(through=5, changes=[change("a", 1, "firing", 5), change("b", 1, "firing", 5)]),
        )
        found = told_episodes(broker.reader(), TOPIC, JOURNAL, (), {"b"})

    assert {each.series: each.confirmed for each in found} == {"series-a": False, "series-b": True}


def test_a_stream_that_nobody_watched_leaves_nothing_out() -> None:
    settings = config.parse(f"streams: {{s: {{topic: {TOPIC}, events: {{features: [x]}}}}}}")
    with bus() as broker:
        found = LeftOut.of(settings, "s", broker.reader(), ControlView())

    assert found == LeftOut((), [])


# A retrainer reads the journal while workers commit all the time: it takes what is there, and waits for none.
@pytest.mark.kafka
def test_on_kafka_an_open_commit_is_not_waited_for_and_not_read(kafka_bootstrap: str) -> None:
    topic, journal = f"t-{uuid.uuid4().hex}", f"j-{uuid.uuid4().hex}"
    with ExitStack() as opened:
        broker = opened.enter_context(closing(connect(f"kafka://{kafka_bootstrap}")))
        broker.admin().create([TopicSpec(topic, 1), TopicSpec(journal, 1)])
        producer, reader = broker.producer(), broker.reader()
        producer.send([Send(topic, b"a", b"{}", partition=0) for _ in range(10)])
        first = Transitions(through=3, changes=[change("a", 1, "firing", 6)])
        begun = in_force(broker, 0, reader.bounds(topic)[0].topic_id)
        producer.send(sends(journal, 0, [begun, first]))
        producer.flush()
        worker = opened.enter_context(
            closing(KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=uuid.uuid4().hex))
        )
        worker.init_transactions()
        worker.begin_transaction()
        second = Transitions(through=5, changes=[change("a", 2, "resolved", 9)])
        for each in sends(journal, 0, [second]):
            worker.send(journal, value=each.value, partition=0)
        worker.flush()
        bounds = reader.bounds(journal)[0]
        assert bounds.end_offset < bounds.written_offset

        [found] = told_episodes(reader, topic, journal, ())
        assert (found.started_ns, found.ended_ns) == (5, OPEN_NS)
        with pytest.raises(BusDown, match="not settled yet"):
            JournalLog(reader, journal).entries(0)

        worker.commit_transaction()
        deadline = time.monotonic() + DEADLINE_S
        while reader.bounds(journal)[0].end_offset <= bounds.written_offset:
            assert time.monotonic() < deadline
        [found] = told_episodes(reader, topic, journal, ())
        assert found.ended_ns == 9
