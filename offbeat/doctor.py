"""Looking an installation over: what is there, what is missing, and what to do about each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from consumers.attempt import training_of
from consumers.due import last_decision
from models import Registry
from models.spec import check_fits
from offbeat import app
from pipeline.config import Config, Stream
from pipeline.control import ControlLog, ControlView, policy_sha, settings_of
from pipeline.errors import ConfigError, OffbeatError, StoreDown
from pipeline.figures import lasting
from pipeline.ports import Admin, Broker, Reader
from pipeline.readings import Decoder
from pipeline.records import Bounds, BusInfo, RecordBatch, TopicPartition
from pipeline.series import Layout, PartitionState

if TYPE_CHECKING:
    from pipeline.state.redis_link import StoreInfo
    from pipeline.state.server import StateServer

SAMPLE_RECORDS = 500
"""Newest records of each partition that are looked at."""
MOST_PARTITIONS_SAMPLED = 16
MOST_SKEW_S = 5.0
BEHIND_RECORDS = 1_000_000
_OVERDUE = 2
"""Times ``training.every`` without a decision, after which a stream is taken for one that nobody trains."""
_EXAMPLES = 3


class Level(StrEnum):
    """How a finding is: good, to be known, or to be mended."""

    OK = "ok"
    NOTE = "note"
    MEND = "mend"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: ``bus``, ``state``, a topic, or a stream.
        found: what is the case.
        remedy: what to do, empty where there is nothing to do.
    """

    level: Level
    about: str
    found: str
    remedy: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """Look at everything; one part that cannot be reached keeps no other from being looked at."""
    with ExitStack() as opened:
        broker, info = None, None
        try:
            broker = opened.enter_context(app.open_bus(config.bus))
            info = broker.admin().describe()
            servers = f"{info.brokers} broker{'s' * (info.brokers != 1)}"
            yield Finding(Level.OK, "bus", f"{info.server} answers ({servers}, {len(info.topics)} topics)")
        except OffbeatError as error:
            yield Finding(Level.MEND, "bus", str(error), "start it, or mend `bus` in the configuration")
        server = None
        try:
            server = opened.enter_context(app.open_state(config))
            yield from _state(server.ping())
        except OffbeatError as error:
            server = None
            yield Finding(Level.MEND, "state", str(error), "start it, or mend `state` in the configuration")
        if broker is not None and info is not None:
            yield from _outputs(config, info)
        for name in config.streams:
            if broker is not None and info is not None:
                yield from _input(config, name, broker, info)
                yield from _in_force(config, name, broker, info, server)


def _state(found: StoreInfo) -> Iterator[Finding]:
    memory = f"{found.used_memory / 1e6:,.0f} MB in use"
    yield Finding(Level.OK, "state", f"{found.server.capitalize()} {found.version} answers ({memory})")
    side = "ahead of" if found.clock_skew_s > 0 else "behind"
    skew = f"its clock is {abs(found.clock_skew_s):.3f} s {side} ours"
    if abs(found.clock_skew_s) > MOST_SKEW_S:
        yield Finding(Level.MEND, "state", skew, "let both machines follow the same time server (NTP)")
    else:
        yield Finding(Level.OK, "state", skew)


def _outputs(config: Config, info: BusInfo) -> Iterator[Finding]:
    for spec in app.output_topics(config):
        if spec.name in info.topics:
            yield Finding(Level.OK, f"topic {spec.name}", _partitions(info.topics[spec.name]))
        else:
            yield Finding(
                Level.NOTE,
                f"topic {spec.name}",
                "is missing",
                "a worker makes it when it starts, or `offbeat topics create`",
            )


def _partitions(count: int) -> str:
    return f"{count} partition{'s' * (count != 1)}"


def _input(config: Config, name: str, broker: Broker, info: BusInfo) -> Iterator[Finding]:
    stream = config.stream(name)
    about = f"stream {name}"
    if stream.topic not in info.topics:
        yield Finding(
            Level.MEND,
            about,
            f"its input topic {stream.topic} is missing",
            f"`offbeat topics create {name} --partitions N`, or mend streams.{name}.topic",
        )
        return
    try:
        reader = broker.reader()
        bounds = reader.bounds(stream.topic)
        records = sum(each.end_offset - each.first_offset for each in bounds.values())
        yield Finding(
            Level.OK, about, f"reads {stream.topic}: {_partitions(len(bounds))}, {records:,} records retained"
        )
        yield _lag(config, name, bounds, broker.admin())
        yield from _sampled(name, stream, _sample(reader, stream.topic, bounds))
    except OffbeatError as error:
        yield Finding(Level.MEND, about, str(error), "see that the bus is well, and look again")


