"""The state of partitions in Redis or Valkey: claims by epoch, writes that are taken whole or not at all.

A partition is a header hash and a hash for each bucket of rows, all in one hash slot; ``put.lua`` says what
stands in them. Large writes are staged under fresh bucket keys that a last small script makes current.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import redis

from pipeline.errors import StoreDown
from pipeline.ports import PutResult
from pipeline.records import BUCKET_ROWS, Claim, PackedRows, TopicPartition
from pipeline.state.redis_link import RedisLink, StoreInfo
from pipeline.state.redis_rows import Items, by_bucket, joined

SCHEMA = b"1"
STAGED_TTL_S = 600
"""How long rows of a write that was never finished stay, should its writer be killed."""
_CALL_BYTES = 4 << 20
"""Bytes in one call, about: what a slow line carries within the time-out."""
_READ_TRIES = 3

_log = logging.getLogger(__name__)


class _Keys(NamedTuple):
    """The names of a partition's keys; the braces put them all into one slot of a Redis Cluster."""

    head: str
    buckets: str

    @classmethod
    def of(cls, stem: str, partition: TopicPartition) -> _Keys:
        tag = f"{{{stem}:{partition.topic}:{partition.partition}}}"
        return cls(f"{tag}:head", f"{tag}:b")


class RedisStore:
    """The :class:`pipeline.ports.StateStore` of one stream, with what operators ask of it.

    May be used from several threads. ``clock`` gives monotonic seconds and drives the breaker.
    """

    def __init__(
        self, url: str, *, namespace: str, stream: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Connects with the first call.

        Raises:
            ConfigError: the URL cannot be read.
        """
        self._link = RedisLink(url, clock)
        self._stem = f"{namespace}:{stream}"
        self._claim_script = self._link.script("claim.lua")
        self._put_script = self._link.script("put.lua")

    def claim(self, partition: TopicPartition, *, reset: bool = False) -> Claim:
        """Take ownership: raise the epoch and read what is stored (drop it first when ``reset``).

        State of which a part is missing or damaged counts as not stored, and a warning says so.

        Raises:
            StoreDown: not reachable now; this is not "nothing is stored".
        """
        keys = _Keys.of(self._stem, partition)
        with self._link.calling(f"claim the state of {partition}") as client:
            flat = self._claim_script([keys.head], [keys.buckets, int(reset)])
            head = dict(zip(flat[::2], flat[1::2], strict=True))
            return self._read(client, partition, int(head[b"epoch"]), head)

    def peek(self, partition: TopicPartition) -> Claim | None:
        """What is stored, without claiming it: writes under this claim are not this reader's to make.

        Raises:
            StoreDown: not reachable now.
        """
        with self._link.calling(f"read the state of {partition}") as client:
            head = _hash(client.hgetall(_Keys.of(self._stem, partition).head))
            claim = self._read(client, partition, int(head.get(b"epoch", 0)), head)
        return claim if claim.rows is not None else None

    def _read(
        self, client: redis.Redis, partition: TopicPartition, epoch: int, head: dict[bytes, bytes]
    ) -> Claim:
        """The rows that ``head`` names, read again where another owner writes meanwhile."""
        keys = _Keys.of(self._stem, partition)
        for _ in range(_READ_TRIES):
            rows, damage = None, None
            if head.get(b"offset"):
                try:
                    rows = _rows(client, keys, head)
                except ValueError as error:
                    damage = str(error)
            now = client.hmget(keys.head, [b"writer", b"offset"])
            if now == [head.get(b"writer"), head.get(b"offset")]:
                if damage is not None:
                    _log.warning("%s: the stored state is not usable and is left out: %s", partition, damage)
                return Claim(partition, epoch, int(head[b"offset"]) if rows is not None else None, rows)
            head = _hash(client.hgetall(keys.head))
        raise StoreDown(
            f"cannot read the state of {partition}: another worker keeps writing it; try again, and see that "
            "no two installations share a namespace"
        )

    def put(self, claim: Claim, base: int, offset: int, rows: PackedRows, *, whole: bool) -> PutResult:
        """Write the state valid at ``offset``; see :meth:`pipeline.ports.StateStore.put`.

        Rows outside ``rows.whole_buckets``, and removals, number at most BUCKET_ROWS unless ``whole``.

        Raises:
            StoreDown: not reachable now; the write may or may not have been taken.
            ValueError: more rows than one script may carry.
        """
        keys = _Keys.of(self._stem, claim.partition)
        buckets = by_bucket(rows)
        staged = {bucket: items for bucket, items in buckets.items() if whole or bucket in rows.whole_buckets}
        changes: dict[int, tuple[list[bytes], Items]] = {
            bucket: ([], items) for bucket, items in buckets.items() if bucket not in staged
        }
        for slot, name in () if whole else rows.removed:
            if slot // BUCKET_ROWS not in staged:
                changes.setdefault(slot // BUCKET_ROWS, ([], []))[0].append(name)
        if sum(len(removed) + len(items) for removed, items in changes.values()) > BUCKET_ROWS:
            raise ValueError(f"a delta changes more than {BUCKET_ROWS} rows of buckets that are not whole")
        generation = secrets.token_hex(6)
        self._stage(keys, claim.partition, generation, staged)
        arguments: list[bytes | str | int] = [keys.buckets, SCHEMA, claim.epoch, "" if whole else base]
        arguments += [offset, rows.header, generation, len(staged)]
        for bucket, items in staged.items():
            arguments += [bucket, len(items)]
        for bucket, (removed, items) in changes.items():
            arguments += [bucket, len(removed), len(items), *removed]
            arguments += [part for item in items for part in item]
        with self._link.calling(f"write the state of {claim.partition}"):
            result: bytes = self._put_script([keys.head], arguments)
        if result == b"lost":
            raise StoreDown(
                f"cannot write the state of {claim.partition}: the server {self._link.address} "
                "evicted rows as they were written; raise its maxmemory, or set maxmemory-policy noeviction"
            )
        return PutResult(result.decode())

    def _stage(
        self, keys: _Keys, partition: TopicPartition, generation: str, staged: Mapping[int, Items]
    ) -> None:
        """Write buckets under keys of a new generation, which vanish unless the script takes them."""
        try:
            with self._link.calling(f"write the state of {partition}") as client:
                for bucket, items in staged.items():
                    key = f"{keys.buckets}{bucket}:{generation}"
                    for chunk in _chunks(items):
                        pipe = client.pipeline(transaction=False)
                        pipe.hset(key, items=[part for item in chunk for part in item])
                        pipe.expire(key, STAGED_TTL_S)
                        pipe.execute()
        except StoreDown:
            with suppress(StoreDown), self._link.calling("take back rows") as client:
                client.unlink(*(f"{keys.buckets}{bucket}:{generation}" for bucket in staged))
            raise

    def partitions(self) -> list[TopicPartition]:
        """The partitions of this stream that were ever claimed, in order.

        Raises:
            StoreDown: not reachable now.
        """
        start = f"{{{self._stem}:"
        with self._link.calling("list the stored partitions") as client:
            found = [key.decode() for key in client.scan_iter(match=f"{start}*}}:head", count=1_000)]
        names = {key.removeprefix(start).removesuffix("}:head").rpartition(":")[::2] for key in found}
        return sorted(TopicPartition(topic, int(partition)) for topic, partition in names)

    def ping(self) -> StoreInfo:
        """What answers at the state URL.

        Raises:
            StoreDown: not reachable now.
        """
        return self._link.ping()

    def close(self) -> None:
        """End the connections; idempotent."""
        self._link.close()


def _hash(reply: Any) -> dict[bytes, bytes]:  # noqa: ANN401 - the client's types cover its asyncio twin too
    return dict(reply)


def _chunks(items: Items) -> Iterator[Items]:
    """Items in runs that fit one call; all rows have one length."""
    rest = iter(items)
    size = max(1, _CALL_BYTES // len(items[0][1])) if items else 1
    while chunk := list(islice(rest, size)):
        yield chunk


def _rows(client: redis.Redis, keys: _Keys, head: Mapping[bytes, bytes]) -> PackedRows:
    """All rows that a header names, bucket by bucket.

    Raises:
        ValueError: what is stored is damaged, or of another version.
    """
    if head.get(b"schema") != SCHEMA:
        raise ValueError(f"it is of schema version {head.get(b'schema', b'?').decode(errors='replace')}")
    buckets = {}
    for field, value in head.items():
        if (named := re.fullmatch(rb"b(\d+)", field)) is None:
            continue
        bucket, (generation, _, count) = int(named[1]), value.decode().partition(":")
        buckets[bucket] = _hash(client.hgetall(f"{keys.buckets}{bucket}:{generation}"))
        if len(buckets[bucket]) != int(count):
            raise ValueError(
                f"bucket {bucket} holds {len(buckets[bucket])} of {count} rows; "
                "was it evicted? Set maxmemory-policy noeviction"
            )
    return joined(head.get(b"header", b""), buckets)
