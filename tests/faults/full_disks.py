"""Disks that run full under the bus, the snapshots and the broker: small ones of our own, in memory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from servers import KafkaServer, kafka_cluster

from pipeline.state import connect as connect_state

from .broker import ALONE, BEFORE, FOUND_DEAD_S, HOMES
from .place import DEADLINE_S, Grounds, Run, place_at, running, supervised
from .seam import Fault, Outcome, judged
from .words import Orders

SMALL, LARGE = "48m", "400m"
"""Of the bus or the snapshots; and of a broker, whose indices alone take much of it."""
BLOCK = bytes(1 << 16)


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
        try:
            with (self.folder / "probe").open("wb", buffering=0) as probe:
                probe.write(b"x")
        except OSError as error:
            return error.errno == errno.ENOSPC
        return False

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


def _until_told(run: Run, words: str) -> None:
    run.follow(lambda: run.workers[-1].ended or any(words in notice for notice in run.notices))
    if not any(words in notice for notice in run.notices):
        raise AssertionError(f"no worker said {words!r}\n{run.told()}")


@dataclass(frozen=True)
class FullSnapshots:
    """The folder of the snapshots has no room for a while."""

    name = "the snapshots' disk is full"
    tries = 1
    given_up = ""

    @property
    def buses(self) -> tuple[str, ...]:
        return ("sqlite", "kafka") if can_mount() else ()

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds) as place, disk(Path(place.settings.snapshots), SMALL) as small:
            with running(place) as run:
                small.fill()
                worker = run.start(Orders(config=str(place.path)))
                _until_told(run, "cannot write the snapshots")
                full = small.is_full
                run.strike()
                small.empty()
                run.follow(lambda: worker.ended)
            verdict = judged(place, run)
        if not full or not verdict.snapshots:
            verdict.wrong.append(f"full: {full}, snapshots afterwards: {verdict.snapshots}")
        return Outcome(self, grounds.bus, verdict, [run.recovery_s])


@dataclass(frozen=True)
class FullBus:
    """The disk of the SQLite bus has no room for a while."""

    name = "the bus's disk is full"
    tries = 1
    given_up = ""

    @property
    def buses(self) -> tuple[str, ...]:
        return ("sqlite",) if can_mount() else ()

    def suffer(self, grounds: Grounds) -> Outcome:
        state = f"embedded://{grounds.folder.parent / 'state'}"
        with disk(grounds.folder, SMALL) as small:
            grounds = replace(grounds, folder=small.folder / "place")
            with place_at(grounds, state=state) as place, closing(connect_state(place.settings.state)):
                with running(place) as run:
                    worker = run.start(Orders(config=str(place.path)))
                    run.follow(lambda: worker.ended or run.position > BEFORE)
                    small.fill()
                    _until_told(run, "the disk is full")
                    full, at = small.is_full, sum(place.committed().values())
                    run.strike()
                    small.empty()
                    run.follow(lambda: worker.ended)
                verdict = judged(place, run)
        if not full or at >= place.records:
            verdict.wrong.append(f"full: {full}, and {at} of {place.records} were committed")
        return Outcome(self, grounds.bus, verdict, [run.recovery_s])


@dataclass(frozen=True)
class FullBroker:
    """The only disk of the only broker has no room: Kafka ends itself, and is started again with room."""

    name = "the broker's disk is full, and it is started again with room"
    tries = 1
    given_up = ALONE

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
                        worker = run.start(Orders(config=str(place.path)))
                        run.follow(lambda: worker.ended or run.position > BEFORE)
                        small.fill()
                        assert server.process is not None
                        server.process.wait(DEADLINE_S)
                        run.strike()
                        small.empty()
                        time.sleep(2 * FOUND_DEAD_S)  # nobody but the controller knows when it has
                        server.start()
                        server.wait()
                        supervised(run, Orders(config=str(place.path)), worker)
                    verdict = judged(place, run)
        return Outcome(self, "kafka", verdict, [run.recovery_s])


def faults() -> Iterator[Fault]:
    """All of this module."""
    yield FullSnapshots()
    yield FullBus()
    yield FullBroker()
