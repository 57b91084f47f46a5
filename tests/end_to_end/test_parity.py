"""The same answer twice, on a real Kafka: live work through faults and decisions, and replays of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from faults import load
from redis import Redis

from consumers.replayer import Replay, Replayer, compare
from offbeat import app
from offbeat.controls import Control
from pipeline import config
from pipeline.alerts import Alert
from pipeline.bus import connect
from pipeline.control import Expired, Feedback, Record, Silenced, send
from pipeline.errors import BusError
from pipeline.journal import InForce, JournalLog
from pipeline.ports import Broker
from pipeline.reading import stretch
from pipeline.records import Bounds, TopicPartition
from pipeline.series import PartitionState
from pipeline.silences import Matchers, Silence
from pipeline.state import connect as connect_state

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

STREAM, PARTITIONS = load.STREAM, load.PARTITIONS
SLICE = 400
DEADLINE_S = 60.0


@dataclass
class Site:
    """An installation on a real Kafka and a real Valkey, with worker processes as an operator starts them."""

    folder: Path
    namespace: str
    bus: str
    state: str
    broker: Broker
    workers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = self.configured(0)
        self.topic, self.group = self.settings.stream(STREAM).topic, self.settings.group(STREAM)
        topics = [*app.input_topics(self.settings, [STREAM], PARTITIONS), *app.output_topics(self.settings)]
        self.admin, self.reader, self.producer = (
            self.broker.admin(),
            self.broker.reader(),
            self.broker.producer(),
        )
        self.admin.create(topics)
        self.journal = JournalLog(self.reader, self.settings.journal_topic(STREAM))
        self.records = load.sends(self.topic)

    def configured(self, policy: int) -> config.Config:
        """Write the configuration under one of the policies."""
        text = load.settings_text(self.namespace, self.bus, self.folder, self.folder / "models", policy)
        text = text.replace(f"embedded:///{self.folder}/state", self.state)
        (self.folder / "offbeat.yaml").write_text(text)
        return config.parse(text)

    def produce(self, slices: int) -> None:
        self.producer.send(islice(self.records, slices * SLICE))
        self.producer.flush()

    def start(self, slot: int) -> None:
        command = ["-m", "offbeat", "detect", "--config", f"{self.folder}/offbeat.yaml", "--slot", str(slot)]
        with (self.folder / f"worker-{slot}.txt").open("ab") as said:
            self.workers[slot] = subprocess.Popen(
                [sys.executable, *command], stdout=said, stderr=subprocess.STDOUT
            )

    def end(self, slot: int, number: signal.Signals) -> None:
        worker = self.workers.pop(slot)
        worker.send_signal(number)
        worker.wait(30)

    def lose_redis(self) -> None:
        """All that Redis has of this installation is gone."""
        with Redis.from_url(self.state) as client:
            keys = list(client.scan_iter(f"*{self.namespace}:*"))
            assert client.delete(*keys) == len(keys) > PARTITIONS

    def caught_up(self) -> None:
        """Wait until every record is committed."""
        ends = {number: each.end_offset for number, each in self.reader.bounds(self.topic).items()}
        self.wait_for(lambda: self.admin.committed(self.group, self.topic) == ends, "the records to be read")

    def decide(self, bundle: str | None = None, policy: int | None = None) -> None:
        """Put a bundle or a policy in force, and wait until the whole stream is under it."""
        control = self.control if policy is None else self.control_of(self.configured(policy))
        if bundle is not None:
            control.promote(STREAM, bundle, "to see")
        elif policy is not None:
            control.apply(STREAM, "to see")
        view = control.view()
        wanted = view.champions.get(STREAM), view.policies[STREAM], view.decided(STREAM)
        everywhere = [wanted] * PARTITIONS
        self.wait_for(lambda: list(map(self.in_force, range(PARTITIONS))) == everywhere, "a decision")

    def speak(self) -> None:
        """Two false alarms, a new normal for a series with an open alert, and a freeze for half of all."""
        alerts = self.alerts()
        open_ = {each.id: each for each in alerts if each.kind == "anomaly"}
        said = sorted(each.series for each in open_.values() if each.state == "firing")
        accepted = next(each for each in alerts if each.series == said[0])
        for verdict, alert in ("false alarm", alerts[0]), ("false alarm", alerts[-1]), ("accept", accepted):
            self.publish(Feedback, alert=alert.id, series=alert.series, verdict=verdict)
        silence = Silence(
            matchers=Matchers(series_regex=r".*[02468]"),
            mode="freeze",
            start=max(each.at for each in alerts) - timedelta(seconds=30),
            end=max(each.at for each in alerts) + timedelta(days=1),
        )
        self.publish(Silenced, id="0123456789ab", silence=silence)
        self.decide()

    def lift(self) -> None:
        """The freeze ends before its time."""
        self.publish(Expired, id="0123456789ab")
        self.decide()

    def publish(self, kind: type[Record], **what: object) -> None:
        record = kind(stream=STREAM, at=datetime.now(UTC), who="a test", why="to see", **what)
        self.producer.send([send(record, self.settings.control_topic)])
        self.producer.flush()

    def control_of(self, settings: config.Config) -> Control:
        return Control(settings, self.broker, "a test")

    @property
    def control(self) -> Control:
        return self.control_of(self.settings)

    def in_force(self, partition: int) -> tuple[str | None, str, int]:
        entries = [each for each in self.journal.entries(partition)[0] if isinstance(each, InForce)]
        return entries[-1].bundle_sha, entries[-1].policy_sha, entries[-1].decided

    def wait_for(self, holds: Callable[[], object], what: str) -> None:
        until = time.monotonic() + DEADLINE_S
        while not self._holds(holds):
            said = [path.read_text()[-800:] for path in self.folder.glob("worker-*.txt")]
            assert time.monotonic() < until, f"waited for {what}: {said}"
            time.sleep(0.05)

    @staticmethod
    def _holds(holds: Callable[[], object]) -> bool:
        with suppress(BusError, IndexError):  # a commit is on its way; nothing is journaled yet
            return bool(holds())
        return False

    def alerts(self) -> list[Alert]:
        topic = self.settings.alerts_topic
        end = self.reader.bounds(topic)[0].end_offset
        batches = stretch(self.reader, TopicPartition(topic, 0), 0, end)
        return [
            Alert.model_validate_json(batch.value(row) or b"")
            for batch in batches
            for row in range(len(batch))
        ]

    def stored(self, replay: Replay) -> PartitionState:
        """What live work stored of a partition at its end."""
        with closing(connect_state(self.state)) as server:
            rows = server.store(namespace=self.namespace, stream=STREAM).claim(replay.partition).rows
        assert rows is not None
        state = PartitionState.unpack(replay.state.layout, rows)
        assert state is not None
        return state

    @contextmanager
    def replays(self, firsts: dict[int, int]) -> Iterator[list[Replay]]:
        """A replay of each partition from an offset to its end."""
        with app.open_replay(self.settings, STREAM) as parts:
            ranges = {
                number: Bounds(firsts[number], each.end_offset, each.topic_id, each.end_offset)
                for number, each in parts.reader.bounds(self.topic).items()
            }
            replays, left_out = Replayer(parts).prepare(ranges)
            assert left_out == []
            yield replays

    def first_snapshots(self) -> dict[int, int]:
        """The offset of each partition's first snapshot."""
        found: dict[int, int] = {}
        for path in sorted((self.folder / "snapshots").rglob("*.snapshot"), reverse=True):
            found[int(path.parent.name)] = int(path.name.split("-")[0])
        return found


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    models = tmp_path_factory.mktemp("models")
    return models, load.learn(models)


