"""One training of a stream under a lease, from the record that it began to the record of what was decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from consumers.challenge import Challenge, Past, challenge
from models import Registry
from models.learning import Step
from pipeline.config import Config, Stream
from pipeline.control import Begun, Champion, ControlLog, ControlView, Record, Refused, send
from pipeline.detect import Detector
from pipeline.errors import BusError, OffbeatError, StoreDown
from pipeline.ports import Lease, Leases, Producer, Reader

LEASE_S: Final = 300.0
"""A retrainer that was killed is replaced after so long; no step of the work tells nothing for longer."""
KEEP_S: Final = 30.0
"""Progress renews the lease so often."""


def training_of(stream: str) -> str:
    """What the lease is held of by whoever trains a stream."""
    return f"{stream}:training"


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class AskedToStopError(Exception):
    """Raised within reading, training and judging, which end with it."""


@dataclass(slots=True, eq=False)
class Parts:
    """What a retrainer is made of.

    Attributes:
        reader, producer: of one broker.
        who: writes its decisions.
        should_stop: asked wherever the work can end.
        notice: told in a sentence about what a person should know.
        wait: waits so many seconds, or less when the retrainer is asked to stop.
        clock: seconds that nobody sets.
        now: the wall clock, in UTC.
    """

    config: Config
    stream: str
    reader: Reader
    producer: Producer
    registry: Registry
    leases: Leases
    who: str
    should_stop: Callable[[], bool] = lambda: False
    notice: Callable[[str], None] = lambda _: None
    wait: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = utc_now

    def stop_if_asked(self) -> None:
        """Raises AskedToStopError: the retrainer is asked to stop."""
        if self.should_stop():
            raise AskedToStopError

    @property
    def work(self) -> str:
        """What a lease is held of."""
        return training_of(self.stream)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a training that came to its end.

    Attributes:
        promoted: whether the bundle is the champion now.
        bundle_id: the challenger, or PCA where that serves in its stead.
        predecessor: the champion before.
        why: as the control record says it.
        gate: the ruling as JSON values.
        refused: the challenger that PCA stands in for, with its own ruling.
    """

    promoted: bool
    bundle_id: str
    predecessor: str | None
    why: str
    gate: dict[str, Any]
    refused: Outcome | None = None


class LeaseLostError(Exception):
    """Somebody else works on the stream, or decided on its model meanwhile."""


class Pace:
    """Bounds how fast records are read. What was not read in time is not made up for.

    Args:
        parts: with the clock, and the way to wait.
        rate: records a second.
        go_on: called before and within each wait; what it raises ends the reading.
    """

    def __init__(self, parts: Parts, rate: int, go_on: Callable[[], object]) -> None:
        self._parts, self._rate, self._go_on = parts, rate, go_on
        self._until = parts.clock()

    def __call__(self, records: int) -> None:
        """Wait until so many records more may have been read."""
        clock = self._parts.clock
        self._until = max(self._until, clock()) + records / self._rate
        self._go_on()
        while (left_s := self._until - clock()) > 0:
            self._parts.wait(min(left_s, KEEP_S))
            self._go_on()


class Attempt:
    """One training. Used once, from one thread; the caller gives the lease back.

    Args:
        parts: of the retrainer.
        log: the control topic as the retrainer follows it.
        lease: taken for ``LEASE_S`` just now.
        on_step: told how far it is.
    """

    def __init__(self, parts: Parts, log: ControlLog, lease: Lease, on_step: Callable[[Step], None]) -> None:
        self._parts, self._log, self._lease, self._on_step = parts, log, lease, on_step
        self._kept_at = parts.clock()

    def run(self, why: str, settings: Stream, *, force: str | None = None) -> Outcome:
        """Train, judge and decide.

        Args:
            why: it is done.
            settings: of the stream, that are in force.
            force: promote whatever the gate says, for this reason.

        Raises:
            AskedToStopError, LeaseLostError: nothing was changed.
            TooFewRows: there is not enough history; it is on record where the stream has a champion.
            BusError, StoreDown: a server failed; trying again can help.
            OffbeatError: the stream cannot be trained as its settings are, which is on record.
        """
        self._begin(why)
        parts, view = self._parts, self._log.view
        pace = Pace(parts, settings.training.read_rate, self._go_on)
        detector = Detector(parts.config.namespace, parts.stream, settings)
        past = Past(parts.config, detector, view, parts.reader, parts.registry, parts.wait, pace, self._step)
        try:
            found = challenge(past, parts.now())
        except (BusError, StoreDown):
            raise
        except OffbeatError as error:
            if parts.stream in view.champions:
                self._publish(Refused(**self._said(str(error)), bundle=None))
            raise
        bundle_id = parts.registry.save(parts.stream, found.bundle)
        if force is not None:
            return self._promote(found, f"forced ({force}), whatever the gate says: {found.why}")
        if found.ruling.promoted:
            return self._promote(found, found.why)
        record = Refused(**self._said(found.why), bundle=bundle_id)
        refused = Outcome(False, bundle_id, found.champion, found.why, found.ruling.as_json())
        if found.stand_in is None:
            self._publish(record)
            return refused
        parts.registry.save(parts.stream, found.stand_in.bundle)
        return replace(self._promote(found.stand_in, found.stand_in.why, record), refused=refused)

    def _begin(self, why: str) -> None:
        view = self._publish(Begun(**self._said(why)))
        if (fence := view.fences.get(self._parts.stream, 0)) != self._lease.token:
            raise LeaseLostError(f"another program began to train the stream under the fence {fence}")

    def _promote(self, found: Challenge, why: str, *before: Record) -> Outcome:
        """Put a bundle to use; the records that come ``before`` it are published with it."""
        self._keep()
        bundle_id = found.bundle.sha
        champion = Champion(**self._said(why), bundle=bundle_id, predecessor=found.champion)
        view = self._publish(*before, champion)
        if view.champions.get(self._parts.stream) != bundle_id:
            raise LeaseLostError(
                f"bundle {bundle_id[:12]} was not promoted: another program began to train the stream, or "
                "another champion was chosen, while it was made"
            )
        if not self._parts.registry.holds(self._parts.stream, bundle_id):
            gone = f"bundle {bundle_id[:12]} was removed from the registry before it was promoted"
            if found.champion is not None:
                self._publish(Champion(**self._said(gone), bundle=found.champion, predecessor=bundle_id))
            raise OffbeatError(f"{gone}; it is trained again when training is due")
        return Outcome(True, bundle_id, found.champion, why, found.ruling.as_json())

    def _said(self, why: str) -> dict[str, Any]:
        parts = self._parts
        said = {"stream": parts.stream, "at": parts.now(), "who": parts.who, "why": why}
        return said | {"fence": self._lease.token}

    def _publish(self, *records: Record) -> ControlView:
        self._parts.producer.send([send(each, self._parts.config.control_topic) for each in records])
        self._parts.producer.flush()
        return self._log.refresh()

    def _step(self, step: Step) -> None:
        self._on_step(step)
        self._go_on()

    def _go_on(self) -> None:
        """Whether the work may go on.

        Raises:
            AskedToStopError, LeaseLostError: it may not.
        """
        self._parts.stop_if_asked()
        if self._parts.clock() - self._kept_at >= KEEP_S:
            self._keep()

    def _keep(self) -> None:
        now_s = self._parts.clock()
        try:
            kept = self._parts.leases.keep(self._lease, LEASE_S)
        except StoreDown:
            if now_s - self._kept_at < LEASE_S:
                return
            kept = False
        if not kept:
            raise LeaseLostError("the lease ended: another program may train the stream by now")
        self._kept_at = now_s
