"""Reading the alerts topic by position, outside any group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.alerts import Alert
from pipeline.errors import NotFound
from pipeline.notifications import published
from pipeline.ports import Reader
from pipeline.records import TopicPartition

_READ_RECORDS = 2_000
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which alerts are asked for; None is any."""

    stream: str | None = None
    series: str | None = None
    kind: str | None = None
    state: str | None = None

    def __call__(self, alert: Alert) -> bool:
        """Whether an alert is among them."""
        return (
            self.stream in {None, alert.stream}
            and self.series in {None, alert.series}
            and self.kind in {None, alert.kind}
            and self.state in {None, alert.state}
        )


Revisions = Mapping[str, Sequence[Alert]]
"""The revisions of each alert by its id, the oldest first."""


def as_it_stands(revisions: Sequence[Alert]) -> Alert:
    """The newest revision, with the features it fired with: one that no row made has none of its own."""
    return revisions[-1].model_copy(update={"features": revisions[0].features})


def chosen(revisions: Revisions, alert_id: str) -> Sequence[Alert]:
    """The one alert whose id begins so; ``last`` is the one that started last.

    Raises:
        NotFound: there is none, or there are several.
    """
    if alert_id == "last" and revisions:
        return max(revisions.values(), key=lambda each: (each[-1].started_at, each[-1].id))
    found = [key for key in revisions if key.startswith(alert_id)]
    if len(found) != 1:
        several = (
            f"{len(found)} alerts have ids that begin with" if found else "there is no alert with the id"
        )
        raise NotFound(f"{several} {alert_id!r}; `offbeat alerts list` shows them (the id stands last)")
    return revisions[found[0]]


class StoredAlerts:
    """The alerts of a topic, in the order of each partition.

    Attributes:
        unreadable: records met that are damaged, or no alerts of this version.

    Raises:
        NotFound: the topic does not exist yet.
        BusDown: the bus cannot be reached.
    """

    def __init__(self, reader: Reader, topic: str) -> None:
        self._reader, self._topic = reader, topic
        self.unreadable = 0
        try:
            self._bounds = reader.bounds(topic)
        except NotFound as error:
            raise NotFound(
                f"{error}; a worker makes the alerts topic when it starts (`offbeat detect`)"
            ) from error

    def past(self) -> Iterator[Alert]:
        """What is stored now."""
        for number, bounds in sorted(self._bounds.items()):
            offset = bounds.first_offset
            while offset < bounds.end_offset:
                offset, alerts = self._read(number, offset, 1.0)
                yield from alerts

    def revisions(self) -> dict[str, list[Alert]]:
        """What is stored now, as :data:`Revisions`."""
        revisions: dict[str, dict[int, Alert]] = {}
        for alert in self.past():
            revisions.setdefault(alert.id, {})[alert.revision] = alert
        return {key: [found[number] for number in sorted(found)] for key, found in revisions.items()}

    def following(self, should_stop: Callable[[], bool]) -> Iterator[Alert]:
        """What comes after :meth:`past`, until told to stop."""
        offsets = {number: each.end_offset for number, each in self._bounds.items()}
        while not should_stop():
            for number, offset in list(offsets.items()):
                offsets[number], alerts = self._read(number, offset, _LOOK_S / len(offsets))
                yield from alerts

    def _read(self, number: int, offset: int, timeout_s: float) -> tuple[int, list[Alert]]:
        batch = self._reader.read(TopicPartition(self._topic, number), offset, _READ_RECORDS, timeout_s)
        found, unreadable = published(batch, Alert)
        self.unreadable += unreadable
        return batch.next_offset, [alert for _, alert in found]
