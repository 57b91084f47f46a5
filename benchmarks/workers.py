"""Real ``offbeat detect`` processes, and the little programs that produce for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
from place import Place, environment
from servers import die_with_parent

from offbeat.benchmark.installation import write
from pipeline.config import Config
from pipeline.ports import Broker

DEADLINE_S = 180.0
_STOP_S = 30.0
_LOOK_S = 0.02
HERE = Path(__file__).resolve().parent


@dataclass(slots=True)
class Process:
    """A process that was started; what it says is kept in a file."""

    child: subprocess.Popen[bytes]
    output: Path
    _opened: IO[bytes]
    _seen: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self._seen = psutil.Process(self.child.pid)

    @classmethod
    def start(cls, place: Place, name: str, command: Sequence[str | Path]) -> Process:
        """Start Python with these arguments."""
        output = place.folder / f"{name}.out"
        opened = output.open("wb")
        child = subprocess.Popen(
            [sys.executable, *command],
            env=environment(),
            cwd=place.folder,
            stdin=subprocess.PIPE,
            stdout=opened,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes one system call and takes no lock
        )
        return cls(child, output, opened)

    @classmethod
    def detect(
        cls,
        place: Place,
        config: Config,
        stream: str,
        slot: int,
        program: Sequence[str | Path] = ("-m", "offbeat"),
    ) -> Process:
        """A worker of a stream."""
        path = write(config, place.folder / f"{config.namespace}.yaml")
        name = f"{config.namespace}-{slot}-{time.monotonic_ns()}"
        return cls.start(
            place, name, [*program, "detect", stream, "--config", path, "--slot", str(slot), "--json"]
        )

    @property
    def pid(self) -> int:
        """Its id."""
        return self.child.pid

    @property
    def cpu_s(self) -> float:
        """CPU seconds that it used so far, its children's not counted."""
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory now."""
        return int(self._seen.memory_info().rss)

    @property
    def said(self) -> list[dict[str, Any]]:
        """The JSON lines it wrote so far."""
        lines = self.output.read_text(errors="replace").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    @property
    def status(self) -> dict[str, Any]:
        """A worker's last status."""
        return next((each for each in reversed(self.said) if each.get("event") == "status"), {})

    @property
    def partitions(self) -> int:
        """How many partitions a worker said it owns."""
        return len(self.status.get("partitions", ()))

    def must_run(self) -> None:
        """Raise with its last words when it has ended by a fault."""
        if self.child.poll():
            raise RuntimeError(
                f"a process ended with {self.child.returncode}:\n{self.output.read_text()[-2_000:]}"
            )

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.child.stdin is not None  # noqa: S101 - it was started with one
        self.child.stdin.write(f"{line}\n".encode())
        self.child.stdin.flush()

    def die_at(self, point: signal.Signals) -> None:
        """Have ``cut.py`` die at the point that it has for the signal."""
        os.kill(self.pid, point)
        self.child.wait()

    def kill(self) -> None:
        """Kill it as a power failure would."""
        self.child.kill()
        self.child.wait()

    def close(self) -> None:
        """Have it stop in order, or kill it."""
        if self.child.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            self.child.terminate()
            try:
                self.child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.child.stdin is not None:
            self.child.stdin.close()
        self._opened.close()


def committed(broker: Broker, config: Config, stream: str) -> Callable[[], int]:
    """Asks how many records of its input a stream's group has committed."""
    admin, group, topic = broker.admin(), config.group(stream), config.stream(stream).topic
    return lambda: sum(admin.committed(group, topic).values())


def wait_until(
    there: Callable[[], bool], what: str, processes: Sequence[Process], patience_s: float = DEADLINE_S
) -> None:
    """Wait for something that these processes bring about."""
    deadline = time.monotonic() + patience_s
    while not there():
        for each in processes:
            each.must_run()
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"waited {patience_s:g} s for {what}, in vain; {[each.status for each in processes]}"
            )
        time.sleep(_LOOK_S)