def _lag(config: Config, name: str, bounds: Mapping[int, Bounds], admin: Admin) -> Finding:
    committed = admin.committed(config.group(name), config.stream(name).topic)
    about = f"stream {name}"
    if not committed:
        return Finding(
            Level.NOTE,
            about,
            "no worker has read it yet",
            f"start one: `offbeat detect {name}` or `offbeat run`",
        )
    lag = sum(
        max(each.end_offset - max(committed.get(number, 0), each.first_offset), 0)
        for number, each in bounds.items()
    )
    overtaken = sum(
        max(each.first_offset - committed[number], 0)
        for number, each in bounds.items()
        if number in committed
    )
    if overtaken:
        return Finding(
            Level.MEND,
            about,
            f"retention deleted {overtaken:,} records before they were read",
            "give the topic a longer retention, or add workers",
        )
    if lag > BEHIND_RECORDS:
        remedy = f"see that a worker runs; add workers, up to one for each of its {_partitions(len(bounds))}"
        return Finding(Level.MEND, about, f"{lag:,} records behind", remedy)
    return Finding(Level.OK, about, f"{lag:,} records behind")


def _sample(reader: Reader, topic: str, bounds: Mapping[int, Bounds]) -> list[RecordBatch]:
    """The newest records of some partitions."""
    batches = []
    for number in sorted(bounds)[:MOST_PARTITIONS_SAMPLED]:
        each = bounds[number]
        offset = max(each.first_offset, each.end_offset - SAMPLE_RECORDS)
        while offset < each.end_offset:
            batch = reader.read(TopicPartition(topic, number), offset, SAMPLE_RECORDS, 1.0)
            if batch.next_offset == offset:
                break
            batches.append(batch)
            offset = batch.next_offset
    return batches


def _sampled(name: str, stream: Stream, batches: Sequence[RecordBatch]) -> Iterator[Finding]:
    """What the newest records say about keys and fields."""
    about, records, bad, reason, unkeyed = f"stream {name}", 0, 0, "", 0
    damaged = [each for batch in batches for each in batch.corrupt]
    decoder, partitions_of = Decoder(stream), dict[str, set[int]]()
    states: dict[int, PartitionState] = {}
    for batch in batches:
        number = batch.partition.partition
        state = states.setdefault(number, PartitionState(Layout.of(stream)))
        readings = decoder.decode(batch, state)
        records += len(batch)
        unkeyed += int(np.count_nonzero(batch.key_length < 0))
        bad += len(readings.rejected)
        reason = reason or (readings.rejected[0].reason if readings.rejected else "")
        for slot in np.unique(readings.columns.slot).tolist():
            if slot >= 0:
                partitions_of.setdefault(state.names[slot] or "", set()).add(number)
    if damaged:
        yield Finding(
            Level.MEND,
            about,
            f"{damaged[0].partition} is damaged at offset {damaged[0].offset}: {damaged[0].reason}",
            "restore that replica of the partition",
        )
    if not records:
        yield Finding(
            Level.NOTE, about, "its topic holds no records yet", "send some, such as `offbeat produce`"
        )
        return
    if bad:
        yield Finding(
            Level.MEND,
            about,
            f"{bad:,} of the newest {records:,} records cannot be read: {reason}",
            f"mend streams.{name}.events, or what sends them; each is kept in the dead letters",
        )
    else:
        yield Finding(Level.OK, about, f"the newest {records:,} records can be read")
    yield from _keys(name, len(states), unkeyed, records, partitions_of)


def _keys(
    name: str, partitions: int, unkeyed: int, records: int, partitions_of: Mapping[str, set[int]]
) -> Iterator[Finding]:
    about = f"stream {name}"
    split = sorted(series for series, numbers in partitions_of.items() if len(numbers) > 1)
    remedy = "let the producer key each record by its series, so that a series lives in one partition"
    if split:
        where = ", ".join(
            f"{series!r} in {', '.join(map(str, sorted(partitions_of[series])))}"
            for series in split[:_EXAMPLES]
        )
        yield Finding(
            Level.MEND, about, f"{len(split):,} series stand in several partitions ({where})", remedy
        )
    elif unkeyed and partitions > 1:
        yield Finding(Level.MEND, about, f"{unkeyed:,} of the newest {records:,} records have no key", remedy)
    else:
        yield Finding(
            Level.OK, about, f"keys fit: each of {len(partitions_of):,} series seen is in one partition"
        )


