"""``offbeat`` as it is, but it kills itself at the point that a signal asks for.

After SIGUSR1 where its next transaction would be committed: what was sent stands in the log, and the
transaction stays open. After SIGUSR2 once its next transaction is committed: none is open.
"""

from __future__ import annotations

import os
import signal

from kafka import KafkaProducer

from offbeat.cli import main

asked: list[int] = []
commit = KafkaProducer.commit_transaction


def commit_or_die(producer: KafkaProducer) -> None:
    """Commit, unless asked to die before."""
    if signal.SIGUSR1 in asked:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(producer)
    if asked:
        os.kill(os.getpid(), signal.SIGKILL)


KafkaProducer.commit_transaction = commit_or_die
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda received, _: asked.append(received))
main()
