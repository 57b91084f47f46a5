"""The script that one process of a burst runs: busy until its time is over or its parent is gone.

Standard library only: it is started by its path, in isolated mode, so that the load begins at once.
"""

import os
import sys
import time


def busy(seconds: float, parent_pid: int) -> None:
    """Keep one core busy for ``seconds``, less when the process ``parent_pid`` is no longer the parent."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and os.getppid() == parent_pid:
        for _ in range(10_000):
            pass


if __name__ == "__main__":
    os.nice(10)  # whoever watches the burst keeps a share of the machine
    busy(float(sys.argv[1]), int(sys.argv[2]))
