"""One of three brokers is killed, the one that leads, and comes again later."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import ClassVar

from kafka import KafkaAdminClient
from servers import KafkaServer, kafka_cluster

from pipeline.state import connect as connect_state

from .broker import BEFORE, HOMES
from .place import DEADLINE_S, Grounds, Place, Run, place_at, running, supervised
from .seam import Outcome, judged
from .words import Orders

NODES = 3
REPLICATED = {
    "default_replication_factor": "3",
    "min_insync_replicas": "2",
    "offsets_topic_replication_factor": "3",
    "transaction_state_log_replication_factor": "3",
    "transaction_state_log_min_isr": "2",
}
LOOK_S = 0.1


@dataclass(frozen=True)
class LeaderKilled:
    """Three brokers, replication 3, min-ISR 2; the leader of the first input partition is killed.

    It comes again while the workers run, and the next one is killed after it is in sync: the worker's
    position is then on brokers that were down before.
    """

    name = "of three brokers one after another is killed and comes again"
    tries = 2
    given_up = ""
    buses: ClassVar = ("kafka",) * len(HOMES)

    def suffer(self, grounds: Grounds) -> Outcome:
        nodes = [
            KafkaServer(HOMES[0], grounds.folder / f"kafka-{node}", node, **REPLICATED)
            for node in range(1, NODES + 1)
        ]
        with kafka_cluster(nodes):
            address = ",".join(node.bootstrap for node in nodes)
            grounds = replace(grounds, kafka=address, folder=grounds.folder / "place")
            with place_at(grounds) as place, closing(connect_state(place.settings.state)):
                with running(place) as run:
                    recoveries = self._suffer(nodes, run)
                verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, recoveries)

    def _suffer(self, nodes: Sequence[KafkaServer], run: Run) -> list[float]:
        orders = Orders(config=str(run.place.path))
        worker, recoveries = run.start(orders), list[float]()
        for number in range(self.tries):
            goal = BEFORE * (1 + number)
            run.follow(lambda goal=goal: worker.ended or run.position > goal)
            leader, _ = _leadership(run.place, nodes)
            nodes[leader - 1].signal(signal.SIGKILL)
            run.strike()
            run.follow(lambda: worker.ended or run.recovery_s >= 0)
            recoveries.append(run.recovery_s)
            nodes[leader - 1].start()
            nodes[leader - 1].wait()
            _wait_until_in_sync(run.place, nodes)
        supervised(run, orders, worker)
        return recoveries


def faults() -> Iterator[LeaderKilled]:
    """All of this module."""
    yield LeaderKilled()


def _leadership(place: Place, nodes: Sequence[KafkaServer]) -> tuple[int, int]:
    """The leader of the first input partition, and how many replicas are in sync with all that are led."""
    with closing(KafkaAdminClient(bootstrap_servers=[node.bootstrap for node in nodes])) as admin:
        partitions = [each for topic in admin.describe_topics() for each in topic["partitions"]]
        [found] = admin.describe_topics([place.topic])
    fewest = min(len(each["isr_nodes"]) for each in partitions)
    return found["partitions"][0]["leader_id"], fewest


def _wait_until_in_sync(place: Place, nodes: Sequence[KafkaServer]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while _leadership(place, nodes)[1] < NODES:
        if time.monotonic() > deadline:
            raise AssertionError("a broker that came again does not get in sync")
        time.sleep(LOOK_S)
