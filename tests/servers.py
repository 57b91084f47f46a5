"""Real servers that tests, benchmarks and examples start for themselves, and that end with them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

KAFKA_IMAGE = "confluentinc/cp-kafka:8.1.0"
NO_KAFKA = (
    "no Kafka broker: set KAFKA_BOOTSTRAP_SERVERS to one, or KAFKA_HOME to a distribution, or start Docker"
)
BROKER_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    # Tests wait for these; production keeps its own.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


@contextmanager
def kafka_broker(folder: Path, **settings: str) -> Iterator[str | None]:
    """``host:port`` of a broker: KAFKA_BOOTSTRAP_SERVERS, else Docker, else a distribution in KAFKA_HOME.

    None without any of them. What a started distribution writes stays under ``folder``. ``settings`` are
    broker settings with underscores for dots, for a broker that is started here.
    """
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield servers
    elif _docker_answers():
        with _kafka_container(**settings) as bootstrap:
            yield bootstrap
    elif home := os.environ.get("KAFKA_HOME"):
        with kafka_server(Path(home), folder, **settings) as bootstrap:
            yield bootstrap
    else:
        yield None


def _docker_answers() -> bool:
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False
    import docker  # noqa: PLC0415 - tests without a broker run without it
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        client = docker.from_env()
    except DockerException:
        return False
    client.close()
    return True


@contextmanager
def _kafka_container(**settings: str) -> Iterator[str]:
    from testcontainers.kafka import KafkaContainer  # noqa: PLC0415 - only where Docker answers

    container = KafkaContainer(KAFKA_IMAGE).with_kraft()
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    container.with_env("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "500")
    container.with_env("KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS", "500")
    for name, value in settings.items():
        container.with_env(f"KAFKA_{name.upper()}", value)
    with container as started:
        yield started.get_bootstrap_server()


@contextmanager
def kafka_server(home: Path, folder: Path, **settings: str) -> Iterator[str]:
    """One Kafka broker in KRaft mode from the distribution at ``home``; yields ``127.0.0.1:PORT``.

    Everything it writes stays under ``folder``. ``settings`` are broker settings with underscores for
    dots. Raises RuntimeError with the end of its log when it does not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, controller = free_port(), free_port()
    properties = folder / "server.properties"
    chosen = BROKER_SETTINGS | {
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "log.dirs": str(folder / "data"),
    }
    chosen |= {name.replace("_", "."): value for name, value in settings.items()}
    properties.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
    environment = os.environ | {"LOG_DIR": str(folder / "logs"), "KAFKA_HEAP_OPTS": "-Xms128m -Xmx384m"}
    cluster = "A" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    log = folder / "broker.log"
    with log.open("wb") as out:
        subprocess.run(
            [home / "bin" / "kafka-storage.sh", "format", "-t", cluster, "-c", properties],
            check=True,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        process = subprocess.Popen(
            [home / "bin" / "kafka-server-start.sh", properties],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call and takes no lock
        )
    try:
        _wait_until_it_listens(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Kafka did not come up; the end of {log}:\n{tail}") from None
            time.sleep(0.05)
        else:
            return
