"""A small installation in a folder, and the program used on it as from a shell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from offbeat.cli import cli

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
