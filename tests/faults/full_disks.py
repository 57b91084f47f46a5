"""Disks that run full under the bus, the snapshots and the broker: small ones of our own, in memory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from servers import KafkaServer, kafka_cluster

from pipeline.bus.kafka_transactions import HUNG_EXIT_CODE
from pipeline.errors import BusDown
from pipeline.state import connect as connect_state

from .broker import AFTER, ALONE, BEFORE, FOUND_DEAD_S, HOMES
from .place import DEADLINE_S, Grounds, Place, Run, Worker, place_at, running, supervised
from .seam import Fault, Outcome, judged
from .valkey import must, start, work_on
from .words import Orders, Point

SMALL, LARGE = "48m", "400m"
"""Of the bus or the snapshots; and of a broker, whose indices alone take much of it."""
BLOCK = bytes(1 << 16)
STRETCH = 1_200
"""Records that are read at once."""
TRIES, LEAST_S = 3, 0.5
"""So often a worker tries again before room is made, and never sooner."""
DOWN = re.compile("no Kafka broker answers at .* start it|did not answer while .* see that its brokers run")


class Disk:
    """A folder with a bound, that can be filled to the last byte and emptied again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for block in (BLOCK, BLOCK[:1]):
                with suppress(OSError):
                    while ballast.write(block):
                        pass

    @property
    def is_full(self) -> bool:
        """Whether not one byte more can be written."""
        probe = self.folder / "probe"
        try:
            probe.write_bytes(b"x")
        except OSError as error:
            return error.errno == errno.ENOSPC
        finally:
            probe.unlink(missing_ok=True)
        return False

    def files(self) -> set[Path]:
        """What lies on it."""
        return {path for path in self.folder.rglob("*") if path.is_file() and path != self._ballast}

    def empty(self) -> None:
        """Make room."""
        self._ballast.unlink()


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Disk]:
    """One of so many bytes at a new folder; nothing of it is left."""
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True
    )
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@cache
def can_mount() -> bool:
    """Whether this process may make such disks, which takes root."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with disk(Path(folder, "probe"), "64k"):
                return True
        except subprocess.CalledProcessError:
            return False


@dataclass(frozen=True)
class FullSnapshots:
    """The folder of the snapshots has no room for a while, under a live worker."""

    name = "the snapshots' disk is full"
    tries = 1
    given_up = ""

    @property
    def buses(self) -> tuple[str, ...]:
        return ("sqlite", "kafka") if can_mount() else ()

    def suffer(self, grounds: Grounds) -> Outcome:
        with (
            place_at(grounds, fed=False) as place,
            disk(Path(place.settings.snapshots), SMALL) as small,
        ):
            with running(place, deciding=False) as run:
                worker = start(run, 0)
                work_on(run, STRETCH)
                work_on(run, STRETCH, decide=True)
                small.fill()
                before = small.files()
                for _ in range(2):  # every decision asks for copies
                    work_on(run, STRETCH, decide=True)
                must(small.is_full, "the disk is full")
                must_have_told_once(run, "cannot write the snapshots")
                must(small.files() == before, "nothing half written is left there")
                run.strike()
                small.empty()
                work_on(run, STRETCH, decide=True)
                work_on(run, STRETCH)
                must(len(small.files()) > len(before), "snapshots are taken again")
                run.end(worker)
            verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, [run.recovery_s])


@dataclass(frozen=True)
class FullBus:
    """The disk of the SQLite bus has no room for a while; a worker stands there, or another takes over.

    It stands before a commit while the disk is filled, so that this commit is the first to fail.
    """

    takeover: bool
    tries = 1
    given_up = ""

    @property
    def name(self) -> str:
        return f"the bus's disk is full{', and the worker is killed' * self.takeover}"

    @property
    def buses(self) -> tuple[str, ...]:
        return ("sqlite",) if can_mount() else ()

    def suffer(self, grounds: Grounds) -> Outcome:
        state = f"embedded:///{grounds.folder.parent / 'state'}"
        with disk(grounds.folder, SMALL) as small:
            grounds = replace(grounds, folder=small.folder / "place")
            with place_at(grounds, state=state) as place, closing(connect_state(place.settings.state)):
                with running(place) as run:
                    self._suffer(run, small)
                verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, [run.recovery_s])

    def _suffer(self, run: Run, small: Disk) -> None:
        place = run.place
        orders = Orders(config=str(place.path), point=Point.SCORED, after=AFTER, stop=True)
        worker = run.start(orders)
        run.follow(lambda: worker.reached or worker.ended)
        worker.wait_until_stopped()
        _empty_log(place)
        small.fill()
        before = place.committed()
        worker.go_on()
        must_wait(run, worker)
        if self.takeover:
            worker.process.kill()
            run.follow(lambda: worker.ended)
            run.notices.clear()
            worker = run.start(Orders(config=str(place.path)))
            must_wait(run, worker)
        must(small.is_full and place.committed() == before, "nothing was committed meanwhile")
        run.strike()
        small.empty()
        run.follow(lambda: worker.ended)
        must(worker.process.returncode == 0, f"it came to its end\n{run.told()}")


def must_wait(run: Run, worker: Worker) -> None:
    """The worker says once what is full, stays, and tries again after a while each time."""
    words, tried = "the disk is full; nothing was written; free some room", len(run.waits_s)
    run.follow(lambda: worker.ended or len(run.waits_s) >= tried + TRIES)
    must(worker.process.poll() is None, f"it waits\n{run.told()}")
    must(min(run.waits_s[tried:]) >= LEAST_S, "it does not spin")
    must_have_told_once(run, words)


def must_have_told_once(run: Run, words: str) -> None:
    """However often it was met."""
    told = sum(words in notice for notice in run.notices)
    must(told == 1, f"one notice says {words!r}, and not {told}\n{run.told()}")


def _empty_log(place: Place) -> None:
    """Leave no room in the bus's write-ahead log that the next commit could take."""
    with closing(sqlite3.connect(place.folder / "bus.db")) as connection:
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    must(not busy, "the log of the bus is empty")


