"""What goes wrong round the state store: lost replies, killed writers, damage, servers that fail."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from state_helpers import PARTITION, Wire, contents, held, is_running, many, packed, until, written

from pipeline.errors import ConfigError, StoreDown
from pipeline.ports import PutResult
from pipeline.state.embedded import EmbeddedServer
from pipeline.state.redis import RedisStore
from pipeline.state.redis_link import BREAKER_S, CALL_S, CONNECT_S

NewStore = Callable[..., RedisStore]


def _bucket(redis: Redis, number: int) -> bytes:
    (key,) = redis.keys(f"*}}:b{number}:*")
    return key


def _lose_a_bucket(redis: Redis) -> None:
    redis.delete(_bucket(redis, 1))


def _lose_a_row(redis: Redis) -> None:
    redis.hdel(_bucket(redis, 1), "b")


def _cut_a_row(redis: Redis) -> None:
    redis.hset(_bucket(redis, 1), "b", b"\xd0\x07\x00\x00cut")


def _move_a_row(redis: Redis) -> None:
    redis.hset(_bucket(redis, 1), "b", b"\0" * 28)


def _come_from_the_future(redis: Redis) -> None:
    (head,) = redis.keys("*:head")
    redis.hset(head, "schema", "99")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_lose_a_bucket, "bucket 1 holds 0 of 2 rows"),
        (_lose_a_row, "bucket 1 holds 1 of 2 rows"),
        (_cut_a_row, "differ in length"),
        (_move_a_row, "not its own"),
        (_come_from_the_future, "schema version 99"),
    ],
)
def test_damaged_state_counts_as_none_and_is_told(
    store: RedisStore,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Redis], None],
    says: str,
) -> None:
    written(store, 100, packed((0, "a", 1), (2_000, "b", 1), (2_001, "c", 1)))
    damage(redis)

    with caplog.at_level(logging.WARNING):
        claim = store.claim(PARTITION)

    assert (claim.next_offset, claim.rows) == (None, None)
    assert says in caplog.text
    assert str(PARTITION) in caplog.text
    assert store.put(claim, 0, 100, packed((0, "a", 2)), whole=True) is PutResult.OK
    assert held(store) == (100, contents(packed((0, "a", 2))))
    assert len(redis.keys()) == 2


@pytest.mark.parametrize("damage", [_lose_a_bucket, _lose_a_row, _come_from_the_future])
def test_a_delta_never_hides_that_rows_are_gone(
    store: RedisStore, redis: Redis, damage: Callable[[Redis], None]
) -> None:
    claim = written(store, 100, packed((0, "a", 1), (2_000, "b", 1), (2_001, "c", 1)))
    damage(redis)

    result = store.put(claim, 100, 110, packed((2_000, "b", 2), (2_002, "d", 2)), whole=False)

    assert result is PutResult.NEED_WHOLE


@pytest.mark.parametrize("whole", [True, False])
def test_a_lost_reply_is_found_to_have_been_ok(
    new_store: NewStore,
    redis: Redis,
    wire: Wire,
    whole: bool,  # noqa: FBT001
) -> None:
    store = new_store(wire.url)
    claim = written(store, 100, packed((0, "a", 1)))
    wire.before_reply = lambda: None

    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=whole) is PutResult.OK

    assert wire.before_reply is None
    assert held(new_store()) == (110, contents(packed((0, "a", 2))))
    assert len(redis.keys()) == 2


def test_a_lost_reply_and_a_new_owner_leave_the_rows_that_were_taken(
    new_store: NewStore, redis: Redis, wire: Wire
) -> None:
    store, other = new_store(wire.url), new_store()
    claim = written(store, 100, packed((0, "a", 1)))
    wire.before_reply = lambda: other.claim(PARTITION)

    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=True) is PutResult.STALE_EPOCH

    assert held(other) == (110, contents(packed((0, "a", 2))))
    assert len(redis.keys()) == 2


def test_who_reads_while_another_takes_over_gets_one_state_or_the_other(
    new_store: NewStore, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    other = new_store()
    before = written(other, 100, packed((0, "a", 1), (2_000, "b", 1)))
    wire.before_read = lambda: written(other, 110, packed((0, "a", 2), (2_000, "b", 2)))

    claim = new_store(wire.url).claim(PARTITION)

    assert before.epoch < claim.epoch
    assert (claim.next_offset, contents(claim.rows)) == (110, contents(packed((0, "a", 2), (2_000, "b", 2))))
    assert other.put(claim, 110, 120, packed((0, "a", 3)), whole=True) is PutResult.STALE_EPOCH
    assert not caplog.records


KILLED_WRITER = """
import sys
sys.path[:0] = {path!r}
from state_helpers import PARTITION, many
from pipeline.records import Claim
from pipeline.state.redis import RedisStore

