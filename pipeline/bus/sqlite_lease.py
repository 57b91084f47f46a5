"""Who may commit for a group on the SQLite bus: one live member, by a lease in the file and an epoch."""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from pathlib import Path


class Lease:
    """One member's claim to its group.

    The epoch rises with every change of hands and is checked inside each commit's transaction, so that
    a stalled process costs a hand-over and never a doubled commit. Leases go by the time since the machine
    started, which all its processes share and nobody sets. All methods run within the caller's transaction;
    those that write need it to be a writing one.
    """

    def __init__(self, group: str, lease_s: float) -> None:
        self._group = group
        self._lease_ms = int(lease_s * 1_000)
        self._member = uuid.uuid4().hex
        self._renew_at_ms = 0
        self.epoch = 0

    def can_take(self, connection: sqlite3.Connection) -> bool:
        """Whether the group has no live member but this one."""
        found = connection.execute(
            "SELECT member, lease_ends_ms, process FROM members WHERE group_id = ?", (self._group,)
        ).fetchone()
        if found is None:
            return True
        member, lease_ends_ms, process = found
        left_ms = lease_ends_ms - _now_ms()
        # A lease that ends later than it could have been given is of before the machine was last started.
        return member == self._member or not 0 < left_ms <= self._lease_ms or _has_died(process)

    def take(self, connection: sqlite3.Connection) -> bool:
        """Become the group's member under a new epoch, where that is free."""
        if not self.can_take(connection):
            return False
        (self.epoch,) = connection.execute(
            "INSERT INTO members (group_id, member, epoch, lease_ends_ms, process) VALUES (?, ?, 1, 0, ?)"
            " ON CONFLICT (group_id) DO UPDATE SET"
            " member = excluded.member, epoch = epoch + 1, process = excluded.process RETURNING epoch",
            (self._group, self._member, process_mark(os.getpid())),
        ).fetchone()
        self.renew(connection)
        return True

    def holds(self, connection: sqlite3.Connection) -> bool:
        """Whether nobody took the group since this member did, be the lease over or not."""
        found = connection.execute(
            "SELECT 1 FROM members WHERE group_id = ? AND member = ? AND epoch = ?",
            (self._group, self._member, self.epoch),
        ).fetchone()
        return found is not None

    @property
    def renewal_due(self) -> bool:
        """Whether a third of the lease has passed since it was renewed."""
        return not self._renew_at_ms - self._lease_ms <= _now_ms() < self._renew_at_ms

    def renew(self, connection: sqlite3.Connection) -> None:
        """Extend the lease, if it is still this member's."""
        now_ms = _now_ms()
        self._set_end(connection, now_ms + self._lease_ms)
        self._renew_at_ms = now_ms + self._lease_ms // 3

    def release(self, connection: sqlite3.Connection) -> None:
        """Let another member take over at once."""
        self._set_end(connection, 0)

    def _set_end(self, connection: sqlite3.Connection, lease_ends_ms: int) -> None:
        connection.execute(
            "UPDATE members SET lease_ends_ms = ? WHERE group_id = ? AND member = ? AND epoch = ?",
            (lease_ends_ms, self._group, self._member, self.epoch),
        )


def process_mark(pid: int) -> str:
    """What tells a live process from every other on this machine; empty where /proc does not exist.

    Boot, PID namespace (a container sees other numbers), pid and start time (pids are used again).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else f"{boot} {namespace} {pid} {fields[18]}"


def _has_died(process: str) -> bool:
    """Whether the process ran here and is gone; False where that cannot be known."""
    mine = process_mark(os.getpid()).split()
    boot_namespace_pid_start = process.split()
    if len(mine) != 4 or mine[:2] != boot_namespace_pid_start[:2]:
        return False
    pid = int(boot_namespace_pid_start[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process, of which /proc may show nothing
        return False
    return process_mark(pid) != process


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
