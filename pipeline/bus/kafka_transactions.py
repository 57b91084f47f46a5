"""Outputs and positions of a consumer group in one Kafka transaction, with a watchdog round it.

Each measure against a trap of kafka-python 3.0.12 says what would happen without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import kafka.errors as kafka_errors
from kafka import TopicPartition as KafkaPartition
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from pipeline.bus.kafka_link import TOO_LARGE, Link, enqueue, flush, oversized
from pipeline.errors import BusDown, BusError, Refused
from pipeline.records import Send, TopicPartition

log = logging.getLogger(__name__)

CLOSE_S = 2.0
HUNG_EXIT_CODE = 75
"""``EX_TEMPFAIL``: the supervisor starts the process again."""


class Watchdog:
    """Ends the process when what it guards lasts too long.

    ``send_offsets_to_transaction`` and ``commit_transaction`` take no time-out and were seen to hang for
    minutes after a broker's restart. Ending the process is safe: what was not committed starts again.
    """

    def __init__(self, deadline_s: float, end_process: Callable[[int], object]) -> None:
        self._deadline_s = deadline_s
        self._end_process = end_process
        self._timer = threading.Timer(deadline_s, self._bite)

    def __enter__(self) -> Self:
        self._timer = threading.Timer(self._deadline_s, self._bite)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _bite(self) -> None:
        log.critical(
            "a Kafka transaction has hung for %.0f s; this process ends with exit code %d so that its "
            "supervisor starts it again",
            self._deadline_s,
            HUNG_EXIT_CODE,
        )
        self._end_process(HUNG_EXIT_CODE)


class Transactions:
    """The transactions of one transactional id, which no two live processes may share."""

    def __init__(self, link: Link, transactional_id: str, watchdog: Watchdog) -> None:
        """Start, and abort what an earlier process of the same id left open.

        Raises:
            BusDown: the cluster does not answer.
        """
        self._link = link
        self._transactional_id = transactional_id
        self._watchdog = watchdog
        self._producer: Any = None
        self.start()

    def start(self) -> None:
        """Have a producer; raises BusDown when none can be made now."""
        if self._producer is not None:
            return
        producer = self._link.producer(
            transactional_id=self._transactional_id, transaction_timeout_ms=self._link.timing.transaction
        )
        try:
            with self._link.talking(f"starting transactions as {self._transactional_id}"):
                producer.init_transactions()
        except BaseException:
            self._end(producer)
            raise
        self._producer = producer

    def commit(
        self,
        membership: ConsumerGroupMetadata,
        positions: Mapping[TopicPartition, int],
        sends: Sequence[Send],
    ) -> None:
        """Write ``sends`` and ``positions`` in one transaction that ``membership`` proves.

        Raises:
            Refused: it failed; nothing was written.
            TooLarge: a record is larger than its topic takes; nothing was written.
            BusError: a record can never be written; nothing was written.
        """
        failed: list[tuple[Send, BaseException]] = []
        try:
            self.start()
            with self._watchdog:
                self._transact(membership, positions, sends, failed)
        except Exception as error:
            # The client's errors do not tell what is safe (a time-out of the transaction looks like
            # fencing, an abort may raise too), so all are treated alike.
            self._replace()
            if isinstance(error, BusError) and not isinstance(error, BusDown):
                raise
            # All that is sent behind a refused record fails with its error.
            if failed and isinstance(failed[0][1], TOO_LARGE):
                raise oversized(failed[0][0]) from error
            raise Refused(
                f"Kafka at {self._link.address} did not accept a commit of {membership.group_id} as "
                f"{self._transactional_id} ({error}); nothing was written, the work starts again from the "
                "committed positions"
            ) from error

    def close(self) -> None:
        """End the connection; an open transaction is aborted by its time-out or the next start."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._end(producer)

    def _transact(
        self,
        membership: ConsumerGroupMetadata,
        positions: Mapping[TopicPartition, int],
        sends: Sequence[Send],
        failed: list[tuple[Send, BaseException]],
    ) -> None:
        producer = self._producer
        producer.begin_transaction()
        futures = []
        for send in sends:  # the first may have failed before the last is queued
            futures.append(enqueue(producer, send))
            futures[-1].add_errback(lambda error, send=send: failed.append((send, error)))
        # Where a batch fails while the offsets are asked for, the client waits for their answer without end.
        # Under a commit that has begun it starts a new epoch, takes the transaction for empty, and says that
        # the commit is done.
        flush(producer)
        for future in futures:
            if not future.succeeded():
                raise future.exception
        offsets = {KafkaPartition(*p): OffsetAndMetadata(int(o), "", -1) for p, o in positions.items()}
        producer.send_offsets_to_transaction(offsets, membership)
        producer.commit_transaction()

    def _replace(self) -> None:
        """End the producer of a failed transaction and make another one.

        The old one would commit the failed transaction's positions with its next one. And it must be dead
        before the new one starts: a fenced client raises its own epoch, which fences the rightful one.
        """
        failed, self._producer = self._producer, None
        if failed is not None:
            with self._watchdog, suppress(Exception):
                failed.abort_transaction()
            self._end(failed)
        with suppress(BusError):  # the next turn tries again, and says so
            self.start()

    def _end(self, producer: Any) -> None:  # noqa: ANN401 - the client has no types
        with self._watchdog:
            with suppress(kafka_errors.KafkaError):
                producer.close(timeout=CLOSE_S)
            sender = producer._sender  # noqa: SLF001 - close gives up on a thread that lives on
            sender.force_close()
            sender.join()
