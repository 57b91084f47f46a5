"""``offbeat notify`` and ``offbeat notifications``: what users see of what they are told."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from installation import Installation, Program, alert, wait_until

SOON = "notify: {wait: 0s, within: 1h}\nstreams:"


@pytest.fixture
def told(installation: Installation) -> Installation:
    """An installation that tells at once, with three alerts that were told in one."""
    installation.config.write_text(installation.config.read_text().replace("streams:", SOON))
    installation.publish(*(alert(n, series=f"unit-{n}", peak_score=1 + n / 4) for n in range(1, 4)))
    installation.ok("notify", "--seconds", "0.5")
    return installation


@pytest.fixture
def program(installation: Installation) -> Iterator[Callable[..., Program]]:
    with ExitStack() as started:

        def start(*arguments: str) -> Program:
            made = Program(installation, *arguments)
            started.callback(made.end)
            return made

        yield start


def test_the_tail_shows_an_incident_with_its_worst_series(told: Installation) -> None:
    first, *below = told.ok("notifications", "tail", "--seconds", "0").splitlines()

    assert re.fullmatch(
        r"\S+ \S+  opened    warning   3 series of sensors are anomalous, worst unit-3: heat 81 °C, "
        r"expected 20  [0-9a-f]{12}",
        first,
    )
    assert [each.split()[0] for each in below] == ["unit-3", "unit-2", "unit-1"]
    assert below[0] == "    unit-3  firing  warning  peak 1.75  heat 81 °C, expected 20  300000000000"


def test_an_incident_of_very_many_says_how_many_more(installation: Installation) -> None:
    installation.config.write_text(installation.config.read_text().replace("streams:", SOON))
    installation.publish(*(alert(n, series=f"unit-{n}") for n in range(1, 71)))
    installation.ok("notify", "--seconds", "0.5")

    lines = installation.ok("notifications", "tail", "--seconds", "0").splitlines()

    assert len(lines) == 12
    assert lines[-1] == "    and 60 more alerts"


def test_as_json_it_is_the_record(told: Installation) -> None:
    [found] = told.json("notifications", "tail", "--seconds", "0")

    assert (found["event"], found["sequence"], found["count"]) == ("opened", 1, 3)


def test_the_tail_shows_the_last_ones_and_those_of_one_stream(told: Installation) -> None:
    told.publish(*(alert(n, series=f"unit-{n}", lasted_h=1) for n in range(1, 4)))
    told.ok("notify", "--seconds", "0.5")

    def events(*arguments: str) -> list[str]:
        return [each["event"] for each in told.json("notifications", "tail", "--seconds", "0", *arguments)]

    assert events() == ["opened", "resolved"]
    assert events("-n", "1") == ["resolved"]
    assert events("--stream", "sensors") == ["opened", "resolved"]
    assert events("--stream", "others") == []


def test_who_acknowledged_is_shown(told: Installation) -> None:
    told.ok("alerts", "ack", "3", "--why", "on my way")
    told.publish(*(alert(n, series=f"unit-{n}", lasted_h=1) for n in range(1, 4)))
    told.ok("notify", "--seconds", "0.5")

    lines = told.ok("notifications", "tail", "--seconds", "0").splitlines()

    assert any(re.search(r"  resolved .* \(acknowledged by \S+@.*\)  [0-9a-f]{12}$", each) for each in lines)


def test_a_silence_of_the_command_line_holds_alerts_back(installation: Installation) -> None:
    installation.config.write_text(installation.config.read_text().replace("streams:", SOON))
    installation.ok("silences", "add", "--series", "unit-1", "--for", "1h", "--why", "maintenance")
    installation.publish(alert(1, series="unit-1"), alert(2, series="unit-2"))

    last = installation.ok("notify", "--seconds", "0.5").splitlines()[-1]

    assert last.endswith(
        "notify/0 stopped: 1 incident open, 0 alerts to be told, 1 held back, 1 notification"
    )
    [found] = installation.json("notifications", "tail", "--seconds", "0")
    assert [each["series"] for each in found["alerts"]] == ["unit-2"]


def test_records_that_cannot_be_read_are_counted_at_the_end(told: Installation) -> None:
    from pipeline.bus import connect  # noqa: PLC0415
    from pipeline.records import Send  # noqa: PLC0415

    broker = connect(f"sqlite:///{told.folder}/bus.db")
    producer = broker.producer()
    producer.send([Send("offbeat.notifications", None, b"{}")])
    producer.flush()
    broker.close()

    done = told.run("notifications", "tail", "--seconds", "0")

    assert done.exit_code == 0
    assert "1 records of offbeat.notifications are damaged" in done.stderr


def test_what_was_never_told_says_what_to_do(installation: Installation) -> None:
    done = installation.run("notifications", "tail", "--seconds", "0")

    assert done.exit_code == 3
    assert "`offbeat notify`" in done.stderr


def test_a_bounded_notifier_says_that_the_bus_is_missing(installation: Installation) -> None:
    installation.configure(bus="kafka://127.0.0.1:1")

    done = installation.run("notify", "--seconds", "1")

    assert done.exit_code == 4
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_tells_until_it_is_stopped(
    installation: Installation, program: Callable[..., Program], number: int
) -> None:
    installation.config.write_text(installation.config.read_text().replace("streams:", SOON))
    running = program("notify")
    wait_until(lambda: running.said(doing="watching"), "it watches")
    installation.publish(alert(1))
    wait_until(lambda: running.said(event="notification"), "it is told")

    running.process.send_signal(number)

    assert running.process.wait(10) == 0
    last = running.lines()[-1]
    assert (last["doing"], last["told"], last["worker"]) == ("stopped", 1, "notify/0")


# A notifier that has no end waits for its servers.
def test_without_bounds_it_waits_for_the_bus(
    installation: Installation, program: Callable[..., Program]
) -> None:
    installation.configure(bus="kafka://127.0.0.1:1")
    running = program("notify")

    wait_until(lambda: running.said(event="notice"), "it tries again")

    assert "trying again in 1 s" in running.said(event="notice")[0]["message"]
    assert running.process.poll() is None
