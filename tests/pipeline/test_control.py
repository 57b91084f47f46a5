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
from pipeline.config import AlertRules, Stream
from pipeline.control import (
    Begun,
    Champion,
    ControlLog,
    ControlView,
    Decisions,
    Expired,
    Feedback,
    Policy,
    Record,
    Refused,
    Silenced,
    policy_sha,
    send,
    settings_of,
)
from pipeline.errors import NotFound
from pipeline.records import RecordBatch, Send, TopicPartition, TopicSpec
from pipeline.silences import Matchers, Silence

AT = TopicPartition("test.control", 0)
SAID: dict[str, Any] = {
    "stream": "pumps",
    "at": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "who": "mona@plant (offbeat models promote)",
    "why": "20 % fewer false alarms, für die Nachtschicht",
}


def champion(bundle: str, predecessor: str | None = None, **more: Any) -> Champion:  # noqa: ANN401
    return Champion(**SAID | more, bundle=bundle, predecessor=predecessor)


def begun(fence: int, **more: Any) -> Begun:  # noqa: ANN401
    return Begun(**SAID | more, fence=fence)


def refused(bundle: str | None, fence: int, **more: Any) -> Refused:  # noqa: ANN401
    return Refused(**SAID | more, bundle=bundle, fence=fence)


def policy(made: Stream, predecessor: str | None = None, **more: Any) -> Policy:  # noqa: ANN401
    chosen = settings_of(made)
    return Policy(
        **{**SAID, "sha": policy_sha(chosen), "settings": chosen, "predecessor": predecessor, **more}
    )


def silenced(name: str = "a", stream: str = "pumps", mode: str = "freeze", **more: Any) -> Silenced:  # noqa: ANN401
    """A silence of the year 2026, under an id made of ``name``."""
    year = {"start": datetime(2026, 1, 1, tzinfo=UTC), "end": datetime(2027, 1, 1, tzinfo=UTC)}
    silence = Silence.model_validate({"matchers": Matchers(stream=stream), "mode": mode, **year})
    return Silenced(**{**SAID, "stream": stream, "id": name * 12, "silence": silence, **more})


def expired(name: str = "a", **more: Any) -> Expired:  # noqa: ANN401
    return Expired(**{**SAID, "stream": "pumps", "id": name * 12, **more})


def said(verdict: str, alert: str = "1", series: str = "p1", stream: str = "pumps") -> Feedback:
    return Feedback.model_validate(
        {**SAID, "stream": stream, "alert": alert * 32, "series": series, "verdict": verdict}
    )


def sha(made: Stream) -> str:
    return policy_sha(settings_of(made))


def batch(*records: Record | bytes | None, first: int = 0) -> RecordBatch:
    """Records of the control topic from offset ``first`` on."""
    values = [send(each, AT.topic).value if isinstance(each, Record) else each for each in records]
    return RecordBatch.of(AT, first, [(None, value, 0) for value in values])


def taken(*records: Record | bytes | None) -> tuple[ControlView, list[str]]:
    view = ControlView()
    return view, view.take(batch(*records))


def changed(record: Record, **fields: Any) -> bytes:  # noqa: ANN401
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
        "fence": None,
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
        changed(champion("b2", "b1"), at="2026-03-01T12:00:00"),
        changed(silenced(), id="a"),
        changed(
            silenced(), silence={"matchers": {}, "start": "2026-01-01T00:00Z", "end": "2026-01-01T00:00Z"}
        ),
        changed(said("ack"), verdict="maybe"),
        changed(said("ack"), alert="last"),
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


