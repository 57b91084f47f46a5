"""How to reach a Kafka cluster: the bus URL, the clients made from it, its topics, its errors as ours.

Written against kafka-python 3.0.12; every use of its private names outside ``kafka_group`` is here.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kafka.errors as kafka_errors
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.serializer import Serializer

from pipeline.bus.kafka_codecs import install_codecs
from pipeline.bus.kafka_timing import Timing
from pipeline.errors import BusDown, BusError, ConfigError, NotFound, TooLarge
from pipeline.records import Send

SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
URL_SETTINGS = {
    "session_timeout_ms": "a member that is silent for so long loses its partitions (10000)",
    "heartbeat_interval_ms": "how often a member is heard, a third of the session at most (1000)",
    "transaction_timeout_ms": "after so long Kafka aborts the commit of a worker that was killed (10000)",
    "static_membership": "true: a worker that comes again within the session keeps its partitions, and one "
    "that ends for good holds them up for so long (false)",
    "corrupt": "stop at a damaged stretch of a log (the default), or skip it",
    "security_protocol": ", ".join(SECURITY_PROTOCOLS),
    "ssl_cafile": "a file with the certificate authority in PEM format",
    "sasl_mechanism": ", ".join(SASL_MECHANISMS),
    "sasl_username_env": "the environment variable that holds the user name",
    "sasl_password_env": "the environment variable that holds the password",
}
DEFAULT_PORT = 9092
CONNECT_TIMEOUT_S = 3.0
BATCH_BYTES = 65_536
"""A partition's batches go out one after the other, and a commit waits for the last; 20 alerts make one."""
FETCH_BYTES = 4 << 20
"""Of a partition at once; of 1 MiB, the client's default, a backlog comes in batches too small to be fast."""
BOOTSTRAP_TIMEOUT_MS = 10_000
CLEANUP_POLICY = "cleanup.policy"
METADATA_MS = 10_000
"""Partitions that are added to a topic are found this soon; the client's default is five minutes."""

TOO_LARGE = kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError
"""What refuses a record for its size: the client's bound, the topic's, or that of a segment."""

NULL = object()
"""Stands for a null value beside a null key, which the client takes only from a serializer."""

install_codecs()


