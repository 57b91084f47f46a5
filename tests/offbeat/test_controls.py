"""Deciding: who promotes and applies what, what is shown before, and workers that take it up."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from installation import Installation
from typer.testing import CliRunner, Result

from offbeat.cli import cli
from offbeat.controls import Control, difference, who
from pipeline.bus import connect
from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config, load
from pipeline.control import policy_sha, settings_of
from pipeline.errors import OffbeatError
from pipeline.journal import InForce, JournalLog
from pipeline.ports import Broker
from pipeline.records import Send, TopicPartition

PUMPS = """
  pumps:
    topic: pumps
    events: {series: series, features: [x]}
    model: {window: 2}
"""
STRICTER = PUMPS + "    alerts: {for: 3}\n"
FANS = """
  fans:
    topic: fans
    events: {series: fan, features: [speed]}
"""


@pytest.fixture
def pumps(tmp_path: Path) -> Installation:
    return Installation(tmp_path).configure(PUMPS)


@contextmanager
def bus(installation: Installation) -> Iterator[Broker]:
    with closing(connect(load(installation.config).bus)) as broker:
        yield broker


def in_force(installation: Installation) -> dict[str, str]:
    """The policies in force, by stream."""
    with bus(installation) as broker:
        return dict(Control(load(installation.config), broker, "a test").view().policies)


def sha(installation: Installation, stream: str = "pumps") -> str:
    """Of the configuration's section."""
    return policy_sha(settings_of(load(installation.config).stream(stream)))


def records(installation: Installation) -> list[dict[str, Any]]:
    """All that is on the control topic."""
    with bus(installation) as broker:
        reader, at = broker.reader(), TopicPartition("offbeat.control", 0)
        batch = reader.read(at, 0, 1_000, 0.0)
        return [json.loads(batch.value(row) or b"") for row in range(len(batch))]


def answering(installation: Installation, answer: str, *arguments: str) -> Result:
    """The program, asked by which a person answers."""
    return CliRunner().invoke(cli, [*arguments, "--config", str(installation.config)], input=answer)


