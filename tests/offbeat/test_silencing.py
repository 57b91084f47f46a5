"""``offbeat silences``: what is asked for, what comes of it, and what training leaves out."""

from __future__ import annotations

import getpass
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from installation import Installation, alert

from offbeat.controls import Control
from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config
from pipeline.errors import NotFound, OffbeatError
from pipeline.silences import Matchers, Silence

HOUR = timedelta(hours=1)
SUNDAYS = [
    "--start",
    "2030-11-03T02:00",
    "--for",
    "2h",
    "--rule",
    "FREQ=WEEKLY;BYDAY=SU",
    "--zone",
    "Europe/Berlin",
]


def added(installation: Installation, *arguments: str) -> dict[str, Any]:
    """The silence that was made."""
    [made] = installation.json("silences", "add", "--why", "a test", *arguments)
    return made


def complaint(installation: Installation, *arguments: str) -> tuple[int, str]:
    done = installation.run(*arguments)
    assert "Traceback" not in done.output
    return done.exit_code, done.stderr.strip().removeprefix("error: ")


def window(made: dict[str, Any]) -> tuple[datetime, datetime]:
    start, end = map(datetime.fromisoformat, made["window"])
    return start, end


class TestAdding:
    def test_who_when_and_why_are_kept_with_what_was_asked_for(self, installation: Installation) -> None:
        begun = datetime.now(UTC)

        made = added(
            installation, "--stream", "sens*", "--series", "unit-?", "--severity", "warning",
            "--feature", "heat", "--label", "hall=n*", "--label", "site=x", "--for", "2h",
        )  # fmt: skip

        assert re.fullmatch("[0-9a-f]{12}", made["id"])
        assert made["who"].startswith(f"{getpass.getuser()}@")
        assert made["who"].endswith("(offbeat silences add)")
        assert begun <= datetime.fromisoformat(made["at"]) <= datetime.now(UTC)
        assert made["why"] == "a test"
        assert made["silence"]["mode"] == "mute"
        assert made["silence"]["matchers"] == {
            "stream": "sens*",
            "series": "unit-?",
            "series_regex": None,
            "feature": "heat",
            "severity": "warning",
            "labels": {"hall": "n*", "site": "x"},
        }
        start, end = window(made)
        assert begun - timedelta(seconds=1) <= start <= begun + timedelta(seconds=30)
        assert end - start == 2 * HOUR
        assert made["active"] is True

    @pytest.mark.parametrize(
        ("times", "start_h", "end_h"),
        [
            (["--start", "+30m", "--for", "1h"], 0.5, 1.5),
            (["--start", "-2h", "--end", "+2h"], -2, 2),
            (["--end", "+1d"], 0, 24),
        ],
    )
    def test_times_may_be_counted_from_now(
        self, installation: Installation, times: list[str], start_h: float, end_h: float
    ) -> None:
        now = datetime.now(UTC)

        start, end = window(added(installation, "--series", "x", *times))

        assert abs(start - now - start_h * HOUR) < timedelta(seconds=30)
        assert end - start == (end_h - start_h) * HOUR

    @pytest.mark.parametrize(
        ("start", "zone", "utc"),
        [
            ("2030-07-01T02:00", "UTC", "2030-07-01T02:00:00+00:00"),
            ("2030-07-01T02:00", "Europe/Berlin", "2030-07-01T00:00:00+00:00"),
            ("2030-07-01T02:00-03:00", "Europe/Berlin", "2030-07-01T05:00:00+00:00"),
        ],
    )
    def test_a_time_is_in_the_zone_unless_it_names_its_own(
        self, installation: Installation, start: str, zone: str, utc: str
    ) -> None:
        made = added(installation, "--series", "x", "--start", start, "--for", "1h", "--zone", zone)

        assert made["window"][0] == utc

    # People read their own clocks, and compare with logs in UTC.
    def test_the_next_windows_are_told_on_both_clocks(self, installation: Installation) -> None:
        told = installation.ok("silences", "add", "--stream", "sensors", "--why", "maintenance", *SUNDAYS)

        first, *windows, last = told.splitlines()
        assert re.fullmatch(r"silence [0-9a-f]{12} is set: mute stream sensors", first)
        assert windows == [
            f"  Sun 2030-11-{day} 02:00 to 04:00 Europe/Berlin (Sun 2030-11-{day} 01:00 to 03:00 UTC)"
            for day in ("03", "10", "17")
        ]
        assert last == "it fits 0 alerts open now"

    def test_open_alerts_that_fit_are_counted(self, installation: Installation) -> None:
        installation.publish(
            alert(1), alert(2, series="unit-2"), alert(3), alert(4, lasted_h=1), alert(5, stream="x")
        )

        assert added(installation, "--series", "unit-1", "--stream", "*", "--for", "1h")["open_alerts"] == 3
        assert added(installation, "--stream", "sensors", "--for", "1h")["open_alerts"] == 3
        assert added(installation, "--feature", "flow", "--for", "1h")["open_alerts"] == 0

    def test_everything_is_silenced_only_where_it_is_said(self, installation: Installation) -> None:
        assert added(installation, "--stream", "*", "--for", "1h")["silence"]["matchers"]["stream"] == "*"

    # Training asks about the past; whom should a mute of it keep from telling?
    def test_a_time_past_can_be_frozen(self, installation: Installation) -> None:
        made = added(installation, "--series", "x", "--start", "-5h", "--for", "1h", "--mode", "freeze")

        assert (made["over"], made["window"], len(made["windows"])) == (True, None, 1)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--for", "1h"], "say what is silenced: --stream, --series, --series-regex"),
            (["--series", "", "--for", "1h"], "--series: String should have at least 1 character"),
            (["--series-regex", "(", "--for", "1h"], "--series-regex: '(' is no regular expression"),
            (["--label", "hall", "--for", "1h"], "--label is 'hall'; give a name and a value"),
            (["--label", "a=1", "--label", "a=2", "--for", "1h"], "--label a is given twice"),
            (
                ["--stream", "pumps", "--for", "1h"],
                "--stream 'pumps' fits none of the configuration's streams: sensors",
            ),
            (["--series", "x"], "say once how long it holds: either --for, such as 2h, or --end"),
            (["--series", "x", "--for", "1h", "--end", "+1h"], "say once how long it holds"),
            (
                ["--series", "x", "--for", "long"],
                "--for: 'long' is no duration: write a number and ms, s, m, h or d",
            ),
            (["--series", "x", "--for", "99999d"], "--for: Input should be less than or equal to 315360000"),
            (["--series", "x", "--start", "noon", "--for", "1h"], "--start is 'noon'; give an ISO 8601 time"),
            (["--series", "x", "--start", "+soon", "--for", "1h"], "--start: 'soon' is no duration"),
            (["--series", "x", "--start", "0001-01-01T00:00+05:00", "--for", "1h"], "--start is '0001-01-01"),
            (["--series", "x", "--end", "-1h"], "which is not after its start"),
            (
                ["--series", "x", "--for", "1h", "--zone", "Berlin"],
                "--zone: 'Berlin' is no time zone; write one such",
            ),
            (
                ["--series", "x", "--for", "1h", "--rule", "FREQ=DAILY"],
                "say when that begins, such as --start 2026",
            ),
            (
                ["--series", "x", "--start", "+1h", "--for", "1h", "--rule", "SUNDAYS"],
                "'SUNDAYS' is no recurrence rule",
            ),
            (["--feature", "heat", "--for", "1h", "--mode", "freeze"], "`freeze` is about rows"),
            (["--series", "x", "--start", "-2h", "--for", "1h"], "it is over already, so it mutes nothing"),
        ],
    )
    def test_a_mistake_ends_in_one_sentence_and_silences_nothing(
        self, installation: Installation, arguments: list[str], says: str
    ) -> None:
        code, sentence = complaint(installation, "silences", "add", "--why", "a test", *arguments)

        assert (code, says in sentence) == (2, True), sentence
        assert "\n" not in sentence
        assert installation.json("silences", "list", "--all") == []

    @pytest.mark.parametrize("why", [[], ["--why", " "]])
    def test_a_silence_has_a_reason(self, installation: Installation, why: list[str]) -> None:
        done = installation.run("silences", "add", "--series", "x", "--for", "1h", *why)

        assert done.exit_code == 2
        assert "--why" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["ffff"], "there is no silence with the id 'ffff'; `offbeat silences list --all`"),
            ([""], "2 silences have ids that begin with ''"),
        ],
    )
    def test_a_silence_to_end_has_to_be_one(
        self, installation: Installation, arguments: list[str], says: str
    ) -> None:
        for _ in range(2):
            added(installation, "--series", "x", "--for", "1h")

        code, sentence = complaint(installation, "silences", "expire", *arguments)

        assert (code, says in sentence) == (3, True), sentence

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "say what is silenced"),
            (["--stream", "pumps"], "fits none of the configuration's streams"),
            (
                ["--series", "x", "--start", "+1h", "--for", "1h"],
                "does not reach into the time that is looked at",
            ),
            (["--series", "x", "--start", "+1h"], "say once how long it holds"),
        ],
    )
    def test_a_preview_needs_something_to_look_at(
        self, installation: Installation, arguments: list[str], says: str
    ) -> None:
        code, sentence = complaint(installation, "silences", "preview", *arguments)

        assert (code, says in sentence) == (2, True), sentence


