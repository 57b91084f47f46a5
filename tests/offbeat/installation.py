"""A small installation in a folder, and the program used on it as from a shell."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner, Result

from offbeat.cli import cli

PATIENCE_S = 30.0
STREAM = """
  sensors:
    topic: sensors
    events: {series: series, features: [temperature, pressure], every: 1m}
    threshold: {k: 8}
    training: {steps: 150}
"""


@dataclass(frozen=True)
class Installation:
    """A folder with an ``offbeat.yaml``; all that it writes stays in there."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "offbeat.yaml"

    def configure(self, streams: str = STREAM, **places: str) -> Installation:
        """Write the configuration; ``places`` replace the embedded bus, state and registry."""
        chosen = {
            "bus": f"sqlite:///{self.folder}/bus.db",
            "state": f"embedded:///{self.folder}/state",
            "registry": f"{self.folder}/models",
            "snapshots": f"{self.folder}/snapshots",
        } | places
        lines = [f"{name}: {value}" for name, value in chosen.items()]
        self.config.write_text("\n".join([*lines, f"streams:{streams}"]))
        return self

    def run(self, *arguments: str) -> Result:
        """The program with this configuration."""
        return offbeat(*arguments, "--config", str(self.config))

    def ok(self, *arguments: str) -> str:
        """Standard output of a run that must succeed."""
        done = self.run(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON lines of a run that must succeed."""
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]


def offbeat(*arguments: str) -> Result:
    """The program as from a shell."""
    return CliRunner().invoke(cli, list(arguments))


class Program:
    """The program in a process of its own, its lines read as JSON."""

    def __init__(self, installation: Installation, *arguments: str) -> None:
        self.log = installation.folder / f"{arguments[0]}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "offbeat", *arguments, "--json", "--config", str(installation.config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a Ctrl-C of the terminal can be sent to it alone
            )
        self._seen: set[psutil.Process] = set()

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def said(self, **fields: object) -> list[dict[str, Any]]:
        return [line for line in self.lines() if fields.items() <= line.items()]

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))
        return list(self._seen)

    def end(self) -> None:
        """Leave nothing behind, whatever the test found."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)
