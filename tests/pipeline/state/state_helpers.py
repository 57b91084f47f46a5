"""What the tests of the state store share: rows to write, and a wire that loses what passes through it."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.ports import PutResult
from pipeline.records import BUCKET_ROWS, Claim, PackedRows, TopicPartition
from pipeline.state.redis import RedisStore

PARTITION = TopicPartition("machines", 3)
ROW_BYTES = 24


def packed(
    *series: tuple[int, str, int],
    header: bytes = b"header",
    removed: tuple[tuple[int, str], ...] = (),
    whole_buckets: frozenset[int] = frozenset(),
) -> PackedRows:
    """Rows of ``(slot, name, fill byte)``."""
    rows = np.array([[fill] * ROW_BYTES for _, _, fill in series], np.uint8).reshape(-1, ROW_BYTES)
    return PackedRows(
        header,
        np.array([slot for slot, _, _ in series], np.int32),
        [name.encode() for _, name, _ in series],
        rows,
        tuple((slot, name.encode()) for slot, name in removed),
        whole_buckets,
    )


def many(count: int, seed: int, *, row_bytes: int = 300) -> PackedRows:
    """So many rows from slot 0 on, of every bucket all."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, row_bytes), np.uint8)
    slots = np.arange(count, dtype=np.int32)
    buckets = frozenset((slots // BUCKET_ROWS).tolist())
    return PackedRows(b"many", slots, [f"s{slot}".encode() for slot in slots], rows, (), buckets)


def contents(rows: PackedRows | None) -> dict[tuple[int, bytes], tuple[int, bytes]] | None:
    """Slot and bytes by bucket and series; None for no rows."""
    if rows is None:
        return None
    cells = zip(rows.slots.tolist(), rows.series, rows.rows, strict=True)
    return {(slot // BUCKET_ROWS, name): (slot, row.tobytes()) for slot, name, row in cells}


def held(store: RedisStore) -> tuple[int, dict[tuple[int, bytes], tuple[int, bytes]] | None] | None:
    """What anybody can read: the offset, and the contents."""
    claim = store.peek(PARTITION)
    return None if claim is None or claim.next_offset is None else (claim.next_offset, contents(claim.rows))


def written(store: RedisStore, offset: int, rows: PackedRows) -> Claim:
    """A claim under which these rows were written whole."""
    claim = store.claim(PARTITION)
    assert store.put(claim, 0, offset, rows, whole=True) is PutResult.OK
    return claim


def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return as soon as something holds; fail when it does not in time."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Wire:
    """A socket in front of a server's, where a test can reach in, once each.

    Attributes:
        before_read: called before the next HGETALL is handed on.
        before_script: called instead of handing the next script on; then the line breaks.
        before_reply: called instead of handing the next script's reply on; then the line breaks.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self._server, self._path = server, folder / "wire.sock"
        self.url = f"unix://{self._path}"
        self.before_read: Callable[[], object] | None = None
        self.before_script: Callable[[], object] | None = None
        self.before_reply: Callable[[], object] | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self._path))
        self._listener.listen()
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for client in self._clients:
            with suppress(OSError):  # it is closed already
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is shut down
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                thread = threading.Thread(target=self._carry, args=[client])
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as both:
            server.connect(self._server)
            both.register(client, selectors.EVENT_READ, server)
            both.register(server, selectors.EVENT_READ, client)
            losing = None
            while True:
                for key, _ in both.select():
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is client and self.before_read and b"HGETALL" in data:
                        hook, self.before_read = self.before_read, None
                        hook()
                    if key.fileobj is client and b"EVALSHA" in data:
                        if self.before_script:
                            hook, self.before_script = self.before_script, None
                            hook()
                            return
                        losing, self.before_reply = self.before_reply, None
                    if key.fileobj is server and losing:
                        losing()
                        return
                    key.data.sendall(data)
