"""A stream that trains itself, by the program as it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest
from installation import Installation, Program, wait_until

from offbeat.controls import standing
from pipeline.bus import connect
from pipeline.config import load
from pipeline.control import ControlView

QUIET = ["--series", "4", "--features", "2", "--clean-rows", "100000"]


def view(installation: Installation) -> ControlView:
    config = load(installation.config)
    with closing(connect(config.bus)) as broker:
        return standing(config, broker)


@pytest.fixture
def whole(installation: Installation) -> Iterator[Program]:
    installation.ok("produce", "synthetic", *QUIET, "--rows", "400")
    program = Program(installation, "run")
    yield program
    program.end()


# Nobody trains anything: the first model comes by itself, a running worker takes it up, no record is lost.
def test_an_installation_that_is_only_run_trains_itself_and_goes_live(
    installation: Installation, whole: Program
) -> None:
    wait_until(lambda: whole.said(worker="sensors/0", doing="live"), "the worker is live")
    installation.ok("produce", "synthetic", *QUIET, "--rows", "200")
    read = 600 * 4

    def bins() -> dict[str, int]:
        told = whole.said(worker="sensors/0", event="status")
        found: dict[str, int] = told[-1]["bins"]
        return found

    wait_until(lambda: sum(bins().values()) == read, "all is read")
    whole.process.terminate()
    assert whole.process.wait(15) == 0

    [made] = view(installation).promotions["sensors"]
    assert made.who.endswith("(offbeat retrain)")
    assert made.why.startswith("promoted as the first model")
    last = whole.said(worker="sensors/0", doing="stopped")[-1]
    assert last["bundle_id"] == made.bundle
    assert sum(last["bins"].values()) == read
    assert installation.json("alerts", "list") == []
    assert whole.said(worker="sensors/retrain", doing="stopped")[-1]["promoted"] == 1


class TestOnce:
    def test_it_says_what_was_decided_and_why(self, installation: Installation) -> None:
        installation.ok("produce", "synthetic", *QUIET, "--rows", "400")

        said = installation.ok("retrain", "--once", "--why", "to see")

        [made] = view(installation).promotions["sensors"]
        assert made.why in said
        assert f"bundle {made.bundle[:12]} is in use for stream 'sensors' now" in said

    def test_a_refused_one_is_kept_and_can_be_forced(self, installation: Installation) -> None:
        installation.ok("produce", "synthetic", *QUIET, "--rows", "400")
        installation.ok("retrain", "--once")
        first = view(installation).champions["sensors"]

        refused = installation.json("retrain", "--once")[-1]
        assert (refused["event"], refused["promoted"], refused["predecessor"]) == ("outcome", False, first)
        assert refused["gate"]["sentence"] == refused["why"]
        assert view(installation).champions["sensors"] == first

        shown = installation.ok("models", "show", "sensors", refused["bundle_id"])
        assert f"by {view(installation).refusals['sensors'][0].who}: {refused['why']}" in shown
        assert "at the gate: not promoted, too little data to tell, against the champion, " in shown
        assert re.search(r"faults found +champion +\d+ of (\d+) +\d+ of \1 .*points.* unclear\n", shown)
        assert re.search(r"held-out error +0\.\d+ +0\.\d+\n", shown)
        numbers = installation.json("models", "show", "sensors", refused["bundle_id"])[-1]["gate"]
        assert numbers == refused["gate"]

        forced = installation.ok("retrain", "--once", "--force", "--why", "hotter pumps")
        assert "forced (hotter pumps), whatever the gate says: the champion stays" in forced
        assert view(installation).champions["sensors"] != first
        shown = installation.json("models", "show", "sensors")[-1]
        assert "forced (hotter pumps)" in shown["promoted"][0]["why"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                ["--force"],
                "--force puts a model to use against the gate: it takes --once, and a --why to log",
            ),
            (["--once", "--force"], "it takes --once, and a --why to log"),
            (["--why", "x"], "it takes --once"),
        ],
    )
    def test_options_that_do_not_go_together(
        self, installation: Installation, arguments: list[str], said: str
    ) -> None:
        done = installation.run("retrain", *arguments)

        assert done.exit_code == 2
        assert said in done.output

    def test_too_few_rows_are_said_in_numbers(self, installation: Installation) -> None:
        installation.ok("produce", "synthetic", *QUIET, "--rows", "20")

        done = installation.run("retrain", "--once")

        assert done.exit_code == 8
        assert "of 224 rows" in done.output
        assert view(installation).champions == {}