store = RedisStore({url!r}, namespace="offbeat", stream="plant")
store.put(Claim(PARTITION, {epoch}, None, None), 100, 200, many(5_000, seed=2), whole={whole})
"""


@pytest.mark.parametrize("whole", [True, False])
def test_a_writer_killed_before_the_flip_leaves_the_old_state_whole(
    store: RedisStore,
    redis: Redis,
    wire: Wire,
    whole: bool,  # noqa: FBT001
) -> None:
    claim = written(store, 100, many(5_000, seed=1))
    keys = set(redis.keys())
    script = KILLED_WRITER.format(path=sys.path, url=wire.url, epoch=claim.epoch, whole=whole)
    started: list[subprocess.Popen[bytes]] = []
    wire.before_script = lambda: (until(lambda: bool(started)), started[0].kill())

    with subprocess.Popen([sys.executable, "-c", script]) as writer:
        started.append(writer)

    assert writer.returncode == -signal.SIGKILL
    assert held(store) == (100, contents(many(5_000, seed=1)))
    staged = set(redis.keys()) - keys
    assert len(staged) == 3
    assert all(redis.ttl(key) > 0 for key in staged)
    assert store.put(claim, 100, 110, packed((0, "s0", 7)), whole=True) is PutResult.OK


def test_staged_rows_that_were_evicted_are_not_taken(
    store: RedisStore, new_store: NewStore, redis: Redis, wire: Wire
) -> None:
    claim = written(store, 100, packed((0, "a", 1)))
    keys = set(redis.keys())
    wire.before_script = lambda: redis.delete(*(set(redis.keys()) - keys))

    with pytest.raises(StoreDown, match="evicted"):
        new_store(wire.url).put(claim, 100, 110, many(3_000, seed=1), whole=True)

    assert held(store) == (100, contents(packed((0, "a", 1))))
    assert set(redis.keys()) == keys


def test_a_full_server_takes_nothing_rather_than_a_part(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1), (1, "b", 1)))
    keys = set(redis.keys())
    redis.config_set("maxmemory", 1)

    delta = packed((0, "a", 2), removed=((1, "b"),))
    for rows, whole in ((delta, False), (many(5_000, seed=1), False), (packed((0, "a", 2)), True)):
        with pytest.raises(StoreDown, match="maxmemory"):
            store.put(claim, 100, 110, rows, whole=whole)

    redis.config_set("maxmemory", 0)
    assert held(store) == (100, contents(packed((0, "a", 1), (1, "b", 1))))
    assert set(redis.keys()) == keys
    assert store.put(claim, 100, 110, delta, whole=False) is PutResult.OK


def test_a_script_that_fails_halfway_leaves_nothing_that_looks_whole(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1)))
    # A value that is no hash stands where the script makes a bucket: its last bucket, so rows went before.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda _: "chosen")
        (head,) = redis.keys("*:head")
        redis.set(head.replace(b":head", b":b3:chosen"), "no hash")
        with pytest.raises(StoreDown, match="WRONGTYPE"):
            store.put(claim, 100, 110, packed((0, "a", 2), (6_000, "b", 2)), whole=False)

    assert held(store) is None
    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=False) is PutResult.NEED_WHOLE
    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=True) is PutResult.OK


def test_a_replica_is_named_as_one(store: RedisStore, redis: Redis) -> None:
    redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(StoreDown, match="replica: point the state URL at the primary"):
            store.claim(PARTITION)
    finally:
        redis.replicaof("no", "one")


def test_credentials_come_from_the_environment(
    store: RedisStore, redis: Redis, valkey_url: str, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim(PARTITION)
    monkeypatch.setenv("STATE_USER", "worker")
    monkeypatch.setenv("STATE_PASSWORD", "open sesame")
    redis.acl_setuser("worker", enabled=True, passwords=["+open sesame"], keys=["*"], commands=["+@all"])
    known = new_store(f"{valkey_url}?username_env=STATE_USER&password_env=STATE_PASSWORD")

    assert known.claim(PARTITION).epoch > 0

    monkeypatch.setenv("STATE_PASSWORD", "wrong secret")
    stranger = new_store(f"{valkey_url}?username_env=STATE_USER&password_env=STATE_PASSWORD")
    with pytest.raises(StoreDown, match="password_env") as raised:
        stranger.claim(PARTITION)
    assert "wrong secret" not in str(raised.value)
    redis.acl_deluser("worker")


@pytest.mark.parametrize(
    "url",
    [
        "http://host:1",
        "redis://user:hidden@host:6379/0",
        "redis://host:99999999/0",
        "redis://host/zero",
        "redis://host:6379/0?timeout=3",
        "redis://host:6379/0?password_env=NOT_SET_ANYWHERE",
        "redis://host:6379/0?ssl_cafile=/ca.pem",
        "rediss://host:6379/0?ssl_cafile=/not/there.pem",
    ],
)
def test_a_url_that_cannot_be_used_is_a_mistake_of_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match="state URL") as raised:
        RedisStore(url, namespace="offbeat", stream="plant")

    assert "hidden" not in str(raised.value)


def test_a_server_that_is_not_there_is_told_with_its_address(tmp_path: Path) -> None:
    store = RedisStore(f"unix://{tmp_path}/nobody.sock", namespace="offbeat", stream="plant")

    with pytest.raises(StoreDown, match=r"claim the state of machines\[3\].*nobody\.sock.*see that it runs"):
        store.claim(PARTITION)


def test_a_stopped_server_costs_one_timeout_until_it_is_asked_again(tmp_path: Path) -> None:
    now = [0.0]
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as plain:
        pid = plain.info("server")["process_id"]
        store = RedisStore(server.url, namespace="offbeat", stream="plant", clock=lambda: now[0])
        claim = written(store, 100, packed((0, "a", 1)))
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(StoreDown, match="SLOWLOG"):
                store.put(claim, 100, 110, packed((0, "a", 2)), whole=False)
            assert time.monotonic() - began < CONNECT_S + CALL_S + 0.3

            began = time.monotonic()
            with pytest.raises(StoreDown, match=r"asked again in 1\.0 s"):
                store.claim(PARTITION)
            assert time.monotonic() - began < 0.1
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(StoreDown, match="asked again"):
            store.claim(PARTITION)

        now[0] += BREAKER_S

        assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=False) is PutResult.OK
        store.close()
        assert is_running(pid)
