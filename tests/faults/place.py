"""An installation on a real bus with the load in its topic, its workers, and what was seen of them."""

from __future__ import annotations

import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

import pipeline.bus
from offbeat import app
from offbeat.controls import Control
from pipeline import config
from pipeline.bus.kafka_transactions import HUNG_EXIT_CODE
from pipeline.errors import BusDown
from pipeline.ports import Broker
from pipeline.records import Send

from . import load
from .load import STREAM
from .words import Became, Claimed, Committed, Noticed, Orders, Reached, Said, Waits, Worked

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
"""So long a worker may say nothing."""
LONGEST_S = 300.0
"""So long workers may be followed for one fault, whatever they say."""
QUERY = "session_timeout_ms=1500"
"""Without a heartbeat for so long a worker on Kafka has lost its partitions."""
OTHERS_COMMITS = 5
"""Of the worker that took over, before the stopped one goes on."""


@dataclass(frozen=True)
class Grounds:
    """Where a fault is suffered.

    Attributes:
        kafka: the broker's address, None for an SQLite file.
        folder: of its own; it is not there yet.
        registry, bundles: two bundles, and where they are.
    """

    kafka: str | None
    folder: Path
    registry: Path
    bundles: tuple[str, str]

    @property
    def bus(self) -> str:
        """Its kind, as reports name it."""
        return "kafka" if self.kafka else "sqlite"


@dataclass
class Place:
    """An installation; ``bundles`` are in its registry, the first one is the champion at first.

    Attributes:
        sends: what is still to be produced.
        records: what has been.
        decided: how often something else was decided.
    """

    folder: Path
    namespace: str
    bus: str
    registry: Path
    bundles: tuple[str, str]
    broker: Broker
    settings: config.Config
    sends: Iterator[Send]
    records: int = 0
    decided: int = 0

    @property
    def path(self) -> Path:
        """The configuration file."""
        return self.folder / "offbeat.yaml"

    @property
    def topic(self) -> str:
        """The input topic."""
        return self.settings.stream(STREAM).topic

    def committed(self) -> dict[int, int]:
        """The group's next offsets."""
        return dict(self.broker.admin().committed(self.settings.group(STREAM), self.topic))

    def feed(self, records: int | None = None) -> None:
        """Produce so many more of the load's records, or all that are left."""
        producer, sends = self.broker.producer(), islice(self.sends, records)
        while batch := list(islice(sends, load.STORED * load.PARTITIONS)):
            producer.send(batch)
            producer.flush()
            self.records += len(batch)

    def decide(self) -> None:
        """Another bundle, or another policy."""
        turn, policy = divmod(self.decided, 2)
        number = (turn + 1) % len(load.POLICIES)
        settings = config.parse(
            load.settings_text(self.namespace, self.bus, self.folder, self.registry, number)
        )
        control = Control(settings, self.broker, "the kill suite")
        if policy:
            control.apply(STREAM, "to be killed with")
        else:
            control.promote(STREAM, self.bundles[(turn + 1) % 2], "to be killed with")
        self.decided += 1


@contextmanager
def place_at(
    grounds: Grounds,
    *,
    partitions: int = load.PARTITIONS,
    fed: bool = True,
    query: str = QUERY,
    state: str | None = None,
) -> Iterator[Place]:
    """A new installation; ``fed``: with the whole load in its topic. ``query`` is of Kafka's bus URL.

    ``state`` is the URL of a server, None for an embedded one.
    """
    namespace, folder = f"n{uuid.uuid4().hex[:8]}", grounds.folder
    folder.mkdir(parents=True)
    bus = f"kafka://{grounds.kafka}?{query}" if grounds.kafka else f"sqlite:///{folder}/bus.db"
    text = load.settings_text(namespace, bus, folder, grounds.registry, 0, state)
    settings = config.parse(text)
    with closing(pipeline.bus.connect(bus)) as broker:
        sends = load.sends(settings.stream(STREAM).topic, partitions)
        place = Place(folder, namespace, bus, grounds.registry, grounds.bundles, broker, settings, sends)
        place.path.write_text(text)
        broker.admin().create(
            [*app.input_topics(settings, [STREAM], partitions), *app.output_topics(settings)]
        )
        control = Control(settings, broker, "the kill suite")
        control.apply(STREAM, "to begin with")
        control.promote(STREAM, grounds.bundles[0], "to begin with")
        if fed:
            place.feed()
        yield place


