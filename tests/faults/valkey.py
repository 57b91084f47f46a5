"""The state store is killed, emptied, stopped or full, or a replica that is behind takes its place.

The server is one of its own, as an operator runs it. Meanwhile detection goes on and a takeover waits; in
either case the worker says what is wrong.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

from redis import Redis
from servers import ValkeyServer

from pipeline.control import ControlLog
from pipeline.errors import BusDown, StoreDown
from pipeline.records import TopicPartition
from pipeline.state import connect as connect_state
from pipeline.state.embedded import EmbeddedServer
from pipeline.status import STORE

from . import load
from .check import as_decided, pasts
from .load import STREAM
from .place import DEADLINE_S, Grounds, Place, Run, Worker, place_at, running
from .seam import Fault, Outcome, judged
from .words import Orders

PART = load.SERIES * load.ROWS // 6
"""Records: two such parts come before the blow, at most two while it lasts, and what is left after it."""
LOOK_S = 0.05
STORE_DOWN = re.compile("cannot (claim|write) the state of .* the state server redis://")
GOES_ON = "detection goes on, checkpoints wait"
WRITES_ALL = "does not hold what it last confirmed"


class Blow:
    """What is done to the state store, and how that is set right.

    Attributes:
        name: of the fault.
        tells: of what a live worker says while it lasts.
        tells_after: of what it says once that is set right; "" where there is nothing to tell.
        tells_next: of what a worker says that is to take over while it lasts.
        waits: whether that one has to wait, and the status of either says so.
    """

    name: str
    tells: str
    tells_after = ""
    tells_next = "is taken over when it answers"
    waits = True

    def __init__(self, place: Place, server: ValkeyServer, opened: ExitStack) -> None:
        self.place, self.server, self.opened = place, server, opened
        self.plain = opened.enter_context(Redis(port=server.port))

    def prepare(self) -> None:
        """All states are stored, and more records come before the blow."""

    def strike(self) -> None:
        """All states are stored, and no records come in."""
        raise NotImplementedError

    def mend(self) -> None:
        """Set it right."""
        raise NotImplementedError


class Killed(Blow):
    """It is killed, and started again on its data."""

    name = "the state store is killed and started again"
    tells = GOES_ON

    def strike(self) -> None:
        self.server.signal(signal.SIGKILL)

    def mend(self) -> None:
        self.server.start()


class Emptied(Blow):
    """It is flushed."""

    name = "the state store is emptied"
    tells, tells_next = WRITES_ALL, "no stored state that can be used; going on from the snapshot"
    waits = False

    def strike(self) -> None:
        self.plain.flushall()
        must(not stored(self.place, self.server.url), "nothing is stored")

    def mend(self) -> None:
        """The worker does."""


class Hung(Blow):
    """It is stopped for longer than a call lasts."""

    name = "the state store hangs"
    tells = "it hangs or is far away"

    def strike(self) -> None:
        self.server.signal(signal.SIGSTOP)

    def mend(self) -> None:
        self.server.signal(signal.SIGCONT)


class Full(Blow):
    """It is out of memory, and evicts nothing."""

    name = "the state store is out of memory"
    tells = "raise its maxmemory"

    def strike(self) -> None:
        self.before = stored(self.place, self.server.url)
        self.plain.config_set("maxmemory", 1)

    def mend(self) -> None:
        must(stored(self.place, self.server.url) == self.before, "nothing was stored meanwhile")
        self.plain.config_set("maxmemory", 0)


class Promoted(Blow):
    """It is killed, and its replica, which had lost sight of it, is promoted and takes its address."""

    name = "the state store is killed, and a replica that is behind is promoted"
    tells, tells_after = GOES_ON, WRITES_ALL

    def prepare(self) -> None:
        self.replica = ValkeyServer(self.place.folder / "replica")
        self.opened.callback(self.replica.close)
        self.replica.start()
        self.second = self.opened.enter_context(Redis(port=self.replica.port))
        self.second.replicaof("127.0.0.1", str(self.server.port))
        wait_until(
            lambda: stored(self.place, self.replica.url) == stored(self.place, self.server.url),
            "the replica has what the primary has",
        )
        self.second.replicaof("127.0.0.1", "1")  # it sees nothing of the primary any more

    def strike(self) -> None:
        self.before = stored(self.place, self.server.url)
        self.server.signal(signal.SIGKILL)

    def mend(self) -> None:
        now = stored(self.place, self.replica.url)
        must(all(now[number] < offset for number, offset in self.before.items()), "the replica is behind")
        self.second.replicaof("NO", "ONE")
        self.second.config_set("port", self.server.port)


@dataclass(frozen=True)
class StoreFault:
    """A blow to the state store under a live worker; or it is killed too, and another one takes over."""

    blow: type[Blow]
    takeover: bool
    buses = "sqlite", "kafka"
    tries = 1
    given_up = ""

    @property
    def name(self) -> str:
        return f"{self.blow.name}, and the worker is killed" if self.takeover else self.blow.name

    def suffer(self, grounds: Grounds) -> Outcome:
        server = ValkeyServer(grounds.folder.with_name(f"{grounds.folder.name}-valkey"))
        with ExitStack() as opened:
            opened.callback(server.close)
            server.start()
            place = opened.enter_context(place_at(grounds, fed=False, state=server.url))
            blow = self.blow(place, server, opened)
            with running(place, deciding=False) as run:
                self._suffer(run, blow)
            verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, [run.recovery_s])

    def _suffer(self, run: Run, blow: Blow) -> None:
        worker = start(run, 0)
        standby = start(run, 1) if self.takeover else worker
        work_on(run, PART, decide=True)
        wait_until_stored(run.place)
        blow.prepare()
        work_on(run, PART)  # without a new claim: what is stored differs in its offset alone
        wait_until_stored(run.place)
        blow.strike()
        run.strike()
        if self.takeover:
            take_over(run, blow, worker, standby)
        else:
            work_on(run, PART)
            work_on(run, PART)
            told(run, worker, blow.tells, waits=blow.waits)
            blow.mend()
        work_on(run, PART)
        if not self.takeover:
            told(run, worker, blow.tells_after, waits=False)
        work_on(run, None, decide=True)
        wait_until_stored(run.place)
        run.follow(lambda: run.doings[standby.process.pid][-1].doing == "live")
        run.end(standby)
        if isinstance(blow, Killed):
            must(not any(WRITES_ALL in notice for notice in run.notices), "its data were there again")


@dataclass(frozen=True)
class EmbeddedKilled:
    """The embedded server is killed under the worker that started it, and comes again by itself."""

    name = "the embedded state store is killed"
    buses = "sqlite", "kafka"
    tries = 1
    given_up = ""

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds, fed=False) as place:
            with running(place, deciding=False) as run:
                worker = start(run, 0)
                work_on(run, PART, decide=True)
                wait_until_stored(place)
                killed = _embedded(place)
                os.kill(killed, signal.SIGKILL)
                run.strike()
                work_on(run, PART)
                wait_until_stored(place)
                must(_embedded(place) != killed, "another server is there")
                work_on(run, None, decide=True)
                run.end(worker)
            verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, [run.recovery_s])


def _embedded(place: Place) -> int:
    """The process id of the embedded server."""
    with EmbeddedServer(place.folder / "state") as joined, Redis.from_url(joined.url) as client:
        return int(client.info("server")["process_id"])


def faults() -> Iterator[Fault]:
    """All of this module."""
    yield EmbeddedKilled()
    for blow in (Killed, Emptied, Hung, Full, Promoted):
        for takeover in (False, True):
            yield StoreFault(blow, takeover)


def work_on(run: Run, records: int | None, *, decide: bool = False) -> None:
    """So many more records come in, or all that are left, and are settled, as is what is decided amid them.

    Workers may have read all of them before it is decided: it comes into force a turn later then.
    """
    run.place.feed(records)
    if decide:
        run.place.decide()
    run.follow(lambda: run.position >= run.place.records)
    if decide:
        wait_until_in_force(run.place)


def start(run: Run, slot: int, wall_clock: str | None = None) -> Worker:
    """A worker that has its partitions; on SQLite the second one only stands by."""
    worker = run.start(Orders(config=str(run.place.path), slot=slot, stays=True, wall_clock=wall_clock))
    settled = "standing by" if slot and run.place.bus.startswith("sqlite") else "live"
    run.follow(lambda: any(each.doing == settled for each in run.doings.get(worker.process.pid, [])))
    return worker


def take_over(run: Run, blow: Blow, worker: Worker, standby: Worker) -> None:
    """The worker is killed with records settled that its stored state does not hold, and the blow ends."""
    if blow.waits:
        work_on(run, PART, decide=True)
    worker.process.kill()
    run.follow(lambda: worker.ended)
    if not blow.waits:  # the worker has stored all of it again meanwhile
        blow.strike()
    claims = len(run.reread)
    run.place.feed(PART)
    told(run, standby, blow.tells_next, waits=blow.waits)
    if blow.waits:
        must(run.position < run.place.records, "what the worker owned waits")
        blow.mend()
    run.follow(lambda: run.position >= run.place.records)
    must(max(run.reread[claims:]) > 0, "records were read again")


def told(run: Run, worker: Worker, text: str, *, waits: bool) -> None:
    """Wait until a notice or the worker's status has said so; and that it waits, where it does."""

    def holds() -> bool:
        doings = run.doings[worker.process.pid]
        said = [*run.notices, *(each.message for each in doings)]
        waiting = not waits or any(each.doing == STORE for each in doings)
        return waiting and any(text in each for each in said)

    run.follow(holds)
    if waits:
        must(any(STORE_DOWN.search(notice) for notice in run.notices), "a notice said what is wrong")


