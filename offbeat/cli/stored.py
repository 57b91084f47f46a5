"""What is stored, for the commands that read it: alerts, and what people decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pipeline.errors import NotFound

if TYPE_CHECKING:
    from offbeat.stored_alerts import Revisions, StoredAlerts
    from pipeline.config import Config
    from pipeline.ports import Broker


@contextmanager
def stored_alerts(config: Config, broker: Broker) -> Iterator[StoredAlerts]:
    """The alerts topic; at the end it is said what of it could not be read.

    Raises:
        NotFound: there is none yet.
    """
    from offbeat.stored_alerts import StoredAlerts

    stored = StoredAlerts(broker.reader(), config.alerts_topic)
    yield stored
    if stored.unreadable:
        typer.echo(
            f"{stored.unreadable} records of {config.alerts_topic} are damaged, or no alerts that this "
            "version reads",
            err=True,
        )


def alerts_so_far(config: Config, broker: Broker) -> Revisions:
    """All alerts; none where no worker has made their topic yet."""
    try:
        with stored_alerts(config, broker) as stored:
            return stored.revisions()
    except NotFound:
        return {}
