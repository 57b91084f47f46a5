"""The demo as a user starts it: a real process, ended in every way there is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from io import StringIO
from pathlib import Path

import psutil
import pytest
from installation import alert
from rich.console import Console

from offbeat.demo import settings
from offbeat.demo.play import raised
from offbeat.demo.scene import Scene
from offbeat.demo.view import PHASES, _accounting
from pipeline import config
from pipeline.accounting import Bin
from pipeline.status import Status
from producers import host

COMMAND = [str(Path(sys.executable).with_name("offbeat")), "demo", "--seconds", "20", "--json"]
NO_ALERT, INTERRUPTED = 1, 130
pytestmark = pytest.mark.timeout(300)


class End(Enum):
    """How a demo ends: in which phase, by which signal, with which exit code."""

    STARTING = "starting", signal.SIGINT, INTERRUPTED
    LEARNING = "learning", signal.SIGINT, INTERRUPTED
    TRAINING = "training", signal.SIGINT, INTERRUPTED
    QUIET = "quiet", signal.SIGTERM, INTERRUPTED
    BURST = "burst", signal.SIGINT, INTERRUPTED
    KILLED = "burst", signal.SIGKILL, -signal.SIGKILL
    BY_ITSELF = "closing", 0, 0


@dataclass(eq=False)
class Run:
    """A demo in a folder of its own, played to its end; whoever it started is remembered by process id."""

    end: End
    folder: Path
    code: int | None = None
    out: str = ""
    said: str = ""
    left: list[str] = field(default_factory=list)

    def play(self) -> Run:
        """Follow what it says, end it in its phase, and look at what is left."""
        phase, ending, _ = self.end.value
        self.folder.mkdir()
        started: set[psutil.Process] = set()
        with subprocess.Popen(
            COMMAND, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            for line in process.stderr:
                started |= set(psutil.Process(process.pid).children(recursive=True))
                if ending and PHASES[phase][1] in line and PHASES[phase][1] not in self.said:
                    process.send_signal(ending)
                self.said += line
            self.out = process.stdout.read()
        self.code = process.returncode
        _, alive = psutil.wait_procs(started, timeout=10)  # a moment for those that end by themselves
        self.left = [*(str(each) for each in alive), *(str(path) for path in self.folder.rglob("*"))]
        return self


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[End, Run]:
    """One demo for each end, side by side because each takes a minute."""
    folder = tmp_path_factory.mktemp("demos")
    with ThreadPoolExecutor(len(End)) as pool:
        return dict(zip(End, pool.map(lambda end: Run(end, folder / end.name).play(), End), strict=True))


# Each phase has other parts at work: the compiler, the worker, the training, the busy processes.
def test_nothing_is_left_however_it_ends(runs: dict[End, Run]) -> None:
    for end in End:
        if end is End.BY_ITSELF:
            continue
        run = runs[end]

        assert (run.code, run.out) == (end.value[2], ""), (end, run.said)
        assert run.left == [], end


# Whether this machine is quiet enough for the burst to stand out is not the test's to say; that the demo says
# which it was, and where each record went, is.
def test_every_record_is_accounted_for_and_nothing_is_left(runs: dict[End, Run]) -> None:
    run = runs[End.BY_ITSELF]

    result = json.loads(run.out)
    assert list(result) == ["records_read", "bins", "alerts"]
    assert list(result["bins"]) == [each.name.lower() for each in Bin]
    assert result["records_read"] == sum(result["bins"].values())
    assert result["bins"]["scored"] > 0
    assert result["bins"]["waiting_model"] > 0
    assert result["bins"]["dead_lettered"] == result["bins"]["late"] == 0
    # One that gets worse fires once more; what is resolved has no later revision.
    for alert_id in {each["id"] for each in result["alerts"]}:
        revisions = [each for each in result["alerts"] if each["id"] == alert_id]
        assert [each["revision"] for each in revisions] == list(range(1, len(revisions) + 1))
        assert all(each["state"] == "firing" for each in (revisions[0], *revisions[:-1]))
    assert run.code in {0, NO_ALERT}
    assert ("no alert began with the burst" in run.said) == (run.code == NO_ALERT)
    assert result["alerts"] or run.code == NO_ALERT
    assert run.left == []


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
    less = config.parse(settings(host.FEATURES[:3], **places))

    assert (whole.bus, whole.state) == ("sqlite:///a: b.db", "embedded:///#")
    assert whole.stream("host").topic == "demo-1.host"
    assert less.stream("host").feature_names == ("cpu_system",)
    assert set(whole.stream("host").feature_names) < {feature.name for feature in host.FEATURES}


# An alert counts as the burst's only if it began while the burst ran and something rose: beside other work
# there may be alerts of any kind at any time.
def test_only_an_alert_that_rose_with_the_burst_is_its_own() -> None:
    began = datetime(2026, 3, 1, 12, tzinfo=UTC)
    since, until = began.timestamp() - 1, began.timestamp() + 1
    fired, over = alert(1, started_at=began), alert(1, started_at=began, revision=2, state="resolved")
    before = alert(2, started_at=began - timedelta(seconds=2))
    after = alert(3, started_at=began + timedelta(seconds=2))
    low = fired.features[0].model_copy(update={"observed": 5.0})
    calmed = alert(4, started_at=began, features=[low])

    assert raised([before, calmed, fired, over, after], since, until) == [fired, over]


def test_the_summary_shows_every_bin() -> None:
    console = Console(width=100, file=StringIO())
    scene = Scene(())
    scene.status = Status("live", "live", bins=dict.fromkeys((name.name.lower() for name in Bin), 7))

    console.print(_accounting(scene))

    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert all(name.name.lower().replace("_", " ") in shown for name in Bin)
