"""Control records: what people and programs decided, and what of it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from feeding import stream
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Stream
from pipeline.control import Champion, ControlLog, ControlView, Policy, policy_sha, send, settings_of
from pipeline.errors import NotFound
from pipeline.records import RecordBatch, Send, TopicPartition, TopicSpec

AT = TopicPartition("test.control", 0)
SAID: dict[str, Any] = {
    "stream": "pumps",
    "at": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "who": "mona@plant (offbeat models promote)",
    "why": "20 % fewer false alarms, für die Nachtschicht",
}


def champion(bundle: str, predecessor: str | None = None, **more: Any) -> Champion:  # noqa: ANN401
    return Champion(**SAID | more, bundle=bundle, predecessor=predecessor)


def policy(made: Stream, predecessor: str | None = None, **more: Any) -> Policy:  # noqa: ANN401
    chosen = settings_of(made)
    return Policy(
        **{**SAID, "sha": policy_sha(chosen), "settings": chosen, "predecessor": predecessor, **more}
    )


def sha(made: Stream) -> str:
    return policy_sha(settings_of(made))


def batch(*records: Champion | Policy | bytes | None, first: int = 0) -> RecordBatch:
    """Records of the control topic from offset ``first`` on."""
    values = [send(each, AT.topic).value if isinstance(each, Champion | Policy) else each for each in records]
    return RecordBatch.of(AT, first, [(None, value, 0) for value in values])


def taken(*records: Champion | Policy | bytes | None) -> tuple[ControlView, list[str]]:
    view = ControlView()
    return view, view.take(batch(*records))


def changed(record: Champion | Policy, **fields: Any) -> bytes:  # noqa: ANN401
    """The record as somebody else wrote it."""
    value = send(record, AT.topic).value
    return json.dumps(json.loads(value or b"") | fields).encode()


QUICK, SLOW = stream(rules={"for": 1}), stream(rules={"for": 5})


def test_a_record_says_who_when_and_why_and_is_keyed_by_its_stream() -> None:
    made = send(champion("b1"), AT.topic)

    assert (made.topic, made.partition, made.key) == ("test.control", 0, b"pumps")
    assert json.loads(made.value or b"") == {
        "schema_version": 1,
        "kind": "champion",
        "stream": "pumps",
        "at": "2026-03-01T12:00:00Z",
        "who": "mona@plant (offbeat models promote)",
        "why": "20 % fewer false alarms, für die Nachtschicht",
        "bundle": "b1",
        "predecessor": None,
    }


@pytest.mark.parametrize("made", [QUICK, stream(every="10s", features={"x": {"unit": "m³/h"}}, gap="1m")])
def test_settings_come_back_from_a_policy_as_they_went_in(made: Stream) -> None:
    view, void = taken(policy(made))

    assert void == []
    assert view.policies == {"pumps": sha(made)}
    assert view.settings == {sha(made): made}


def test_equal_settings_have_one_hash_however_they_were_written() -> None:
    written = stream(silent_after="90s", features={"x": None})
    otherwise = stream(silent_after=90.0, features=["x"])

    assert sha(written) == sha(otherwise) != sha(stream(silent_after="91s"))


def test_the_hash_is_of_the_content_and_not_of_the_order_of_its_keys() -> None:
    chosen = settings_of(QUICK)

    assert policy_sha(dict(reversed(chosen.items()))) == policy_sha(chosen)


# A model was trained for its features in their order.
def test_features_in_another_order_are_another_policy() -> None:
    assert sha(stream(features=["x", "y"])) != sha(stream(features=["y", "x"]))
    view, void = taken(policy(stream(features=["y", "x"])))
    assert void == []
    assert view.settings[view.policies["pumps"]].feature_names == ("y", "x")


def test_the_newest_of_a_chain_stands() -> None:
    view, void = taken(
        champion("b1"),
        policy(QUICK),
        champion("b2", "b1"),
        policy(SLOW, sha(QUICK)),
        champion("b1", "b2"),
        policy(QUICK, sha(SLOW)),
    )

    assert void == []
    assert (view.champions, view.policies) == ({"pumps": "b1"}, {"pumps": sha(QUICK)})
    assert view.settings == {sha(QUICK): QUICK, sha(SLOW): SLOW}


def test_streams_do_not_touch_each_other() -> None:
    view, void = taken(champion("b1"), champion("c1", stream="fans"), policy(QUICK, stream="fans"))

    assert void == []
    assert (view.champions, view.policies) == ({"pumps": "b1", "fans": "c1"}, {"fans": sha(QUICK)})


@pytest.mark.parametrize(
    ("predecessor", "follows", "was"),
    [(None, "none", "b1"), ("b0", "b0", "b1")],
    ids=["none", "another"],
)
def test_a_champion_is_void_unless_its_predecessor_is_in_use_and_that_is_said(
    predecessor: str | None, follows: str, was: str
) -> None:
    view, void = taken(champion("b1"), champion("b2", predecessor))

    assert view.champions == {"pumps": "b1"}
    assert [sentence.split(": ", 1) for sentence in void] == [
        [
            "test.control[0] offset 1",
            f"the champion b2 of 'pumps' is void: it follows {follows}, and {was} was in use",
        ]
    ]


# Two people saw the same champion and each promoted another: the first to write has it.
def test_of_two_with_one_predecessor_the_first_stands() -> None:
    view, void = taken(champion("b1"), champion("b2", "b1"), champion("b3", "b1"), champion("b4", "b2"))

    assert view.champions == {"pumps": "b4"}
    assert len(void) == 1
    assert "b3" in void[0]


def test_a_first_champion_that_claims_a_predecessor_is_void() -> None:
    view, void = taken(champion("b2", "b1"))

    assert view.champions == {}
    assert void[0].endswith("it follows b1, and none was in use")


def test_a_policy_is_void_unless_its_predecessor_is_in_force_but_its_settings_are_known() -> None:
    view, void = taken(policy(QUICK), policy(SLOW, "f" * 64))

    assert view.policies == {"pumps": sha(QUICK)}
    assert f"the policy {sha(SLOW)[:12]} of 'pumps' is void: it follows {'f' * 12}" in void[0]
    assert f"and {sha(QUICK)[:12]} was in force" in void[0]
    assert SLOW in view.settings.values()


def test_a_policy_whose_hash_is_not_that_of_its_settings_is_void() -> None:
    view, void = taken(policy(QUICK, sha=sha(SLOW)))

    assert (view.policies, view.settings) == ({}, {})
    assert void == [
        "test.control[0] offset 0: the policy of 'pumps' is void: its hash is not that of its settings"
    ]


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        b"",
        b"\xff\x00",
        b"[]",
        b'{"kind": "champion"',
        b'{"kind": "silence", "stream": "pumps"}',
        b"{}",
        changed(champion("b2", "b1"), schema_version=2),
        changed(champion("b2", "b1"), who=None),
        changed(champion("b2", "b1"), at="soon"),
        changed(champion("b2", "b1"), bundle=""),
        changed(champion("b2", "b1"), urgent=True),
        changed(policy(SLOW), sha="short"),
        changed(policy(SLOW), settings=[]),
    ],
)
def test_what_this_version_does_not_know_is_left_out_with_a_sentence(damaged: bytes | None) -> None:
    view, void = taken(champion("b1"), damaged, champion("b3", "b1"))

    assert (view.champions, view.policies, view.next_offset) == ({"pumps": "b3"}, {}, 3)
    assert len(void) == 1
    assert void[0].startswith("test.control[0] offset 1: no control record that this version knows (")
    assert void[0].endswith("; left out")


def test_settings_that_this_version_does_not_know_are_left_out_with_a_sentence() -> None:
    newer = settings_of(QUICK) | {"mood": "calm"}

    view, void = taken(policy(QUICK, settings=newer, sha=policy_sha(newer)))

    assert (view.policies, view.settings) == ({}, {})
    assert "'mood'" in void[0]
    assert "left out" in void[0]


def test_offsets_without_records_are_passed() -> None:
    view = ControlView()

    view.take(batch(champion("b1")).rows(0, 1, next_offset=7))
    view.take(batch(champion("b2", "b1"), first=9))
    view.take(batch(first=3))

    assert (view.next_offset, view.champions) == (10, {"pumps": "b2"})


RECORDS = st.one_of(
    st.builds(
        champion,
        st.sampled_from(["b1", "b2"]),
        st.sampled_from([None, "b1", "b2"]),
        stream=st.sampled_from(["pumps", "fans"]),
    ),
    st.builds(
        policy,
        st.sampled_from([QUICK, SLOW]),
        st.sampled_from([None, sha(QUICK), sha(SLOW)]),
        stream=st.sampled_from(["pumps", "fans"]),
    ),
    st.sampled_from([None, b"?"]),
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(records=st.lists(RECORDS, max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_the_view_is_one_in_any_batches(
    records: Sequence[Champion | Policy | bytes | None], cuts: list[int]
) -> None:
    whole, said = taken(*records)

    view, sentences, rest = ControlView(), [], batch(*records)
    for cut in [*sorted(cuts), len(records)]:
        sentences += view.take(rest.before(cut))
        rest = rest.since(cut)

    assert view == whole
    assert sentences == said


class Topic:
    """A control topic on a real bus."""

    def __init__(self, broker: SqliteBroker) -> None:
        broker.admin().create([TopicSpec(AT.topic, 1)])
        self.broker, self.producer, self.said = broker, broker.producer(), list[str]()

    def write(self, *records: Champion | Policy | bytes) -> None:
        self.producer.send(
            Send(AT.topic, None, each, partition=0) if isinstance(each, bytes) else send(each, AT.topic)
            for each in records
        )
        self.producer.flush()

    def log(self) -> ControlLog:
        return ControlLog(self.broker.reader(), AT.topic, self.said.append)


@pytest.fixture
def topic() -> Iterator[Topic]:
    with closing(SqliteBroker("sqlite://")) as broker:
        yield Topic(broker)


@pytest.mark.parametrize("follow", [ControlLog.refresh, ControlLog.look])
def test_a_log_takes_in_what_is_new_each_time_it_is_asked(topic: Topic, follow: Any) -> None:  # noqa: ANN401
    log = topic.log()
    assert follow(log) == ControlView()

    topic.write(champion("b1"), b"?")
    assert (follow(log).champions, log.view.next_offset) == ({"pumps": "b1"}, 2)
    topic.write(champion("b2", "b1"), policy(QUICK))

    assert (follow(log).champions, log.view.next_offset) == ({"pumps": "b2"}, 4)
    assert follow(log) is log.view
    assert follow(topic.log()) == log.view
    assert [sentence[:25] for sentence in topic.said] == ["test.control[0] offset 1:"] * 2


def test_a_topic_of_many_batches_is_read_to_its_end(topic: Topic) -> None:
    for n in range(30):
        topic.write(champion(f"b{n}", f"b{n - 1}" if n else None))

    assert topic.log().refresh().champions == {"pumps": "b29"}
    assert topic.said == []


def test_without_a_control_topic_that_is_said() -> None:
    with closing(SqliteBroker("sqlite://")) as broker, pytest.raises(NotFound, match=r"test\.control"):
        ControlLog(broker.reader(), AT.topic).refresh()
