"""A worker as its own process, for tests that kill it: says ``read N`` after each batch that is settled."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from consumers import detector
from offbeat import app
from pipeline import config
from pipeline.status import Processed

FASTER = 20
"""The worker's clock runs so much faster, so that a short life sees several checkpoints."""


def clock() -> float:
    """Seconds as the worker counts them."""
    return FASTER * time.monotonic()


def tell(line: str) -> None:
    """Write a line for the test at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(path: str, stream: str, max_records: str) -> None:
    """Work on a stream until everything is read."""
    settings = config.load(Path(path))
    read = 0

    def observe(processed: Processed) -> None:
        nonlocal read
        read += sum(len(scores.slot) for scores in processed.outputs.scores)
        tell(f"read {read}")

    with app.open_parts(settings, stream, 0, observe=observe) as parts:
        parts.max_records, parts.clock = int(max_records), clock
        detector.run(parts, should_stop=lambda: False, until_idle_s=1.5 * FASTER)


if __name__ == "__main__":
    main(*sys.argv[1:])
