"""Every error that offbeat raises on purpose.

    OffbeatError
    ├── ConfigError          offbeat.yaml or an option is wrong; the user mends it
    ├── NotFound             a topic, file, bundle or series that was named does not exist
    ├── BusError
    │   ├── BusDown          the bus cannot be reached now; trying again can help
    │   ├── Unreadable       a stretch of a log is damaged; reading stands there until it is mended
    │   ├── Refused          a commit was not accepted: ownership is lost, drop all state
    │   ├── BusFull          the bus has no room (disk full); nothing was written
    │   └── TooLarge         a record is larger than its topic takes; nothing was written
    ├── StoreDown            Redis cannot be reached now; trying again can help
    ├── BundleError          a bundle is damaged, hostile or does not fit the stream
    ├── InputError           a file given by the user cannot be read
    └── TooFewRows           not enough history to train on yet; more rows will help

A message says what was found, where it was, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.records import Send


class OffbeatError(Exception):
    """Base of all errors that end in one clear sentence for the user.

    ``exit_code`` is what the command line exits with.
    """

    exit_code = 1


class ConfigError(OffbeatError):
    """The configuration or an option is wrong."""

    exit_code = 2


class NotFound(OffbeatError):  # noqa: N818 - reads as the fact it states
    """Something that was named does not exist."""

    exit_code = 3


class BusError(OffbeatError):
    """The bus failed."""

    exit_code = 4


class BusDown(BusError):  # noqa: N818
    """The bus cannot be reached now."""


class Unreadable(BusError):  # noqa: N818
    """A stretch of a log is damaged, and is not to be passed over; it can be read once it is mended."""


class Refused(BusError):  # noqa: N818
    """A commit was not accepted; the caller drops all state and polls again."""


class BusFull(BusError):  # noqa: N818
    """The bus has no room left; nothing of the call was written."""


class TooLarge(BusError):  # noqa: N818
    """A record, ``send``, is larger than the bus or its topic takes; nothing of the call was written.

    Others may be as well.
    """

    def __init__(self, message: str, send: Send) -> None:
        super().__init__(message)
        self.send = send


class StoreDown(OffbeatError):  # noqa: N818
    """The state store cannot be reached now."""

    exit_code = 5


class BundleError(OffbeatError):
    """A bundle is damaged, hostile, or does not fit its stream."""

    exit_code = 6


class InputError(OffbeatError):
    """A file given by the user cannot be read."""

    exit_code = 7


class TooFewRows(OffbeatError):  # noqa: N818
    """There is not enough history to train on yet.

    Attributes:
        have: usable rows there are.
        need: usable rows it takes.
        rows: rows there are, of which gaps and windows make fewer usable.
        rate: rows that come in a second of event time; None where it is not known.
    """

    exit_code = 8

    def __init__(self, message: str, *, have: int, need: int, rows: int, rate: float | None = None) -> None:
        super().__init__(message)
        self.have = have
        self.need = need
        self.rows = rows
        self.rate = rate
