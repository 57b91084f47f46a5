"""The Kafka bus URL, and what a person is told when a cluster cannot be used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from kafka.errors import KafkaError, MetadataEmptyBrokerList, UnknownBrokerIdError
from servers import free_port, kafka_server

from pipeline.bus.kafka import KafkaBroker
from pipeline.bus.kafka_link import URL_SETTINGS, Link
from pipeline.bus.kafka_timing import Timing
from pipeline.errors import BusDown, BusError, ConfigError, NotFound, Refused
from pipeline.records import Send, TopicPartition, TopicSpec

HOUR_MS = 3_600_000


def test_a_url_names_servers_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("certificate")
    monkeypatch.setenv("KAFKA_USER", "offbeat")
    monkeypatch.setenv("KAFKA_SECRET", "s3cret")

    link = Link.parse(
        "kafka://one:9093,two,[::1]:9094?session_timeout_ms=6000&security_protocol=SASL_SSL"
        f"&sasl_mechanism=SCRAM-SHA-512&sasl_username_env=KAFKA_USER&sasl_password_env=KAFKA_SECRET&ssl_cafile={authority}"
    )

    assert link.servers == (("one", 9093), ("two", 9092), ("::1", 9094))
    assert (link.timing.session, link.timing.heartbeat) == (6_000, 1_000)
    assert link.security == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "offbeat",
        "sasl_plain_password": "s3cret",
        "ssl_cafile": str(authority),
    }
    assert "s3cret" not in repr(link)
    assert link.address == "one:9093,two:9092,[::1]:9094"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://", "kafka://host:9092"),
        ("kafka://host:9092/topic", "kafka://host:9092"),
        ("kafka://user:secret@host:9092", "sasl_password_env"),
        ("kafka://host:port", "host:port"),
        ("kafka://host:9092,", "host:port"),
        ("kafka://host?session_timeout_ms=soon", "milliseconds"),
        ("kafka://host?session_timeout_ms=2", "heartbeat_interval_ms=0"),
        ("kafka://host?session_timeout_ms=6000&heartbeat_interval_ms=2001", "three of heartbeat_interval_ms"),
        ("kafka://host?session_timeout_ms=300001", "does not poll"),
        ("kafka://host?transaction_timeout_ms=9999", "one lost request"),
        ("kafka://host?transaction_timeout_ms=30000", "a killed worker"),
        ("kafka://host?static_membership=yes", "false or true"),
        ("kafka://host?corrupt=ignore", "stop or skip"),
        ("kafka://host?security_protocol=TLS", "SASL_SSL"),
        ("kafka://host?sasl_mechanism=GSSAPI", "SCRAM-SHA-512"),
        ("kafka://host?ssl_cafile=/no/such/file", "no such file"),
        ("kafka://host?sasl_password_env=NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE"),
    ],
)
def test_a_mistaken_url_is_explained(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        KafkaBroker(url)

    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("timeouts", "says"),
    [
        ({"request": 20_001, "transaction": 25_000}, "one request"),
        ({"block": 20_001}, "the wait for room"),
        ({"delivery": 30_000}, "say what failed"),
        ({"poll": 90_000}, "have no room"),
    ],
)
def test_what_no_url_sets_is_checked_too(timeouts: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Timing(**timeouts)


def test_a_short_session_has_heartbeats_of_a_third() -> None:
    assert Link.parse("kafka://host?session_timeout_ms=1500").timing.heartbeat == 500


def test_an_unknown_setting_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'acks'") as error:
        KafkaBroker("kafka://host:9092?acks=1")

    assert all(name in str(error.value) for name in URL_SETTINGS)


def test_the_page_on_operations_has_every_setting() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")

    told = page.split("| Setting | Meaning (default) |\n|---|---|\n")[1].split("\n\n")[0]
    assert told.splitlines() == [f"| `{name}` | {meaning} |" for name, meaning in URL_SETTINGS.items()]


def test_a_cluster_that_does_not_answer_is_named_with_the_remedy() -> None:
    address = f"127.0.0.1:{free_port()}"
    broker = KafkaBroker(f"kafka://{address}")

    for ask in (
        broker.producer,
        broker.reader,
        broker.admin().describe,
        lambda: broker.bus(group="g", topics=["t"], transactional_id="x"),
    ):
        with pytest.raises(BusDown, match=f"{address}.*start it"):
            ask()
    broker.close()


# When a broker has died partitions are led by nobody for a while, by node -1 to the client.
@pytest.mark.parametrize("error", [UnknownBrokerIdError(-1), MetadataEmptyBrokerList()])
def test_a_cluster_without_a_leader_is_waited_for(error: KafkaError) -> None:
    link = Link.parse("kafka://host:9092")

    with pytest.raises(BusDown, match="see that its brokers run"), link.talking("asking"):
        raise error


@pytest.mark.kafka
def test_a_topic_that_does_not_exist_is_named_with_the_remedy(kafka_bootstrap: str) -> None:
    broker = KafkaBroker(f"kafka://{kafka_bootstrap}")
    remedy = "no topic 'nowhere'.*offbeat topics create"

    with pytest.raises(NotFound, match=remedy):
        broker.bus(group="g", topics=["nowhere"], transactional_id="x")
    with pytest.raises(NotFound, match=remedy):
        broker.producer().send([Send("nowhere", None, b"x")])
    with pytest.raises(NotFound, match=remedy):
        broker.reader().read(TopicPartition("nowhere", 0), 0, 1, 0.1)

    assert "nowhere" not in broker.admin().describe().topics
    broker.close()


@pytest.fixture
def kafka_home() -> Path:
    home = os.environ.get("KAFKA_HOME")
    if home is None:
        pytest.skip("this test ends a broker, so it needs one of its own: set KAFKA_HOME to a distribution")
    return Path(home)


# What a worker sees when its only broker dies: a refusal, then BusDown, within seconds and without hanging.
@pytest.mark.kafka
def test_a_broker_that_dies_is_told_and_nothing_hangs(kafka_home: Path, tmp_path: Path) -> None:
    with kafka_server(kafka_home, tmp_path) as bootstrap:
        broker = KafkaBroker(f"kafka://{bootstrap}")
        broker.admin().create([TopicSpec("in", 1)])
        producer = broker.producer()
        producer.send([Send("in", None, b"x")])
        producer.flush()
        bus = broker.bus(group="g", topics=["in"], transactional_id="x")
        partition = TopicPartition("in", 0)
        while not (polled := bus.poll(10, 0.2)).batches:
            for assigned in polled.assigned:
                bus.seek(assigned.partition, 0)

    with pytest.raises(Refused):
        bus.commit(polled.token, {partition: 1}, [Send("in", None, b"y")])
    with pytest.raises(BusDown, match=bootstrap):
        bus.poll(10, 0.2)
    with pytest.raises(BusDown, match=bootstrap):
        broker.reader()
    broker.close()


# Servers that tests start end with them, also when the tests are killed.
@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does this only there")
def test_a_server_ends_with_the_process_that_started_it(kafka_home: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from servers import kafka_server\n"
        "with kafka_server(Path(sys.argv[1]), Path(sys.argv[2])) as bootstrap:\n"
        "    print(bootstrap, flush=True); time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, kafka_home, tmp_path],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    bootstrap = starter.stdout.readline().decode().strip()
    broker = KafkaBroker(f"kafka://{bootstrap}")
    assert broker.admin().describe().brokers == 1
    broker.close()

    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()

    deadline = time.monotonic() + 10
    while _answers(bootstrap):
        assert time.monotonic() < deadline, "the broker outlived the process that started it"


def _answers(bootstrap: str) -> bool:
    host, port = bootstrap.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


# A broker refuses what a client stamps more than an hour ahead: nothing would go on until that is set right.
@pytest.mark.kafka
def test_records_of_a_topic_with_the_brokers_time_do_not_go_by_the_senders_clock(
    kafka_bootstrap: str,
) -> None:
    mine, brokers = f"mine-{uuid.uuid4().hex}", f"brokers-{uuid.uuid4().hex}"
    now_ms = time.time_ns() // 1_000_000
    with closing(KafkaBroker(f"kafka://{kafka_bootstrap}")) as broker:
        broker.admin().create([TopicSpec(mine, 1), TopicSpec(brokers, 1, broker_time=True)])
        producer = broker.producer()
        producer.send([Send(brokers, None, b"x", timestamp_ms=now_ms + 2 * HOUR_MS)])
        producer.flush()
        read = broker.reader().read(TopicPartition(brokers, 0), 0, 1, 10.0)
        producer.send([Send(mine, None, b"x", timestamp_ms=now_ms + 2 * HOUR_MS)])
        with pytest.raises(BusError, match="InvalidTimestamp"):
            producer.flush()

    assert abs(int(read.timestamp_ms[0]) - now_ms) < HOUR_MS