def stored(place: Place, url: str, partitions: int = load.PARTITIONS) -> dict[int, int]:
    """The offsets of the states that a server has. Raises StoreDown where it cannot tell."""
    with closing(connect_state(url)) as opened:
        store = opened.store(namespace=place.namespace, stream=STREAM)
        found = {n: store.peek(TopicPartition(place.topic, n)) for n in range(partitions)}
    return {n: claim.next_offset for n, claim in found.items() if claim and claim.next_offset is not None}


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Return once something holds; a server may yet answer, and a commit that is under way may yet end."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if holds():
                return
        except (StoreDown, BusDown):
            pass
        must(time.monotonic() < deadline, what)
        time.sleep(LOOK_S)


def wait_until_stored(place: Place, partitions: int = load.PARTITIONS) -> None:
    """Return once all that is committed is stored."""
    state = place.settings.state
    wait_until(lambda: stored(place, state, partitions) == place.committed(), "all states are stored")


def wait_until_in_force(place: Place) -> None:
    """Return once what was decided last is in force for every partition."""
    reader = place.broker.reader()
    view = ControlLog(reader, place.settings.control_topic).refresh()
    wait_until(
        lambda: all(as_decided(past, view) for past in pasts(place, reader).values()),
        "what was decided last is in force",
    )


def must(holds: bool, what: str) -> None:  # noqa: FBT001 - it stands where assert would
    """Raise AssertionError unless it holds."""
    if not holds:
        raise AssertionError(f"it does not hold that {what}")
