"""One run of the demo: what happens when.

What the demo costs is part of what it learns, so its load is even: the worker, the producer and the view run
from the first reading to the last, and everything is compiled and loaded before. Training is the exception;
:meth:`Play.train` says how its rows are kept out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec

from consumers import detector
from models import rows_needed
from models.episodes import LeftOut
from models.history import Part
from models.learning import Step
from models.spec import model_spec
from offbeat import app, training
from offbeat.cli.stopping import Stop
from offbeat.controls import Control, who
from offbeat.demo.scene import Scene
from pipeline.alerts import Alert
from pipeline.config import Config
from pipeline.detect import Detector
from pipeline.errors import OffbeatError
from pipeline.ports import Reader
from pipeline.records import RecordBatch, TopicPartition, TopicSpec
from pipeline.testing import FakeScorer
from producers import host
from producers.burst import Burst

STREAM = "host"
PER_SECOND = 15.0
QUIET_SHARE = 1 / 3
"""How long the quiet time before the burst is, against the time of learning."""
BURST_S = 8.0
LATE_ALERT_S = 5.0
"""How long after the burst its alert may come."""
PATIENCE_S = 20.0
"""How long everything else is waited for that should be there soon."""
RETENTION_MS = 3_600_000
"""A Kafka that was handed in keeps the demo's topics; their records go after an hour."""
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """A part at work in a thread of its own."""

    stop: Stop
    future: Future[None]

    def check(self) -> None:
        """Raise what it raised, if it has ended by that."""
        if self.future.done():
            self.future.result()

    def finish(self) -> None:
        """Ask it to end, and wait until it has; raises what it raised."""
        self.stop.asked = True
        self.future.result()


