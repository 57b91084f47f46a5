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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

KAFKA_IMAGE = "confluentinc/cp-kafka:8.1.0"
NO_KAFKA = (
    "no Kafka broker: set KAFKA_BOOTSTRAP_SERVERS to one, or KAFKA_HOME to a distribution, or start Docker"
)
BROKER_SETTINGS = {
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


class KafkaServer:
    """A node of Kafka in KRaft mode from the distribution at ``home``: a broker, a controller, or both.

    It can be killed, stopped, and started again on its folder, under the same address.
    """

    def __init__(
        self, home: Path, folder: Path, node: int = 1, *, roles: str = "broker,controller", **settings: str
    ) -> None:
        """Choose its ports; ``settings`` are broker settings with underscores for dots."""
        self._home, self.folder, self.node = home, folder, node
        broker, controller = free_port(), free_port()
        self.bootstrap = f"127.0.0.1:{broker}"
        self.voter = f"{node}@127.0.0.1:{controller}" if "controller" in roles else ""
        self._port = broker if "broker" in roles else controller
        listeners = {
            "broker": f"PLAINTEXT://{self.bootstrap}",
            "controller": f"CONTROLLER://127.0.0.1:{controller}",
        }
        self._settings = BROKER_SETTINGS | {
            "process.roles": roles,
            "node.id": str(node),
            "listeners": ",".join(listeners[role] for role in roles.split(",")),
            "log.dirs": str(folder / "data"),
        }
        if "broker" in roles:
            self._settings["advertised.listeners"] = listeners["broker"]
        self._settings |= {name.replace("_", "."): value for name, value in settings.items()}
        self._environment = os.environ | {
            "LOG_DIR": str(folder / "logs"),
            "KAFKA_HEAP_OPTS": "-Xms128m -Xmx384m",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def format(self, cluster: str, **settings: str) -> None:
        """Make its folder that of a node of ``cluster``, with these settings besides."""
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen = self._settings | {name.replace("_", "."): value for name, value in settings.items()}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
        with self._log.open("wb") as out:
            subprocess.run(
                [self._home / "bin" / "kafka-storage.sh", "format", "-t", cluster, "-c", self._properties],
                check=True,
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def start(self) -> None:
        """Start its process."""
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                [self._home / "bin" / "kafka-server-start.sh", self._properties],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call and takes no lock
            )

    def wait(self) -> None:
        """Return once it listens. Raises RuntimeError with the end of its log where it does not come up."""
        assert self.process is not None
        _wait_until_it_listens("Kafka", self.process, self._port, self._log)

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal; returns once it is gone where that kills it."""
        assert self.process is not None
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait()

    def close(self) -> None:
        """See that it does not run."""
        if self.process is not None:
            self.signal(signal.SIGKILL)

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _log(self) -> Path:
        return self.folder / "broker.log"


@contextmanager
def kafka_server(home: Path, folder: Path, **settings: str) -> Iterator[str]:
    """One Kafka broker; yields ``127.0.0.1:PORT``. Everything it writes stays under ``folder``."""
    with kafka_cluster([KafkaServer(home, folder, 1, roles="broker,controller", **settings)]) as [server]:
        yield server.bootstrap


@contextmanager
def kafka_cluster(servers: Sequence[KafkaServer]) -> Iterator[Sequence[KafkaServer]]:
    """Nodes of one cluster, none of which is left running at the end."""
    cluster = "A" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    voters = ",".join(server.voter for server in servers if server.voter)
    with ExitStack() as opened:
        for server in servers:
            server.format(cluster, controller_quorum_voters=voters)
            opened.callback(server.close)
            server.start()
        for server in servers:
            server.wait()
        yield servers


class ValkeyServer:
    """A Valkey on a TCP port, which keeps its data in ``folder`` as the compose file has it.

    It can be killed, stopped, and started again on its data, under the same address.
    """

    def __init__(self, folder: Path) -> None:
        """Choose its port."""
        self._folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a configuration names it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start its process, and return once it answers."""
        from pipeline.state.embedded import _binary  # noqa: PLC0415 - tests without a store do without it

        self._folder.mkdir(parents=True, exist_ok=True)
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
        settings += ["--repl-diskless-sync-delay", "0"]  # its replica need not wait for others
        with (self._folder / "valkey.log").open("ab") as out:
            self.process = subprocess.Popen(
                [_binary(), *settings, "--maxmemory-policy", "noeviction"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call and takes no lock
            )
        _wait_until_it_listens("Valkey", self.process, self.port, self._folder / "valkey.log")

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal; returns once it is gone where that kills it."""
        assert self.process is not None
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait()

    def close(self) -> None:
        """See that it does not run."""
        if self.process is not None:
            self.signal(signal.SIGKILL)


def _wait_until_it_listens(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} did not come up; the end of {log}:\n{tail}") from None
            time.sleep(0.05)
        else:
            return


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of moto's S3, in a thread of this process."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer  # noqa: PLC0415 - few tests need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
