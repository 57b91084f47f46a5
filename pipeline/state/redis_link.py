"""The line to one Redis or Valkey server: its URL, short time-outs, a breaker, and errors for people."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from pipeline.errors import ConfigError, StoreDown

CONNECT_S, CALL_S = 0.5, 1.0
BREAKER_S = 1.0
"""After a server did not answer, calls fail at once for so long: it costs a time-out a second, not a call."""

FORMS = "redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket or embedded:///folder"
_PATHS = {"redis": r"(/\d*)?", "rediss": r"(/\d*)?", "unix": r"/.+"}
_SETTINGS = {
    "username_env": "the environment variable that holds the user name",
    "password_env": "the environment variable that holds the password",
    "ssl_cafile": "a file with the certificate authority in PEM format, for rediss://",
}
_ADVICE: tuple[tuple[type[Exception], str], ...] = (  # the first that fits
    (exceptions.AuthenticationError, "name the right variables by username_env and password_env in its URL"),
    (exceptions.NoPermissionError, "grant this user scripts and the keys of the namespace"),
    (exceptions.BusyLoadingError, "it is loading its data: wait until it has"),
    (exceptions.OutOfMemoryError, "raise its maxmemory, or forget idle series sooner"),
    (exceptions.ReadOnlyError, "this is a replica: point the state URL at the primary"),
    (exceptions.AskError, "this is a node of a Redis Cluster: point the state URL at a server of its own"),
    (exceptions.TimeoutError, "it hangs or is far away: look at its log and its SLOWLOG"),
    (exceptions.ConnectionError, "see that it runs and can be reached from here"),
    (Exception, "look at its log"),
)
_UNREACHABLE = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What answers at a state URL.

    Attributes:
        server: the product, ``valkey`` or ``redis``.
        version: as the server says it.
        clock_skew_s: the server's clock minus this machine's, give or take half the time of the call.
        used_memory: bytes.
    """

    server: str
    version: str
    clock_skew_s: float
    used_memory: int


class RedisLink:
    """A client and its breaker; may be used from several threads. Making one talks to nobody.

    ``clock`` gives monotonic seconds.

    Raises:
        ConfigError: the URL cannot be used.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address, self._client = _parsed(url)
        self._clock = clock
        self._closed_until = clock()

    def script(self, name: str) -> Script:
        """The Lua script in the file ``name`` beside this module, sent to a server that has it not."""
        text = resources.files("pipeline.state").joinpath(name).read_text("utf-8")
        return self._client.register_script(text)

    @contextmanager
    def calling(self, what: str) -> Iterator[Redis]:
        """The client, for the length of one operation; ``what`` completes "cannot ...".

        Raises:
            StoreDown: whatever the server or the way to it did wrong; or the breaker is open.
        """
        left = self._closed_until - self._clock()
        if left > 0:
            raise StoreDown(
                f"cannot {what}: the state server {self.address} did not answer a moment ago; "
                f"it is asked again in {left:.1f} s"
            )
        try:
            yield self._client
        except (exceptions.RedisError, OSError) as error:
            if isinstance(error, _UNREACHABLE):
                self._closed_until = self._clock() + BREAKER_S
            advice = next(text for kind, text in _ADVICE if isinstance(error, kind))
            said = str(error).rstrip(".")
            raise StoreDown(
                f"cannot {what}: the state server {self.address} failed with: {said}; {advice}"
            ) from error

    def ping(self) -> StoreInfo:
        """What answers, and how far its clock is off.

        Raises:
            StoreDown: nobody answers, or not as hoped.
        """
        with self.calling("ask for the server's version") as client:
            info: Any = client.info()
            before = time.time()
            now: Any = client.time()
            middle = (before + time.time()) / 2
        server = info.get("server_name", "redis")
        version = info.get(f"{server}_version") or info["redis_version"]
        return StoreInfo(server, version, now[0] + now[1] / 1e6 - middle, info["used_memory"])

    def close(self) -> None:
        """End the connections; idempotent."""
        self._client.close()


def _parsed(url: str) -> tuple[str, Redis]:
    """The address as it may be shown, and a client that has not connected yet."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the state URL cannot be read: {error}; write {FORMS}") from None
    form = _PATHS.get(parts.scheme)
    if form is None or "@" in parts.netloc or port == 0 or not re.fullmatch(form, parts.path):
        raise ConfigError(
            f"the state URL is not of the form {FORMS}; credentials are named by username_env and "
            "password_env, as in redis://host:6379/0?password_env=REDIS_PASSWORD, never written into it"
        )
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := settings.keys() - _SETTINGS.keys():
        known = "; ".join(f"{name}: {meaning}" for name, meaning in _SETTINGS.items())
        raise ConfigError(f"the state URL has the unknown setting {min(unknown)!r}; it may have {known}")
    address = f"{parts.scheme}://{parts.netloc}{parts.path}"
    client = Redis.from_url(
        address,
        **_security(parts.scheme, settings),
        socket_connect_timeout=CONNECT_S,
        socket_timeout=CALL_S,
        # A connection that a restarted server dropped is worth one more try; a time-out is not.
        retry=Retry(NoBackoff(), 1, (exceptions.ConnectionError,)),
        protocol=2,
    )
    return address, client


def _security(scheme: str, settings: dict[str, str]) -> dict[str, str]:
    """What the client needs to prove who it is, and to know the server."""
    found = {}
    for name in ("username", "password"):
        if variable := settings.get(f"{name}_env"):
            value = os.environ.get(variable)
            if value is None:
                raise ConfigError(
                    f"the state URL takes its {name} from the environment variable {variable}, "
                    "which is not set; set it or name another"
                )
            found[name] = value
    if authority := settings.get("ssl_cafile"):
        if scheme != "rediss":
            raise ConfigError("the state URL has ssl_cafile but no TLS; write rediss:// for redis://")
        if not os.access(authority, os.R_OK):
            raise ConfigError(f"the state URL's ssl_cafile {authority} cannot be read; name a PEM file")
        found["ssl_ca_certs"] = authority
    return found
