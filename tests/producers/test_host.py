"""This machine's metrics: complete, finite, on schedule; a burst of load is seen, and nothing outlives it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from collecting import TOPIC, Collector, HandClock, read_all

from pipeline.errors import ConfigError
from pipeline.ports import Broker
from producers import host
from producers.burst import Burst, usable_cores
from producers.pacing import Progress


def wait_for(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_reading_has_every_feature_finite() -> None:
    reader = host.HostReader()
    reader.read()
    began = time.monotonic()
    wait_for(lambda: time.monotonic() > began + 0.3)

    reading = reader.read()

    assert list(reading) == [feature.name for feature in reader.features]
    assert len(reader.features) + sum(note.split(":")[0].count(",") + 1 for note in reader.notes) == len(
        host.FEATURES
    )
    for feature in reader.features:
        value = reading[feature.name]
        assert value is not None, feature
        assert math.isfinite(value), feature
        assert 0 <= value <= (100 if feature.unit == "%" else math.inf), feature


# Real readings on a real bus: one event a tick, keyed by host, with times that rise strictly.
def test_readings_arrive_on_the_bus(broker: Broker) -> None:
    seen: list[Progress] = []

    sent = host.produce(
        broker.producer(),
        TOPIC,
        per_second=100,
        host="here",
        on_progress=seen.append,
        should_stop=lambda: len(seen) == 5,
    )

    records = read_all(broker)
    assert sent == len(records) == 5
    assert {key for key, _, _ in records} == {b"here"}
    assert {event["host"] for _, event, _ in records} == {"here"}
    assert [round(event["time"] * 1000) for _, event, _ in records] == [stamp for _, _, stamp in records]
    stamps = [stamp for _, _, stamp in records]
    assert sorted(set(stamps)) == stamps
    assert abs(stamps[-1] / 1000 - time.time()) < 30
    assert all(value is not None for _, event, _ in records for value in event.values())


def test_the_first_reading_covers_a_whole_window(collector: Collector, clock: HandClock) -> None:
    host.produce(
        collector,
        TOPIC,
        per_second=15,
        should_stop=lambda: len(collector.sent) == 10,
        clock=clock,
        sleep=clock.sleep,
        wall_clock=clock,
    )

    times = [event["time"] for event in collector.events]
    assert times == pytest.approx([1_001 + number / 15 for number in range(10)], abs=0.002)


def fake_counter(totals: list[float | None]) -> host._Counter:
    following = iter(totals)

    def count() -> list[float]:
        total = next(following)
        if total is None:
            raise OSError("gone")
        return [total]

    return host._Counter(("disk",), count)


def test_a_rate_is_that_of_the_last_window() -> None:
    counter = fake_counter([0, 10, 20, 30, 40, 1040, 1050])

    rates = [counter.read(0.5 * step)["disk"] for step in range(7)]

    assert rates == [None, 20, 20, 20, 20, 1010, 1010]


def test_a_counter_that_fails_is_null_until_it_has_counted_again() -> None:
    counter = fake_counter([0, 10, None, 500, 510])

    assert [counter.read(1.0 * step)["disk"] for step in range(5)] == [None, 10, None, None, 10]


def test_a_counter_that_is_set_back_reads_zero() -> None:
    counter = fake_counter([100, 110, 5, 15])

    assert [counter.read(1.0 * step)["disk"] for step in range(4)] == [None, 10, 0, 10]


@pytest.mark.skipif(sys.platform != "linux", reason="psutil reads /proc on Linux")
def test_what_the_machine_hides_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_bytes(Path("/proc/meminfo").read_bytes())
    (tmp_path / "stat").write_bytes(b"cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\nintr 0\nctxt 5\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))

    reader = host.HostReader()

    names = [feature.name for feature in reader.features]
    assert names[:2] == ["memory", "ctx_switches"]
    assert {"memory", "ctx_switches", "disk"}.issuperset(names)
    assert list(reader.read()) == names
    assert [note.split(":")[0] for note in reader.notes][:2] == ["cpu, cpu_max, cpu_system", "interrupts"]
    assert "net: left out, this machine does not give it (FileNotFoundError" in reader.notes[-1]


@pytest.mark.parametrize("rate", [0, -1, 101, math.nan])
def test_the_rate_has_bounds(collector: Collector, rate: float) -> None:
    with pytest.raises(ConfigError, match="readings a second"):
        host.produce(collector, TOPIC, per_second=rate)


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_burst_loads_the_machine_and_leaves_nothing_behind() -> None:
    with Burst(60, pairs=1) as burst:
        pids = burst.pids
        wait_for(lambda: all(cpu_seconds(pid) > 0.2 for pid in pids))
        assert burst.running

    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))
    assert not burst.running
    assert burst.pids == ()


def test_a_burst_ends_by_itself() -> None:
    with Burst(0.2, pairs=1) as burst:
        pids = burst.pids
        burst.wait()

        assert len(pids) == 2
        assert not any(map(psutil.pid_exists, pids))


def test_a_burst_is_stopped_by_an_exception() -> None:
    pids: tuple[int, ...] = ()

    def interrupted() -> None:
        nonlocal pids
        with Burst(60, pairs=1) as burst:
            pids = burst.pids
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))


def test_a_burst_ends_when_its_parent_is_killed() -> None:
    script = """
from producers.burst import Burst
with Burst(60, pairs=1) as burst:
    print(*burst.pids, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        wait_for(lambda: all(cpu_seconds(pid) > 0.05 for pid in pids))

        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()

        wait_for(lambda: all(map(ended, pids)))


@pytest.mark.parametrize(("seconds", "pairs"), [(0, 1), (601, 1), (math.nan, 1), (1, 0), (1, 129)])
def test_a_burst_has_bounds(seconds: float, pairs: int) -> None:
    with pytest.raises(ConfigError, match="a burst of"):
        Burst(seconds, pairs=pairs)


# What the demo rests on: beside other work, which keeps every core busy, a burst is seen all the same.
def test_a_burst_is_seen_in_the_readings_of_a_busy_machine() -> None:
    reader = host.HostReader()
    hog = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(hog) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        seen = [0.0]

        def switches() -> float:
            seen.append(reader.read()["ctx_switches"] or 0.0)
            return seen[-1]

        began = time.monotonic()
        wait_for(lambda: switches() > 0 and time.monotonic() > began + host.WINDOW_S)
        before = max(seen)

        with Burst(60):
            wait_for(lambda: switches() > 5 * before, within_s=30)
    finally:
        for each in hogs:
            each.kill()
            each.wait()


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("50000 100000", 1), ("max 100000", os.cpu_count()), ("1000000000 1000", os.cpu_count())],
)
def test_a_burst_takes_no_more_cores_than_a_container_is_held_to(
    tmp_path: Path, limit: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")

    assert usable_cores(tmp_path / "cpu.max") == min(cores, usable_cores(tmp_path / "none"))