@dataclass(frozen=True, slots=True)
class Link:
    """A parsed bus URL.

    Attributes:
        servers: ``(host, port)`` of each bootstrap server.
        timing: how long the clients wait for what.
        static_membership: members have names, and a restart is no change of the group.
        skip_corrupt: damaged stretches of a log are passed over and told, instead of stopping there.
        security: keyword arguments for every client; holds secrets, so it is never printed.
    """

    servers: tuple[tuple[str, int], ...]
    timing: Timing
    static_membership: bool
    skip_corrupt: bool
    security: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Link:
        """Read ``kafka://host:port[,host:port][?setting=value]``; settings as in ``URL_SETTINGS``.

        Raises:
            ConfigError: the URL is not of that form, or names a setting, value, file or variable amiss.
        """
        parts = urlsplit(url)
        if parts.scheme != "kafka" or not parts.netloc or parts.path.strip("/") or "@" in parts.netloc:
            raise ConfigError(
                "the bus URL is not of the form kafka://host:9092[,host:9092][?setting=value]; "
                "credentials are named by sasl_username_env and sasl_password_env, never written into it"
            )
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        for unknown in settings.keys() - URL_SETTINGS.keys():
            known = "; ".join(f"{name}: {meaning}" for name, meaning in URL_SETTINGS.items())
            raise ConfigError(f"the bus URL has an unknown setting {unknown!r}; it may have {known}")
        servers = tuple(_server(text) for text in parts.netloc.split(","))
        return cls(
            servers,
            Timing.of(settings),
            _one_of(settings, "static_membership", ("false", "true")) == "true",
            _one_of(settings, "corrupt", ("stop", "skip")) == "skip",
            _security(settings),
        )

    @property
    def address(self) -> str:
        """The bootstrap servers as a person would write them."""
        return ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers
        )

    def consumer(self, **more: object) -> Any:  # noqa: ANN401 - the client has no types
        """A consumer of committed records; raises BusDown when nothing answers."""
        self.must_answer()
        with self.talking("connecting"):
            consumer = KafkaConsumer(
                **self._common(),
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=100,
                max_partition_fetch_bytes=FETCH_BYTES,
                metadata_max_age_ms=METADATA_MS,
                enable_incremental_fetch_sessions=False,  # they leave out partitions that nothing came of
                metrics_enabled=False,
                **more,
            )
        _never_create_topics(consumer._cluster)  # noqa: SLF001 - the client forwards no such option
        return consumer

    def producer(self, **more: object) -> Any:  # noqa: ANN401 - the client has no types
        """A producer that retries quickly; raises BusDown when nothing answers."""
        self.must_answer()
        with self.talking("connecting"):
            producer = KafkaProducer(
                **self._common(),
                retry_backoff_ms=10,
                max_block_ms=self.timing.block,
                delivery_timeout_ms=self.timing.delivery,
                compression_type="zstd",
                batch_size=BATCH_BYTES,
                value_serializer=_Null(),
                metrics_enabled=False,
                **more,
            )
        _never_create_topics(producer._metadata)  # noqa: SLF001 - the client forwards no such option
        return producer

    def admin(self) -> Any:  # noqa: ANN401 - the client has no types
        """An administration client; raises BusDown when nothing answers."""
        self.must_answer()
        with self.talking("connecting"):
            return KafkaAdminClient(**self._common())

    def _common(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.address.split(","),
            "client_id": "offbeat",
            "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
            "request_timeout_ms": self.timing.request,
            **self.security,
        }

    def must_answer(self) -> None:
        """Fail in one clear sentence, and before the client starts threads that it would not end."""
        reason = ""
        for server in self.servers:
            try:
                socket.create_connection(server, timeout=CONNECT_TIMEOUT_S).close()
            except OSError as error:
                reason = str(error)
            else:
                return
        raise BusDown(
            f"no Kafka broker answers at {self.address} ({reason}); start it, or mend the host and port "
            "of the bus URL"
        )

    @contextmanager
    def talking(self, doing: str) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except kafka_errors.KafkaError as error:
            raise self.translated(error, doing) from error

    def translated(self, error: BaseException, doing: str) -> BusError | NotFound:
        """The client's error as one of ours, in a sentence that names the address and what to do."""
        where = f"Kafka at {self.address}"
        if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
            return NotFound(f"{where} has no such topic or partition ({error}, while {doing})")
        if isinstance(error, kafka_errors.AuthorizationError | kafka_errors.SaslAuthenticationFailedError):
            return BusError(f"{where} refused {doing}: {error}; mend the credentials or the topic's ACLs")
        if isinstance(error, kafka_errors.RetriableError | kafka_errors.UnknownBrokerIdError):
            # The last is node -1: for the moment a partition has no leader.
            return BusDown(f"{where} did not answer while {doing} ({error}); see that its brokers run")
        return BusError(f"{where} failed while {doing}: {error}")


class Topics:
    """What topics exist, asked of the cluster itself so that nothing is created by asking."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._admin: Any = None
        self._known: set[str] = set()
        self._compacted: set[str] = set()

    @property
    def client(self) -> Any:  # noqa: ANN401 - the client has no types
        """The administration client, made at its first use."""
        if self._admin is None:
            self._admin = self._link.admin()
        return self._admin

    def describe(self, topic: str) -> dict[str, Any]:
        """The topic's metadata as it is now: ``topic_id`` and ``partitions``.

        Raises:
            NotFound: there is no such topic.
            BusDown: the cluster does not answer.
        """
        self._link.must_answer()  # the client would wait without end for a dead cluster
        with self._link.talking(f"describing topic {topic}"):
            [found] = self.client.describe_topics([topic])
        error = kafka_errors.for_code(found["error_code"])
        if error in {kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError}:
            raise NotFound(
                f"Kafka at {self._link.address} has no topic {topic!r}; make it with `offbeat topics create` "
                "or mend the name"
            )
        if error is not kafka_errors.NoError:
            raise self._link.translated(error(), f"describing topic {topic}")
        if found["topic_id"] is None:
            raise BusError(
                f"Kafka at {self._link.address} is older than 2.8 and knows no topic ids; upgrade it"
            )
        self._known.add(topic)
        return dict(found)

    def require(self, topic: str) -> None:
        """Raise NotFound unless the topic exists, or did when it was last asked for."""
        if topic not in self._known:
            self.describe(topic)

    def gapless(self, topic: str) -> bool:
        """Whether offsets follow each other without a hole in a topic's logs: it was never seen compacted.

        It is asked anew each time, since that can be changed, and holes stay. False where it is not told, as
        where the ACLs forbid to describe the topic's configuration.

        Raises:
            BusDown: the cluster does not answer.
        """
        if topic in self._compacted:
            return False
        self._link.must_answer()
        asked = ConfigResource(ConfigResourceType.TOPIC, topic, {CLEANUP_POLICY: None})
        try:
            with self._link.talking(f"asking whether {topic} is compacted"):
                found = self.client.describe_configs([asked], config_filter="all")
        except BusDown:
            raise
        except (BusError, NotFound):
            return False
        policy = found["topic"][topic].get(CLEANUP_POLICY, {}).get("value", "")
        if "compact" in policy:
            self._compacted.add(topic)
        return bool(policy == "delete")

    def forget(self, topics: Iterable[str]) -> None:
        """They are deleted."""
        self._known.difference_update(topics)

    def close(self) -> None:
        """End the connection."""
        if self._admin is not None:
            self._admin.close()


class _Null(Serializer):  # type: ignore[misc] # the client has no types
    """Passes values through, and turns ``NULL`` into the null it stands for."""

    def serialize(self, topic: str, headers: object, data: object) -> object:  # noqa: ARG002 - its interface
        """The bytes as they are."""
        return None if data is NULL else data


def enqueue(producer: Any, send: Send) -> Any:  # noqa: ANN401 - the client has no types
    """Hand one record to a client's producer; returns its future.

    Raises:
        TooLarge: the client sends no record so large.
        BusError: the record can never be written.
        KafkaError: the client's own trouble.
    """
    try:
        if send.partition is not None and send.partition not in producer.partitions_for(send.topic):
            _look_again(producer)
        return producer.send(
            send.topic,
            key=send.key,
            value=NULL if send.key is None and send.value is None else send.value,
            headers=list(send.headers),
            partition=send.partition,
            timestamp_ms=send.timestamp_ms,
        )
    except TOO_LARGE as error:
        raise oversized(send) from error
    except ValueError as error:  # the client's answer to a partition that does not exist
        raise BusError(f"a record for {send.topic} cannot be written: {error}") from error


def _look_again(producer: Any) -> None:  # noqa: ANN401 - the client has no types
    """Have a producer ask for the cluster's topics now: a partition may have been added to one."""
    asked = threading.Event()
    future = producer._metadata.request_update()  # noqa: SLF001 - no public way
    future.add_both(lambda *_: asked.set())
    producer._sender.wakeup()  # noqa: SLF001 - no public way
    asked.wait(producer.config["request_timeout_ms"] / 1_000)


