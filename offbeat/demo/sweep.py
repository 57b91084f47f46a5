"""The script of a small process that removes the demo's folder once the demo is gone, however it ended.

Standard library only: it is started by its path, in isolated mode. Its standard input is a pipe from the
demo, which closes with that process.
"""

import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

_PATIENCE_S = 10.0
"""Servers that end with the demo may write for a moment longer."""


def sweep(folder: Path) -> None:
    """Remove ``folder``, and the one above it when that is empty."""
    until = time.monotonic() + _PATIENCE_S
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)
    with suppress(OSError):
        folder.parent.rmdir()


if __name__ == "__main__":
    sys.stdin.read()
    sweep(Path(sys.argv[1]))
