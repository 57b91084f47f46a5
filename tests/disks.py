"""A Kafka broker whose own files tests may damage."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from servers import kafka_server


@dataclass(frozen=True)
class Disk:
    """A broker and the folder in which it keeps its logs."""

    bootstrap: str
    folder: Path

    def topic(self, **configs: str) -> str:
        """A new topic of one partition; configs are its own, with underscores for dots."""
        topic = f"topic-{uuid.uuid4().hex}"
        with closing(KafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            settings = {name.replace("_", "."): value for name, value in configs.items()}
            admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1, "configs": settings}})
            admin.wait_for_topics([topic])
        return topic

    def write(self, topic: str, first: int = 0, end: int = 80) -> Path:
        """The numbers from ``first`` to ``end`` as batches of 10 records; the topic's oldest segment."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, linger_ms=1_000)
        for start in range(first, end, 10):
            for number in range(start, start + 10):
                producer.send(topic, value=b"%d" % number, key=b"%d" % (number % 7), partition=0)
            producer.flush()
        producer.close()
        return self.segments(topic)[0]

    def segments(self, topic: str) -> list[Path]:
        """The files of the log, oldest first."""
        return sorted((self.folder / "data" / f"{topic}-0").glob("*.log"))


@contextmanager
def disk_broker(home: Path, folder: Path) -> Iterator[Disk]:
    """A broker from a distribution; it cleans and deletes at once what tests wait for."""
    settings = {"log_cleaner_backoff_ms": "100", "log_retention_check_interval_ms": "200"}
    with kafka_server(home, folder, **settings) as bootstrap:
        yield Disk(bootstrap, folder)


def places(segment: Path) -> dict[int, int]:
    """Where each batch of a segment begins, by its base offset."""
    data, found, at = segment.read_bytes(), {}, 0
    while at < len(data):
        base, length = struct.unpack_from(">qi", data, at)
        found[base] = at
        at += 12 + length
    return found


def overwrite(segment: Path, at: int, data: bytes) -> bytes:
    """Change a segment in place; what stood there before."""
    with segment.open("r+b") as file:
        file.seek(at)
        before = file.read(len(data))
        file.seek(at)
        file.write(data)
    return before
