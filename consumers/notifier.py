"""The notifier: reads alerts, decides with what people decided what is to be told, and publishes it.

Notifications and the position on the alerts topic are one commit of the bus. The position never passes an
alert that is still to be told; all else is known again from the topics (:mod:`consumers.incidents`), at the
start and after every commit that was refused. One member of the group works, others stand by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from consumers.incidents import Incidents
from pipeline.alerts import Alert
from pipeline.config import Config
from pipeline.control import ControlLog
from pipeline.errors import BusDown, BusFull, NotFound, OffbeatError, Refused, TooLarge, Unreadable
from pipeline.notifications import Notification, published
from pipeline.ports import Bus, Reader
from pipeline.reading import stretch
from pipeline.records import Assigned, RecordBatch, Token, TopicPartition

MAX_RECORDS = 5_000
POLL_S = 1.0
COMMIT_S = 5.0
"""Between two commits of a position alone."""
LOOK_S = 2.0
"""Between two looks at how far streams are; far below any time after which they count as silent."""
RETRY_S = 1.0


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


@dataclass(slots=True, eq=False)
class Parts:
    """What a notifier is made of.

    Attributes:
        bus: a member of the group over the alerts topic.
        reader: of the same broker.
        observe: told each notification after its commit; must not raise.
        notice: told in a sentence about what a person should know.
        wait: waits so many seconds, or less when the notifier is asked to stop, and then returns True.
        clock: seconds that nobody sets.
        now: the wall clock, in UTC.
    """

    config: Config
    bus: Bus
    reader: Reader
    observe: Callable[[Notification], None] = lambda _: None
    notice: Callable[[str], None] = lambda _: None
    wait: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = utc_now


@dataclass(frozen=True, slots=True)
class Status:
    """What a notifier is doing.

    Attributes:
        doing: ``standing by``, ``watching``, ``waiting for the bus``, ``stopped at damage`` or ``stopped``.
        message: what it waits for, where it waits for something.
        open: incidents that were told and are not over.
        waiting: alerts that are to be told.
        held: open alerts that a silence holds back.
        told: notifications by this notifier.
        unreadable: records of the alerts topic that are damaged, or no alerts that this version reads.
    """

    doing: str
    message: str = ""
    open: int = 0
    waiting: int = 0
    held: int = 0
    told: int = 0
    unreadable: int = 0


def run(
    parts: Parts, *, should_stop: Callable[[], bool], on_status: Callable[[Status], None] = lambda _: None
) -> Status:
    """Tell what is to be told until asked to stop; the caller closes the bus. Returns the last status.

    Raises:
        OffbeatError: something that trying again cannot mend, such as a missing topic.
    """
    notifier = Notifier(parts)
    while not should_stop():
        notifier.turn()
        on_status(notifier.status())
    return notifier.status()


class Notifier:
    """One member of the notifiers' group. One thread uses it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._control = ControlLog(parts.reader, parts.config.control_topic, parts.notice)
        self._incidents: Incidents | None = None
        self._arriving: Assigned | None = None
        self._token: Token | None = None
        self._positions: dict[str, str] = {}
        self._next_offset = self._committed = 0
        self._committed_at, self._looked_at = parts.clock(), parts.clock() - LOOK_S
        self._trouble = self._waiting = ""
        self._told = self._unreadable = 0

    def turn(self) -> None:
        """One poll and all that follows from it; outside faults are waited out, never raised.

        Raises:
            OffbeatError: something that trying again cannot mend, such as a missing topic.
        """
        read = self._read()
        # Also where nothing more can be read: what is known has its time to be told.
        if self._tell() and read:
            self._trouble = ""

    def _read(self) -> bool:
        """Take in what comes; False where that failed."""
        try:
            self._take_over()
            polled = self._parts.bus.poll(MAX_RECORDS, POLL_S)
        except (BusDown, BusFull, Unreadable) as error:
            self._wait_out(error)
            return False
        self._token = polled.token
        if polled.revoked:
            self._drop()
        for assigned in polled.assigned:
            self._drop()
            self._arriving = assigned
        if self._incidents is not None:
            for batch in polled.batches:
                self._take(self._incidents, batch)
        return True

    def status(self) -> Status:
        """What the notifier is doing now."""
        found = self._incidents
        doing = self._waiting if self._trouble else "watching" if found else "standing by"
        counts = (found.open, found.waiting, found.held) if found else (0, 0, 0)
        return Status(doing, self._trouble, *counts, told=self._told, unreadable=self._unreadable)

    def _take_over(self) -> None:
        """Know again, from the topics, what is open and what was told."""
        if self._arriving is None:
            return
        assigned, reader = self._arriving, self._parts.reader
        self._control.refresh()
        incidents = Incidents(self._parts.config, self._past())
        end = reader.bounds(assigned.partition.topic)[assigned.partition.partition].end_offset
        committed = assigned.committed_offset
        for batch in stretch(reader, assigned.partition, assigned.first_offset, end):
            self._take(incidents, batch)
        # Who was never here before tells what is open, and nothing of what was over.
        incidents.forget_settled(end if committed is None else committed)
        self._parts.bus.seek(assigned.partition, end)
        self._incidents, self._arriving, self._next_offset = incidents, None, end
        self._committed = end if committed is None else min(committed, end)
        if committed is None:
            self._commit([], end)

    def _past(self) -> Iterator[Notification]:
        """What was told, as far as it is retained.

        Raises:
            BusDown: what an earlier notifier told is not settled yet, and would be told twice.
        """
        at = TopicPartition(self._parts.config.notifications_topic, 0)
        bounds = self._parts.reader.bounds(at.topic)[0]
        if bounds.end_offset < bounds.written_offset:
            raise BusDown(
                f"{at}: the commit of an earlier notifier is not settled yet; it takes 10 s at most"
            )
        for batch in stretch(self._parts.reader, at, bounds.first_offset, bounds.end_offset):
            found, unreadable = published(batch, Notification)
            if unreadable:
                self._parts.notice(
                    f"{_unreadable(batch, unreadable)} notifications that this version reads; what they told "
                    "may be told again"
                )
            yield from (each for _, each in found)

    def _take(self, incidents: Incidents, batch: RecordBatch) -> None:
        now_ms = self._parts.now().timestamp() * 1_000
        found, unreadable = published(batch, Alert)
        for row, alert in found:
            # By the bus's clock, so that alerts are told together whenever they are read; none comes from
            # the future, whatever a record says.
            arrived_ms = min(max(int(batch.timestamp_ms[row]), 0), now_ms)
            incidents.take(alert, int(batch.offset[row]), datetime.fromtimestamp(arrived_ms / 1_000, UTC))
        self._next_offset = batch.next_offset
        if unreadable:
            self._unreadable += unreadable
            self._parts.notice(
                f"{_unreadable(batch, unreadable)} alerts that this version reads; nobody is told of them"
            )

    def _tell(self) -> bool:
        """Commit what is to be told, and the position behind all that is settled; False on failure."""
        incidents = self._incidents
        if incidents is None:
            return True
        try:
            view = self._control.look()
            self._look(incidents.watched(view))
        except (BusDown, Unreadable) as error:
            self._wait_out(error)
            return False
        told = incidents.decide(self._parts.now(), view, self._positions)
        position = max(incidents.settled(self._next_offset), self._committed)
        due = self._parts.clock() - self._committed_at >= COMMIT_S
        return self._commit(told, position) if told or (position > self._committed and due) else True

    def _look(self, streams: list[str]) -> None:
        """See how far the topics of streams are."""
        now = self._parts.clock()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at, self._positions = now, {}
        for name in streams:
            try:
                bounds = self._parts.reader.bounds(self._parts.config.stream(name).topic)
            except NotFound:  # nobody has made it yet
                continue
            if any(each.end_offset for each in bounds.values()):
                ends = sum(each.end_offset for each in bounds.values())
                self._positions[name] = f"{bounds[0].topic_id} {ends}"

    def _commit(self, told: list[Notification], position: int) -> bool:
        """One atomic step of the bus; False when all is dropped: ownership is lost, or time is up."""
        topic, wanted = self._parts.config.notifications_topic, told
        at = TopicPartition(self._parts.config.alerts_topic, 0)
        assert self._token is not None  # noqa: S101 - nothing is owned before the first poll
        while True:
            try:
                self._parts.bus.commit(self._token, {at: position}, [each.send(topic) for each in wanted])
            except Refused as error:
                self._parts.notice(f"a commit was refused, all is read again from the topics: {error}")
                self._drop()
                return False
            except (BusDown, BusFull, TooLarge) as error:
                if isinstance(error, TooLarge) and any(each.alerts for each in wanted):
                    self._parts.notice(f"{error}; it is told without its list of alerts")
                    wanted = [each.with_less() or each for each in wanted]
                # Nothing waits across a poll: the notifier stands here until it can be written.
                elif self._wait_out(error):
                    self._drop()
                    return False
                continue
            break
        self._committed, self._committed_at = position, self._parts.clock()
        self._told += len(wanted)
        for each in wanted:
            self._parts.observe(each)
        return True

    def _drop(self) -> None:
        self._incidents = self._arriving = None
        self._positions = {}

    def _wait_out(self, error: OffbeatError) -> bool:
        """Pause; True when the notifier was asked to stop meanwhile. A trouble is told when it begins."""
        if not self._trouble:
            self._parts.notice(str(error))
        self._trouble = str(error)
        self._waiting = "stopped at damage" if isinstance(error, Unreadable) else "waiting for the bus"
        return self._parts.wait(RETRY_S) is True


def _unreadable(batch: RecordBatch, count: int) -> str:
    many = f"{count:,} records are" if count > 1 else "1 record is"
    return f"{batch.partition}: up to offset {batch.next_offset - 1}, {many} damaged, or no"