class Worker:
    """A worker process; a thread passes on what it says, and None at its end."""

    def __init__(self, orders: Orders, said: queue.Queue[tuple[Worker, Said | None]]) -> None:
        self.orders = orders
        self.reached = self.ended = False
        module = ["faults.jumping", orders.wall_clock] if orders.wall_clock else ["faults.worker"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module, msgspec.json.encode(orders).decode()],
            cwd=ROOT,
            env=os.environ
            | {"PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
            stdout=subprocess.PIPE,
        )
        self._thread = threading.Thread(target=self._listen, args=(said,), daemon=True)
        self._thread.start()

    def _listen(self, said: queue.Queue[tuple[Worker, Said | None]]) -> None:
        decoder: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                said.put((self, decoder.decode(line)))
        self.process.wait()
        said.put((self, None))

    def wait_until_stopped(self) -> None:
        """Return once the process, which has reached its point, is stopped; raises where it ended instead."""
        found = None
        with suppress(ChildProcessError):  # it is gone already
            found = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if found is None or found.si_code != os.CLD_STOPPED:
            raise AssertionError(f"{self.orders}: the worker ended before it came to the point")

    def go_on(self) -> None:
        """Let a stopped process go on."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """See that nothing is left of it."""
        self.process.kill()
        self._thread.join()


@dataclass
class Run:
    """Workers on a place, one after another or side by side, and what was seen of them.

    Attributes:
        position: records of all partitions that are known to be committed.
        wrong: what was seen that must never be.
        reread: by how many records the states that were claimed lay behind the committed positions.
        notices: sentences of the workers.
        waits_s: how long workers wait before they try again, one after another.
        commits: by each worker, that moved the position.
        struck_s: when the last blow came.
        recovery_s: from it to the next newly settled batch.
        latest: what the last commit that was told of said, which may lie below a position.
        claims: how many partitions each worker has claimed.
        doings: what each worker's status said, one after another.
        worked_s: when a batch of each partition went through a worker last; steady workers tell.
        pause_s: the longest time in which none of a partition did.
    """

    place: Place
    deciding: bool = True
    positions: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    reread: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    commits: dict[int, int] = field(default_factory=dict)
    struck_s: float = 0.0
    recovery_s: float = math.nan
    latest: dict[int, int] = field(default_factory=dict)
    claims: dict[int, int] = field(default_factory=dict)
    doings: dict[int, list[Became]] = field(default_factory=dict)
    worked_s: dict[int, float] = field(default_factory=dict)
    pause_s: float = 0.0
    workers: list[Worker] = field(default_factory=list)
    said: queue.Queue[tuple[Worker, Said | None]] = field(default_factory=queue.Queue)
    until: float = field(default_factory=lambda: time.monotonic() + LONGEST_S)

    @property
    def position(self) -> int:
        return sum(self.positions.values())

    def start(self, orders: Orders) -> Worker:
        """Start a worker."""
        worker = Worker(orders, self.said)
        self.workers.append(worker)
        return worker

    def follow(self, until: Callable[[], bool]) -> None:
        """Take in what workers say, and decide what is due, until something holds.

        Raises:
            AssertionError: nobody says anything any more, or it has been going on for too long.
        """
        while not until():
            if time.monotonic() > self.until:
                raise AssertionError(f"there is no end to it after {LONGEST_S:g} s\n{self._hanging()}")
            try:
                worker, word = self.said.get(timeout=DEADLINE_S)
            except queue.Empty:
                raise AssertionError(f"nobody said anything for {DEADLINE_S} s\n{self._hanging()}") from None
            self._take(worker, word)

    def _hanging(self) -> str:
        """What was told last; the workers that live write where their threads are."""
        for worker in self.workers:
            if not worker.ended:
                worker.process.send_signal(signal.SIGABRT)
                worker.process.wait()
        return self.told()

    def _take(self, worker: Worker, word: Said | None) -> None:
        match word:
            case None:
                worker.ended = True
            case Reached():
                worker.reached = True
            case Committed():
                self._settle(worker, word)
            case Claimed(partition, offset):
                self.claims[worker.process.pid] = self.claims.get(worker.process.pid, 0) + 1
                committed = self.place.committed().get(partition, 0)
                self.reread.append(committed - (offset or 0))
                if offset is not None and offset > committed:
                    self.wrong.append(f"partition {partition}: state at {offset}, committed is {committed}")
            case Worked(partition, at_s):
                last_s = self.worked_s.get(partition, at_s)
                self.pause_s = max(self.pause_s, at_s - last_s)
                self.worked_s[partition] = max(at_s, last_s)
            case Became():
                self.doings.setdefault(worker.process.pid, []).append(word)
            case Noticed(text):
                self.notices.append(text)
            case Waits(for_s):
                self.waits_s.append(for_s)

    def _settle(self, worker: Worker, word: Committed) -> None:
        """The position moves, and at some positions something is decided."""
        before, pid = self.position, worker.process.pid
        self.latest.update(word.positions)
        for partition, offset in word.positions.items():
            self.positions[partition] = max(offset, self.positions.get(partition, 0))
        if self.position > before:
            self.commits[pid] = self.commits.get(pid, 0) + 1
            if math.isnan(self.recovery_s) and word.at_s > self.struck_s:
                self.recovery_s = word.at_s - self.struck_s
        due = (self.place.decided + 1) * self.place.records // (load.CHANGES + 1)
        if self.deciding and self.place.decided < load.CHANGES and self.position >= due:
            with suppress(BusDown):  # it is decided once the bus answers
                self.place.decide()

    def strike(self) -> None:
        """Here comes the next blow."""
        self.struck_s, self.recovery_s = time.monotonic(), math.nan

    def end(self, *workers: Worker) -> None:
        """Tell steady workers to end, which they do in order; one that has only just begun is simply gone."""
        for worker in workers:
            worker.process.terminate()
        self.follow(lambda: all(worker.ended for worker in workers))
        codes = [worker.process.returncode for worker in workers]
        if not {*codes} <= {0, -signal.SIGTERM}:
            raise AssertionError(f"exits {codes}\n{self.told()}")

    def told(self) -> str:
        """What workers had to tell people, the end of it."""
        return "\n".join(self.notices[-20:])

    def close(self) -> None:
        """End what is left of the workers."""
        for worker in self.workers:
            worker.close()


@contextmanager
def running(place: Place, *, deciding: bool = True) -> Iterator[Run]:
    """Workers on a place, none of which is left at the end."""
    run = Run(place, deciding)
    try:
        yield run
    finally:
        run.close()


def supervised(run: Run, orders: Orders, worker: Worker) -> None:
    """See a worker to its end; where the bus ends it, another takes its slot, as its supervisor sees to."""
    while True:
        run.follow(lambda worker=worker: worker.ended)
        code = worker.process.returncode
        if code == 0:
            return
        if code not in (HUNG_EXIT_CODE, BusDown.exit_code):
            raise AssertionError(f"{orders}: exit {code}\n{run.told()}")
        run.notices.append(f"the worker ended with exit code {code}, and starts again")
        worker = run.start(orders)


def cut_short(run: Run, cuts: list[Orders]) -> list[float]:
    """Let one worker after another live until its point, and a last one to the end.

    Returns the seconds from each death to the first newly settled batch of the next worker.
    """
    last = Orders(config=cuts[0].config, naive=cuts[0].naive)
    recoveries: list[float] = []
    died_at = 0.0
    for number, orders in enumerate([*cuts, last]):
        worker = run.start(orders)
        if number:
            before = run.position
            run.follow(lambda worker=worker, before=before: worker.ended or run.position > before)
            recoveries.append(time.monotonic() - died_at)
        run.follow(lambda worker=worker: worker.ended)
        died_at = time.monotonic()
        expected = 0 if orders.point is None else -signal.SIGKILL
        if worker.process.returncode != expected:
            raise AssertionError(f"{orders}: exit {worker.process.returncode}\n{run.told()}")
        run.positions.update(run.place.committed())
    return recoveries


def cut_off(run: Run, orders: Orders) -> float:
    """Stop a worker at its point, let another take over and get on, let the first go on, and both end.

    Returns the seconds from the stop to the other's first newly settled batch; NaN where the stopped one
    holds the bus's lock, so that nobody can take over.
    """
    stopped = run.start(orders)
    run.follow(lambda: stopped.reached or stopped.ended)
    stopped.wait_until_stopped()
    stopped_at = time.monotonic()
    run.positions.update(run.place.committed())
    before, recovery = run.position, math.nan
    other = run.start(Orders(config=orders.config, slot=orders.slot + 1))
    run.follow(lambda: other.ended or run.position > before)
    if not other.ended:
        recovery = time.monotonic() - stopped_at
        run.follow(lambda: run.commits[other.process.pid] >= OTHERS_COMMITS)
    stopped.go_on()
    run.follow(lambda: other.ended and stopped.ended)
    codes = stopped.process.returncode, other.process.returncode
    if codes not in {(0, 0), (HUNG_EXIT_CODE, 0), (0, BusDown.exit_code)}:
        raise AssertionError(f"{orders}: exits {codes}\n{run.told()}")
    return recovery