def _in_force(
    config: Config, name: str, broker: Broker, info: BusInfo, server: StateServer | None
) -> Iterator[Finding]:
    """The policy and the model that the control topic has for a stream, and who trains the next one."""
    about, view = f"stream {name}", ControlView()
    if config.control_topic in info.topics:
        try:
            view = ControlLog(broker.reader(), config.control_topic).refresh()
        except OffbeatError as error:
            yield Finding(Level.MEND, about, str(error), "see that the bus is well, and look again")
            return
    if (sha := view.policies.get(name)) is not None:
        if sha == policy_sha(settings_of(config.stream(name))):
            yield Finding(Level.OK, about, f"policy {sha[:12]} is in force, as the configuration says")
        else:
            yield Finding(
                Level.MEND,
                about,
                f"policy {sha[:12]} is in force, and the configuration says otherwise",
                "`offbeat config apply` shows the difference and puts the configuration in force",
            )
    yield from _bundle(config, name, view.champions.get(name))
    yield from _training(config, name, view, server)


def _training(config: Config, name: str, view: ControlView, server: StateServer | None) -> Iterator[Finding]:
    """Whether a stream that wants training gets it, as far as can be known.

    A retrainer that waits leaves no trace: only one that trains holds the lease, and begins with a record.
    """
    about, now = f"stream {name}", datetime.now(UTC)
    sha = view.policies.get(name)
    every_s = (config.stream(name) if sha is None else view.settings[sha]).training.every
    begun, decided_at = view.begun.get(name), last_decision(view, name)
    since = "" if begun is None else f"{_ago(begun.at, now)} by {begun.who}"
    try:
        held = server is not None and server.leases(namespace=config.namespace).left_s(training_of(name)) > 0
    except OffbeatError:
        held, server = False, None
    if held:
        yield Finding(
            Level.OK, about, f"is being trained; that began {since}" if since else "is being trained"
        )
        return
    idle = "" if server is None else "; nobody trains it now"
    if begun is not None and (decided_at is None or begun.at > decided_at):
        idle += f"; the training that began {since} came to no decision"
    remedy = (
        f"see that a retrainer runs (`offbeat retrain {name}` or `offbeat run`): it says what it waits for"
    )
    if name not in view.champions:
        told = "no training of it has begun yet" if begun is None else "no training of it led to a model yet"
        refused = view.refusals.get(name, ())[-1:]
        why = "".join(f"; the last one was refused {_ago(each.at, now)}: {each.why}" for each in refused)
        yield Finding(Level.NOTE, about, f"{told}{idle}{why}", remedy)
    elif every_s and decided_at is not None:
        age = f"its model was decided on {_ago(decided_at, now)}, and training.every is {lasting(every_s)}"
        if (now - decided_at).total_seconds() > _OVERDUE * every_s:
            yield Finding(Level.MEND, about, f"{age}{idle}", remedy)
        else:
            yield Finding(Level.OK, about, age)


def _ago(at: datetime, now: datetime) -> str:
    return f"{lasting(max((now - at).total_seconds(), 0.0))} ago"


def _bundle(config: Config, name: str, bundle_id: str | None) -> Iterator[Finding]:
    about = f"stream {name}"
    if bundle_id is None:
        yield Finding(
            Level.NOTE,
            about,
            "no model yet; its workers count and wait",
            f"a retrainer trains the first one as soon as there are enough rows, or `offbeat train {name}`",
        )
        return
    try:
        bundle = Registry(config.registry).load(name, bundle_id)
        check_fits(bundle.manifest.spec, bundle_id, name, config.stream(name))
    except (ConfigError, StoreDown) as error:
        yield Finding(
            Level.MEND, about, str(error), "see to the store, or mend `registry` in the configuration"
        )
        return
    except OffbeatError as error:
        yield Finding(Level.MEND, about, str(error), f"train again: `offbeat train {name}`")
        return
    yield Finding(
        Level.OK,
        about,
        f"model {bundle_id[:12]} of {bundle.manifest.created_at} is sound and fits "
        f"({bundle.manifest.models - 1:,} series, networks of their own or of cohorts: "
        f"{bundle.manifest.networks - 1:,}, and the shared one)",
    )