class TestListing:
    def test_those_that_hold_come_first_and_those_that_are_over_only_when_asked_for(
        self, installation: Installation
    ) -> None:
        coming = added(installation, "--stream", "sensors", *SUNDAYS)
        holds = added(installation, "--series", "x", "--for", "1h")
        ended = added(installation, "--series", "y", "--for", "1h")
        installation.ok("silences", "expire", ended["id"][:8], "--why", "done")
        past = added(installation, "--series", "z", "--start", "-5h", "--for", "1h", "--mode", "freeze")

        listed = installation.json("silences", "list")
        everything = installation.json("silences", "list", "--all")

        assert [each["id"] for each in listed] == [holds["id"], coming["id"]]
        assert [each["active"] for each in listed] == [True, False]
        assert {each["id"] for each in everything[2:]} == {ended["id"], past["id"]}
        assert all(each["over"] for each in everything[2:])

    def test_a_row_says_what_when_who_and_why(self, installation: Installation) -> None:
        made = added(installation, "--stream", "sensors", "--label", "hall=n*", "--mode", "freeze", *SUNDAYS)

        head, row = installation.ok("silences", "list").splitlines()

        assert re.split("  +", head) == ["id", "mode", "what", "when (UTC)", "repeats", "who", "why"]
        for part in (
            made["id"], "freeze", "stream sensors, hall=n*", "Sun 2030-11-03 01:00 to 03:00",
            "FREQ=WEEKLY;BYDAY=SU in Europe/Berlin", "(offbeat silences add)", "a test",
        ):  # fmt: skip
            assert part in row

    def test_of_those_that_are_over_it_is_said_when_they_were_ended(self, installation: Installation) -> None:
        made = added(installation, "--series", "x", "--for", "1h")
        installation.ok("silences", "expire", made["id"])

        head, row = installation.ok("silences", "list", "--all").splitlines()
        nothing = installation.run("silences", "list")

        assert head.endswith("ended early (UTC)")
        assert "over: " in row
        assert row.endswith(f"{datetime.now(UTC):%Y-%m-%d %H:}" + row[-2:])
        assert nothing.stdout == ""
        assert "none that hold now or are to come; --all lists 1 that are over" in nothing.stderr

    def test_before_anybody_silenced_anything_that_is_said(self, installation: Installation) -> None:
        assert installation.run("silences", "list").stderr == "no silences yet\n"


