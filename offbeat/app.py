"""The only place where parts are chosen and wired: configuration to bus, state store, models and worker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pipeline.bus
from offbeat.controls import Control, who
from pipeline.config import Config, Stream
from pipeline.control import policy_sha, settings_of
from pipeline.errors import ConfigError, NotFound
from pipeline.records import TopicSpec

if TYPE_CHECKING:  # these pull in torch, numba or redis, which most commands do not need
    from consumers.attempt import Parts as RetrainerParts
    from consumers.notifier import Parts as NotifierParts
    from consumers.replayer import Parts as ReplayParts
    from models import Registry
    from pipeline.loop import Parts
    from pipeline.notifications import Notification
    from pipeline.ports import Broker, Scorer
    from pipeline.state.server import StateServer
    from pipeline.status import Processed

DAY_MS = 24 * 3600 * 1000
ALERTS_RETENTION_MS = 30 * DAY_MS


@contextmanager
def open_bus(url: str) -> Iterator[Broker]:
    """The bus at a URL, closed at the end; the folder of a new SQLite file is made.

    Raises:
        ConfigError, BusDown, BusFull: as :func:`pipeline.bus.connect`.
    """
    if url.startswith("sqlite:///"):
        # One level only: a mistyped path is an error and no tree of new folders.
        with suppress(OSError):
            Path(url.removeprefix("sqlite:///").partition("?")[0]).parent.mkdir(exist_ok=True)
    with closing(pipeline.bus.connect(url)) as broker:
        yield broker


@contextmanager
def open_state(config: Config) -> Iterator[StateServer]:
    """The state server of an installation, closed at the end.

    Raises:
        ConfigError: the URL is wrong, or the embedded server cannot be used.
        StoreDown: it cannot be reached or started.
    """
    from pipeline.state import connect

    with closing(connect(config.state)) as server:
        yield server


def registry(config: Config) -> Registry:
    """The bundles of an installation."""
    from models import Registry

    return Registry(config.registry)


class StreamModels:
    """The bundles of one stream; see :class:`pipeline.ports.Models`."""

    def __init__(self, config: Config, stream: str) -> None:
        self._registry, self._name = registry(config), stream

    def scorer(self, bundle_id: str, settings: Stream) -> Scorer:
        """See :meth:`pipeline.ports.Models.scorer`."""
        from models import StackScorer
        from models.spec import check_fits

        bundle = self._registry.load(self._name, bundle_id)
        check_fits(bundle.manifest.spec, bundle_id, self._name, settings)
        return StackScorer(bundle)


def output_topics(config: Config) -> list[TopicSpec]:
    """The topics that all streams share; control is kept for ever."""
    return [
        TopicSpec(config.control_topic, 1, broker_time=True),
        TopicSpec(config.alerts_topic, 1, ALERTS_RETENTION_MS, broker_time=True),
        TopicSpec(config.notifications_topic, 1, ALERTS_RETENTION_MS, broker_time=True),
        TopicSpec(config.dead_letters_topic, 1, ALERTS_RETENTION_MS, broker_time=True),
    ]


def input_topics(config: Config, streams: Sequence[str], partitions: int) -> list[TopicSpec]:
    """The topics that streams read, each once; kept for ever, because recorded events are old at once."""
    names = dict.fromkeys(config.stream(name).topic for name in streams)
    return [TopicSpec(name, partitions) for name in names]


def journal_topics(config: Config, streams: Sequence[str], broker: Broker) -> list[TopicSpec]:
    """The journals of streams: a partition for each partition of the input, which is there; kept for ever."""
    topics = broker.admin().describe().topics
    return [
        TopicSpec(config.journal_topic(name), topics[config.stream(name).topic], broker_time=True)
        for name in streams
    ]


def settle_policy(
    config: Config, stream: str, broker: Broker, notice: Callable[[str], None] = lambda _: None
) -> None:
    """See that a stream has a policy: the configuration's section, where it has none yet.

    Raises:
        ConfigError: the policy in force reads another topic than the configuration says.
        BusDown: the bus cannot be reached.
    """
    control = Control(config, broker, who("first start"), notice)
    view, wanted = control.view(), config.stream(stream)
    sha = view.policies.get(stream)
    if sha is None:
        control.apply(stream, "the stream's first start")
        return
    in_force = view.settings[sha]
    if in_force.topic != wanted.topic:
        raise ConfigError(
            f"the policy in force for stream {stream!r} reads the topic {in_force.topic!r}, and the "
            f"configuration {wanted.topic!r}; `offbeat config apply` puts the configuration in force"
        )
    if sha != policy_sha(settings_of(wanted)):
        notice(
            f"the configuration's section of stream {stream!r} is not the policy in force; "
            "`offbeat config apply` shows the difference and puts it in force"
        )


def require_input(config: Config, stream: str, broker: Broker) -> None:
    """See that a stream's input topic is there.

    Raises:
        NotFound: it is not.
        BusDown: the bus cannot be reached.
    """
    topic = config.stream(stream).topic
    if topic not in broker.admin().describe().topics:
        raise NotFound(
            f"stream {stream!r} reads the topic {topic!r}, which {config.bus} does not have; make it with "
            f"`offbeat topics create {stream}`, or mend `topic` or `bus` in the configuration"
        )


@contextmanager
def open_parts(
    config: Config,
    stream: str,
    slot: int,
    *,
    observe: Callable[[Processed], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Parts]:
    """All that the worker in ``slot`` of a stream is made of; leaving the context leaves the group.

    Output topics that are missing are made. The caller holds the slot (:func:`offbeat.slots.hold`).

    Raises:
        NotFound: the input topic does not exist.
        StoreDown, BusDown: a server cannot be reached; trying again can help.
        OffbeatError: what else :func:`open_bus` and :func:`open_state` raise.
    """
    from pipeline.loop import Parts
    from pipeline.state.snapshots import FolderSnapshots

    models = StreamModels(config, stream)
    with open_state(config) as server, open_bus(config.bus) as broker:
        server.ping()
        require_input(config, stream, broker)
        admin, reader = broker.admin(), broker.reader()
        admin.create([*output_topics(config), *journal_topics(config, [stream], broker)])
        settle_policy(config, stream, broker, notice)
        bus = broker.bus(
            group=config.group(stream),
            topics=[config.stream(stream).topic],
            transactional_id=config.transactional_id(stream, slot),
        )
        store = server.store(namespace=config.namespace, stream=stream)
        snapshots = FolderSnapshots(config.snapshots, namespace=config.namespace, stream=stream)
        yield Parts(
            config, stream, bus, reader, admin, store, snapshots, models,
            observe=observe, notice=notice, wait=wait,
        )  # fmt: skip


@contextmanager
def open_notifier(
    config: Config,
    *,
    observe: Callable[[Notification], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[NotifierParts]:
    """All that a notifier is made of; leaving the context leaves the group. Topics that are missing are made.

    Raises:
        OffbeatError: what :func:`open_bus` raises.
    """
    from consumers.notifier import Parts

    with open_bus(config.bus) as broker:
        broker.admin().create(output_topics(config))
        # No two live processes may share a transactional id, and those that stand by are live as well.
        bus = broker.bus(
            group=config.notifier_group,
            topics=[config.alerts_topic],
            transactional_id=f"{config.notifier_group}.{uuid.uuid4().hex}",
        )
        yield Parts(config, bus, broker.reader(), observe=observe, notice=notice, wait=wait)


@contextmanager
def open_retrainer(
    config: Config,
    stream: str,
    who: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = lambda _: None,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[RetrainerParts]:
    """All that a stream's retrainer is made of, which decides as ``who``. Topics that are missing are made.

    Raises:
        NotFound: the input topic does not exist.
        StoreDown, BusDown: a server cannot be reached; trying again can help.
        OffbeatError: what else :func:`open_bus` and :func:`open_state` raise.
    """
    from consumers.attempt import Parts

    with open_state(config) as server, open_bus(config.bus) as broker:
        server.ping()
        require_input(config, stream, broker)
        broker.admin().create(output_topics(config))
        leases = server.leases(namespace=config.namespace)
        yield Parts(
            config, stream, broker.reader(), broker.producer(), registry(config), leases, who,
            should_stop=should_stop, notice=notice, wait=wait,
        )  # fmt: skip


@contextmanager
def open_replay(config: Config, stream: str) -> Iterator[ReplayParts]:
    """All that a replay of a stream is made of: the bus, to read from, the snapshots and the models.

    Raises:
        NotFound: the input topic does not exist, or nobody ever watched the stream.
        OffbeatError: what else :func:`open_bus` raises.
    """
    from consumers.replayer import Parts
    from pipeline.state.snapshots import FolderSnapshots

    with open_bus(config.bus) as broker:
        require_input(config, stream, broker)
        if (
            not {config.control_topic, config.journal_topic(stream)}
            <= broker.admin().describe().topics.keys()
        ):
            raise NotFound(
                f"stream {stream!r} was never watched: there is no journal of what was in force for its "
                f"records; let a worker read them first (`offbeat detect {stream}`)"
            )
        snapshots = FolderSnapshots(config.snapshots, namespace=config.namespace, stream=stream)
        models = StreamModels(config, stream)
        yield Parts(config, stream, broker.reader(), broker.admin(), snapshots, models)