class ShownReader(host.HostReader):
    """Reads the machine for the producer, and shows what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(self.features)

    def read(self) -> host.Reading:
        """See :meth:`producers.host.HostReader.read`."""
        reading = super().read()
        self.scene.readings.append(reading)
        return reading


class AlertTail:
    """Reads a topic of alerts from its first record on, as any subscriber would."""

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader, self._partition, self._next_offset = reader, TopicPartition(topic, 0), 0

    def read(self, timeout_s: float) -> list[Alert]:
        """The alerts that came since the last call, within ``timeout_s`` when there were none."""
        batch = self._reader.read(self._partition, self._next_offset, 100, timeout_s)
        self._next_offset = batch.next_offset
        return [Alert.model_validate_json(batch.value(row) or b"") for row in range(len(batch))]


def raised(alerts: Sequence[Alert], since: float, until: float) -> list[Alert]:
    """Revisions of the alerts that a burst raised, which ran between two times in epoch seconds.

    They began while it ran, and fired because something was above what was expected: other work that ended
    just then is no find.
    """
    ids = {
        alert.id
        for alert in alerts
        if alert.revision == 1
        and since <= alert.started_at.timestamp() <= until
        and alert.features[0].observed > alert.features[0].expected
    }
    return [alert for alert in alerts if alert.id in ids]


class Play:
    """One run, from the first topic to the last commit; used from the main thread."""

    def __init__(self, config: Config, reader: ShownReader, seconds: float, tick: Callable[[], None]) -> None:
        self._config, self._reader, self._seconds, self._tick = config, reader, seconds, tick
        self._scene = reader.scene
        self._stream = config.stream(STREAM)
        self._tasks: list[Task] = []
        self._burst_at = self._burst_end = math.inf
        self._before = self._during = ""
        self._peak = math.nan
        self._was_firing = False

    @property
    def found(self) -> list[Alert]:
        """Revisions of the alerts that the burst raised."""
        return raised(self._scene.alerts, self._burst_at, self._burst_end)

    @property
    def shortfall(self) -> str:
        """Why there may be no alert for the burst, in figures, and what to do."""
        open_before = ", and an alert for something else was open when it began" if self._was_firing else ""
        return (
            f"no alert began with the burst of load: before it {self._before}, during it {self._during}; the "
            f"highest score was {self._peak:.2f} (1 is the line){open_before}. Other work changes what this "
            "machine does: run the demo again, or let it learn more of that work with --seconds 120"
        )

    def play(self) -> None:
        """Run everything, in order.

        Raises:
            OffbeatError: a part failed, or was not there in time.
        """
        scene = self._scene
        self._begin("starting", "compiling the inner loops (some 20 s the first time)")
        compile_kernels(self._config)
        with app.open_bus(self._config.bus) as broker, self._threads() as start:
            broker.admin().create(self._topics())
            self._control = Control(self._config, broker, who("offbeat demo"))
            self._alerts = AlertTail(broker.reader(), self._config.alerts_topic)
            self._begin("starting", "bus, state server and worker")
            worker = start(self._work)
            self._await(lambda: scene.status.doing == "waiting for a model", "the worker")
            producer = start(self._produce)
            self._await(lambda: scene.sent > 0, "the first reading")
            self.learn()
            self.train(broker.reader())
            self.detect()
            self._begin("closing", "reading what is left, committing, leaving the group")
            producer.finish()
            self._await(lambda: sum(scene.bins.values()) >= scene.sent, "the worker to read the last records")
            worker.finish()
            self._look()
            committed = broker.admin().committed(self._config.group(STREAM), self._stream.topic)
            scene.records_read = sum(committed.values())

    def learn(self) -> None:
        """Gather readings; a machine that stalls needs longer than asked for."""
        need = rows_needed(model_spec(self._stream))
        self._begin("learning")
        self._watch(self._seconds)
        self._await(lambda: self._scene.sent >= need, f"{need} readings to learn from")

    def train(self, reader: Reader) -> None:
        """Train on what was gathered, and hand the model over when no window holds a row of that time.

        Training loads the machine, and neither teaches nor raises an alert: the range that is learned from
        is fixed before it begins, and the worker is given the model only when its window, and the second
        that each reading covers, have left that time behind.
        """
        self._begin("training")
        part = Part(self._stream.training.rows)
        source = training.from_topic(reader, self._config, STREAM, part)
        bundle_id = training.learn(
            self._config, STREAM, source, part, self._show_step, left_out=LeftOut(), promote=lambda _: None
        ).bundle_id

        self._begin("settling")
        rows = math.ceil(host.WINDOW_S * PER_SECOND) + self._stream.model.window + 1
        clean = self._scene.sent + rows
        self._await(lambda: self._scene.sent >= clean, f"{rows} readings after training")
        self._control.promote(STREAM, bundle_id, "trained on the readings of this run")
        self._await(lambda: self._scene.judged > 0, "the first score")

    def detect(self) -> None:
        """A quiet time, the burst, and what follows from it."""
        scene = self._scene
        self._begin("quiet")
        self._watch(self._seconds * QUIET_SHARE)
        self._watch(PATIENCE_S, until=lambda: not scene.firing)
        self._was_firing = scene.firing
        self._before = self._figures()
        judged = scene.judged
        self._burst_at = time.time()
        with Burst(BURST_S) as burst:
            self._begin("burst", f"{burst.pairs} busy pairs")
            self._watch(BURST_S, until=lambda: not burst.running)
        self._burst_end = time.time()
        self._during = self._figures()
        scores = list(scene.scores)
        self._peak = max(scores[len(scores) + judged - scene.judged :], default=math.nan)
        self._begin("after")
        self._watch(LATE_ALERT_S, until=lambda: bool(self.found))
        self._watch(PATIENCE_S, until=lambda: not scene.firing)

    def _figures(self) -> str:
        """What the burst moves, over the last two seconds, as far as this machine gives it."""
        shown = {"ctx_switches": "context switches a second", "cpu": "% of the processors in use"}
        given = [feature.name for feature in self._scene.features if feature.name in shown]
        rows = round(2 * PER_SECOND)
        return " and ".join(f"{self._scene.mean(name, rows):,.0f} {shown[name]}" for name in given)

    def _topics(self) -> list[TopicSpec]:
        made = [*app.input_topics(self._config, [STREAM], 1), *app.output_topics(self._config)]
        return [replace(spec, retention_ms=RETENTION_MS) for spec in made]

    def _work(self, stop: Stop) -> None:
        """The worker's thread. The namespace is this run's own, so nobody else can be in slot 0."""
        observe = self._scene.on_processed
        with app.open_parts(self._config, STREAM, 0, observe=observe, wait=stop.wait) as parts:
            detector.run(parts, should_stop=stop, on_status=self._scene.on_status)

    def _produce(self, stop: Stop) -> None:
        """The producer's thread."""
        with app.open_bus(self._config.bus) as broker:
            host.produce(
                broker.producer(),
                self._stream.topic,
                per_second=PER_SECOND,
                reader=self._reader,
                on_progress=self._scene.on_sent,
                should_stop=stop,
                sleep=stop.wait,
            )

    @contextmanager
    def _threads(self) -> Iterator[Callable[[Callable[[Stop], None]], Task]]:
        """Gives what starts a part in a thread of its own; all of them end with the context."""
        with ThreadPoolExecutor() as pool:

            def start(work: Callable[[Stop], None]) -> Task:
                stop = Stop()
                self._tasks.append(Task(stop, pool.submit(work, stop)))
                return self._tasks[-1]

            try:
                yield start
            finally:
                for task in self._tasks:
                    task.stop.asked = True

    def _begin(self, phase: str, detail: str = "") -> None:
        self._scene.begin(phase, detail)
        self._tick()

    def _show_step(self, step: Step) -> None:
        self._scene.fraction, self._scene.detail = step.fraction, step.detail
        self._tick()

    def _look(self) -> None:
        """A moment of watching; raises what failed in a thread."""
        for task in self._tasks:
            task.check()
        self._scene.alerts += self._alerts.read(LOOK_S)
        self._tick()

    def _watch(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds and not until():
            self._scene.fraction = passed / seconds
            self._look()

    def _await(self, there: Callable[[], bool], what: str) -> None:
        self._watch(PATIENCE_S, until=there)
        if not there():
            status = self._scene.status
            raise OffbeatError(
                f"waited {PATIENCE_S:g} s for {what}, in vain; the worker says {status.doing!r}: "
                f"{status.message}"
            )


def compile_kernels(config: Config) -> None:
    """Run the detect step on made-up readings, so that no compiler loads the machine while it is learned.

    What is compiled is kept beside the source; from the second run on this takes a moment.
    """
    stream = config.stream(STREAM)
    step = Detector(config.namespace, STREAM, stream)
    state = step.fresh("made up", 0)
    events = [
        (
            None,
            msgspec.json.encode({"time": row, "host": "made-up"} | dict.fromkeys(stream.feature_names, 0.0)),
            1_000 * row,
        )
        for row in range(2 * stream.model.window)
    ]
    batch = RecordBatch.of(TopicPartition(stream.topic, 0), 0, events)
    step.step(state, batch.before(stream.model.window), None)
    step.step(state, batch.since(stream.model.window), FakeScorer())
