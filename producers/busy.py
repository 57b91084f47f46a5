"""The script that one process of a pair runs: a byte is passed until time is over, or parent or partner gone.

Standard library only: it is started by its path, in isolated mode, so that the load begins at once.
"""

import contextlib
import os
import sys
import time


def pass_back(seconds: float, parent_pid: int) -> None:
    """Send back each byte that comes by standard input, a socket, so that the two take turns.

    Ends after ``seconds``, less when the partner or ``parent_pid`` is gone.
    """
    until = time.monotonic() + seconds
    with contextlib.suppress(ConnectionError):  # the partner ended first
        while time.monotonic() < until and os.getppid() == parent_pid and (byte := os.read(0, 1)):
            os.write(0, byte)


if __name__ == "__main__":
    pass_back(float(sys.argv[1]), int(sys.argv[2]))
