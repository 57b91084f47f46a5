"""Where a run of the benchmark takes place: its buses, its folder, its sizes, and what it says meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from confluent_kafka import Producer

from offbeat.app import input_topics, open_bus
from offbeat.benchmark.installation import SCOPES, Readings, settings, teach
from pipeline.bus.kafka_link import Link
from pipeline.config import Config
from producers.synthetic import Synthetic, produce

BULK = {
    "linger.ms": 50,
    "batch.size": 1_000_000,
    "batch.num.messages": 100_000,
    "queue.buffering.max.messages": 1_000_000,
    "message.timeout.ms": 60_000,
}
"""How topics are filled: by confluent-kafka, since kafka-python writes a tenth as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds, sweep_rounds: interleaved repeats of the stage table, and of the rates.
        kafka_records, embedded_records: of the stage table's topics.
        others_records: that the other engines read of it; they are slow.
        sweep_records: of the rates' topics.
        batches, series, features, partitions, compressions: what the rates are measured against.
        rates: records a second of the latency; quiet_s and spiky_s are how long, at each.
        memory_series: at least two; a million in full.
        takeovers: of each kind.
        makes_environments: for other engines and the picture, where they are not made yet.
    """

    rounds: int
    kafka_records: int
    embedded_records: int
    others_records: int
    sweep_rounds: int
    sweep_records: int
    batches: tuple[int, ...]
    series: tuple[int, ...]
    features: tuple[int, ...]
    partitions: tuple[int, ...]
    compressions: tuple[str, ...]
    rates: tuple[int, ...]
    quiet_s: float
    spiky_s: float
    memory_series: tuple[int, ...]
    takeovers: int
    makes_environments: bool = True


FULL = Sizes(
    rounds=5,
    kafka_records=1_500_000,
    embedded_records=800_000,
    others_records=600_000,
    sweep_rounds=3,
    sweep_records=600_000,
    batches=(500, 2_000, 5_000, 20_000, 50_000),
    series=(100, 1_000, 10_000, 100_000),
    features=(1, 4, 16),
    partitions=(1, 4, 12),
    compressions=("none", "lz4", "zstd", "gzip"),
    rates=(5_000, 20_000, 50_000, 100_000),
    quiet_s=10,
    spiky_s=20,
    memory_series=(1_000, 100_000, 1_000_000),
    takeovers=3,
)
QUICK = Sizes(
    rounds=1,
    kafka_records=400_000,
    embedded_records=300_000,
    others_records=200_000,
    sweep_rounds=1,
    sweep_records=200_000,
    batches=(500, 20_000),
    series=(100, 10_000),
    features=(1, 16),
    partitions=(1, 4),
    compressions=("none", "zstd"),
    rates=(5_000, 50_000),
    quiet_s=3,
    spiky_s=6,
    memory_series=(1_000, 20_000),
    takeovers=1,
)
SMALLEST = Sizes(
    rounds=1,
    kafka_records=96_000,
    embedded_records=96_000,
    others_records=64_000,
    sweep_rounds=1,
    sweep_records=64_000,
    batches=(20_000,),
    series=(100,),
    features=(1,),
    partitions=(2,),
    compressions=("gzip",),
    rates=(5_000, 50_000),
    quiet_s=1,
    spiky_s=2,
    memory_series=(1_000, 3_000),
    takeovers=1,
    makes_environments=False,
)


@dataclass(slots=True)
class Place:
    """Where a run takes place; ``kafka`` is the bus URL of a real Kafka, ``embedded`` that of a file."""

    folder: Path
    kafka: str
    run: str
    sizes: Sizes
    part: str = ""
    _numbers: count[int] = field(default_factory=count)

    @property
    def embedded(self) -> str:
        """The bus in a file."""
        return f"sqlite:///{self.folder / 'bus.db'}"

    @property
    def servers(self) -> str:
        """The brokers, as other clients take them."""
        return Link.parse(self.kafka).address

    def topic(self, name: str) -> str:
        """A topic of this run: a broker that was given may hold topics of an earlier one."""
        return f"{self.run}.{name}"

    def config(self, topic: str, *, bus: str = "", features: int = 4) -> Config:
        """Settings over a topic, in a namespace that nobody used."""
        namespace = f"{self.run}.{next(self._numbers)}"
        return settings(namespace, self.topic(topic), bus or self.kafka, self.folder, features)

    def make(self, topic: str, *, bus: str = "", partitions: int = 1) -> Config:
        """Make a topic; its settings are of a namespace that nobody used."""
        config = self.config(topic, bus=bus)
        with open_bus(config.bus) as broker:
            broker.admin().create(input_topics(config, [next(iter(SCOPES))], partitions))
        return config

    def fill(
        self, topic: str, readings: Readings, *, bus: str = "", partitions: int = 1, compression: str = "lz4"
    ) -> None:
        """Make a topic and write readings into it."""
        config = self.make(topic, bus=bus, partitions=partitions)
        if config.bus == self.kafka:
            self.write(topic, readings, compression)
            return
        with open_bus(config.bus) as broker:
            produce(broker.producer(), self.topic(topic), readings.options)

    def write(self, topic: str, readings: Readings, compression: str = "lz4") -> None:
        """Write readings into a topic of Kafka that is there, as fast as it goes."""
        producer = Producer({"bootstrap.servers": self.servers, "compression.type": compression, **BULK})
        for chunk in Synthetic(readings.options).chunks(self.topic(topic)):
            for send in chunk.sends:
                while True:
                    try:
                        producer.produce(send.topic, send.value, send.key, timestamp=send.timestamp_ms or 0)
                        break
                    except BufferError:
                        producer.poll(0.05)
            producer.poll(0)
        if left := producer.flush(60):
            raise RuntimeError(f"Kafka did not take {left} records of the topic {topic} within a minute")

    def teach(self, features: int = 4) -> None:
        """Train the bundles of streams with so many features, once."""
        teach(settings(self.run, self.topic("untaught"), "sqlite://", self.folder, features))

    def say(self, text: str) -> None:
        """What is being done, a line each."""
        print(f"  {time.strftime('%H:%M:%S')} {self.part}: {text}", flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of repeats, the lowest and the highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def environment() -> dict[str, str]:
    """What child processes see: this checkout before anything that is installed."""
    root = Path(__file__).resolve().parent.parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
