"""Workers that are killed or stopped at any point lose nothing, double nothing and store nothing wrong.

A part of the suite; ``make faults`` runs all of it. Each of these tests fails when one of the four is taken
out: reading again in silence, state after the commit, following the journal, the journal within the commit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import load
from faults.kills import SEEN, Kill
from faults.place import ROOT, Grounds, cut_short, place_at, running
from faults.seam import judged
from faults.suite import faults
from faults.words import Orders, Point

IN_TURN = (
    (Point.SCORED, 6),
    (Point.SENT, 8),
    (Point.OFFSETS, 10),
    (Point.ASKED, 7),
    (Point.CONTROL, 1),  # a model and a policy are taken in by turns
    (Point.COMMITTED, 1),  # before a checkpoint: the next worker reads on both sides of the change
    (Point.CONTROL, 1),
    (Point.CONTROL, 1),
    (Point.SCRIPT, 6),
    (Point.WRITTEN, 6),
    (Point.COMMITTED, 7),
    (Point.HALF, 1),
    (Point.DRAFT, 5),
)
"""Where one worker after another is killed, and after how many commits of its own."""


IN_SHORT = (
    "the group is set back while no worker runs",
    "Redis and snapshots are lost, and retention overtakes what is read again",
    "a partition is added to the live topic",
)
"""Of the faults beside the kills, those that tell most in a short time."""


ON_A_FILE = (
    "the state store is killed, and a replica that is behind is promoted",
    "the wall clock jumps two hours ahead and back under live workers",
    "a poison batch",
    "the snapshots' disk is full",
)
"""Of those that need no broker."""


def test_the_page_says_of_every_fault_what_is_given_up() -> None:
    page = (ROOT / "docs" / "exactly-once.md").read_text(encoding="utf-8").split("| Fault |")[1]
    told = [line for line in page.splitlines()[2:] if line.startswith("| ")]

    assert told == [
        f"| {fault.name} | {fault.given_up or 'nothing'} |"
        for fault in faults()
        if not isinstance(fault, Kill) or not fault.naive
    ]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    """Two trained bundles."""
    folder = tmp_path_factory.mktemp("models")
    return folder, load.learn(folder)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest) -> str | None:
    """The broker of the bus, None for an SQLite file."""
    return request.getfixturevalue("kafka_bootstrap") if request.param == "kafka" else None


@pytest.fixture
def grounds(kafka: str | None, registry: tuple[Path, tuple[str, str]], tmp_path: Path) -> Grounds:
    """For one fault on either bus."""
    return Grounds(kafka, tmp_path / "place", *registry)


@pytest.fixture
def on_sqlite(registry: tuple[Path, tuple[str, str]], tmp_path: Path) -> Grounds:
    """For one fault on an SQLite file."""
    return Grounds(None, tmp_path / "place", *registry)


@pytest.mark.timeout(300)
def test_a_worker_killed_at_every_point_in_turn_loses_and_doubles_nothing(grounds: Grounds) -> None:
    with place_at(grounds) as place:
        with running(place) as run:
            cut_short(run, [Orders(config=str(place.path), point=p, after=after) for p, after in IN_TURN])
        verdict = judged(place, run)

    assert (verdict.lost, verdict.doubled, verdict.wrong) == (0, 0, []), run.told()
    assert not verdict.ties
    assert max(run.reread) > 0, "no state lay behind: nothing was read again"
    assert verdict.changes >= load.CHANGES
    assert verdict.snapshots > 0
    assert verdict.outputs > 500
    assert verdict.reasons >= {
        "error above its threshold",
        "no events",
        "recovered",
        "gone",
        "policy changed",
    }
    assert all(verdict.bins[each] for each in ("merged", "late", "duplicate", "dead_lettered", "warming"))
    assert verdict.bins.total() == place.records


@pytest.mark.timeout(300)
def test_a_worker_stopped_past_its_session_and_let_go_on_loses_and_doubles_nothing(grounds: Grounds) -> None:
    # On Kafka it has outputs of a lost session to commit, on SQLite a state of a lost lease to store.
    point = Point.SCORED if grounds.kafka else Point.SCRIPT

    outcome = Kill(point, stop=True).suffer(grounds)

    verdict = outcome.verdict
    assert (verdict.lost, verdict.doubled, verdict.wrong) == (0, 0, [])
    assert not verdict.ties


@pytest.mark.timeout(300)
def test_a_naive_worker_doubles_what_it_sent_before_the_offsets(on_sqlite: Grounds) -> None:
    """The suite can see."""
    outcome = Kill(Point.SENT, naive=True).suffer(on_sqlite)

    assert outcome.verdict.doubled >= SEEN
    assert outcome.verdict.lost == 0


@pytest.mark.timeout(300)
def test_a_naive_worker_loses_what_it_committed_before_the_checkpoint(on_sqlite: Grounds) -> None:
    """The suite can see."""
    outcome = Kill(Point.COMMITTED, naive=True).suffer(on_sqlite)

    assert outcome.verdict.lost >= SEEN
    assert len(outcome.verdict.wrong) >= SEEN


@pytest.mark.kafka
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", IN_SHORT)
def test_what_befalls_topics_and_brokers_costs_what_is_said_and_no_more(
    name: str, kafka_bootstrap: str, registry: tuple[Path, tuple[str, str]], tmp_path: Path
) -> None:
    [fault] = [each for each in faults() if each.name == name]
    if "kafka" not in fault.buses:
        pytest.skip("it needs a broker of its own: set KAFKA_HOME to a distribution")

    outcome = fault.suffer(Grounds(kafka_bootstrap, tmp_path / "place", *registry))

    assert outcome.held, outcome.verdict


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ON_A_FILE)
def test_what_befalls_a_worker_without_kafka_costs_nothing(name: str, on_sqlite: Grounds) -> None:
    [fault] = [each for each in faults() if each.name == name]
    if "sqlite" not in fault.buses:
        pytest.skip("it needs a disk of its own, which takes root to mount")

    outcome = fault.suffer(on_sqlite)

    assert outcome.held, outcome.verdict
