"""Logs of partitioned topics with offsets, consumer groups and atomic commits."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.ports import Broker


def connect(url: str) -> Broker:
    """Open the bus that ``url`` names: ``kafka://host:port`` or ``sqlite:///file.db``.

    Raises:
        ConfigError: another scheme, or a bus that cannot be used as asked.
        BusDown, BusFull: the bus cannot be reached or has no room.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "sqlite":
        from pipeline.bus.sqlite import SqliteBroker  # noqa: PLC0415 - only the bus in use is loaded

        return SqliteBroker(url)
    if separator and scheme == "kafka":
        from pipeline.bus.kafka import KafkaBroker  # noqa: PLC0415 - only the bus in use is loaded

        return KafkaBroker(url)
    raise ConfigError(
        f"the bus URL {url!r} has no scheme that offbeat knows; write sqlite:///offbeat.db for a file, "
        "or kafka://host:9092 for a cluster"
    )