@dataclass(frozen=True)
class FullBroker:
    """The only disk of the only broker has no room: Kafka ends itself, and is started again with room."""

    name = "the broker's disk is full, and it is started again with room"
    tries = 1
    given_up = (
        f"{ALONE} That the disk is full stands in Kafka's own log alone; the worker says that no broker "
        "answers, and where."
    )

    @property
    def buses(self) -> tuple[str, ...]:
        return ("kafka",) * len(HOMES) if can_mount() else ()

    def suffer(self, grounds: Grounds) -> Outcome:
        session_ms = str(round(FOUND_DEAD_S * 1_000))
        with disk(grounds.folder / "disk", LARGE) as small:
            nodes = [
                KafkaServer(
                    HOMES[0],
                    grounds.folder / "controller",
                    roles="controller",
                    broker_session_timeout_ms=session_ms,
                ),
                KafkaServer(
                    HOMES[0],
                    grounds.folder / "kafka",
                    2,
                    roles="broker",
                    broker_heartbeat_interval_ms="200",
                    log_dirs=str(small.folder / "data"),
                ),
            ]
            with kafka_cluster(nodes) as [_, server]:
                there = replace(grounds, kafka=server.bootstrap, folder=grounds.folder / "place")
                with place_at(there) as place, closing(connect_state(place.settings.state)):
                    with running(place) as run:
                        self._suffer(run, server, small)
                    verdict = judged(place, run)
        return Outcome(self, "kafka", verdict, [run.recovery_s])

    @staticmethod
    def _suffer(run: Run, server: KafkaServer, small: Disk) -> None:
        orders = Orders(config=str(run.place.path))
        worker = run.start(orders)
        run.follow(lambda: worker.ended or run.position > BEFORE)
        small.fill()
        assert server.process is not None
        server.process.wait(DEADLINE_S)
        must(small.is_full, "the disk is full")
        while not any(DOWN.search(notice) for notice in run.notices):
            run.follow(lambda worker=worker: worker.ended or any(map(DOWN.search, run.notices)))
            if worker.ended:  # it hung in a commit, and its supervisor starts it again
                must(worker.process.returncode in {HUNG_EXIT_CODE, BusDown.exit_code}, "the bus ended it")
                worker = run.start(orders)
        run.strike()
        small.empty()
        time.sleep(2 * FOUND_DEAD_S)  # nobody but the controller knows when it has
        server.start()
        server.wait()
        supervised(run, orders, worker)


def faults() -> Iterator[Fault]:
    """All of this module."""
    yield FullSnapshots()
    yield from (FullBus(takeover) for takeover in (False, True))
    yield FullBroker()
