"""What operators and retention do to the input topic and to the group's positions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition
from kafka.structs import OffsetAndMetadata

from offbeat import app
from pipeline.detect import Outputs
from pipeline.journal import Past
from pipeline.state import connect as connect_state

from . import load
from .check import Anew, GivenUp, Verdict, judge, left, pasts
from .load import STREAM
from .place import DEADLINE_S, Grounds, Place, Run, place_at, running
from .seam import Fault, Outcome, judged
from .valkey import wait_until_stored
from .words import Orders

HALF = load.SERIES * load.ROWS // 2
"""Records that are there before the fault."""
MORE_PARTITIONS = 3
HELD = 0.5
"""Their share of all."""
LOOK_S = 0.1


@dataclass(frozen=True)
class Grown:
    """The input topic gets one more partition under two workers, and series go on in other partitions."""

    name = "a partition is added to the live topic"
    buses = ("kafka",)
    tries = 1
    given_up = ""

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds, fed=False) as place, closing(connect_state(place.settings.state)):
            with running(place, deciding=False) as run:
                place.feed(HALF)
                live = [
                    run.start(Orders(config=str(place.path), slot=slot, steady=True)) for slot in range(2)
                ]
                run.follow(lambda: run.position > HALF // 4)
                place.broker.admin().grow(place.topic, MORE_PARTITIONS)
                place.sends = islice(load.sends(place.topic, MORE_PARTITIONS), HALF, None)
                place.feed()
                run.follow(lambda: run.position >= place.records)
                # A partition on its way from one to the other while both end is stored by neither.
                wait_until_stored(place, MORE_PARTITIONS)
                run.end(*live)
            verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict)


@dataclass(frozen=True)
class Reset:
    """While no worker runs somebody sets the group's positions, backwards or forwards."""

    name: str
    given_up: str
    share: float
    """Of the records below the positions that are set; a worker has done half of all."""
    tells: str
    """Of the worker's notice, or "" where there is none."""
    buses = ("kafka",)
    tries = 1

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds, fed=False) as place, running(place, deciding=False) as run:
            before = _do_half(place, run)
            place.feed()
            ends = {n: each.end_offset for n, each in place.broker.reader().bounds(place.topic).items()}
            positions = {number: self._position(past, ends[number]) for number, past in _pasts(place).items()}
            given_up = self._given_up(place, positions)
            _set_positions(place, positions)
            run.positions = dict(positions)
            work(run)
            verdict = judge(place, given_up)
            verdict.wrong += before.wrong
            # A worker finds a state that is ahead of its group just where that was set back.
            if len(run.wrong) != load.PARTITIONS * (self.share < HELD):
                verdict.wrong += [*run.wrong, "the states that were found are not where they should be"]
            if self.tells not in "\n".join(run.notices):
                verdict.wrong.append(f"no worker told that {self.tells}")
        return Outcome(self, grounds.bus, verdict)

    def _position(self, past: Past, end_offset: int) -> int:
        """About the share of all records; where it goes back, between two commits that had outputs."""
        wanted = int(end_offset * self.share)
        return wanted if self.share > HELD else max(e.through for e in past.alerts if e.through <= wanted)

    @staticmethod
    def _given_up(place: Place, positions: Mapping[int, int]) -> GivenUp:
        """Below the committed positions outputs come a second time, above them records are skipped."""
        found, committed = left(place), place.committed()
        changes = {
            (change.id, change.revision)
            for number, past in _pasts(place).items()
            for entry in past.alerts
            if entry.through > positions[number]
            for change in entry.changes
        }
        again = Outputs(
            alerts=[alert for alert in found.alerts if (alert.id, alert.revision) in changes],
            dead_letters=[e for e in found.dead_letters if e.offset >= positions[e.partition.partition]],
        )
        skipped = {number: (committed[number], to) for number, to in positions.items()}
        return GivenUp(again, {number: both for number, both in skipped.items() if both[0] < both[1]})


