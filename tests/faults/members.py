"""Workers that come and go while records come in: members that join, leave and die, and a rolling restart."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from pipeline.state import connect as connect_state

from .place import Grounds, Place, Run, Worker, place_at, running
from .seam import Outcome, judged
from .words import Orders

PARTITIONS = 4
CHUNK = 8
PER_S = 500
MOST_PAUSE_S = 3.0
"""A rolling restart holds each partition back for less."""
EVENTS = 12
MOST_WORKERS = 3


@dataclass
class Feed:
    """The load on its way into a topic, at a steady rate; ``fed`` once all of it is there."""

    place: Place
    per_s: int
    fed: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Produce until nothing is left, or until told to stop."""
        began, producer, sends = time.monotonic(), self.place.broker.producer(), self.place.sends
        while not self._stop.wait(max(0.0, began + self.place.records / self.per_s - time.monotonic())):
            chunk = [send for send, _ in zip(sends, range(CHUNK), strict=False)]
            producer.send(chunk)
            self.place.records += len(chunk)
            if len(chunk) < CHUNK:
                producer.flush()
                self.fed = True
                return

    def stop(self) -> None:
        """Produce no more."""
        self._stop.set()


@contextmanager
def feeding(place: Place, per_s: int) -> Iterator[Feed]:
    """The load comes in while the context lasts."""
    feed = Feed(place, per_s)
    thread = threading.Thread(target=feed.run)
    thread.start()
    try:
        yield feed
    finally:
        feed.stop()
        thread.join()


@dataclass(frozen=True)
class ComeAndGo:
    """Workers are started, told to end and killed at random moments, the same in each run."""

    name = "members join, leave and are killed while records come in"
    buses = "sqlite", "kafka"
    tries = EVENTS
    given_up = ""

    def suffer(self, grounds: Grounds) -> Outcome:
        random_ = random.Random(5)
        with (
            place_at(grounds, partitions=PARTITIONS, fed=False) as place,
            closing(connect_state(place.settings.state)),
        ):
            with running(place) as run, feeding(place, 2 * PER_S) as feed:
                live = [start(run, 0)]
                run.follow(lambda: run.position > 0)
                for _ in range(EVENTS):
                    wait = run.position + random_.randrange(300, 2_000)
                    run.follow(lambda wait=wait: run.position >= wait or feed.fed)
                    live = self._event(run, live, random_)
                finish(run, feed, live)
            verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, figures={"longest_pause_s": run.pause_s})

    @staticmethod
    def _event(run: Run, live: list[Worker], random_: random.Random) -> list[Worker]:
        """One more worker, or one less."""
        doing = random_.choice(["start", "start", "end", "kill"])
        if len(live) == 1 or (doing == "start" and len(live) < MOST_WORKERS):
            taken = {worker.orders.slot for worker in live}
            return [*live, start(run, min(set(range(MOST_WORKERS + 1)) - taken))]
        chosen = random_.choice(live)
        if doing == "kill":
            chosen.process.kill()
            run.follow(lambda: chosen.ended)
        else:
            run.end(chosen)
        return [worker for worker in live if worker is not chosen]


@dataclass(frozen=True)
class RollingRestart:
    """Two workers are restarted one after the other, as for a new version, under the product's settings."""

    static: bool = False
    buses = ("kafka",)
    tries = 2
    given_up = ""

    @property
    def name(self) -> str:
        return f"a rolling restart of two {'static members' if self.static else 'workers'}"

    def suffer(self, grounds: Grounds) -> Outcome:
        query = "static_membership=true" if self.static else ""
        with (
            place_at(grounds, partitions=PARTITIONS, fed=False, query=query) as place,
            closing(connect_state(place.settings.state)),
        ):
            with running(place) as run, feeding(place, PER_S) as feed:
                live = [start(run, 0), start(run, 1)]
                settle(run, feed, live)
                run.pause_s = 0.0
                for number, old in enumerate(live):
                    run.end(old)
                    live[number] = start(run, old.orders.slot)
                    settle(run, feed, live)
                paused_s = run.pause_s
                finish(run, feed, live)
            verdict = judged(place, run)
        if paused_s >= MOST_PAUSE_S and not self.static:
            verdict.wrong.append(f"a partition paused for {paused_s:.1f} s, not less than {MOST_PAUSE_S:g} s")
        return Outcome(self, grounds.bus, verdict, figures={"longest_pause_s": paused_s})


def faults() -> Iterator[ComeAndGo | RollingRestart]:
    """All of this module."""
    yield ComeAndGo()
    yield RollingRestart()
    yield RollingRestart(static=True)


def start(run: Run, slot: int) -> Worker:
    """A steady worker."""
    return run.start(Orders(config=str(run.place.path), slot=slot, steady=True))


def settle(run: Run, feed: Feed, live: list[Worker]) -> None:
    """Wait until each of the workers has its share of the partitions, and all of them go on."""
    share = PARTITIONS // len(live)
    run.follow(lambda: all(run.claims.get(worker.process.pid, 0) >= share for worker in live))
    claimed_s = time.monotonic()
    run.follow(lambda: feed.fed or min(run.worked_s.values()) > claimed_s)
    if feed.fed:
        raise AssertionError("the machine is too slow: all was fed before the workers had settled")


def finish(run: Run, feed: Feed, live: list[Worker]) -> None:
    """Let all of it come in and be worked on, and end the workers."""
    run.follow(lambda: feed.fed and run.position >= run.place.records)
    run.end(*live)
