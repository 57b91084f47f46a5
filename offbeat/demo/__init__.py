"""``offbeat demo``: the whole pipeline on this machine's own metrics, in two minutes, with a burst to find.

The worker is the real one, on a real bus and state server, and it is trained as ``offbeat train`` does it;
alerts are read back from their topic.
"""

from __future__ import annotations

import json
import os
import signal
import string
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import FrameType

from offbeat.demo import view
from offbeat.demo.play import Play, ShownReader
from offbeat.demo.scene import Scene
from pipeline import config
from pipeline.errors import ConfigError, OffbeatError
from producers import host

LEAST_SECONDS = 20.0
"""Fewer leave no room for the 224 rows that training needs."""
_SWEEP = Path(__file__).with_name("sweep.py")


def run(seconds: float, *, as_json: bool, bus: str | None, state: str | None) -> None:
    """Learn for ``seconds``, watch, cause a burst of load, and print what came of it on standard output.

    SIGINT and SIGTERM end it in order at any moment (KeyboardInterrupt). However it ends, nothing is left
    running and no file is left behind; a bus or Redis that was handed in keeps what the run wrote there.

    Args:
        seconds: of learning, at least LEAST_SECONDS; the quiet time before the burst is a third of it.
        as_json: print one JSON object; progress goes to standard error as plain lines.
        bus: URL of a bus to use instead of an embedded one.
        state: URL of a Redis to use instead of an embedded server.

    Raises:
        ConfigError: too few seconds, or a folder that cannot be written.
        OffbeatError: no alert began with the burst; or a part failed, with its own class.
    """
    if not seconds >= LEAST_SECONDS:
        raise ConfigError(f"--seconds is {seconds:g}; training needs readings of {LEAST_SECONDS:g} s or more")
    namespace = f"demo-{uuid.uuid4().hex[:8]}"
    with _interruptible(), _folder(namespace) as folder:
        reader = ShownReader()
        scene = reader.scene
        text = settings(
            reader.features,
            namespace=namespace,
            bus=bus or f"sqlite:///{folder / 'bus.db'}",
            state=state or f"embedded:///{folder / 'state'}",
            registry=str(folder / "models"),
            snapshots=str(folder / "snapshots"),
        )
        with view.opened(scene, plain=as_json) as tick:
            play = Play(config.parse(text, "the demo's settings"), reader, seconds, tick)
            play.play()
    if as_json:
        sys.stdout.write(json.dumps(result(scene)) + "\n")
    else:
        view.summary(scene, text, play.found, kept=[url for url in (bus, state) if url is not None])
    if not play.found:
        raise OffbeatError(play.shortfall)


def settings(features: tuple[host.Feature, ...], **places: str) -> str:
    """The text of the demo's offbeat.yaml, without the features that this machine does not give."""
    text = files("offbeat.demo").joinpath("settings.yaml").read_text(encoding="utf-8")
    missing = {f"{feature.name}:" for feature in set(host.FEATURES) - set(features)}
    lines = [line for line in text.splitlines() if line.split(maxsplit=1)[0] not in missing]
    # A JSON string is a YAML string, whatever stands in a path or a URL.
    values = {name: value if name == "namespace" else json.dumps(value) for name, value in places.items()}
    return string.Template("\n".join(lines) + "\n").substitute(values)


def result(scene: Scene) -> dict[str, object]:
    """What ``--json`` prints."""
    return {
        "records_read": scene.records_read,
        "bins": scene.bins,
        "alerts": [
            {
                "id": alert.id,
                "revision": alert.revision,
                "state": alert.state,
                "series": alert.series,
                "started_at": alert.started_at.isoformat(),
                "peak_score": alert.peak_score,
                "top_feature": alert.features[0].name,
            }
            for alert in scene.alerts
        ],
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """The first SIGINT or SIGTERM unwinds the demo; a second one ends it at once, and so its children."""
    asked = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder under ``build/`` of the current one, gone when this process is, however it ends.

    Its removal is left to a process of its own (:mod:`offbeat.demo.sweep`), which also outlives a SIGKILL.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = Path("build", name)
    command = [sys.executable, "-I", "-S", str(_SWEEP), str(folder.absolute())]
    # In a session of its own, Ctrl-C on the terminal does not reach it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # noqa: S603 - our own interpreter
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(
                f"{folder.absolute()}: the demo keeps its files here while it runs, and it cannot be made "
                f"({error.strerror}); run it in a folder that you may write to"
            ) from error
        yield folder