class TestApplying:
    def test_the_whole_section_is_shown_the_first_time_and_then_what_changes(
        self, pumps: Installation
    ) -> None:
        first = pumps.ok("config", "apply", "--yes")
        assert "--- nothing in force" in first
        assert "+topic: pumps" in first
        assert "+  window: 2" in first

        pumps.configure(STRICTER)
        then = pumps.ok("config", "apply", "--yes")

        assert "--- pumps in force\n+++ pumps to be put in force" in then
        changes = [line for line in then.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}]
        assert changes == ["-  for: 1", "+  for: 3"]
        assert f"pumps: policy {sha(pumps)[:12]} is in force" in then
        assert in_force(pumps) == {"pumps": sha(pumps)}

    def test_a_person_is_asked_and_their_yes_does_it(self, pumps: Installation) -> None:
        done = answering(pumps, "y\n", "config", "apply")

        assert done.exit_code == 0, done.output
        assert "Put 1 stream in force? [y/N]" in done.output
        assert in_force(pumps) == {"pumps": sha(pumps)}

    @pytest.mark.parametrize("answer", ["n\n", "\n", ""], ids=["no", "return", "nothing"])
    def test_anything_else_changes_nothing(self, pumps: Installation, answer: str) -> None:
        done = answering(pumps, answer, "config", "apply")

        assert done.exit_code == 1
        assert "nothing was changed" in done.output
        assert (in_force(pumps), records(pumps)) == ({}, [])

    # The person said yes to another difference than there is now.
    def test_what_another_applied_while_a_person_thought_is_not_overwritten(
        self, pumps: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pumps.ok("config", "apply", "--yes")
        mine = pumps.configure(STRICTER).config.read_text()

        def think(_: str) -> bool:
            pumps.configure(STRICTER.replace("3", "5")).ok("config", "apply", "--yes")
            return True

        monkeypatch.setattr(typer, "confirm", think)
        done = pumps.run("config", "apply")

        assert done.exit_code == 1
        assert "stream 'pumps': another policy was applied meanwhile" in done.output
        assert in_force(pumps) == {"pumps": sha(pumps)}
        assert pumps.config.read_text() != mine

    def test_what_is_in_force_already_is_not_written_again(self, pumps: Installation) -> None:
        pumps.ok("config", "apply", "--yes")

        assert pumps.ok("config", "apply") == "pumps: in force already\n"
        assert pumps.json("config", "apply") == []
        assert len(records(pumps)) == 1

    def test_programs_are_told_in_json_what_followed_what(self, pumps: Installation) -> None:
        [first] = pumps.json("config", "apply")
        before = sha(pumps)
        pumps.configure(STRICTER)
        [then] = pumps.json("config", "apply")

        assert first == {"stream": "pumps", "policy": before, "before": None}
        assert then == {"stream": "pumps", "policy": sha(pumps), "before": before}

    def test_who_when_and_why_are_kept(self, pumps: Installation) -> None:
        begun = datetime.now(UTC)

        pumps.ok("config", "apply", "--yes", "--why", "fewer false alarms")

        [record] = records(pumps)
        assert record["who"].startswith(f"{getpass.getuser()}@")
        assert record["who"].endswith("(offbeat config apply)")
        assert begun <= datetime.fromisoformat(record["at"]) <= datetime.now(UTC)
        assert (record["why"], record["settings"]["topic"]) == ("fewer false alarms", "pumps")

    def test_only_the_streams_that_are_named_are_applied(self, pumps: Installation) -> None:
        pumps.configure(PUMPS + FANS)

        shown = pumps.ok("config", "apply", "fans", "--yes")

        assert "pumps" not in shown
        assert in_force(pumps) == {"fans": sha(pumps, "fans")}

    def test_streams_that_changed_are_asked_for_together(self, pumps: Installation) -> None:
        pumps.ok("config", "apply", "--yes")
        pumps.configure(STRICTER + FANS)

        assert "Put 2 streams in force?" in answering(pumps, "y\n", "config", "apply").output
        assert in_force(pumps) == {name: sha(pumps, name) for name in ("pumps", "fans")}

    def test_a_stream_that_is_not_there_is_a_mistake(self, pumps: Installation) -> None:
        done = pumps.run("config", "apply", "boilers", "--yes")

        assert done.exit_code == 2
        assert "boilers" in done.output
        assert in_force(pumps) == {}

    def test_a_configuration_with_mistakes_is_not_applied(self, pumps: Installation) -> None:
        pumps.configure(PUMPS + "    alerts: {for: 0}\n")

        assert pumps.run("config", "apply", "--yes").exit_code == 2


@pytest.fixture
def deciding() -> Iterator[tuple[Config, SqliteBroker]]:
    """A configuration, and a bus that several people decide on."""
    with closing(SqliteBroker("sqlite://")) as broker:
        yield Config.model_validate({"streams": {"pumps": made(1)}}), broker


def made(for_rows: int) -> dict[str, Any]:
    return {"topic": "pumps", "events": {"features": ["x"]}, "alerts": {"for": for_rows}}


class Beaten:
    """A broker whose producer comes second: somebody else writes just before it."""

    def __init__(self, broker: SqliteBroker, first: Control, *decide: Any) -> None:  # noqa: ANN401
        self._broker, self._first, self._decide = broker, first, decide

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._broker, name)

    def producer(self) -> Beaten:
        self._producer = self._broker.producer()
        return self

    def send(self, sends: list[Send]) -> None:
        name, *arguments = self._decide
        getattr(self._first, name)(*arguments)
        self._producer.send(sends)

    def flush(self) -> None:
        self._producer.flush()


class TestTwoAtTheSameMoment:
    def test_who_promotes_second_is_told_and_the_first_stands(
        self, deciding: tuple[Config, SqliteBroker]
    ) -> None:
        config, broker = deciding
        said: list[str] = []
        mona = Control(config, broker, "mona")
        otto = Control(config, Beaten(broker, mona, "promote", "pumps", "b-mona", ""), "otto", said.append)

        with pytest.raises(OffbeatError, match="another bundle, b-mona, was promoted at the same moment"):
            otto.promote("pumps", "b-otto", "")

        assert mona.view().champions == otto.view().champions == {"pumps": "b-mona"}
        assert "b-otto of 'pumps' is void: it follows none, and b-mona was in use" in said[0]
        assert otto.view() == Control(config, broker, "a newcomer").view()

    def test_who_applies_second_is_told_and_the_first_stands(
        self, deciding: tuple[Config, SqliteBroker]
    ) -> None:
        config, broker = deciding
        stricter = Config.model_validate({"streams": {"pumps": made(3)}})
        mona = Control(stricter, broker, "mona")
        otto = Control(config, Beaten(broker, mona, "apply", "pumps", ""), "otto")

        with pytest.raises(
            OffbeatError, match=r"another policy, [0-9a-f]{12}, was applied at the same moment"
        ):
            otto.apply("pumps", "")

        assert otto.view().policies == {"pumps": policy_sha(settings_of(stricter.stream("pumps")))}

    # They wanted the same.
    def test_two_who_decide_alike_are_both_content(self, deciding: tuple[Config, SqliteBroker]) -> None:
        config, broker = deciding
        mona = Control(config, broker, "mona")
        otto = Control(config, Beaten(broker, mona, "apply", "pumps", ""), "otto")

        assert otto.apply("pumps", "") == mona.view().policies["pumps"]
        beaten = Control(config, Beaten(broker, mona, "promote", "pumps", "b1", ""), "otto")
        assert beaten.promote("pumps", "b1", "") is None
        assert mona.view().champions == {"pumps": "b1"}


