"""Virtual environments of their own under build/ for what offbeat is compared with, and drawn by."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ROOT / "benchmarks" / "others"
FOLDER = ROOT / "build" / "environments"


class NotThere(Exception):  # noqa: N818 - reads as the fact it states
    """An environment cannot be made here."""


def python_of(name: str, requirements: Path, say: Callable[[str], object], *, make: bool) -> Path:
    """The interpreter of an environment with these requirements; made at its first use, where that may be.

    Raises:
        NotThere: it may not, no index has them, or none can be reached.
    """
    python, wanted = FOLDER / name / "bin" / "python", requirements.read_text()
    made = FOLDER / name / "made-of.txt"
    if made.exists() and made.read_text() == wanted:
        return python
    if not make:
        raise NotThere(f"its environment was not made yet: {FOLDER / name}")
    say(f"making an environment for {name}, once")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    for command in ([sys.executable, "-m", "venv", "--clear", FOLDER / name], [*pip, "-r", requirements]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotThere(f"pip could not install {requirements.name}: {done.stderr.strip()[-300:]}")
    made.write_text(wanted)
    return python
