"""How long the clients of Kafka wait for what, all in one place, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError

HEARTBEAT_MS = 1_000
"""A member learns of a rebalance by its next heartbeat, and a partition moves after two at most: with the
client's own 3 s a rolling restart would hold partitions back for longer than that."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Time-outs in milliseconds.

    Attributes:
        session: a member without heartbeats for so long is dead.
        heartbeat: between two of them.
        transaction: the broker aborts a transaction that lasts longer.
        request: an answer is waited for so long, then the request is sent again.
        block: a send waits so long for room or for metadata.
        delivery: a record that is not written by then has failed.
        deadline: the watchdog ends a process whose transaction lasts longer.
        poll: a member that does not poll for so long leaves its group.

    Raises:
        ConfigError: they do not go together.
    """

    session: int = 10_000
    heartbeat: int = HEARTBEAT_MS
    transaction: int = 10_000
    request: int = 10_000
    block: int = 10_000
    delivery: int = 20_000
    deadline: int = 30_000
    poll: int = 300_000

    def __post_init__(self) -> None:
        _must(
            3 * self.heartbeat <= self.session,
            f"session_timeout_ms={self.session} is shorter than three of heartbeat_interval_ms="
            f"{self.heartbeat}: one lost heartbeat would cost a worker its partitions",
        )
        _must(
            self.session <= self.poll,
            f"session_timeout_ms={self.session} is longer than {self.poll} ms, after which a worker that "
            "does not poll leaves its group by itself",
        )
        _must(
            self.request <= self.transaction,
            f"transaction_timeout_ms={self.transaction} is shorter than the {self.request} ms that an answer "
            "is waited for: one lost request would abort a commit",
        )
        _must(
            self.transaction < self.deadline,
            f"transaction_timeout_ms={self.transaction} is not shorter than {self.deadline} ms, after which "
            "a hung commit ends its worker: a killed worker would hold up its partitions longer than that",
        )
        _must(
            max(self.request, self.block) <= self.delivery,
            f"a record has {self.delivery} ms to be written, less than one request ({self.request} ms) or "
            f"the wait for room ({self.block} ms) may take",
        )
        _must(
            self.delivery < self.deadline,
            f"a record has {self.delivery} ms to be written: the watchdog would end the worker after "
            f"{self.deadline} ms, before it could say what failed",
        )
        _must(
            3 * self.deadline < self.poll,
            f"a worker that does not poll for {self.poll} ms leaves its group, in which a failed commit, its "
            f"abort and its end, {self.deadline} ms each at most, have no room",
        )

    @classmethod
    def of(cls, settings: Mapping[str, str]) -> Timing:
        """As the settings of a bus URL have it; a short session has shorter heartbeats.

        Raises:
            ConfigError: one is no number, or they do not go together.
        """
        usual = cls()
        session = _milliseconds(settings, "session_timeout_ms", usual.session)
        return cls(
            session=session,
            heartbeat=_milliseconds(settings, "heartbeat_interval_ms", min(usual.heartbeat, session // 3)),
            transaction=_milliseconds(settings, "transaction_timeout_ms", usual.transaction),
        )


def _must(fine: bool, says: str) -> None:  # noqa: FBT001 - it stands where assert would
    if not fine:
        raise ConfigError(f"the time-outs of the Kafka bus do not go together: {says}")


def _milliseconds(settings: Mapping[str, str], name: str, usual: int) -> int:
    text = settings.get(name, str(usual))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"the bus URL has {name}={text}; give milliseconds, such as {usual or 1_000}")
    return int(text)
