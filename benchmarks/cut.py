"""``offbeat`` as it is, but after SIGUSR1 it kills itself where its next transaction would be committed."""

from __future__ import annotations

import os
import signal

from kafka import KafkaProducer

from offbeat.cli import main

asked: list[int] = []
commit = KafkaProducer.commit_transaction


def commit_or_die(producer: KafkaProducer) -> None:
    """What was sent stands in the log, and the transaction stays open."""
    if asked:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(producer)


KafkaProducer.commit_transaction = commit_or_die
signal.signal(signal.SIGUSR1, lambda number, _: asked.append(number))
main()
