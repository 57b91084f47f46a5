"""Holds of pieces of work that one program does at a time, in Redis or Valkey."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from pipeline.ports import Lease
from pipeline.state.redis_link import RedisLink


class RedisLeases:
    """The :class:`pipeline.ports.Leases` of one installation; may be used from several threads.

    ``clock`` gives monotonic seconds and drives the breaker.
    """

    def __init__(self, url: str, *, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Connects with the first call.

        Raises:
            ConfigError: the URL cannot be read.
        """
        self._link, self._namespace = RedisLink(url, clock), namespace
        self._script = self._link.script("lease.lua")

    def take(self, work: str, length_s: float) -> Lease | None:
        """Hold a piece of work; see :meth:`pipeline.ports.Leases.take`."""
        holder = secrets.token_hex(16)
        token = self._call("take", work, holder, length_s)
        return Lease(work, holder, token) if token else None

    def keep(self, lease: Lease, length_s: float) -> bool:
        """Hold it longer; see :meth:`pipeline.ports.Leases.keep`."""
        return bool(self._call("keep", lease.work, lease.holder, length_s))

    def give(self, lease: Lease) -> None:
        """Hold it no longer; see :meth:`pipeline.ports.Leases.give`."""
        self._call("give", lease.work, lease.holder, 0)

    def left_s(self, work: str) -> float:
        """How much longer a piece of work is held, by the server's clock; 0 where nobody holds it.

        Raises:
            StoreDown: not reachable now.
        """
        with self._link.calling(f"look at the lease of {work}") as client:
            until: Any = client.hget(self._key(work), "until_us")
            now: Any = client.time()
        left_us = int(until or 0) - now[0] * 1_000_000 - now[1]
        return float(max(left_us, 0) / 1e6)

    def close(self) -> None:
        """End the connections; idempotent."""
        self._link.close()

    def _call(self, action: str, work: str, holder: str, length_s: float) -> int:
        with self._link.calling(f"{action} the lease of {work}"):
            reply: int = self._script([self._key(work)], [action, holder, round(length_s * 1e6)])
        return reply

    def _key(self, work: str) -> str:
        return f"{{{self._namespace}:{work}}}:lease"