class TestExpiring:
    def test_it_holds_no_longer_and_says_who_ended_what(self, installation: Installation) -> None:
        made = added(installation, "--stream", "sensors", "--start", "-1h", "--for", "2h")

        told = installation.ok("silences", "expire", made["id"][:6])

        [listed] = installation.json("silences", "list", "--all")
        assert told == f"silence {made['id']} has ended: mute stream sensors\n"
        assert (listed["active"], listed["over"]) == (False, True)
        assert abs(datetime.fromisoformat(listed["expired_at"]) - datetime.now(UTC)) < timedelta(seconds=30)

    def test_what_is_over_cannot_be_ended(self, installation: Installation) -> None:
        made = added(installation, "--series", "x", "--for", "1h")
        [ended] = installation.json("silences", "expire", made["id"])

        code, sentence = complaint(installation, "silences", "expire", made["id"])

        assert ended["over"] is True
        assert code == 1
        assert f"the silence {made['id']} is over already" in sentence


class TestPreview:
    @pytest.fixture
    def past(self, installation: Installation) -> Installation:
        """Alerts of the last days: two series, one open, one of another stream, one long ago."""
        installation.publish(
            alert(1, hours_ago=30, lasted_h=1),
            alert(2, hours_ago=29, lasted_h=1, series="unit-2"),
            alert(3, hours_ago=6, severity="critical"),
            alert(4, hours_ago=5, lasted_h=1, stream="other"),
            alert(5, hours_ago=24 * 20, lasted_h=1),
        )
        return installation

    @pytest.mark.parametrize(
        ("arguments", "muted", "alerts"),
        [
            (["--stream", "*"], "1234", 4),
            (["--stream", "*", "--days", "30"], "51234", 5),
            (["--stream", "*", "--days", "1"], "34", 2),
            (["--stream", "sensors", "--series", "unit-1"], "13", 4),
            (["--severity", "critical"], "3", 4),
            (["--feature", "flow"], "", 4),
            (["--stream", "*", "--start", "-8h", "--for", "4h"], "34", 4),
        ],
    )
    def test_it_is_said_which_of_the_last_days_alerts_would_have_been_muted(
        self, past: Installation, arguments: list[str], muted: str, alerts: int
    ) -> None:
        [found] = past.json("silences", "preview", *arguments)

        assert "".join(each["id"][0] for each in found["muted"]) == muted
        assert found["alerts"] == alerts
        assert sum(each["alerts"] for each in found["by_series"]) == len(muted)
        assert datetime.fromisoformat(found["to"]) > datetime.fromisoformat(found["from"])

    # A rule that begins next month is asked what it would have done last week.
    def test_a_rule_is_laid_over_days_before_its_start(self, past: Installation) -> None:
        hour = (datetime.now(UTC) - 30 * HOUR).replace(minute=0)
        start = f"{hour + timedelta(days=30):%Y-%m-%dT%H:%M}"

        [found] = past.json(
            "silences", "preview", "--stream", "*", "--start", start, "--for", "1h", "--rule", "FREQ=DAILY"
        )  # fmt: skip

        assert found["muted"][0]["id"][0] == "1"
        for each in found["muted"]:
            assert each["window"][0].endswith(f"{hour:%H}:00:00+00:00")

    # An alert that outlasts its silence is told late, and not never.
    def test_what_outlasts_the_window_would_have_been_told_at_its_end(self, past: Installation) -> None:
        window = ["--start", "-31h", "--for", "90m"]

        [found] = past.json("silences", "preview", "--series", "unit-1", *window)
        [all_along] = past.json("silences", "preview", "--series", "unit-1", "--stream", "sensors")

        assert [each["told_at"] for each in found["muted"]] == [found["muted"][0]["window"][1]]
        assert [each["told_at"] for each in all_along["muted"]] == [None, None]

    # What closes an alert need not be a row: the newest revision has no evidence of its own then.
    def test_features_are_those_that_an_alert_fired_with(self, installation: Installation) -> None:
        gone = {"revision": 2, "state": "resolved", "reason": "gone", "features": []}
        installation.publish(alert(1, hours_ago=5), alert(1, hours_ago=5, **gone))

        [found] = installation.json("silences", "preview", "--feature", "heat")

        assert [each["state"] for each in found["muted"]] == ["resolved"]

    def test_people_see_a_row_an_alert_and_the_counts_by_series(self, past: Installation) -> None:
        told = past.ok("silences", "preview", "--stream", "sensors").splitlines()

        assert told[0] == "in the last 7 days it would have muted 3 of 4 alerts"
        assert re.split("  +", told[1]) == ["started (UTC)", "stream", "series", "severity", "told", "id"]
        assert [line.split()[2:-1] for line in told[2:5]] == [
            ["sensors", "unit-1", "warning", "never"],
            ["sensors", "unit-2", "warning", "never"],
            ["sensors", "unit-1", "critical", "not", "yet"],
        ]
        assert [line.split() for line in told[6:]] == [
            ["stream", "series", "muted"], ["sensors", "unit-1", "2"], ["sensors", "unit-2", "1"]
        ]  # fmt: skip

    def test_without_alerts_it_would_have_muted_none(self, installation: Installation) -> None:
        assert installation.ok("silences", "preview", "--stream", "*", "--days", "1") == (
            "in the last 1 day it would have muted 0 of 0 alerts\n"
        )


