"""The journal: what its records look like, and what they say of a partition's past."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alerts import Transition
from pipeline.bus.sqlite import SqliteBroker
from pipeline.errors import NotFound, OffbeatError
from pipeline.journal import Entry, InForce, JournalLog, Past, Transitions, fold, sends, transitions
from pipeline.readings import MAX_SERIES_CHARS
from pipeline.records import Send, TopicSpec

TOPIC = "test.pumps.journal"
KAFKA_RECORD_BYTES = 1 << 20
"""What a broker takes in one record unless it is told otherwise."""


def force(
    offset: int,
    bundle: str | None = "b1",
    topic: str = "t1",
    rebuilt_from: int | None = None,
    control: int = 0,
) -> InForce:
    return InForce(
        topic_id=topic,
        next_offset=offset,
        control_offset=control,
        bundle_sha=bundle,
        policy_sha="p1",
        partitions=(1, 3),
        rebuilt_from=rebuilt_from,
    )


def change(name: str = "i1", state: str = "firing", offset: int = 7, *, judged: bool = True) -> Transition:
    return Transition(
        id=name,
        revision=1 if state == "firing" else 2,
        alert="anomaly" if judged else "silent",
        state=state,
        series=f"pump {name}",
        labels={"site": "north"},
        started_ns=1_700_000_000_000_000_001,
        at_ns=1_700_000_000_000_000_000 + offset,
        offset=offset,
        judged=judged,
    )


def changes(through: int, *made: Transition) -> Transitions:
    return Transitions(through=through, changes=list(made))


# What is written is read by every later version: these bytes may not change.
def test_what_came_into_force_is_written_as_it_always_was() -> None:
    [made] = sends(TOPIC, 4, [force(12, control=5)])

    assert (made.topic, made.partition, made.key) == (TOPIC, 4, None)
    assert made.value == (
        b'{"kind":"in_force","schema_version":1,"topic_id":"t1","next_offset":12,"control_offset":5,'
        b'"bundle_sha":"b1","policy_sha":"p1","decided":0,"partitions":[1,3],"rebuilt_from":null}'
    )


def test_alert_changes_are_written_as_they_always_were() -> None:
    [made] = sends(TOPIC, 0, [changes(9, change())])

    assert made.value == (
        b'{"kind":"alerts","schema_version":1,"through":9,"changes":[{"id":"i1","revision":1,'
        b'"alert":"anomaly","state":"firing","series":"pump i1","labels":{"site":"north"},'
        b'"started_ns":1700000000000000001,"at_ns":1700000000000000007,"offset":7,"severity":"warning","judged":true}]}'
    )


class TestRecordsOfBoundedSize:
    def test_changes_of_one_commit_are_as_many_records_as_they_need(self) -> None:
        made = [change(f"i{n}", offset=n) for n in range(5_000)]

        entries = list(transitions(77, made))

        assert [one for entry in entries for one in entry.changes] == made
        assert {entry.through for entry in entries} == {77}
        assert 1 < len(entries) < 10

    def test_a_broker_takes_each_however_long_names_and_labels_are(self) -> None:
        name = "ß" * MAX_SERIES_CHARS
        long = [
            msgspec.structs.replace(change(f"{n:032}"), series=name, labels={"site": name})
            for n in range(3_000)
        ]

        written = sends(TOPIC, 0, transitions(1, long))

        assert max(len(each.value or b"") for each in written) < KAFKA_RECORD_BYTES
        assert sum(len(json.loads(each.value or b"")["changes"]) for each in written) == len(long)

    def test_without_changes_there_is_no_record(self) -> None:
        assert list(transitions(5, [])) == []


class Topic:
    """A journal topic with two partitions on a real bus."""

    def __init__(self, broker: SqliteBroker) -> None:
        broker.admin().create([TopicSpec(TOPIC, 2)])
        self.producer, self.log = broker.producer(), JournalLog(broker.reader(), TOPIC)

    def write(self, *entries: Entry | bytes, partition: int = 0) -> None:
        self.producer.send(
            Send(TOPIC, None, each, partition=partition)
            if isinstance(each, bytes)
            else sends(TOPIC, partition, [each])[0]
            for each in entries
        )
        self.producer.flush()


@pytest.fixture
def topic() -> Iterator[Topic]:
    with closing(SqliteBroker("sqlite://")) as broker:
        yield Topic(broker)


class TestTheLog:
    def test_entries_come_back_as_they_were_written_each_from_its_partition(self, topic: Topic) -> None:
        written = [force(0, None), changes(9, change(), change("i2", judged=False)), force(9, rebuilt_from=4)]
        topic.write(*written)
        topic.write(force(3), partition=1)

        assert topic.log.entries(0) == (written, 3)
        assert topic.log.entries(1) == ([force(3)], 1)
        assert topic.log.end_offsets() == {0: 3, 1: 1}

    def test_entries_are_read_from_an_offset_on(self, topic: Topic) -> None:
        topic.write(force(0), changes(9, change()), force(9, "b2"))

        assert topic.log.entries(0, 2) == ([force(9, "b2")], 3)
        assert topic.log.entries(0, 3) == ([], 3)

    def test_the_past_says_how_far_it_was_read(self, topic: Topic) -> None:
        topic.write(force(0), changes(9, change()), force(9, "b2"))

        past = topic.log.past(0, "t1", 9, 1)

        assert ([each.next_offset for each in past.changes], past.end_offset) == ([9], 3)
        assert past.open.keys() == {"i1"}

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            (sends(TOPIC, 0, [force(0)])[0].value.replace(b'version":1', b'version":2'), "schema version 2"),
            (
                sends(TOPIC, 0, [changes(0)])[0].value.replace(b'version":1', b'version":7'),
                "schema version 7",
            ),
            (b'{"kind": "weather"}', "weather"),
            (b'{"kind":"alerts","through":"nine","changes":[]}', "Expected `int`"),
            (b"", "truncated"),
        ],
    )
    def test_what_a_newer_version_wrote_is_refused_and_named(
        self, topic: Topic, entry: bytes, reason: str
    ) -> None:
        topic.write(force(0), entry)

        with pytest.raises(OffbeatError) as raised:
            topic.log.entries(0)

        said = str(raised.value)
        assert said.startswith(f"{TOPIC}[0] offset 1: no journal entry that this version reads (")
        assert reason in said
        assert "newer offbeat" in said

    # Versions add fields that older ones need not know.
    def test_a_field_of_a_later_version_is_passed_over(self, topic: Topic) -> None:
        topic.write(msgspec.json.encode(msgspec.to_builtins(force(4)) | {"kind": "in_force", "mood": "calm"}))

        assert topic.log.entries(0) == ([force(4)], 1)

    def test_a_partition_or_topic_that_is_not_there_is_said(self, topic: Topic) -> None:
        with pytest.raises(NotFound, match="has no partition 2 yet"):
            topic.log.entries(2)
        with closing(SqliteBroker("sqlite://")) as broker, pytest.raises(NotFound):
            JournalLog(broker.reader(), TOPIC).entries(0)


def offsets(past: Past) -> list[int]:
    return [each.next_offset for each in past.changes]


class TestWhatWasInForce:
    PAST = fold([force(10), force(20, "b2"), force(20, "b3"), force(35, None)], "t1", 40)

    @pytest.mark.parametrize(
        ("offset", "bundle"), [(10, "b1"), (19, "b1"), (20, "b3"), (34, "b3"), (35, None), (999, None)]
    )
    def test_what_came_last_at_or_below_a_record_holds_for_it(self, offset: int, bundle: str | None) -> None:
        found = self.PAST.at(offset)

        assert found is not None
        assert found.bundle_sha == bundle

    def test_before_the_first_entry_nothing_is_said(self) -> None:
        assert self.PAST.at(9) is None

    @pytest.mark.parametrize(
        ("offset", "boundary"), [(0, 10), (10, 20), (19, 20), (20, 35), (34, 35), (35, None)]
    )
    def test_the_next_boundary_is_above_the_record(self, offset: int, boundary: int | None) -> None:
        assert self.PAST.boundary(offset) == boundary

    # Each of them changed the state: thresholds began anew, or series did.
    def test_all_that_came_into_force_at_one_record_is_due_in_its_order(self) -> None:
        one, two, three, four = self.PAST.changes

        assert self.PAST.due(one, 20) == [two, three]
        assert self.PAST.due(two, 20) == [three]
        assert self.PAST.due(three, 34) == []
        assert self.PAST.due(one, 50) == [two, three, four]
        assert self.PAST.due(four, 999) == []

    def test_what_a_state_has_behind_it_is_not_due_though_the_journal_is_read_from_before_it(self) -> None:
        again = force(20, "b2", control=9)
        past = fold([force(10), force(20, "b2"), force(20, "b3"), again], "t1", 40)

        assert past.due(past.changes[1], 20) == [past.changes[2], again]
        assert past.due(again, 40) == []

    # Journals are read from where the state was stored: what it was stored under may stand before that.
    def test_what_follows_is_due_where_what_held_before_is_not_among_it(self) -> None:
        past = fold([force(20, "b2"), force(35)], "t1", 40)

        assert past.due(force(10), 20) == [force(20, "b2")]
        assert past.due(force(20, "b0"), 20) == [force(20, "b2")]

    def test_a_state_that_nothing_held_for_begins_with_the_newest(self) -> None:
        assert self.PAST.due(None, 20) == [force(20, "b3")]
        assert self.PAST.due(None, 9) == []

    @pytest.mark.parametrize(
        ("other", "same"),
        [
            (force(99, control=8, rebuilt_from=3), True),
            (force(10, "b2"), False),
            (force(10, topic="t2"), False),
            (msgspec.structs.replace(force(10), policy_sha="p2"), False),
            (msgspec.structs.replace(force(10), partitions=(3,)), False),
            (None, False),
        ],
    )
    def test_two_are_the_same_where_rows_are_judged_alike(self, other: InForce | None, *, same: bool) -> None:
        assert force(10).same(other) == same


class TestAGroupThatWasSetBack:
    def test_entries_of_records_that_are_read_once_more_are_superseded(self) -> None:
        past = fold([force(0), changes(9, change()), force(20, "b2")], "t1", 5)

        assert (offsets(past), past.alerts, past.open, past.superseded) == ([0], [], {}, True)

    @pytest.mark.parametrize("position", [20, 21])
    def test_entries_up_to_the_position_stand(self, position: int) -> None:
        past = fold([force(0), changes(20, change()), force(20, "b2")], "t1", position)

        assert (offsets(past), past.open.keys(), past.superseded) == ([0, 20], {"i1"}, False)

    def test_what_came_into_force_below_earlier_entries_takes_their_place(self) -> None:
        past = fold(
            [
                force(0),
                changes(9, change("kept")),
                changes(15, change("kept", "resolved")),
                force(20, "b2"),
                changes(25, change("lost")),
                force(10, "b3"),
                changes(12, change("new")),
            ],
            "t1",
            30,
        )

        assert [(each.next_offset, each.bundle_sha) for each in past.changes] == [(0, "b1"), (10, "b3")]
        assert [entry.through for entry in past.alerts] == [9, 12]
        assert (past.open.keys(), past.superseded) == ({"kept", "new"}, False)


class TestACopyOfTheState:
    PAST = fold([force(0), force(20, "b2"), force(40), force(20, "b3"), force(30, "b4")], "t1", 50)

    @pytest.mark.parametrize(
        ("before", "offset", "leads"),
        [
            (force(0), 10, True),
            (force(0), 20, True),
            (force(0), 21, False),
            (force(20, "b2"), 20, True),
            (force(20, "b2"), 21, False),
            (force(20, "b3"), 29, True),
            (force(20, "b3"), 30, True),
            (force(40), 45, False),
            (force(30, "b4"), 45, True),
            (None, 10, False),
        ],
    )
    def test_it_is_of_this_past_where_nothing_took_its_place_and_nothing_came_in_between(
        self, before: InForce | None, offset: int, *, leads: bool
    ) -> None:
        assert self.PAST.leads_to(before, offset) == leads


class TestATopicThatWasMadeAgain:
    OLD: Sequence[Entry] = (force(0), changes(40, change("old"), change("over")), force(50, "b2"))

    def test_what_is_known_of_the_old_one_says_nothing_of_the_new(self) -> None:
        past = fold(self.OLD, "t2", 0)

        assert (past.changes, past.alerts, past.superseded) == ([], [], True)

    def test_its_alerts_are_open_until_somebody_closes_them(self) -> None:
        closing = changes(0, change("over", "resolved"))
        begun = [*self.OLD, closing, force(0, topic="t2")]

        assert fold(self.OLD, "t2", 0).open.keys() == {"old", "over"}
        assert fold(begun, "t2", 0).open.keys() == {"old"}
        later = fold([*begun, changes(3, change("old", "resolved"), change("new"))], "t2", 10)
        assert (offsets(later), later.open.keys(), later.superseded) == ([0], {"new"}, False)


class TestAlerts:
    def test_an_alert_is_open_from_firing_until_it_is_resolved(self) -> None:
        fired, resolved = change("i1"), change("i1", "resolved", 8)
        entries = [force(0), changes(8, fired, change("i2")), changes(9, resolved, change("i3"))]

        assert fold(entries, "t1", 8).open == {"i1": fired, "i2": change("i2")}
        assert fold(entries, "t1", 9).open.keys() == {"i2", "i3"}

    def test_judged_changes_beyond_a_position_are_imposed_on_their_rows(self) -> None:
        fired, resolved = change(offset=7), change("i1", "resolved", 12)
        past = fold(
            [force(0), changes(10, fired), changes(15, resolved, change("i2", judged=False))], "t1", 20
        )

        assert past.imposed(0) == {
            ("pump i1", fired.at_ns, 7): fired,
            ("pump i1", resolved.at_ns, 12): resolved,
        }
        assert past.imposed(10) == {("pump i1", resolved.at_ns, 12): resolved}
        assert past.imposed(15) == {}


TOPICS = ("t0", "t1", "t2")
ENTRIES = st.one_of(
    st.builds(
        force, st.integers(0, 12), st.sampled_from(["b1", "b2", None]), st.sampled_from([*TOPICS, "t1", "t1"])
    ),
    st.builds(
        lambda through, made: changes(through, *made),
        st.integers(0, 12),
        st.lists(
            st.builds(change, st.sampled_from("abc"), st.sampled_from(["firing", "resolved"])),
            min_size=1,
            max_size=3,
        ),
    ),
)


def position_of(entry: Entry) -> int:
    return entry.next_offset if isinstance(entry, InForce) else entry.through


class Naive:
    """A journal entry by entry: which ages it has, and which entries of an age nobody took back."""

    def __init__(self, entries: Sequence[Entry], topic_id: str, position: int) -> None:
        ages: list[tuple[str, list[Entry]]] = [(topic_id, [])]
        for entry in entries:
            if isinstance(entry, InForce) and entry.topic_id != ages[-1][0]:
                ages.append((entry.topic_id, []))
            ages[-1][1].append(entry)
        standing = [
            [each for n, each in enumerate(age) if not self.taken_back(each, age[n + 1 :])] for _, age in ages
        ]
        of_the_topic = ages[-1][0] == topic_id
        self.stands = [each for each in standing[-1] if position_of(each) <= position] if of_the_topic else []
        self.superseded = not of_the_topic or self.stands != standing[-1]
        told = [each for age in standing[:-1] for each in age]
        told += self.stands if of_the_topic else standing[-1]
        last = {one.id: one for each in told if isinstance(each, Transitions) for one in each.changes}
        self.open = {name: one for name, one in last.items() if one.state == "firing"}

    @staticmethod
    def taken_back(entry: Entry, later: Sequence[Entry]) -> bool:
        return any(isinstance(each, InForce) and each.next_offset < position_of(entry) for each in later)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(entries=st.lists(ENTRIES, max_size=12), topic_id=st.sampled_from(TOPICS), position=st.integers(0, 13))
def test_a_journal_says_what_a_plain_reading_of_it_says(
    entries: list[Entry], topic_id: str, position: int
) -> None:
    past, naive = fold(entries, topic_id, position), Naive(entries, topic_id, position)

    assert past.changes == [each for each in naive.stands if isinstance(each, InForce)]
    assert past.alerts == [each for each in naive.stands if isinstance(each, Transitions)]
    assert past.superseded == naive.superseded
    assert past.open == naive.open
