"""What the SQLite bus promises beyond the contract: damage, files it refuses, dead members, retention."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bus_contract import Follower, Log, Row, numbered, rows, turn_until

from pipeline.bus import connect, sqlite_file, sqlite_outbox
from pipeline.bus.sqlite import SqliteBroker
from pipeline.errors import BusDown, BusError, BusFull, ConfigError, NotFound, Refused
from pipeline.records import Corrupt, Send, TopicPartition, TopicSpec

AT = TopicPartition("t", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.db"


@pytest.fixture
def file_log(path: Path) -> Iterator[Log]:
    """A log on disk with one topic ``t`` of one partition."""
    broker = SqliteBroker(f"sqlite:///{path}")
    broker.admin().create([TopicSpec("t", 1)])
    yield Log(broker, lambda: broker)
    broker.close()


def follow(log: Log, group: str = "g") -> Follower:
    return log.member(group, "t").joined()


# Damage


def test_a_damaged_batch_becomes_a_marker_of_its_range_and_the_next_records_go_on(
    file_log: Log, path: Path
) -> None:
    for part in (b"first", b"second", b"third"):
        file_log.write("t", part + b"-a", part + b"-b")
    file_log.broker.close()
    content = path.read_bytes()
    assert content.count(b"second-b") == 1
    path.write_bytes(content.replace(b"second-b", b"sEcond-b"))

    broker = SqliteBroker(f"sqlite:///{path}")
    member = follow(Log(broker, lambda: broker)).read(4)

    assert [row.offset for row in member.rows[AT]] == [0, 1, 4, 5]
    assert member.values("t") == [b"first-a", b"first-b", b"third-a", b"third-b"]
    assert member.corrupt == [Corrupt(AT, 2, 4, "the stored batch fails its checksum")]
    batch = broker.reader().read(AT, 2, 1, 1.0)
    assert [row.offset for row in rows(batch)] == [4, 5]
    broker.close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("columns = substr(columns, 1, 9)", "cut short"),
        ("columns = x''", "cut short"),
        ("min_timestamp_ms = min_timestamp_ms - 1", "checksum"),
        ("columns = (SELECT columns FROM batches WHERE base_offset = 0)", "checksum"),
    ],
)
def test_whatever_is_wrong_with_the_last_batch_never_stalls_nor_reads_as_records(
    file_log: Log, path: Path, damage: str, reason: str
) -> None:
    file_log.write("t", b"a", b"b")
    file_log.write("t", b"c", b"d")
    other = sqlite3.connect(path)
    other.execute(f"UPDATE batches SET {damage} WHERE base_offset = 2")  # noqa: S608 - the cases above
    other.commit()
    other.close()

    member = follow(file_log)
    turn_until(lambda: member.corrupt, member)

    assert member.values("t") == [b"a", b"b"]
    ((offset, next_offset, why),) = [(c.offset, c.next_offset, c.reason) for c in member.corrupt]
    assert (offset, next_offset) == (2, 4)
    assert reason in why
    file_log.write("t", b"e")
    assert member.read(3).values("t") == [b"a", b"b", b"e"]


def test_a_page_that_sqlite_itself_finds_damaged_costs_its_batch_and_no_other(
    file_log: Log, path: Path
) -> None:
    file_log.write("t", b"before")
    file_log.write("t", b"x" * 100_000)
    file_log.write("t", b"after")
    file_log.broker.close()
    page_size = 16_384
    content = bytearray(path.read_bytes())
    inside = next(
        at
        for at in range(0, len(content), page_size)
        if content[at + 4 : at + page_size] == b"x" * (page_size - 4)
    )
    content[inside : inside + 4] = b"\xff\xff\xff\xff"  # where the page says which page goes on
    path.write_bytes(content)

    broker = SqliteBroker(f"sqlite:///{path}")
    member = follow(Log(broker, lambda: broker)).read(2)

    assert member.values("t") == [b"before", b"after"]
    assert [(c.offset, c.next_offset) for c in member.corrupt] == [(1, 2)]
    assert "malformed" in member.corrupt[0].reason
    broker.close()


def test_seeking_into_a_damaged_batch_reports_only_what_was_asked_for(file_log: Log, path: Path) -> None:
    file_log.write("t", *numbered(10))
    other = sqlite3.connect(path)
    other.execute("UPDATE batches SET columns = x'00'")
    other.commit()
    other.close()
    member = follow(file_log)

    member.bus.seek(AT, 4)
    turn_until(lambda: member.corrupt, member)

    assert (member.corrupt[0].offset, member.corrupt[0].next_offset) == (4, 10)
    assert file_log.reader.offset_at(AT, 1_005) == 0


# Opening


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///", "names no file"),
        ("sqlite://bus.db", "three slashes"),
        ("sqlite:///bus.db?durability=some", "durability"),
        ("sqlite:////proc/bus.db", "cannot be opened"),
        ("sqlite:////no/such/folder/bus.db", "does not exist"),
        ("sqlite:////tmp", "is a folder"),
        ("redis://localhost", "sqlite:///offbeat.db.*kafka://"),
        ("bus.db", "sqlite:///offbeat.db.*kafka://"),
    ],
)
def test_a_url_that_cannot_be_a_bus_is_explained(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        connect(url)


def test_a_relative_url_is_relative_to_where_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    connect("sqlite:///here.db?durability=full").close()

    assert (tmp_path / "here.db").exists()


def test_two_logs_in_memory_are_two() -> None:
    first, second = connect("sqlite://"), connect("sqlite://")

    first.admin().create([TopicSpec("t", 1)])

    assert second.admin().describe().topics == {}
    first.close()
    second.close()


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_bytes(b"a diary, and by no means a database" * 100)
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="not a SQLite database"):
        connect(f"sqlite:///{path}")

    assert path.read_bytes() == before


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE contacts (name)")
    other.commit()
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="another program"):
        connect(f"sqlite:///{path}")

    other.close()
    assert path.read_bytes() == before


def test_a_file_from_a_later_offbeat_is_refused(file_log: Log, path: Path) -> None:
    file_log.broker.close()
    later = sqlite3.connect(path)
    later.execute(f"PRAGMA user_version={sqlite_file.SCHEMA_VERSION + 1}")
    later.close()

    with pytest.raises(ConfigError, match="later offbeat"):
        connect(f"sqlite:///{path}")


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/export /mnt/far\\040away nfs4 rw 0 0
/dev/vdb /mnt/far\\040away/disk xfs rw 0 0
user@host: /home/u/remote fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "file_system"),
    [
        ("/var/lib/offbeat.db", None),
        ("/mnt/far away/offbeat.db", "nfs4"),
        ("/mnt/far away/disk/offbeat.db", None),
        ("/mnt/far away but not there/offbeat.db", None),
        ("/home/u/remote/a/b.db", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_known_by_the_mount_it_lies_on(path: str, file_system: str | None) -> None:
    assert sqlite_file.network_file_system(Path(path), MOUNTS) == file_system


def test_processes_may_make_the_same_file_at_the_same_time(path: Path) -> None:
    program = (
        "import sys; from pipeline.bus import connect; from pipeline.records import TopicSpec\n"
        "sys.stdin.readline(); b = connect(sys.argv[1])\n"
        "print(b.admin().create([TopicSpec('t', 2)])); b.close()"
    )
    command = [sys.executable, "-c", program, f"sqlite:///{path}"]
    makers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for maker in makers:
        maker.stdin.write("go\n")
        maker.stdin.flush()

    said = [maker.communicate()[0].strip() for maker in makers]

    assert sorted(said) == ["['t']", "[]", "[]", "[]"]


# Locks, room, threads


def test_a_file_locked_for_too_long_is_a_bus_that_is_down(file_log: Log, path: Path) -> None:
    producer = file_log.broker.producer()
    producer._session._connection.execute("PRAGMA busy_timeout=50")
    producer.send([Send("t", None, b"kept")])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(BusDown, match="locked"):
        producer.flush()

    other.execute("ROLLBACK")
    other.close()
    producer.flush()
    assert [row.value for row in file_log.contents("t")] == [b"kept"]


def test_no_room_is_said_and_costs_nothing_but_time(file_log: Log) -> None:
    bus = follow(file_log).bus
    producer = file_log.broker.producer()
    token = bus.poll(1, 0).token
    connections = [bus._session._connection, producer._session._connection]
    for connection in connections:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 2}")
    large = [Send("t", None, os.urandom(300_000))]

    with pytest.raises(BusFull):
        bus.commit(token, {AT: 0}, large)
    producer.send(large)
    with pytest.raises(BusFull):
        producer.flush()
    assert file_log.contents("t") == []
    assert file_log.broker.admin().committed("g", "t") == {}

    for connection in connections:
        connection.execute("PRAGMA max_page_count=1000000")
    bus.commit(token, {AT: 0}, large)
    producer.flush()
    assert len(file_log.contents("t")) == 2


def test_a_commit_with_an_unknown_topic_writes_nothing_and_can_be_mended(file_log: Log) -> None:
    bus = follow(file_log).bus
    token = bus.poll(1, 0).token

    with pytest.raises(NotFound, match="nowhere"):
        bus.commit(token, {AT: 0}, [Send("t", None, b"x"), Send("nowhere", None, b"y")])
    bus.commit(token, {AT: 0}, [Send("t", None, b"z")])

    assert [row.value for row in file_log.contents("t")] == [b"z"]


def test_positions_of_what_a_member_does_not_own_are_refused(file_log: Log) -> None:
    bus = follow(file_log).bus

    with pytest.raises(Refused, match=r"u\[0\]"):
        bus.commit(bus.poll(1, 0).token, {TopicPartition("u", 0): 1}, [])


def test_the_partition_of_a_send_must_exist(file_log: Log) -> None:
    with pytest.raises(NotFound, match="no partition 1"):
        file_log.broker.producer().send([Send("t", None, b"x", partition=1)])


def test_a_record_beyond_the_bound_is_refused_alone(file_log: Log) -> None:
    producer = file_log.broker.producer()
    too_large = bytes(sqlite_outbox.RECORD_BYTES + 1)

    with pytest.raises(BusError, match=f"{len(too_large)} bytes"):
        producer.send([Send("t", None, b"before"), Send("t", None, too_large)])
    producer.flush()

    assert [row.value for row in file_log.contents("t")] == [b"before"]


# Ten records of 9 MiB: stored by twos (16 MiB are a batch), and read until 64 MiB are passed.
def test_large_records_are_stored_and_read_in_pieces_of_bounded_bytes() -> None:
    broker = connect("sqlite://")
    broker.admin().create([TopicSpec("t", 1)])
    bus = follow(Log(broker, lambda: broker)).bus
    large = Send("t", None, bytes(9 << 20))

    bus.commit(bus.poll(1, 0).token, {}, [large] * 10)

    assert [len(bus.poll(max_records, 1).batches[0]) for max_records in (1, 100)] == [2, 8]
    bus.seek(AT, 0)
    assert [len(bus.poll(100, 1).batches[0]) for _ in range(2)] == [8, 2]
    broker.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///{}"])
def test_threads_may_share_a_broker_with_an_object_each(url: str, path: Path) -> None:
    broker = SqliteBroker(url.format(path))
    broker.admin().create([TopicSpec("t", 1)])

    def write() -> None:
        producer = broker.producer()
        for _ in range(20):
            producer.send([Send("t", None, b"x")] * 10)
            producer.flush()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    member = follow(Log(broker, lambda: broker)).read(800)
    for writer in writers:
        writer.join()

    assert [row.offset for row in member.rows[AT]] == list(range(800))
    broker.close()


def test_closing_writes_what_was_queued(path: Path) -> None:
    broker = SqliteBroker(f"sqlite:///{path}")
    broker.admin().create([TopicSpec("t", 1)])
    broker.producer().send([Send("t", None, b"queued")])

    broker.close()

    broker = SqliteBroker(f"sqlite:///{path}")
    assert [row.value for row in Log(broker, lambda: broker).contents("t")] == [b"queued"]
    broker.close()


def test_what_is_used_after_closing_says_so(file_log: Log) -> None:
    reader = file_log.broker.reader()
    file_log.broker.close()

    with pytest.raises(BusError, match="after it was closed"):
        reader.bounds("t")


# A busy partition must not keep the others waiting.
def test_partitions_take_turns_however_little_a_poll_may_bring(file_log: Log) -> None:
    topic = file_log.topic(8)
    for _ in range(3):
        for number in (0, 1, 5):
            file_log.write(topic, *numbered(10), partition=number)
    member = file_log.member("g", topic).joined(8)
    member.turn(0)

    served = [polled.batches[0].partition.partition for polled in (member.turn(1) for _ in range(6))]

    assert sorted(served[:3]) == sorted(served[3:]) == [0, 1, 5]


def test_records_without_a_key_spread_over_the_partitions(file_log: Log) -> None:
    topic = file_log.topic(3)
    producer = file_log.broker.producer()

    for _ in range(6):
        producer.send([Send(topic, None, b"x")])
        producer.flush()

    assert [len(file_log.contents(topic, number)) for number in range(3)] == [2, 2, 2]


# Retention


def test_producing_drops_what_is_older_than_the_retention(file_log: Log) -> None:
    now_ms = time.time_ns() // 1_000_000
    topic = file_log.topic(retention_ms=60_000)
    file_log.write(topic, b"old", b"older", timestamp_ms=now_ms - 120_000)
    file_log.write(topic, b"new", timestamp_ms=now_ms)

    file_log.write(topic, b"newer", timestamp_ms=now_ms)

    bounds = file_log.broker.reader().bounds(topic)[0]
    assert (bounds.first_offset, bounds.end_offset) == (2, 4)
    assert [row.value for row in file_log.contents(topic)] == [b"new", b"newer"]
    assert file_log.broker.reader().offset_at(TopicPartition(topic, 0), 0) == 2
    member = file_log.member("g", topic).joined()
    assert member.assigned[TopicPartition(topic, 0)].first_offset == 2
    member.bus.seek(TopicPartition(topic, 0), 0)
    assert [row.offset for row in member.read(2).rows[TopicPartition(topic, 0)]] == [2, 3]


def test_when_everything_is_too_old_offsets_still_go_on(file_log: Log) -> None:
    topic = file_log.topic(retention_ms=60_000)
    file_log.write(topic, *numbered(3), timestamp_ms=1_000)

    file_log.write(topic, b"next", timestamp_ms=time.time_ns() // 1_000_000)

    assert [(row.offset, row.value) for row in file_log.contents(topic)] == [(3, b"next")]


# Members

WORKER = """
import sys
from pipeline.bus import connect
from pipeline.records import Send
bus = connect(sys.argv[1]).bus(group="g", topics=["in"], transactional_id="w")
while True:
    polled = bus.poll(20, 1.0)
    for assigned in polled.assigned:
        bus.seek(assigned.partition, assigned.committed_offset or 0)
    for batch in polled.batches:
        sends = [Send("out", None, b"%d" % offset, partition=0) for offset in batch.offset.tolist()]
        bus.commit(polled.token, {batch.partition: batch.next_offset}, sends)
        print(batch.next_offset, flush=True)