class TestHistory:
    # Who looks at an alert later sees why nobody was told of it.
    def test_an_alert_is_shown_with_the_silences_that_it_reached_into(
        self, installation: Installation
    ) -> None:
        installation.publish(alert(1, hours_ago=3, lasted_h=1), alert(2, hours_ago=20, lasted_h=1))
        held = added(installation, "--series", "unit-1", "--start", "-150m", "--end", "+2h")
        added(installation, "--series", "unit-2", "--start", "-4h", "--end", "+2h")

        [shown] = installation.json("alerts", "show", "1")
        [other] = installation.json("alerts", "show", "2")
        told = installation.ok("alerts", "show", "1")

        [found] = shown["silences"]
        assert (found["id"], found["window"]) == (held["id"], held["window"])
        assert other["silences"] == []
        assert f"(mute, {held['id']}) by {held['who']}: a test" in told


class TestControl:
    """The same without a command: what programs that decide rely on."""

    @pytest.fixture
    def control(self) -> Control:
        config = Config.model_validate({"streams": {"s": {"topic": "s", "events": {"features": ["x"]}}}})
        return Control(config, SqliteBroker("sqlite://"), "mona")

    NIGHT = Silence(
        matchers=Matchers(stream="s"),
        start=datetime(2026, 3, 1, tzinfo=UTC),
        end=datetime(2099, 3, 1, tzinfo=UTC) - timedelta(days=25_000),
    )

    def test_a_silence_that_did_not_take_effect_is_no_success(
        self, control: Control, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 12)
        control.silence(self.NIGHT, "first")

        with pytest.raises(OffbeatError, match="the silence 000000000000 did not take effect"):
            control.silence(self.NIGHT, "second")

    def test_an_end_of_none_is_told(self, control: Control) -> None:
        with pytest.raises(NotFound, match="there is no silence 'abc'"):
            control.expire("abc", "")


