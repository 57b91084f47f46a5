"""What a worker under test is told, and what it says: one JSON object a line."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Point(StrEnum):
    """A place in a worker's turn, as issue and report name it."""

    SCORED = "after scoring"
    SENT = "after sending, before the offsets"
    OFFSETS = "after the offsets, before the commit"
    ASKED = "between the commit's request and its answer"
    COMMITTED = "after the commit, before the checkpoint"
    SCRIPT = "before the checkpoint's script"
    WRITTEN = "after the checkpoint's script"
    CONTROL = "while a control record is taken in"
    HALF = "during a snapshot, half written"
    DRAFT = "during a snapshot, not yet named"


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker is to live.

    Attributes:
        config: path of the configuration file.
        point: where its life is cut, None for a worker that comes to its end.
        after: commits with records of its own that come before.
        stop: whether it is stopped there (SIGSTOP) and not killed.
        naive: whether it works as one would without transactions and silent reading.
        steady: whether it works under the real clock until it is told to end (SIGTERM), and tells of every
            batch.
        stays: whether it works on, under a clock of its own, until it is told to end.
        wall_clock: a file that sets its wall clock (:mod:`faults.jumping`); its lease is the product's then.
    """

    config: str
    slot: int = 0
    point: Point | None = None
    after: int = 0
    stop: bool = False
    naive: bool = False
    steady: bool = False
    stays: bool = False
    wall_clock: str | None = None


class Committed(msgspec.Struct, frozen=True, tag="committed"):
    """The group's next offsets by partition, as this worker has committed them, and when."""

    positions: dict[int, int]
    at_s: float


class Claimed(msgspec.Struct, frozen=True, tag="claimed"):
    """A partition was claimed, and the state that was stored is valid at ``offset`` (None: nothing)."""

    partition: int
    offset: int | None


class Worked(msgspec.Struct, frozen=True, tag="worked"):
    """A batch of a partition has gone through the worker, at ``at_s`` on the machine's monotonic clock."""

    partition: int
    at_s: float


class Became(msgspec.Struct, frozen=True, tag="became"):
    """What the worker's status says, where that changed."""

    doing: str
    message: str


class Noticed(msgspec.Struct, frozen=True, tag="noticed"):
    """A sentence for people."""

    text: str


class Waits(msgspec.Struct, frozen=True, tag="waits"):
    """The worker lets so much time go by before it tries again."""

    for_s: float


class Reached(msgspec.Struct, frozen=True, tag="reached"):
    """The point: the next thing is the signal."""


Said = Committed | Claimed | Worked | Became | Noticed | Waits | Reached