class TestFences:
    """A program that lost its hold of the work, and does not know it yet, changes nothing any more."""

    def test_a_champion_under_an_older_fence_than_one_that_began_is_void(self) -> None:
        view, void = taken(champion("b1"), begun(7), begun(9), champion("b2", "b1", fence=7))

        assert view.champions == {"pumps": "b1"}
        [sentence] = void
        assert sentence == (
            f"{AT} offset 3: the champion record of 'pumps' by {SAID['who']} is void: it was made under "
            "the fence 7, and work began under 9 since"
        )

    def test_the_holder_of_the_newest_fence_promotes(self) -> None:
        view, void = taken(begun(7), begun(9), champion("b1", fence=9), champion("b2", "b1", fence=9))

        assert (view.champions, view.fences, void) == ({"pumps": "b2"}, {"pumps": 9}, [])

    def test_who_promoted_under_a_higher_fence_had_begun(self) -> None:
        view, void = taken(champion("b1", fence=9), champion("b2", "b1", fence=8))

        assert view.champions == {"pumps": "b1"}
        assert len(void) == 1

    def test_who_begins_under_an_older_fence_takes_nothing_back(self) -> None:
        view, void = taken(begun(9), begun(7), champion("b1", fence=8))

        assert (view.champions, view.fences) == ({}, {"pumps": 9})
        assert len(void) == 2

    def test_refusals_are_kept_in_order_and_change_no_champion(self) -> None:
        first, second = refused("b2", 7), refused(None, 9)
        view, void = taken(champion("b1"), begun(7), first, begun(9), second, refused("b3", 8))

        assert (view.champions, view.refusals) == ({"pumps": "b1"}, {"pumps": [first, second]})
        [sentence] = void
        assert "the refused record of 'pumps'" in sentence
        assert "under the fence 8, and work began under 9 since" in sentence

    def test_people_have_no_fence_and_always_count(self) -> None:
        view, void = taken(begun(9), champion("b1"), champion("b2", "b1"))

        assert (view.champions, view.fences, void) == ({"pumps": "b2"}, {"pumps": 9}, [])

    def test_the_predecessor_rule_holds_under_any_fence(self) -> None:
        view, void = taken(champion("b1"), begun(9), champion("b3", "b2", fence=9))

        assert view.champions == {"pumps": "b1"}
        assert len(void) == 1

    def test_streams_have_fences_of_their_own(self) -> None:
        view, void = taken(begun(9), champion("b1", fence=7, stream="fans"))

        assert (view.champions, void) == ({"fans": "b1"}, [])


