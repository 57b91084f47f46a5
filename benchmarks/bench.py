"""Measures offbeat, against others on the same topic, and writes build/bench.json and docs/performance.md.

`make bench` runs it whole: some 25 minutes on two cores. Nothing else should run meanwhile. What counts are
ratios within a round and CPU seconds; every figure is a median, with the lowest and the highest beside it.
It ends with 1 where a figure does not hold what the design holds it to (section 10).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import latency  # noqa: E402 - the path comes first
import memory  # noqa: E402
import page  # noqa: E402
import path  # noqa: E402
import sweeps  # noqa: E402
import takeover  # noqa: E402
import torch  # noqa: E402
from place import FULL, QUICK, SMALLEST, Place  # noqa: E402
from report import print_verdicts  # noqa: E402
from servers import NO_KAFKA, kafka_broker  # noqa: E402

PARTS = {
    "path": (path.run, 5.0),
    "rates": (sweeps.run, 6.5),
    "latency": (latency.run, 5.5),
    "memory": (memory.run, 4.5),
    "takeover": (takeover.run, 3.0),
}
"""What is measured, and about how many minutes it takes in full on two cores."""

BROKER = {
    # As brokers have it; tests wait less for an open transaction of the dead.
    "transaction_abort_timed_out_transaction_cleanup_interval_ms": "10000",
}
SHORT_SESSIONS = "?session_timeout_ms=2000"
"""Where figures mean nothing, nobody waits for them."""


def main() -> int:
    """Measure, write the file and the page, print the verdict."""
    options = _options()
    report = _earlier(options.output) if options.only else {}
    report["machine"] = _machine() | {"form": options.form}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="offbeat-bench-")))
        hasty = options.form == "smallest"
        broker = opened.enter_context(kafka_broker(folder / "kafka", **({} if hasty else BROKER)))
        if broker is None:
            print(NO_KAFKA, file=sys.stderr)
            return 2
        sizes = {"full": FULL, "quick": QUICK, "smallest": SMALLEST}[options.form]
        place = Place(
            folder, f"kafka://{broker}{SHORT_SESSIONS * hasty}", f"bench-{uuid.uuid4().hex[:8]}", sizes
        )
        chosen = options.only or list(PARTS)
        for number, part in enumerate(chosen):
            measure, _ = PARTS[part]
            left = sum(PARTS[each][1] for each in chosen[number:])
            estimate = f", about {left:.0f} minutes left" if options.form == "full" else ""
            print(f"{part} ({number + 1} of {len(chosen)}{estimate})", flush=True)
            place.part, began = part, time.monotonic()
            report |= measure(place)
            report.setdefault("seconds", {})[part] = round(time.monotonic() - began, 1)
            report["machine"]["load_after"] = os.getloadavg()
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=2) + "\n")
    if options.page:
        page.write_page(report, options.output, options.page, place)
        print(f"written: {options.page}")
    print(f"written: {options.output}\n")
    return 0 if print_verdicts(report) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="measure this part alone; what the file has of others stays",
    )
    form = parser.add_mutually_exclusive_group()
    form.set_defaults(form="full")
    form.add_argument(
        "--quick",
        dest="form",
        action="store_const",
        const="quick",
        help="everything with less, in some three minutes",
    )
    form.add_argument(
        "--smallest",
        dest="form",
        action="store_const",
        const="smallest",
        help="to see that all of it runs: figures mean little",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    parser.add_argument("--page", type=Path, help="write the page and its picture here; make bench does")
    return parser.parse_args()


def _earlier(output: Path) -> dict[str, Any]:
    """What the file holds of other parts."""
    return dict(json.loads(output.read_text())) if output.exists() else {}


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg(),
    }


if __name__ == "__main__":
    sys.exit(main())
