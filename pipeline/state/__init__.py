"""Where a partition's state lives between workers: Redis or Valkey, embedded or given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.state.server import StateServer


def connect(url: str) -> StateServer:
    """Open the state that ``url`` names: ``redis://``, ``rediss://``, ``unix://`` or ``embedded:///folder``.

    Raises:
        ConfigError: another scheme, or a server that cannot be used as asked.
        StoreDown: the embedded server does not come up; a given server is not talked to yet.
    """
    from pipeline.state.server import StateServer  # noqa: PLC0415 - only the store in use is loaded

    return StateServer(url)
