"""The contract of pipeline.ports.Leases on a real Valkey. A hold of no length is over at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from state_helpers import Wire

from pipeline.errors import StoreDown
from pipeline.ports import Lease
from pipeline.state.leases import RedisLeases
from pipeline.state.server import StateServer

LONG_S = 60.0
WORK = "pumps:retrain"

NewLeases = Callable[..., RedisLeases]


@pytest.fixture
def new_leases(valkey_url: str, redis: Redis) -> Iterator[NewLeases]:  # noqa: ARG001 - it empties the server
    """Makes leases, each as if in a program of its own."""
    made = []

    def make(url: str = valkey_url, namespace: str = "offbeat") -> RedisLeases:
        made.append(RedisLeases(url, namespace=namespace))
        return made[-1]

    yield make
    for leases in made:
        leases.close()


@pytest.fixture
def leases(new_leases: NewLeases) -> RedisLeases:
    return new_leases()


def taken(leases: RedisLeases, length_s: float = LONG_S, work: str = WORK) -> Lease:
    lease = leases.take(work, length_s)
    assert lease is not None
    return lease


def test_one_holds_a_piece_of_work_at_a_time(leases: RedisLeases, new_leases: NewLeases) -> None:
    lease = taken(leases)

    assert leases.take(WORK, LONG_S) is None
    assert new_leases().take(WORK, LONG_S) is None
    assert leases.keep(lease, LONG_S)


def test_how_long_work_is_held_can_be_looked_up(leases: RedisLeases, new_leases: NewLeases) -> None:
    other = new_leases()
    assert other.left_s(WORK) == 0

    lease = taken(leases)
    assert LONG_S - 1 < other.left_s(WORK) <= LONG_S
    assert other.left_s("something else") == 0

    leases.give(lease)
    assert other.left_s(WORK) == 0
    taken(leases, 0)
    assert other.left_s(WORK) == 0


def test_tokens_rise_however_a_hold_ended(leases: RedisLeases, redis: Redis) -> None:
    tokens = [taken(leases, 0).token, taken(leases, 0).token]
    given = taken(leases)
    leases.give(given)
    tokens += [given.token, taken(leases).token]
    redis.flushall()  # the server lost all it had
    tokens.append(taken(leases).token)

    assert tokens == sorted(set(tokens))


def test_who_was_too_slow_keeps_nothing_and_gives_nothing_away(
    leases: RedisLeases, new_leases: NewLeases
) -> None:
    slow, other = taken(leases, 0), new_leases()
    lease = taken(other)

    assert not leases.keep(slow, LONG_S)
    leases.give(slow)

    assert leases.take(WORK, LONG_S) is None
    assert other.keep(lease, LONG_S)


def test_who_was_slow_and_met_nobody_goes_on_with_the_same_token(
    leases: RedisLeases, new_leases: NewLeases
) -> None:
    slow = taken(leases, 0)

    assert leases.keep(slow, LONG_S)

    assert new_leases().take(WORK, LONG_S) is None


def test_a_hold_whose_server_lost_its_data_is_lost(leases: RedisLeases, redis: Redis) -> None:
    lease = taken(leases)
    redis.flushall()

    assert not leases.keep(lease, LONG_S)


def test_pieces_of_work_and_installations_do_not_touch_each_other(
    leases: RedisLeases, new_leases: NewLeases
) -> None:
    taken(leases)

    taken(leases, work="fans:retrain")
    taken(new_leases(namespace="other"))


def test_who_asks_again_because_a_reply_was_lost_has_what_it_took(new_leases: NewLeases, wire: Wire) -> None:
    leases, other = new_leases(wire.url), new_leases()
    leases.keep(Lease(WORK, "nobody", 1), 0)  # sends the script
    wire.before_reply = lambda: None

    lease = taken(leases)

    assert wire.before_reply is None
    assert other.take(WORK, LONG_S) is None
    assert leases.keep(lease, LONG_S)


def test_a_server_that_is_away_is_no_answer(new_leases: NewLeases, tmp_path: object) -> None:
    leases = new_leases(f"unix://{tmp_path}/none.sock")

    with pytest.raises(StoreDown, match=f"cannot take the lease of {WORK}"):
        leases.take(WORK, LONG_S)


def test_a_server_opens_the_leases_of_an_installation(valkey_url: str, leases: RedisLeases) -> None:
    with StateServer(valkey_url) as server:
        lease = taken(server.leases(namespace="offbeat"))

    assert leases.keep(lease, LONG_S)