@dataclass(frozen=True)
class Overtaken:
    """Retention overtakes what a state could be made of, while no worker runs and Redis is lost."""

    name = "Redis and snapshots are lost, and retention overtakes what is read again"
    buses = ("kafka",)
    tries = 1
    given_up = (
        "Windows and thresholds begin anew at the first record that is retained, so that later rows may be "
        "judged otherwise; open alerts that the new state knows nothing of close as `state lost`. The worker "
        "says how much it reads again, and the journal says `rebuilt_from`."
    )

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds, fed=False) as place, running(place, deciding=False) as run:
            before = _do_half(place, run)
            shutil.rmtree(place.folder / "state")
            shutil.rmtree(place.folder / "snapshots")
            pasts = _pasts(place)
            anew = {
                number: Anew(committed * 3 // 4, committed, pasts[number].open)
                for number, committed in place.committed().items()
            }
            with closing(KafkaAdminClient(bootstrap_servers=grounds.kafka)) as admin:
                admin.delete_records(
                    {KafkaPartition(place.topic, p): each.first_offset for p, each in anew.items()}
                )
            given_up = GivenUp(left(place), anew=anew)
            place.feed()
            work(run)
            verdict = judged(place, run, given_up)
            verdict.wrong += before.wrong
            told = "\n".join(run.notices)
            for number, each in anew.items():
                says = f"reading {each.live_from - each.first_offset} records again in silence"
                last = _pasts(place)[number].changes[-1]
                if says not in told or last.rebuilt_from != each.first_offset:
                    verdict.wrong.append(f"partition {number}: not told that the state is made anew")
        return Outcome(self, grounds.bus, verdict)


@dataclass(frozen=True)
class MadeAgain:
    """The topic is deleted and made again under a worker that has read all of it."""

    name = "the topic is deleted and made again under a live worker"
    buses = ("kafka",)
    tries = 1
    given_up = (
        "Records of the old topic that nobody had read are gone with it. The new one is read from its first "
        "record; alerts of the old one close as `state lost`. The worker says that the topic was deleted."
    )

    def suffer(self, grounds: Grounds) -> Outcome:
        with (
            place_at(grounds, fed=False) as place,
            closing(connect_state(place.settings.state)),
            running(place, deciding=False) as run,
        ):
            before = _do_half(place, run)
            opened = {one.id for past in _pasts(place).values() for one in past.open.values()}
            besides = left(place)
            worker = run.start(Orders(config=str(place.path), steady=True))
            run.follow(lambda: run.claims.get(worker.process.pid) == load.PARTITIONS)
            _make_again(place, grounds)
            run.positions.clear()
            place.sends = load.sends(place.topic)
            place.records = 0
            place.feed()
            run.follow(lambda: _read(place, run))
            run.end(worker)
            closed = [alert for alert in left(place).alerts if alert.reason == "state lost"]
            besides.alerts += closed
            besides.changes.clear()
            # Not what was seen on the way: states of the old topic are ahead of positions in the new one.
            verdict = judge(place, GivenUp(besides))
            verdict.wrong += before.wrong
            if sorted(alert.id for alert in closed) != sorted(opened) or not opened:
                verdict.wrong.append(f"{len(closed)} alerts closed as state lost, {len(opened)} were open")
            if "belongs to a topic that was deleted" not in "\n".join(run.notices):
                verdict.wrong.append("the worker did not tell that the topic was deleted")
        return Outcome(self, grounds.bus, verdict)


def faults() -> Iterator[Fault]:
    """All of this module."""
    yield Grown()
    yield Reset(
        "the group is set back while no worker runs",
        "Records are gone through once more, as was asked: their alerts and dead letters are published a "
        "second time, the same with the same ids. Only where the position lies inside a commit, alerts that "
        "opened in it before the position open anew behind it, with another id. The worker says to where the "
        "group was set back.",
        0.25,
        "the group was set back to",
    )
    yield Reset(
        "the group is set forward while no worker runs",
        "The records between are read in silence, as was asked: windows and thresholds know them, and no "
        "alert or dead letter comes of them. The status says `reading again` meanwhile.",
        0.75,
        "",
    )
    yield Overtaken()
    yield MadeAgain()


def _do_half(place: Place, run: Run) -> Verdict:
    """Half of the load is there and done; no worker runs any more."""
    place.feed(HALF)
    work(run)
    verdict = judge(place)
    if verdict.lost or verdict.doubled:
        raise AssertionError(f"{verdict.lost} lost and {verdict.doubled} doubled before the fault")
    return verdict


def work(run: Run) -> None:
    """A worker reads everything and ends."""
    worker = run.start(Orders(config=str(run.place.path)))
    run.follow(lambda: worker.ended)
    if worker.process.returncode != 0:
        raise AssertionError(f"exit {worker.process.returncode}\n{run.told()}")


def _pasts(place: Place) -> dict[int, Past]:
    return pasts(place, place.broker.reader())


def _set_positions(place: Place, positions: Mapping[int, int]) -> None:
    """As `kafka-consumer-groups.sh --reset-offsets` does it."""
    offsets = {KafkaPartition(place.topic, p): OffsetAndMetadata(o, "", -1) for p, o in positions.items()}
    address = place.bus.removeprefix("kafka://").partition("?")[0]
    with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        admin.alter_group_offsets(place.settings.group(STREAM), offsets)
    if place.committed() != positions:
        raise AssertionError(f"the group's positions are {place.committed()}, not {positions}")


def _make_again(place: Place, grounds: Grounds) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=grounds.kafka)) as admin:
        admin.delete_topics([place.topic])
        deadline = time.monotonic() + DEADLINE_S
        while place.topic in admin.list_topics():
            if time.monotonic() > deadline:
                raise AssertionError(f"the topic {place.topic} is not gone")
            time.sleep(LOOK_S)
    place.broker.admin().create(app.input_topics(place.settings, [STREAM], load.PARTITIONS))


def _read(place: Place, run: Run) -> bool:
    """Whether the last commits are at the end of the topic that was made again."""
    return sum(run.latest.values()) == place.records
