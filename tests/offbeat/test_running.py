"""Workers as processes: they stop in order, are started again in their slots, and never stay behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest
from installation import STREAM, Installation, Program, wait_until

from offbeat.supervisor import Child, supervise
from pipeline.bus import connect


def ended(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


@pytest.fixture
def program(installation: Installation) -> Iterator[Callable[..., Program]]:
    with ExitStack() as started:

        def start(*arguments: str) -> Program:
            made = Program(installation, *arguments)
            started.callback(made.end)
            return made

        yield start


def committed(installation: Installation) -> int:
    with closing(connect(f"sqlite:///{installation.folder}/bus.db")) as broker:
        return sum(broker.admin().committed("offbeat.sensors.detect", "sensors").values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_commits_and_checkpoints(
    installation: Installation, program: Callable[..., Program], number: int
) -> None:
    installation.ok("produce", "synthetic", "--features", "2", "--rows", "100")
    worker = program("detect")
    wait_until(lambda: worker.said(doing="waiting for a model"), "the worker reads")

    worker.process.send_signal(number)

    assert worker.process.wait(10) == 0
    last = worker.lines()[-1]
    assert last["doing"] == "stopped"
    assert sum(last["bins"].values()) == 1_000 == committed(installation)
    rows = installation.json("thresholds", "show", "sensors")
    assert {row["next_offset"] for row in rows} == {1_000}
    assert len(rows) == 10


def test_a_second_signal_ends_a_worker_at_once(
    program: Callable[..., Program], installation: Installation
) -> None:
    installation.configure(state="redis://127.0.0.1:1/0")
    installation.ok("topics", "create")
    worker = program("detect")
    wait_until(lambda: worker.said(event="notice"), "the worker waits for Redis")
    os.kill(worker.process.pid, signal.SIGSTOP)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        os.kill(worker.process.pid, number)

    assert worker.process.wait(10) in {128 + signal.SIGTERM, 128 + signal.SIGINT}


# A worker that has no end waits for its servers.
def test_a_worker_without_bounds_waits_for_its_servers(
    installation: Installation, program: Callable[..., Program]
) -> None:
    installation.configure(state="redis://127.0.0.1:1/0")
    installation.ok("topics", "create")
    worker = program("detect")

    wait_until(lambda: len(worker.said(event="notice")) >= 2, "it tries again")

    assert "trying again in 1 s" in worker.said(event="notice")[0]["message"]
    assert worker.process.poll() is None


def test_an_installation_runs_restarts_and_stops_as_a_whole(
    installation: Installation, program: Callable[..., Program]
) -> None:
    installation.configure(STREAM + STREAM.replace("sensors", "others"))
    installation.ok("topics", "create")
    whole = program("run")
    for name in ("sensors/0", "others/0"):
        wait_until(lambda name=name: whole.said(worker=name, doing="waiting for a model"), f"{name} works")
    killed = next(each for each in whole.family() if "sensors" in each.cmdline())

    killed.kill()
    before = len(whole.said(worker="sensors/0", doing="waiting for a model"))
    wait_until(
        lambda: len(whole.said(worker="sensors/0", doing="waiting for a model")) > before,
        "it is started again",
    )
    family = whole.family()
    whole.process.terminate()

    assert whole.process.wait(15) == 0
    assert {line["worker"] for line in whole.said(doing="stopped")} == {
        "sensors/0", "others/0", "sensors/retrain", "others/retrain", "notify/0",
    }  # fmt: skip
    assert any("was ended by signal 9" in line["message"] for line in whole.said(worker="run"))
    assert ended(family)


# A terminal sends Ctrl-C to all of its processes; workers must hear it once, or they would end at once.
def test_ctrl_c_on_a_terminal_stops_workers_in_order(
    installation: Installation, program: Callable[..., Program]
) -> None:
    installation.ok("topics", "create")
    whole = program("run")
    wait_until(lambda: whole.said(worker="sensors/0", doing="waiting for a model"), "the worker works")

    os.killpg(whole.process.pid, signal.SIGINT)

    assert whole.process.wait(15) == 0
    assert whole.said(worker="sensors/0", doing="stopped")


# Killed is not asked: nobody is told, and still nothing stays behind, not even the state server.
def test_nothing_is_left_when_the_supervisor_is_killed(
    installation: Installation, program: Callable[..., Program]
) -> None:
    installation.ok("topics", "create")
    whole = program("run", "--workers", "2")
    wait_until(lambda: whole.said(worker="sensors/1"), "both workers are there")
    family = whole.family()
    assert any("valkey" in each.name() for each in family)

    whole.process.kill()

    wait_until(lambda: ended(family), "all of them end")


# What ends at once is not started again at once.
def test_pauses_between_starts_double() -> None:
    told: list[str] = []
    child = Child("broken", ["no-such-command"])

    supervise([child], lambda: len(told) >= 2, told.append)

    assert "ended with exit code 2; starting it again in 1 s" in told[0]
    assert "starting it again in 2 s" in told[1]
    assert child.process is None


def test_metrics_are_served_while_a_worker_runs(
    installation: Installation, program: Callable[..., Program]
) -> None:
    from urllib.request import urlopen  # noqa: PLC0415

    from servers import free_port  # noqa: PLC0415

    installation.ok("topics", "create")
    port = free_port()
    worker = program("detect", "--metrics-port", str(port))
    wait_until(lambda: worker.said(doing="waiting for a model"), "the worker works")

    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()

    assert 'offbeat_doing{doing="waiting for a model",stream="sensors"} 1.0' in text


def test_producing_ends_cleanly_when_it_is_interrupted(
    installation: Installation, program: Callable[..., Program]
) -> None:
    sender = program("produce", "synthetic", "--features", "2", "--rate", "200")
    path = Path(installation.folder / "bus.db")
    wait_until(path.exists, "the bus is there")

    def sent() -> int:
        [topic] = [each for each in installation.json("topics", "list") if each["topic"] == "sensors"]
        return int(topic["records"])

    wait_until(lambda: sent() > 10, "some are sent")
    sender.process.send_signal(signal.SIGINT)

    assert sender.process.wait(10) == 0
    last = json.loads(sender.log.read_text().splitlines()[-1])
    assert last["sent"] == sent()


# A registry is often a folder of the name `models`, which is also the name of a package of ours.
def test_a_child_finds_its_own_program_wherever_it_is_started(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installation.folder / "models").mkdir(exist_ok=True)
    monkeypatch.chdir(installation.folder)
    child = Child("lister", ["models", "list", "--config", str(installation.config)])

    child.start()

    assert child.process is not None
    assert child.process.wait(60) == 0
    child.wait(1)
