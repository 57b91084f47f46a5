"""``offbeat alerts ack|confirm|false-alarm|accept`` and ``summary``: what is said, and what it does."""

from __future__ import annotations

import getpass
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from installation import STREAM, Installation, alert

GENTLE = STREAM + "    alerts: {raise_by: 0.025, raise_most: 0.05}\n"


@pytest.fixture
def alerted(installation: Installation) -> Installation:
    """An installation with its policy in force, three open alerts, one that is over, and a silent series."""
    installation.ok("config", "apply", "--yes")
    installation.publish(
        alert(1, hours_ago=5, lasted_h=1),
        alert(2, hours_ago=4),
        alert(3, hours_ago=3, series="unit-2", severity="critical"),
        alert(4, hours_ago=2),
        alert(5, hours_ago=1, kind="silent", reason="no events", features=[], score=None, peak_score=None),
    )
    return installation


def ident(number: int) -> str:
    return alert(number).id[:12]


class TestWhatIsSaid:
    def test_who_when_and_why_are_kept_with_stream_and_series(self, alerted: Installation) -> None:
        begun = datetime.now(UTC)

        [said] = alerted.json("alerts", "false-alarm", "3", "--why", "only the cleaning")

        assert said["who"].startswith(f"{getpass.getuser()}@")
        assert said["who"].endswith("(offbeat alerts false-alarm)")
        assert begun <= datetime.fromisoformat(said["at"]) <= datetime.now(UTC)
        assert said["alert"] == alert(3).id
        assert (said["stream"], said["series"], said["verdict"], said["why"]) == (
            "sensors", "unit-2", "false alarm", "only the cleaning"
        )  # fmt: skip

    # An unknown effect is a reason not to press the button.
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["ack", "2"], "(sensors, unit-1) is acknowledged: it is not told again while it is open"),
            (["ack", "1"], "is acknowledged: it is over already"),
            (["confirm", "2"], "is confirmed: the line of stream sensors is as its policy has it"),
            (
                ["false-alarm", "2"],
                "is called a false alarm: the line of stream sensors is now 2 % higher (at most 20 %)",
            ),
            (
                ["accept", "3"],
                "is accepted: what unit-2 does now is its normal; the alert closes with the next records",
            ),
            (
                ["accept", "1"],
                "is accepted: what unit-1 does now is its normal; its line starts again with the next record",
            ),
            (["ack", "last"], f"{ident(5)} (sensors, unit-1) is acknowledged"),
        ],
    )
    def test_its_effect_is_told(self, alerted: Installation, arguments: list[str], says: str) -> None:
        told = alerted.ok("alerts", *arguments)

        assert says in told
        assert len(told.splitlines()) == 1

    def test_several_alerts_are_one_command(self, alerted: Installation) -> None:
        told = alerted.ok("alerts", "false-alarm", "1", "2", "3", "2").splitlines()

        assert [line.partition(" ")[0] for line in told] == [ident(1), ident(2), ident(3)]
        assert [line.rpartition("now ")[2] for line in told] == [
            "2 % higher (at most 20 %)", "4 % higher (at most 20 %)", "6 % higher (at most 20 %)"
        ]  # fmt: skip

    # A false alarm more or less must not make a stream deaf.
    def test_the_line_rises_by_the_policy_in_force_and_within_its_bounds(self, alerted: Installation) -> None:
        alerted.configure(GENTLE)
        [before] = alerted.json("alerts", "false-alarm", "1")
        alerted.ok("config", "apply", "--yes")

        said = alerted.json("alerts", "false-alarm", "2", "3", "4")

        assert before["rise"] == {"share": 0.02, "most": 0.2}
        assert [each["rise"] for each in said] == [{"share": 0.05, "most": 0.05}] * 3
        assert "now 5 % higher (at most 5 %)" in alerted.ok("alerts", "false-alarm", "4")

    def test_a_confirmation_takes_a_false_alarm_back(self, alerted: Installation) -> None:
        alerted.ok("alerts", "false-alarm", "1", "2")

        told = alerted.ok("alerts", "confirm", "1")

        assert "the line of stream sensors is 2 % higher (at most 20 %)" in told


class TestMistakes:
    @pytest.mark.parametrize("verdict", ["ack", "confirm", "false-alarm", "accept"])
    @pytest.mark.parametrize(
        ("ids", "code", "says"),
        [
            (["9"], 3, "there is no alert with the id '9'; `offbeat alerts list`"),
            (["2", ""], 3, "5 alerts have ids that begin with ''"),
            ([], 2, "Missing argument 'ID'"),
        ],
    )
    def test_alerts_that_are_not_there_are_told_and_nothing_is_said(
        self, alerted: Installation, verdict: str, ids: list[str], code: int, says: str
    ) -> None:
        done = alerted.run("alerts", verdict, *ids)

        assert done.exit_code == code
        assert says in done.stderr
        assert alerted.json("alerts", "show", "2")[0]["feedback"] == []

    # There is no line to raise and no normal to learn where nothing came.
    @pytest.mark.parametrize("verdict", ["false-alarm", "accept"])
    def test_of_a_silent_series_it_is_said_what_to_do_instead(
        self, alerted: Installation, verdict: str
    ) -> None:
        done = alerted.run("alerts", verdict, "2", "5")

        assert done.exit_code == 2
        assert "series 'unit-1' of stream 'sensors' was silent, which no line decides" in done.stderr
        assert "`events.silent_after`" in done.stderr
        assert alerted.json("alerts", "show", "2")[0]["feedback"] == []

    def test_before_there_are_alerts_a_worker_is_asked_for(self, installation: Installation) -> None:
        done = installation.run("alerts", "ack", "last")

        assert done.exit_code == 3
        assert "offbeat detect" in done.stderr