class TestPromoting:
    def test_a_chain_of_champions_names_each_predecessor(self, deciding: tuple[Config, SqliteBroker]) -> None:
        config, broker = deciding
        control = Control(config, broker, "mona")

        assert [control.promote("pumps", name, "") for name in ("b1", "b2", "b1")] == [None, "b1", "b2"]

    def test_the_champion_is_not_promoted_again(self, deciding: tuple[Config, SqliteBroker]) -> None:
        config, broker = deciding
        control = Control(config, broker, "mona")
        control.promote("pumps", "b1", "")

        assert control.promote("pumps", "b1", "") == "b1"
        assert control.view().next_offset == 1

    def test_without_a_name_for_its_user_a_machine_decides_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nobody() -> str:
            raise OSError("no such user")

        monkeypatch.setattr(getpass, "getuser", nobody)

        assert who("a test").startswith("unknown@")


def test_a_difference_is_of_lines_of_yaml() -> None:
    before = Config.model_validate({"streams": {"pumps": made(1)}}).stream("pumps")

    assert difference("pumps", before, settings_of(before)) == ""
    lines = difference("pumps", before, settings_of(before) | {"topic": "pümps"}).splitlines()
    assert [line for line in lines if line.startswith(("-t", "+t"))] == ["-topic: pumps", "+topic: pümps"]


class TestWorkers:
    """What they do about a configuration that is, or is not, applied."""

    def watched(self, installation: Installation, values: list[float]) -> None:
        installation.ok("topics", "create")
        self.produce(installation, values)

    @staticmethod
    def produce(installation: Installation, values: list[float]) -> None:
        with bus(installation) as broker:
            end = broker.reader().bounds("pumps")[0].end_offset
            producer = broker.producer()
            producer.send(
                Send(
                    "pumps",
                    None,
                    json.dumps({"series": "a", "time": 1_000 + end + n, "x": value}).encode(),
                    timestamp_ms=1_000 * (1_000 + end + n),
                    partition=0,
                )
                for n, value in enumerate(values)
            )
            producer.flush()

    @staticmethod
    def journal(installation: Installation) -> list[tuple[int, str]]:
        """From which offset which policy held."""
        with bus(installation) as broker:
            entries, _ = JournalLog(broker.reader(), "offbeat.pumps.journal").entries(0)
            return [(each.next_offset, each.policy_sha) for each in entries if isinstance(each, InForce)]

    def test_the_first_worker_of_a_stream_applies_the_configuration_by_itself(
        self, pumps: Installation
    ) -> None:
        self.watched(pumps, [1.0, 2.0])

        pumps.ok("detect", "--until-idle", "0.1")

        assert in_force(pumps) == {"pumps": sha(pumps)}
        assert records(pumps)[0]["why"] == "the stream's first start"
        assert self.journal(pumps) == [(0, sha(pumps))]

    def test_a_change_holds_from_the_record_at_which_it_was_applied_and_not_before(
        self, pumps: Installation
    ) -> None:
        self.watched(pumps, [1.0, 2.0])
        pumps.ok("detect", "--until-idle", "0.1")
        before = sha(pumps)
        pumps.configure(STRICTER)
        self.produce(pumps, [3.0])

        said = pumps.ok("detect", "--until-idle", "0.1")
        assert "is not the policy in force; `offbeat config apply`" in said
        assert self.journal(pumps) == [(0, before)]

        pumps.ok("config", "apply", "--yes")
        pumps.ok("detect", "--until-idle", "0.1")
        assert self.journal(pumps) == [(0, before), (3, sha(pumps))]

    def test_a_worker_is_not_started_on_another_topic_than_the_policy_reads(
        self, pumps: Installation
    ) -> None:
        self.watched(pumps, [1.0])
        pumps.ok("detect", "--until-idle", "0.1")
        pumps.configure(PUMPS.replace("topic: pumps", "topic: basement"))
        pumps.ok("topics", "create")

        done = pumps.run("detect", "--until-idle", "0.1")

        assert done.exit_code == 2
        assert (
            "reads the topic 'pumps', and the configuration 'basement'; `offbeat config apply`" in done.output
        )