RECORDS = st.one_of(
    st.builds(begun, st.integers(1, 3), stream=st.sampled_from(["pumps", "fans"])),
    st.builds(
        refused, st.none() | st.just("b3"), st.integers(1, 3), stream=st.sampled_from(["pumps", "fans"])
    ),
    st.builds(
        champion,
        st.sampled_from(["b1", "b2"]),
        st.sampled_from([None, "b1", "b2"]),
        fence=st.none() | st.integers(1, 3),
        stream=st.sampled_from(["pumps", "fans"]),
    ),
    st.builds(
        policy,
        st.sampled_from([QUICK, SLOW]),
        st.sampled_from([None, sha(QUICK), sha(SLOW)]),
        stream=st.sampled_from(["pumps", "fans"]),
    ),
    st.builds(
        silenced, st.sampled_from("ab"), st.sampled_from(["pumps", "*"]), st.sampled_from(["mute", "freeze"])
    ),
    st.builds(expired, st.sampled_from("ab")),
    st.builds(said, st.sampled_from(["ack", "confirm", "false alarm", "accept"]), st.sampled_from("12")),
    st.sampled_from([None, b"?"]),
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(records=st.lists(RECORDS, max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_the_view_is_one_in_any_batches(records: Sequence[Record | bytes | None], cuts: list[int]) -> None:
    whole, void = taken(*records)

    view, sentences, rest = ControlView(), [], batch(*records)
    for cut in [*sorted(cuts), len(records)]:
        sentences += view.take(rest.before(cut))
        rest = rest.since(cut)

    assert view == whole
    assert sentences == void


def whole(view: ControlView, stream: str = "pumps") -> Decisions:
    """All that was decided about a stream so far."""
    return view.decisions(stream, view.decided(stream))


class TestSilences:
    def test_each_stands_as_it_was_made_until_it_is_ended(self) -> None:
        late = datetime(2026, 4, 1, tzinfo=UTC)

        view, void = taken(silenced("a"), silenced("b"), expired("b", at=late, who="otto"))

        assert void == []
        assert list(view.silences) == ["a" * 12, "b" * 12]
        assert (view.silences["a" * 12].record, view.silences["a" * 12].expired_at) == (silenced("a"), None)
        assert (view.silences["b" * 12].record, view.silences["b" * 12].expired_at) == (silenced("b"), late)

    def test_a_second_of_one_id_is_void(self) -> None:
        view, void = taken(silenced("a"), silenced("a", stream="fans"))

        assert view.silences["a" * 12].record == silenced("a")
        assert void == ["test.control[0] offset 1: the silence aaaaaaaaaaaa is void: there is one of this id"]

    @pytest.mark.parametrize("before", [[], [silenced("a"), expired("a")]], ids=["unknown", "ended already"])
    def test_an_end_of_none_is_void(self, before: list[Record]) -> None:
        late = datetime(2026, 4, 1, tzinfo=UTC)

        view, void = taken(*before, expired("a", at=late))

        assert [each.expired_at for each in view.silences.values()] == [SAID["at"]] * bool(before)
        assert len(void) == 1
        assert (
            "the end of the silence aaaaaaaaaaaa is void: there is no such silence that could end" in void[0]
        )

    # Rows are judged the same whether anybody is told.
    def test_a_mute_decides_nothing_about_rows(self) -> None:
        view, _ = taken(silenced("a", mode="mute"), expired("a"))

        assert view.decided("pumps") == 0
        assert whole(view) == Decisions()

    def test_a_freeze_is_decided_about_every_stream_that_its_pattern_fits(self) -> None:
        view, _ = taken(
            silenced("a", stream="pump*"), silenced("b", stream="*"), silenced("c", stream="fans")
        )

        assert {stream: view.decided(stream) for stream in ("pumps", "pump-2", "fans", "doors")} == {
            "pumps": 2, "pump-2": 2, "fans": 3, "doors": 2
        }  # fmt: skip
        ids = [each.record.id[0] for each in whole(view, "pumps").freezes]
        assert ids == ["a", "b"]

    # Re-reading asks what held then; a silence that was ended later had not been.
    def test_what_was_decided_later_does_not_count(self) -> None:
        view, _ = taken(silenced("a"), champion("b1"), expired("a"), silenced("b"))

        assert view.decided("pumps") == 4
        assert view.decisions("pumps", 0).freezes == ()
        assert [each.expired_at for each in view.decisions("pumps", 1).freezes] == [None]
        assert [each.expired_at for each in view.decisions("pumps", 3).freezes] == [SAID["at"]]
        assert [each.expired_at for each in view.decisions("pumps", 4).freezes] == [SAID["at"], None]

    # Who ends a silence need not know of which streams it was.
    def test_an_end_is_decided_about_the_streams_of_its_silence(self) -> None:
        view, _ = taken(silenced("a", stream="pump*"), expired("a", stream="*"))

        assert [view.decided(stream) for stream in ("pumps", "fans")] == [2, 0]


class TestFeedback:
    def test_all_that_was_said_is_kept_in_order_with_its_offset(self) -> None:
        records = [said("ack"), said("false alarm", "2"), said("confirm", "2")]

        view, void = taken(*records)

        assert void == []
        assert view.feedback == list(enumerate(records))

    def test_an_acknowledgement_decides_nothing_about_rows(self) -> None:
        view, _ = taken(said("ack"))

        assert view.decided("pumps") == 0

    @pytest.mark.parametrize(
        ("verdicts", "false_alarms"),
        [
            (["false alarm"], 1),
            (["false alarm", "false alarm"], 1),
            (["false alarm", "confirm"], 0),
            (["confirm", "false alarm"], 1),
            (["false alarm", "confirm", "false alarm"], 1),
            (["false alarm", "ack"], 1),
            (["false alarm", "accept"], 1),
            (["confirm"], 0),
        ],
    )
    def test_of_confirm_and_false_alarm_the_last_one_counts(
        self, verdicts: list[str], false_alarms: int
    ) -> None:
        view, _ = taken(*[said(verdict) for verdict in verdicts])

        assert whole(view).false_alarms == false_alarms

    def test_false_alarms_are_counted_by_alert_and_stream(self) -> None:
        view, _ = taken(
            said("false alarm", "1"), said("false alarm", "2"), said("false alarm", "3", stream="fans")
        )

        assert [whole(view, stream).false_alarms for stream in ("pumps", "fans", "doors")] == [2, 1, 0]

    def test_new_normals_stand_in_order_with_their_offsets(self) -> None:
        view, _ = taken(
            said("accept", series="p2"), said("ack"), said("accept", "2"), said("accept", series="p2")
        )

        assert whole(view).accepted == ((0, "p2"), (2, "p1"), (3, "p2"))
        assert view.decisions("pumps", 1).accepted == ((0, "p2"),)

    @pytest.mark.parametrize(("false_alarms", "raised"), [(0, 1.0), (1, 1.05), (3, 1.15), (11, 1.5)])
    def test_each_false_alarm_raises_the_line_and_all_of_them_no_more_than_the_most(
        self, false_alarms: int, raised: float
    ) -> None:
        rules = AlertRules(raise_by=0.05, raise_most=0.5)

        assert Decisions(false_alarms=false_alarms).raised(rules) == pytest.approx(raised)


class Topic:
    """A control topic on a real bus."""

    def __init__(self, broker: SqliteBroker) -> None:
        broker.admin().create([TopicSpec(AT.topic, 1)])
        self.broker, self.producer, self.said = broker, broker.producer(), list[str]()

    def write(self, *records: Record | bytes) -> None:
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
