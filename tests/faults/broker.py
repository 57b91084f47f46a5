"""The only broker is killed, or stopped for a while, and comes again on its folder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from servers import KafkaServer, kafka_cluster

from pipeline.state import connect as connect_state

from .place import Grounds, Run, place_at, running, supervised
from .seam import Outcome, judged
from .words import Orders, Point

STOPPED_S = 15.0
BEFORE = 5_000
"""Records that are done before the blow."""
AFTER = 8
"""Commits before a worker stops in the midst of one."""
HOMES = [Path(home)] if (home := os.environ.get("KAFKA_HOME")) else []
"""These faults are done to brokers of their own, from a distribution."""

ALONE = (
    "Nothing here, where the controller finds the broker dead before it comes again. Where it does so only "
    "afterwards, as with broker and controller in one process, Kafka 4.3.1 skips what ends a commit that was "
    "under way (its log: `likely deleted already and hence can be skipped`): outputs of that commit are lost "
    "or doubled, or its partitions wait without end. The worker says that the group was set back, or waits. "
    "Run three brokers, with replication 3."
)
FOUND_DEAD_S, NEVER_FOUND_DEAD_S = 1.0, 60.0

Blow = Callable[[KafkaServer, Run], None]


@dataclass(frozen=True)
class BrokerFault:
    """Something that is done to the broker; in the midst of a transaction, or between any two.

    The worker starts again where it ends for it, as its supervisor would see to.

    Attributes:
        session_s: after so long without heartbeats the controller, a process of its own, finds it dead.
    """

    name: str
    blow: Blow
    point: Point | None = None
    given_up: str = ""
    session_s: float = FOUND_DEAD_S
    tries = 1
    buses: ClassVar = ("kafka",) * len(HOMES)

    def suffer(self, grounds: Grounds) -> Outcome:
        session_ms = str(round(self.session_s * 1_000))
        nodes = [
            KafkaServer(
                HOMES[0],
                grounds.folder / "controller",
                roles="controller",
                broker_session_timeout_ms=session_ms,
            ),
            KafkaServer(
                HOMES[0], grounds.folder / "kafka", 2, roles="broker", broker_heartbeat_interval_ms="200"
            ),
        ]
        with kafka_cluster(nodes) as [_, server]:
            grounds = replace(grounds, kafka=server.bootstrap, folder=grounds.folder / "place")
            with place_at(grounds) as place, closing(connect_state(place.settings.state)):
                with running(place) as run:
                    recovery = self._suffer(server, run)
                verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict, [recovery])

    def _suffer(self, server: KafkaServer, run: Run) -> float:
        """Returns the seconds from the blow to the next newly settled batch."""
        orders = Orders(config=str(run.place.path), point=self.point, after=AFTER, stop=True)
        worker = run.start(orders)
        if self.point is None:
            run.follow(lambda: worker.ended or run.position > BEFORE)
        else:
            run.follow(lambda: worker.ended or worker.reached)
            worker.wait_until_stopped()
        run.strike()
        self.blow(server, run)
        supervised(run, Orders(config=orders.config), worker)
        return run.recovery_s


def _kill(server: KafkaServer, run: Run) -> None:
    server.signal(signal.SIGKILL)
    run.workers[0].go_on()
    time.sleep(2 * FOUND_DEAD_S)  # nobody but the controller knows when it has
    server.start()
    server.wait()


def _stop(server: KafkaServer, run: Run) -> None:
    server.signal(signal.SIGSTOP)
    run.workers[0].go_on()
    time.sleep(STOPPED_S)  # the fault itself lasts so long
    server.signal(signal.SIGCONT)


def faults() -> Iterator[BrokerFault]:
    """All of this module."""
    for when, point in (("", None), (" in the midst of a transaction", Point.OFFSETS)):
        yield BrokerFault(f"the only broker is killed and started again{when}", _kill, point, ALONE)
        yield BrokerFault(
            f"the only broker is stopped for {STOPPED_S:g} s{when}", _stop, point, "", NEVER_FOUND_DEAD_S
        )