class TestWhatIsShown:
    def test_the_list_marks_severity_and_what_was_said_last(self, alerted: Installation) -> None:
        alerted.ok("alerts", "ack", "3")
        alerted.ok("alerts", "false-alarm", "3")

        head, *rows = alerted.ok("alerts", "list").splitlines()

        assert "severity" in head
        [marked] = [row for row in rows if row.endswith(ident(3))]
        assert "critical" in marked
        assert "false alarm" in marked
        assert sum("false alarm" in row for row in rows) == 1

    def test_an_alert_shows_who_said_what_of_it_and_why(self, alerted: Installation) -> None:
        alerted.ok("alerts", "ack", "3", "--why", "on my way")
        alerted.ok("alerts", "confirm", "3")

        [shown] = alerted.json("alerts", "show", "3")
        told = alerted.ok("alerts", "show", "3")

        assert [(each["verdict"], each["why"]) for each in shown["feedback"]] == [
            ("ack", "on my way"),
            ("confirm", ""),
        ]
        assert [each["revision"] for each in shown["revisions"]] == [1]
        assert "severity       critical" in told
        [ack, confirm] = [line for line in told.splitlines() if line.startswith(("ack", "confirm"))]
        assert ack.endswith("(offbeat alerts ack): on my way")
        assert confirm.endswith("(offbeat alerts confirm)")


class TestSummary:
    def test_each_stream_is_counted_with_what_was_said_and_its_line(self, alerted: Installation) -> None:
        for arguments in (
            ["ack", "1", "2"],
            ["ack", "1"],
            ["confirm", "2"],
            ["false-alarm", "1", "2"],
            ["confirm", "2"],
        ):
            alerted.ok("alerts", *arguments)
        alerted.ok("alerts", "accept", "3", "--why", "new")
        alerted.ok(
            "silences", "add", "--series", "unit-1", "--start", "-150m", "--end", "+1h", "--why", "a test"
        )
        alerted.publish(alert(6, stream="gone", series="unit-9"))

        found = alerted.json("alerts", "summary")

        counts = dict.fromkeys(("critical", "silenced", "acked", "confirmed", "false_alarms", "accepted"), 0)
        assert found == [
            {"stream": "gone", "alerts": 1, "open": 1, **counts, "rise": {"share": 0.0, "most": 0.2}},
            {
                "stream": "sensors",
                "alerts": 5,
                "open": 4,
                "critical": 1,
                "silenced": 3,
                "acked": 2,
                "confirmed": 1,
                "false_alarms": 1,
                "accepted": 1,
                "rise": {"share": 0.02, "most": 0.2},
            },
        ]
        assert alerted.json("alerts", "summary", "--stream", "gone") == found[:1]

    def test_people_see_a_row_a_stream(self, alerted: Installation) -> None:
        alerted.ok("alerts", "false-alarm", "1", "2")

        head, row = alerted.ok("alerts", "summary").splitlines()

        assert re.split("  +", head) == [
            "stream", "alerts", "open", "critical", "silenced",
            "acked", "confirmed", "false alarms", "accepted", "line",
        ]  # fmt: skip
        assert row.split(maxsplit=9) == [
            "sensors", "5", "4", "1", "0", "0", "0", "2", "0", "4 % higher (at most 20 %)"
        ]  # fmt: skip

    # The alerts of long ago are gone from their topic, and their false alarms still raise the line.
    def test_streams_without_alerts_are_counted_as_well(self, installation: Installation) -> None:
        [found] = installation.json("alerts", "summary")

        assert (found["stream"], found["alerts"]) == ("sensors", 0)

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (["--stream", "nope"], 2, "no stream 'nope'; the configuration has: sensors"),
            (["--since", "x"], 2, "No such option: --since"),
            (["x"], 2, "unexpected extra argument"),
        ],
    )
    def test_a_mistake_ends_in_a_sentence(
        self, installation: Installation, arguments: list[str], code: int, says: str
    ) -> None:
        done = installation.run("alerts", "summary", *arguments)

        assert done.exit_code == code
        assert says in done.stderr


def test_a_damaged_configuration_says_so_before_anything_is_said(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    made.config.write_text("streams: {}\n")

    assert made.run("alerts", "ack", "last").exit_code == 2
