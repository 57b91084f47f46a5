"""What a member's client is given so that rebalances can be followed: its listener, assignor and joins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kafka import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from pipeline.records import TopicPartition


class Notes(ConsumerRebalanceListener):  # type: ignore[misc] # the client has no types
    """What happened in a rebalance. Runs on the client's I/O thread, so it must neither wait nor raise."""

    def __init__(self, consumer: Any) -> None:  # noqa: ANN401 - the client has no types
        self._consumer = consumer
        self._gone: set[TopicPartition] = set()

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Keep new partitions still, at any position.

        Without a position the client would ask for the committed one inside poll, and one pending
        transaction would block all partitions.
        """
        for partition in assigned:
            self._consumer.pause(partition)
            self._consumer.seek(partition, 0)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Take a note; also called for partitions that were lost."""
        self._gone.update(TopicPartition(*partition) for partition in revoked)

    def take_gone(self) -> set[TopicPartition]:
        """The partitions given up or lost since the last call."""
        gone, self._gone = self._gone, set()
        return gone


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc] # the client has no types
    """The sticky assignor; tells under which generations assignments were taken in.

    The client shows the next generation already while its assignment is still on the way, and nothing but
    this call tells the difference.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generations: list[int] = []

    def on_assignment(self, assignment: Any, generation: int) -> None:  # noqa: ANN401 - the client has no types
        """Called on the client's I/O thread once the assignment stands."""
        super().on_assignment(assignment, generation)
        self._generations.append(generation)

    def take_generations(self) -> list[int]:
        """The generations of the assignments taken in since the last call."""
        generations, self._generations = self._generations, []
        return generations


class Unread:
    """A join that the client has not taken in yet, whether or not it has ended."""

    is_done = False

    def __init__(self, join: Any) -> None:  # noqa: ANN401 - the client has no types
        self.add_callback = join.add_callback
        self.add_errback = join.add_errback
