"""What of a stream's past is not learned from: what silences freeze, and the anomalies that were told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pipeline.alerts import Transition
from pipeline.config import Config
from pipeline.control import ControlView, Standing
from pipeline.errors import NotFound
from pipeline.journal import JournalLog, fold
from pipeline.ports import Reader

OPEN_NS: Final = (1 << 63) - 1
"""The end of an episode that is not over."""
_WORTH: Final = ("confirm", "false alarm")


@dataclass(frozen=True, slots=True)
class Episode:
    """An anomaly that was told of a series.

    Attributes:
        started_ns, ended_ns: event times of its first row above the line and of the row that resolved it.
        critical: whether it became that.
        normal: whether people called it a false alarm, and not confirmed it since, or the new normal.
        confirmed: whether people said that it was one, and have not called it a false alarm since.
    """

    series: str
    started_ns: int
    ended_ns: int
    critical: bool
    normal: bool
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What of a stream's past is no example of how things are.

    Attributes:
        freezes: silences under which nothing is learned.
        episodes: anomalies that were told.
    """

    freezes: Sequence[Standing] = ()
    episodes: Sequence[Episode] = ()

    @classmethod
    def of(cls, config: Config, stream: str, reader: Reader, view: ControlView) -> LeftOut:
        """What people and the stream's workers said so far.

        Raises:
            BusDown: the bus cannot be reached.
            Unreadable: part of the journal is damaged.
        """
        topic, journal = config.stream(stream).topic, config.journal_topic(stream)
        return cls(
            view.decisions(stream, view.decided(stream)).freezes,
            told_episodes(reader, topic, journal, called_normal(view, stream), called_right(view, stream)),
        )


def told_episodes(
    reader: Reader, topic: str, journal_topic: str, normal: Collection[str], confirmed: Collection[str] = ()
) -> list[Episode]:
    """The anomalies that a stream's workers told of, as its journal has them.

    Args:
        reader: of the bus.
        topic: the stream's input; without it there are none.
        journal_topic: where its workers wrote what they did; without it there are none.
        normal: ids of alerts that people called false or normal, see :func:`called_normal`.
        confirmed: ids of those that they called right, see :func:`called_right`.

    Raises:
        BusDown: the bus cannot be reached.
        Unreadable: part of the journal is damaged.
    """
    journal, changes = JournalLog(reader, journal_topic), list[Transition]()
    with suppress(NotFound):
        for number, bounds in sorted(reader.bounds(topic).items()):
            entries, _ = journal.entries(number, settled=False)
            past = fold(entries, bounds.topic_id, bounds.end_offset)
            changes += (change for each in past.alerts for change in each.changes)
    return list(_episodes(changes, normal, confirmed))


def _episodes(
    changes: Iterable[Transition], normal: Collection[str], confirmed: Collection[str]
) -> Iterable[Episode]:
    """The last revision of an alert says when it began, how bad it became, and whether it is over."""
    last = {change.id: change for change in changes if change.alert == "anomaly"}
    for each in last.values():
        ended_ns = each.at_ns if each.state == "resolved" else OPEN_NS
        critical = each.severity == "critical"
        yield Episode(
            each.series, each.started_ns, ended_ns, critical, each.id in normal, each.id in confirmed
        )


def called_normal(view: ControlView, stream: str) -> set[str]:
    """The alerts of a stream that people called false alarms, and not confirmed since, or its new normal."""
    false, accepted = set[str](), set[str]()
    for _, said in view.feedback:
        if said.stream != stream:
            continue
        if said.verdict == "accept":
            accepted.add(said.alert)
        elif said.verdict == "false alarm":
            false.add(said.alert)
        elif said.verdict == "confirm":
            false.discard(said.alert)
    return false | accepted


def called_right(view: ControlView, stream: str) -> set[str]:
    """The alerts of a stream that people confirmed, and have not called false alarms since."""
    last = {
        said.alert: said.verdict
        for _, said in view.feedback
        if said.stream == stream and said.verdict in _WORTH
    }
    return {alert for alert, verdict in last.items() if verdict == "confirm"}