def flush(producer: Any, timeout_s: float | None = None) -> None:  # noqa: ANN401 - the client has no types
    """Return when everything that a client's producer has queued is written, or has failed.

    Where a broker refuses a batch for its size, the client goes on with the halves of it; its own flush then
    ends with an error, and without waiting for them.
    """
    while producer._accumulator.has_incomplete:  # noqa: SLF001 - no public way
        with suppress(kafka_errors.UnknownError):
            producer.flush(timeout=timeout_s)


def oversized(send: Send) -> TooLarge:
    """The error for a record that no attempt can write."""
    return TooLarge(
        f"a record of {send.size} bytes for {send.topic} is larger than Kafka accepts; send less in one "
        "record, or raise max.message.bytes of the topic (this client sends at most 1 MiB)",
        send,
    )


def _never_create_topics(cluster: Any) -> None:  # noqa: ANN401 - the client has no types
    cluster.config["allow_auto_create_topics"] = False


def _server(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if not host or not port.isdecimal():
        raise ConfigError(f"the bus URL names the server {text!r}; write host:port, such as kafka1:9092")
    return host.strip("[]"), int(port)


def _one_of(settings: Mapping[str, str], name: str, allowed: tuple[str, str]) -> str:
    text = settings.get(name, allowed[0])
    if text not in allowed:
        raise ConfigError(f"the bus URL has {name}={text}; it is {' or '.join(allowed)}")
    return text


def _security(settings: Mapping[str, str]) -> dict[str, str]:
    security: dict[str, str] = {}
    for name, allowed in (("security_protocol", SECURITY_PROTOCOLS), ("sasl_mechanism", SASL_MECHANISMS)):
        if name in settings:
            if settings[name] not in allowed:
                raise ConfigError(
                    f"the bus URL has {name}={settings[name]}; it is one of {', '.join(allowed)}"
                )
            security[name] = settings[name]
    if "ssl_cafile" in settings:
        if not os.path.isfile(settings["ssl_cafile"]):  # noqa: PTH113 - a name from a URL, not a Path yet
            raise ConfigError(f"the bus URL has ssl_cafile={settings['ssl_cafile']}; there is no such file")
        security["ssl_cafile"] = settings["ssl_cafile"]
    for setting, name in (
        ("sasl_username_env", "sasl_plain_username"),
        ("sasl_password_env", "sasl_plain_password"),
    ):
        if setting in settings:
            secret = os.environ.get(settings[setting])
            if secret is None:
                raise ConfigError(f"{setting} of the bus URL names {settings[setting]}, which is not set")
            security[name] = secret
    return security