@pytest.fixture
def sites(
    kafka_bootstrap: str, valkey_url: str, tmp_path: Path, bundles: tuple[Path, tuple[str, str]]
) -> Iterator[Callable[[], Site]]:
    """Makes installations; nothing of them is left at the end."""
    bus = f"kafka://{kafka_bootstrap}?session_timeout_ms=3000"
    with ExitStack() as opened:

        def made() -> Site:
            namespace = f"n{uuid.uuid4().hex[:8]}"
            folder = tmp_path / namespace
            folder.mkdir()
            (folder / "models").symlink_to(bundles[0])
            broker = opened.enter_context(closing(connect(bus)))
            site = Site(folder, namespace, bus, valkey_url, broker)
            opened.callback(lambda: [site.end(slot, signal.SIGKILL) for slot in list(site.workers)])
            return site

        yield made


def run(site: Site, bundles: tuple[str, str], workers: int, *, faults: bool) -> None:
    """A stream's life: two bundles, two policies, feedback, a freeze; where asked for, faults."""
    for slot in range(workers):
        site.start(slot)
    site.produce(3)
    site.caught_up()
    site.decide(bundle=bundles[0])
    site.produce(6)
    if faults:
        site.end(0, signal.SIGKILL)
        site.produce(2)
        site.start(0)
    else:
        site.produce(2)
    site.caught_up()
    site.decide(bundle=bundles[1])
    site.produce(5)
    site.caught_up()
    site.speak()
    site.produce(3)
    if faults:
        site.lose_redis()
        site.end(0, signal.SIGKILL)
        site.end(1, signal.SIGKILL)
        site.start(0)
    site.caught_up()
    site.decide(policy=1)
    site.produce(4)
    site.caught_up()
    site.lift()
    if faults:
        site.start(1)
    site.produce(4)
    site.caught_up()
    for slot in list(site.workers):
        site.end(slot, signal.SIGTERM)
        assert "stopped" in (site.folder / f"worker-{slot}.txt").read_text()