"""


# The lease is the default of ten seconds: the test's deadline shows that a dead process is not waited for.
def test_a_member_killed_at_work_is_replaced_at_once_and_nothing_is_lost_or_doubled(path: Path) -> None:
    broker = connect(f"sqlite:///{path}")
    log = Log(broker, lambda: broker)
    broker.admin().create([TopicSpec("in", 1), TopicSpec("out", 1)])
    for start in range(0, 2_000, 10):
        log.write("in", *numbered(10, start))

    for done in (200, 700):
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, f"sqlite:///{path}"], stdout=subprocess.PIPE, text=True
        ) as worker:
            while int(worker.stdout.readline()) < done:
                pass
            worker.kill()
    started = time.monotonic()
    member = log.member("g", "in").joined()
    waited_s = time.monotonic() - started
    while not member.assigned or member.next_offsets.get(TopicPartition("in", 0), 0) < 2_000:
        polled = member.turn(100)
        for batch in polled.batches:
            sends = [Send("out", None, row.value, partition=0) for row in rows(batch)]
            member.bus.commit(polled.token, {batch.partition: batch.next_offset}, sends)

    assert waited_s < 5
    assert [row.value for row in log.contents("out")] == numbered(2_000)
    assert broker.admin().committed("g", "in") == {0: 2_000}
    broker.close()


def test_a_member_that_polls_keeps_the_group_beyond_its_lease(path: Path) -> None:
    broker = SqliteBroker(f"sqlite:///{path}", lease_s=1.0)
    broker.admin().create([TopicSpec("t", 1)])
    log = Log(broker, lambda: broker)
    first, second = follow(log), log.member("g", "t")
    deadline = time.monotonic() + 1.5

    while time.monotonic() < deadline:
        first.turn(timeout_s=0.02)
        second.turn(timeout_s=0.02)

    assert first.assigned
    assert not second.assigned
    broker.close()


def test_a_lease_of_before_the_machine_was_started_is_not_waited_for(file_log: Log, path: Path) -> None:
    follow(file_log)
    other = sqlite3.connect(path)
    other.execute("UPDATE members SET lease_ends_ms = lease_ends_ms + 86400000, process = ''")
    other.commit()
    other.close()

    second = file_log.member("g", "t")
    second.turn()

    assert second.assigned


def test_an_idle_poll_waits_without_burning_the_processor(file_log: Log) -> None:
    bus = follow(file_log).bus
    used, started = time.process_time(), time.monotonic()

    polled = bus.poll(100, 0.5)

    assert not polled.batches
    assert time.monotonic() - started >= 0.5
    assert time.process_time() - used < 0.1


def test_a_waiting_poll_brings_what_arrives_meanwhile(file_log: Log) -> None:
    bus = follow(file_log).bus
    writer = threading.Timer(0.1, file_log.write, ["t", b"late"])
    started = time.monotonic()
    writer.start()

    polled = bus.poll(100, 30)

    assert rows(polled.batches[0]) == [Row(0, None, b"late", 1_000)]
    assert time.monotonic() - started < 10
    writer.join()
