"""What commands that run a role have in common: what they say, waiting for servers, supervisors."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, TypeVar

import typer

from offbeat.cli.options import print_json
from offbeat.cli.stopping import Stop
from offbeat.supervisor import SUPERVISED
from pipeline.errors import BusDown, StoreDown

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", metavar="PORT", min=1, max=65_535, help="Serve Prometheus metrics on 127.0.0.1."
    ),
]
STATUS_S = 5.0
MOST_RETRY_S = 10.0


class _Status(Protocol):
    """A dataclass that says what a process is doing."""

    @property
    def doing(self) -> str: ...


_S = TypeVar("_S", bound=_Status)


class Teller(Generic[_S]):
    """Says what a process does: lines for people, or JSON objects.

    Args:
        who: stands in each line.
        sentence: a status in words; it is given the message that was told last.
    """

    def __init__(self, who: str, sentence: Callable[[_S, str], str], *, json: bool) -> None:
        self._who, self._sentence, self._json = who, sentence, json
        self._doing, self._told, self._at = "", "", 0.0
        self.status: _S | None = None

    def on_status(self, status: _S) -> None:
        """A status that is new, or that was not told for a while."""
        self.status = status
        now = time.monotonic()
        if status.doing == self._doing and now - self._at < STATUS_S:
            return
        self._doing, self._at = status.doing, now
        self.tell(status)

    def tell(self, status: _S) -> None:
        """A status."""
        if self._json:
            self._object("status", dataclasses.asdict(status))  # type: ignore[call-overload]
        else:
            self._line(self._sentence(status, self._told))

    def notice(self, message: str) -> None:
        """What a person should know."""
        self._told = message
        self.say("notice", {"message": message}, message)

    def say(self, event: str, value: dict[str, Any], text: str) -> None:
        """Something that happened: as JSON, and in words."""
        if self._json:
            self._object(event, value)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        typer.echo(f"{datetime.now(UTC):%H:%M:%S} {self._who} {text}")
        sys.stdout.flush()

    def _object(self, event: str, value: dict[str, Any]) -> None:
        print_json({"event": event, "worker": self._who, **value})
        sys.stdout.flush()


def retried(work: Callable[[], None], stop: Stop, notice: Callable[[str], None], *, once: bool) -> None:
    """Work that has no end waits for its servers to come up; that which has an end says what is missing."""
    pause_s = 1.0
    while not stop():
        try:
            work()
        except (BusDown, StoreDown) as error:
            if once:
                raise
            notice(f"{error}; trying again in {pause_s:g} s")
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)
        else:
            return


@contextmanager
def serving(collector: Callable[[], Collector], port: int | None) -> Iterator[None]:
    """Serve what a collector tells on a port until the context is left; without one nothing is even loaded.

    Raises:
        ConfigError: the port is taken.
    """
    if port is None:
        yield
        return
    from pipeline import metrics

    server = metrics.serve(collector(), port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def stop_with_parent(stop: Stop) -> None:
    """Stop in order when our supervisor, who holds the other end of standard input, is gone, however."""
    if SUPERVISED not in os.environ:
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        stop.asked = True

    threading.Thread(target=watch, daemon=True).start()
