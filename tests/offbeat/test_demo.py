"""The demo as a user starts it: a real process, ended in every way there is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import psutil
import pytest

from offbeat.demo import settings
from offbeat.demo.view import PHASES
from pipeline import config
from pipeline.accounting import Bin
from producers import host

COMMAND = [str(Path(sys.executable).with_name("offbeat")), "demo", "--seconds", "20", "--json"]
NO_ALERT, INTERRUPTED = 1, 130


class End(Enum):
    """How a demo ends: in which phase, by which signal, with which exit code."""

    STARTING = "starting", signal.SIGINT, INTERRUPTED
    LEARNING = "learning", signal.SIGINT, INTERRUPTED
    TRAINING = "training", signal.SIGINT, INTERRUPTED
    QUIET = "quiet", signal.SIGTERM, INTERRUPTED
    BURST = "burst", signal.SIGINT, INTERRUPTED
    KILLED = "burst", signal.SIGKILL, -signal.SIGKILL
    BY_ITSELF = "closing", 0, 0


class Run:
    """A demo in a folder of its own; whoever it started is remembered by process id."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started: set[psutil.Process] = set()
        self.said = ""

    def until(self, phase: str) -> None:
        """Read its progress up to a phase."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            self.started |= set(psutil.Process(self.process.pid).children(recursive=True))
            if PHASES[phase][1] in line:
                return
        pytest.fail(f"the demo ended before {phase}: {self.said}")

    def end(self) -> tuple[int, str]:
        """Wait for its end; its exit code and standard output."""
        out, said = self.process.communicate(timeout=90)
        self.said += said
        return self.process.returncode, out

    def left(self) -> list[str]:
        """What is still there of it, after a moment for those that end by themselves."""
        _, alive = psutil.wait_procs(self.started, timeout=10)
        return [*(str(each) for each in alive), *(str(path) for path in self.folder.rglob("*"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[End, Run]]:
    """One demo for each end, side by side because each takes a minute; none outlives the tests."""
    folder = tmp_path_factory.mktemp("demos")
    started = {end: Run(folder / end.name) for end in End}
    try:
        yield started
    finally:
        for run in started.values():
            run.process.kill()
            run.process.communicate()


# Each phase has other parts at work: the compiler, the worker, the training, the busy processes.
def test_nothing_is_left_however_it_ends(runs: dict[End, Run]) -> None:
    for end in End:
        if end is End.BY_ITSELF:
            continue
        phase, ending, code = end.value
        runs[end].until(phase)
        runs[end].process.send_signal(ending)

        assert runs[end].end() == (code, ""), end
        assert runs[end].left() == [], end


# Whether this machine is quiet enough for the burst to stand out is not the test's to say; that the demo says
# which it was, and where each record went, is.
def test_every_record_is_accounted_for_and_nothing_is_left(runs: dict[End, Run]) -> None:
    run = runs[End.BY_ITSELF]
    run.until("burst")

    code, out = run.end()

    result = json.loads(out)
    assert list(result) == ["records_read", "bins", "alerts"]
    assert list(result["bins"]) == [each.name.lower() for each in Bin]
    assert result["records_read"] == sum(result["bins"].values())
    assert result["bins"]["scored"] > 0
    assert result["bins"]["waiting_model"] > 0
    assert result["bins"]["dead_lettered"] == result["bins"]["late"] == 0
    for alert in result["alerts"]:
        assert alert["state"] == ("firing" if alert["revision"] == 1 else "resolved")
    assert code in {0, NO_ALERT}
    assert ("no alert followed the burst" in run.said) == (code == NO_ALERT)
    assert result["alerts"] or code == NO_ALERT
    assert run.left() == []


def test_too_short_a_time_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--seconds", "5"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "--seconds" in done.stderr
    assert list(tmp_path.iterdir()) == []


# What is shown at the end is what ran, and a file that a user can go on with.
def test_its_settings_are_a_configuration_without_what_the_machine_does_not_give() -> None:
    places = {
        "namespace": "demo-1",
        "bus": "sqlite:///a: b.db",
        "state": "embedded:///#",
        "registry": "models",
        "snapshots": "snapshots",
    }

    whole = config.parse(settings(host.FEATURES, **places))
    less = config.parse(settings(host.FEATURES[:2], **places))

    assert (whole.bus, whole.state) == ("sqlite:///a: b.db", "embedded:///#")
    assert whole.stream("host").topic == "demo-1.host"
    assert less.stream("host").feature_names == ("cpu", "cpu_max")
    assert set(whole.stream("host").feature_names) < {feature.name for feature in host.FEATURES}