def assert_same(live: PartitionState, replayed: PartitionState) -> None:
    assert live.counters.named() == replayed.counters.named()
    assert (live.next_offset, live.clock_ns) == (replayed.next_offset, replayed.clock_ns)
    live_names = {name for slot, name in enumerate(live.names) if name and live.rows["live"][slot]}
    assert live_names == {
        name for slot, name in enumerate(replayed.names) if name and replayed.rows["live"][slot]
    }
    for name in live_names:
        row, other = live.rows[live.index[name]], replayed.rows[replayed.index[name]]
        for column in live.rows.dtype.names or ():
            assert row[column] == pytest.approx(other[column], rel=1e-5), (name, column)


def test_a_live_run_through_faults_and_its_replays_are_the_same(
    sites: Callable[[], Site], bundles: tuple[Path, tuple[str, str]]
) -> None:
    """In batches of 1, 7, 500 and 20,000 records, from the first snapshot."""
    site = sites()
    run(site, bundles[1], 2, faults=True)
    published = site.alerts()
    assert len({(one.id, one.revision) for one in published}) == len(published) > 100
    assert any(one.reason == "accepted" for one in published)
    firsts = site.first_snapshots()

    for batch_records in (1, 7, 500, 20_000):
        with site.replays(firsts) as replays:
            for replay in replays:
                assert (replay.exact, replay.notes) == (True, [])
                assert "snapshot" in replay.basis
                for _ in replay.run(batch_records):
                    pass
                assert replay.ties == []
                assert_same(site.stored(replay), replay.state)
            compared = compare(replays, published)
            assert compared.differences == []
            assert compared.same == sum(
                one.source.offset >= firsts[one.source.partition] for one in published
            )


def judged(site: Site) -> Counter[tuple[object, ...]]:
    """Alerts without what only their own installation has."""
    return Counter(
        (one.series, one.kind, one.started_at, one.at, one.revision, one.state, one.reason, one.source.offset)
        for one in site.alerts()
    )


def test_another_number_of_workers_gives_the_same_alerts_and_bins(
    sites: Callable[[], Site], bundles: tuple[Path, tuple[str, str]]
) -> None:
    one, two = sites(), sites()
    run(one, bundles[1], 1, faults=False)
    run(two, bundles[1], 2, faults=True)

    assert judged(one) == judged(two)
    with (
        one.replays(dict.fromkeys(range(PARTITIONS), 0)) as replays,
        two.replays(dict.fromkeys(range(PARTITIONS), 0)) as others,
    ):
        for replay, other in zip(replays, others, strict=True):
            for _ in replay.run():
                pass
            for _ in other.run(333):
                pass
            assert_same(one.stored(replay), two.stored(other))
            assert_same(replay.state, other.state)