def test_training_leaves_frozen_rows_out_and_says_how_many(installation: Installation) -> None:
    file = installation.folder / "unit-a.csv"
    start = datetime(2026, 3, 1, tzinfo=UTC)
    lines = [f"{(start + timedelta(minutes=n)).timestamp()},{20 + n % 7},{5 + n % 5}" for n in range(900)]
    file.write_text("\n".join(["time,temperature,pressure", *lines]))
    installation.ok("produce", "files", str(file))
    frozen = ["--start", "2026-03-01T01:00", "--for", "100m", "--mode", "freeze"]
    added(installation, "--series", "unit-a", *frozen)
    added(installation, "--series", "unit-b", "--start", "2026-03-01", "--for", "1d", "--mode", "freeze")
    installation.run(
        "silences", "add", "--series", "unit-a", "--end", "+1h", "--start", "2026-03-01", "--why", "mute"
    )

    [topic] = installation.json("train")
    [files] = installation.json("train", "--files", str(file))
    told = installation.ok("train")

    for each in (topic, files):
        assert (each["counts"]["learned"], each["counts"]["frozen"]) == (798, 100)
    assert "not used: 100 rows that silences froze" in told


def test_too_little_history_says_how_much_of_it_is_frozen(installation: Installation) -> None:
    installation.ok(
        "produce", "synthetic", "--series", "1", "--features", "2", "--rows", "301", "--start", "2026-03-01"
    )
    added(installation, "--stream", "sensors", "--start", "2026-03-01", "--for", "10d", "--mode", "freeze")

    code, sentence = complaint(installation, "train")

    assert code == 8
    assert "299 rows are frozen by silences" in sentence


def test_silences_are_one_json_value_a_line(installation: Installation) -> None:
    added(installation, "--series", "x", "--for", "1h")
    added(installation, "--series", "y", "--for", "1h")

    listed = installation.ok("silences", "list", "--json").splitlines()

    assert [json.loads(line)["kind"] for line in listed] == ["silence", "silence"]
