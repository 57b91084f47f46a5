"""A member of a Kafka consumer group: what it owns, what it reads, and the token that proves it.

The order of a turn is fixed: poll, take the group's metadata (the token), work, and then one transaction
under that token. Each measure against a trap of kafka-python 3.0.12 says what would happen without it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import kafka.errors as kafka_errors
from kafka import TopicPartition as KafkaPartition
from kafka.structs import ConsumerGroupMetadata

from pipeline.bus.columnar import Columns
from pipeline.bus.kafka_link import Link, Topics
from pipeline.bus.kafka_rebalance import Assignor, Notes, Unread
from pipeline.bus.kafka_records import joined
from pipeline.bus.kafka_transactions import Transactions, Watchdog
from pipeline.errors import BusDown, BusError, NotFound, Refused
from pipeline.records import Assigned, Polled, RecordBatch, Send, Token, TopicPartition

COMMITTED_TIMEOUT_MS = 300
BOUNDS_TIMEOUT_MS = 2_000
LEAVE_TIMEOUT_MS = 5_000
UNREACHABLE_S = 5.0
PACE_S = 0.018
BUSY_ROWS = 2_000
"""Polls that bring fewer follow each other no faster: each costs about 1 ms of CPU however few they are."""


@dataclass(slots=True)
class _Owned:
    """An announced partition.

    Attributes:
        topic_id: the topic's id when it was announced.
        committed: the group's position as this member knows it; another value means another owner.
        next_offset: what was handed out ends here; None until ``seek``.
        end_offset: one past the last record, as far as known.
    """

    topic_id: str
    committed: int | None
    next_offset: int | None
    end_offset: int


class KafkaBus:
    """The bus of one member; see :class:`pipeline.ports.Bus` for what it promises.

    ``commit`` may also raise NotFound (a topic of ``sends`` does not exist) and a plain BusError (a record
    that Kafka can never accept, named with its size). Then nothing was written and ownership stands, but
    trying the same again cannot help.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        *,
        group: str,
        subscribe: Sequence[str],
        transactional_id: str,
        watchdog: Watchdog,
    ) -> None:
        """Join ``group``, and abort what an earlier process of the same ``transactional_id`` left open.

        Raises:
            NotFound: a topic does not exist.
            BusDown: the cluster does not answer.
        """
        for topic in subscribe:
            topics.describe(topic)
        self._link = link
        self._topics = topics
        self._group = group
        self._subscribed = tuple(subscribe)
        self._owned: dict[TopicPartition, _Owned] = {}
        self._waiting: list[TopicPartition] = []
        self._revoked: list[TopicPartition] = []
        self._membership: ConsumerGroupMetadata | None = None
        self._rows = 0
        self._polled_at = self._connected_at = time.monotonic()
        self._transactions = Transactions(link, transactional_id, watchdog)
        try:
            self._assignor = Assignor()
            self._consumer = link.consumer(
                group_id=group,
                group_instance_id=transactional_id if link.static_membership else None,
                session_timeout_ms=link.timing.session,
                heartbeat_interval_ms=link.timing.heartbeat,
                max_poll_interval_ms=link.timing.poll,
                partition_assignment_strategy=[self._assignor],
            )
        except BaseException:
            self._transactions.close()
            raise
        columns = Columns(skip_corrupt=link.skip_corrupt, gapless=topics.gapless)
        self._columns = columns.attach(self._consumer)
        self._notes = Notes(self._consumer)
        self._consumer.subscribe(list(subscribe), listener=self._notes)
        try:
            with link.talking(f"joining {group}"):
                for topic in subscribe:  # metadata that come during the first join can wedge it for ever
                    self._consumer.partitions_for_topic(topic)
        except BaseException:
            self.close()
            raise

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        """As the seam says; a partition never stands in ``revoked`` and ``assigned`` of one result."""
        self._transactions.start()
        early_s = self._polled_at + PACE_S - time.monotonic()
        if 0 < self._rows < BUSY_ROWS and 0 < early_s < timeout_s:
            time.sleep(early_s)
        self._polled_at = time.monotonic()
        try:
            fetched = self._fetch(max_records, timeout_s)
            self._follow(self._consumer.group_metadata())  # before any work: later it may be another one
            assigned = () if self._revoked else self._announce()
            self._must_be_connected(heard=bool(fetched))
        except BaseException:
            self._rewind()
            raise
        batches = self._batches(fetched)
        self._rows = sum(map(len, batches))
        revoked, self._revoked = tuple(self._revoked), []
        return Polled(
            Token(self._membership),
            batches,
            assigned,
            revoked,
            end_offsets=self._end_offsets(),
            partitions=self._partitions(),
            columnar=self._columns.in_use,
        )

    def seek(self, partition: TopicPartition, next_offset: int) -> None:
        """As the seam says.

        Raises:
            BusError: the partition is not owned.
        """
        owned = self._owned.get(partition)
        if owned is None:
            raise BusError(f"{partition} is not owned by this member of {self._group}; poll tells what is")
        owned.next_offset = int(next_offset)
        self._columns.forget(partition)
        self._consumer.seek(KafkaPartition(*partition), owned.next_offset)
        self._consumer.resume(KafkaPartition(*partition))

    def commit(self, token: Token, next_offsets: Mapping[TopicPartition, int], sends: Sequence[Send]) -> None:
        """As the seam says.

        It is always a transaction: the client's plain commit takes the generation of the moment and not
        that of the token, and without a generation the broker would accept anything.
        """
        if not next_offsets and not sends:
            return
        membership, current = token.value, self._membership
        if (
            not isinstance(membership, ConsumerGroupMetadata)
            or current is None
            or membership[:3] != current[:3]
            or not next_offsets.keys() <= self._owned.keys()
        ):
            self._start_again()
            raise Refused(f"this member of {self._group} does not own the partitions any more; poll again")
        try:
            for topic in {send.topic for send in sends}:
                self._topics.require(topic)
            self._transactions.commit(membership, dict(next_offsets) or self._known_positions(), sends)
        except (Refused, BusDown) as error:
            self._start_again()
            raise Refused(str(error)) from error
        for partition, offset in next_offsets.items():
            self._owned[partition].committed = offset

    def close(self) -> None:
        """Leave the group and end every connection; what was not committed is dropped.

        The group comes first: the others wait for it, and for nothing else that happens here.
        """
        with suppress(kafka_errors.KafkaError):
            self._consumer.close(timeout_ms=LEAVE_TIMEOUT_MS)
        self._transactions.close()

    # Reading

    def _fetch(self, max_records: int, timeout_s: float) -> Mapping[Any, list[Any]]:
        """Poll the client; a partition whose position is not in the log any more is announced anew."""
        self._mend_join()
        with self._link.talking(f"polling as {self._group}"):
            try:
                fetched: Mapping[Any, list[Any]] = self._consumer.poll(
                    timeout_ms=round(timeout_s * 1_000), max_records=max_records
                )
            except kafka_errors.OffsetOutOfRangeError as error:
                outside = error.args[0]
            except kafka_errors.LogTruncationError as error:
                outside = error.divergent_offsets
            else:
                return fetched
        self._rewind()
        self._forget(
            partition for partition in map(TopicPartition._make, outside) if partition in self._owned
        )
        return {}

    def _mend_join(self) -> None:
        """Shut out two ways in which the client's join never ends; neither shows in its public face.

        A join that ended between two polls is thrown away and begun anew, for which all other members have
        to join again: members that work between their polls may never settle. And metadata that change
        twice during a join leave one that nothing drives on.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001 - see above
        join = coordinator._join_task  # noqa: SLF001 - see above
        if join is not None and not isinstance(join, Unread):
            coordinator._join_task = Unread(join)  # noqa: SLF001 - see above
        if coordinator.rebalance_in_progress() and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    def _rewind(self) -> None:
        """Go back to what was handed out: a poll that raised may have moved past records it then dropped."""
        assigned = self._consumer.assignment()
        for partition, owned in self._owned.items():
            if owned.next_offset is not None and partition in assigned:
                self._consumer.seek(KafkaPartition(*partition), owned.next_offset)

    def _batches(self, fetched: Mapping[Any, list[Any]]) -> tuple[RecordBatch, ...]:
        """What came of owned partitions; a batch without records where only the position moved."""
        batches = []
        states = self._consumer._subscription.assignment  # noqa: SLF001 - position() may ask the network
        for partition, owned in self._owned.items():
            if owned.next_offset is None:
                continue
            position = states[partition].position.offset
            if position > owned.next_offset:
                batches.append(joined(partition, fetched.get(partition, ()), position))
                owned.next_offset = position
        return tuple(batches)

    def _end_offsets(self) -> tuple[tuple[TopicPartition, int], ...]:
        for partition, owned in self._owned.items():
            highwater = self._consumer.highwater(KafkaPartition(*partition))
            owned.end_offset = max(owned.end_offset, highwater or 0, owned.next_offset or 0)
        return tuple((partition, owned.end_offset) for partition, owned in self._owned.items())

    def _partitions(self) -> tuple[tuple[str, int], ...]:
        known = self._consumer._cluster.partitions_for_topic  # noqa: SLF001 - without asking the network
        return tuple((topic, len(known(topic) or ())) for topic in self._subscribed)

    def _must_be_connected(self, *, heard: bool) -> None:
        """Raise BusDown when no broker has been connected for a while; the client only keeps silent."""
        connections = list(self._consumer._client._manager._conns.values())  # noqa: SLF001 - no public way
        now = time.monotonic()
        if heard or any(connection.connected for connection in connections):
            self._connected_at = now
        elif now - self._connected_at > UNREACHABLE_S:
            raise BusDown(
                f"Kafka at {self._link.address} has not answered for {now - self._connected_at:.0f} s; "
                "see that its brokers run"
            )

    # Ownership

    def _follow(self, membership: ConsumerGroupMetadata) -> None:
        """Bring what is owned in line with the group."""
        gone, joined = self._notes.take_gone(), self._assignor.take_generations()
        assigned = {TopicPartition(*partition) for partition in self._consumer.assignment()}
        if membership.generation_id < 0:  # evicted: the broker would take a commit with such a token
            self._membership = None
            self._forget(self._owned)
            self._waiting.clear()
            return
        kept = not joined or self._took_part_in_all(joined, membership)
        if joined:  # the membership may show the next generation already, whose assignment is on its way
            self._membership = membership._replace(generation_id=joined[-1])
        self._forget(
            [
                partition
                for partition, owned in self._owned.items()
                if not kept
                or partition in gone
                or partition not in assigned
                or self._made_again(partition, owned)
            ]
        )
        self._waiting = [partition for partition in self._waiting if partition in assigned]
        if joined:
            self._wait(partition for partition in sorted(assigned) if partition not in self._owned)

    def _took_part_in_all(self, joined: Sequence[int], membership: ConsumerGroupMetadata) -> bool:
        """Whether nobody else can have owned what the client kept since the last membership.

        A member that was thrown out while it joined comes back under another id, and one that missed a
        generation does not know who owned its partitions in it; the client tells neither.
        """
        last = self._membership
        if last is None or last.member_id != membership.member_id:
            return False
        first = last.generation_id + 1
        return list(joined) == list(range(first, first + len(joined)))

    def _made_again(self, partition: TopicPartition, owned: _Owned) -> bool:
        topic_id = self._topic_id(partition)
        return topic_id is not None and topic_id != owned.topic_id

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        """Own ``partitions`` no more: the next result says so, later ones announce those still assigned."""
        for partition in list(partitions):
            del self._owned[partition]
            self._columns.forget(partition)
            self._revoked.append(partition)
            self._wait([partition])

    def _start_again(self) -> None:
        """After a refusal the caller has dropped everything: announce what is still assigned."""
        self._forget(self._owned)
        self._revoked.clear()

    def _wait(self, partitions: Iterable[TopicPartition]) -> None:
        """Keep those of ``partitions`` that are assigned still until they are announced."""
        assigned = self._consumer.assignment()
        for partition in partitions:
            if partition in assigned and partition not in self._waiting:
                self._consumer.pause(KafkaPartition(*partition))
                self._waiting.append(partition)

    def _announce(self) -> tuple[Assigned, ...]:
        """Announce waiting partitions whose committed position is known; the rest waits for a next poll."""
        committed: dict[TopicPartition, int | None] = {}
        with (
            self._link.talking(f"asking for the positions of {self._group}"),
            suppress(kafka_errors.RetriableError),
        ):
            for partition in list(self._waiting):
                # A pending transaction of an earlier owner holds back the answer for its partition: the
                # first silence ends the round, and that partition goes to the end of the queue.
                self._waiting.remove(partition)
                self._waiting.append(partition)
                committed[partition] = self._committed(partition)
        now = {topic for topic in {p.topic for p in committed} if self._is_as_known(topic)}
        asked = [KafkaPartition(*p) for p in committed if p.topic in now]
        if not asked:
            return ()
        try:
            first = self._consumer.beginning_offsets(asked, timeout_ms=BOUNDS_TIMEOUT_MS)
            end = self._consumer.end_offsets(asked, timeout_ms=BOUNDS_TIMEOUT_MS)
        except kafka_errors.RetriableError:
            return ()
        return tuple(
            self._own(TopicPartition(*p), first[p], end[p], committed[TopicPartition(*p)]) for p in asked
        )

    def _own(self, partition: TopicPartition, first: int, end: int, committed: int | None) -> Assigned:
        topic_id = str(self._topic_id(partition))
        self._waiting.remove(partition)
        self._owned[partition] = _Owned(topic_id, committed, None, end)
        self._columns.reaches(partition, end)
        return Assigned(partition, first, end, committed, topic_id)

    def _committed(self, partition: TopicPartition) -> int | None:
        asked = KafkaPartition(*partition)
        # The client keeps a question that timed out, and gives its answer, an old one by then, to the next.
        self._consumer._coordinator._offset_fetch_futures.pop(frozenset([asked]), None)  # noqa: SLF001
        offset: int | None = self._consumer.committed(asked, timeout_ms=COMMITTED_TIMEOUT_MS)
        return offset

    def _is_as_known(self, topic: str) -> bool:
        """Whether the client knows the topic that is there.

        Its metadata are up to ten seconds old: records of a topic that was made again would be read and
        committed as those of the one that was deleted, and once more when the client has noticed.
        """
        try:
            topic_id = str(self._topics.describe(topic)["topic_id"])
        except NotFound:
            return False
        known = str(self._consumer._cluster.topic_id(topic))  # noqa: SLF001 - no public way
        if known != topic_id:
            self._consumer._cluster.request_update()  # noqa: SLF001 - no public way
        return known == topic_id

    def _topic_id(self, partition: TopicPartition) -> str | None:
        found = self._consumer._cluster.topic_id(partition.topic)  # noqa: SLF001 - no public way
        return None if found is None else str(found)

    def _known_positions(self) -> dict[TopicPartition, int]:
        """Positions to commit once more where there are only sends: the broker fences by positions."""
        known = {p: owned.committed for p, owned in self._owned.items() if owned.committed is not None}
        if not known:
            raise BusError(f"a commit of {self._group} needs a position: Kafka proves ownership by it")
        return known
