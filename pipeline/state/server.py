"""The server that keeps state, given or embedded: the maker of stores for streams, closed once."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pipeline.errors import ConfigError
from pipeline.state.embedded import EmbeddedServer
from pipeline.state.leases import RedisLeases
from pipeline.state.redis import RedisStore
from pipeline.state.redis_link import FORMS, RedisLink, StoreInfo


class StateServer:
    """Opens ``redis://``, ``rediss://``, ``unix://`` or ``embedded:///folder``; a context manager.

    A given server is not talked to before a store needs it; the embedded one runs when this returns.

    Raises:
        ConfigError: the URL is of no known form, or the embedded server cannot be had here.
        StoreDown: the embedded server does not come up.
    """

    def __init__(self, url: str) -> None:
        with ExitStack() as opened:
            if url.startswith("embedded:"):
                url = opened.enter_context(EmbeddedServer(_embedded_folder(url))).url
            self._url = url
            self._link = RedisLink(url)
            opened.callback(self._link.close)
            self._closing = opened.pop_all()

    def store(self, *, namespace: str, stream: str) -> RedisStore:
        """The state of one stream of one installation; closed with this object."""
        store = RedisStore(self._url, namespace=namespace, stream=stream)
        self._closing.callback(store.close)
        return store

    def leases(self, *, namespace: str) -> RedisLeases:
        """The leases of one installation; closed with this object."""
        leases = RedisLeases(self._url, namespace=namespace)
        self._closing.callback(leases.close)
        return leases

    def ping(self) -> StoreInfo:
        """What answers.

        Raises:
            StoreDown: not reachable now.
        """
        return self._link.ping()

    def close(self) -> None:
        """End the connections, and the embedded server if this object started it; idempotent."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _embedded_folder(url: str) -> Path:
    """The folder in ``embedded:///relative`` or ``embedded:////absolute``."""
    location = url.removeprefix("embedded:///")
    if location in {"", "/", url}:
        raise ConfigError(f"the state URL {url} names no folder; write {FORMS}")
    return Path(location).absolute()
