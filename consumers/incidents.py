"""What is to be told of alerts, and when: incidents, mutes, repeats and ends. Pure: no I/O, no clock.

All follows from the alerts and when they arrived, from what was told, from what people decided, and from the
moment. Nothing else is kept, so that a notifier which begins again from the topics decides as one that never
stopped. Times are wall clock, but for those at which alerts began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from pipeline.alerts import Alert
from pipeline.config import Config
from pipeline.control import ControlView
from pipeline.notifications import (
    MOST_MEMBERS,
    MOST_SHOWN,
    Event,
    IncidentKind,
    Member,
    Notification,
    incident_id,
    ranked,
    stream_title,
    title,
)
from pipeline.silences import Matchers, fits

_MOST_APART_S = 10.0
"""A longer hole between two looks at a topic is not counted as silence: nobody watched it meanwhile."""
_NEVER, _FOR_EVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(slots=True, eq=False)
class _Followed:
    """An alert that is open, or not told yet, or of an incident that is open.

    Attributes:
        alert: as it stands, with the features it fired with, and without their windows.
        offset, last_offset: of its first and its last revision on the alerts topic.
        arrived, ended: when it opened and resolved there; None while it is open.
    """

    alert: Alert
    offset: int
    last_offset: int
    arrived: datetime
    ended: datetime | None = None

    def take(self, alert: Alert, offset: int, arrived: datetime) -> None:
        """Its next revision; one that ends otherwise than by a row has no features."""
        features = alert.features if alert.state == "firing" and alert.features else self.alert.features
        self.alert, self.last_offset = _brief(alert.model_copy(update={"features": features})), offset
        if alert.state == "resolved":
            self.ended = max(arrived, self.arrived)


def _brief(alert: Alert) -> Alert:
    """With all that silences and people ask for."""
    no_windows: dict[str, list[float]] = {"window_observed": [], "window_expected": []}
    features = [each.model_copy(update=no_windows) for each in alert.features[:1]]
    return alert.model_copy(update={"features": features})


@dataclass(slots=True, eq=False)
class _Incident:
    """Alerts that are told together.

    Attributes:
        last: when the last of them opened, or was held back no more.
        first: the same of the first one.
        told: what was told of it last.
        fresh: how many alerts joined since.
    """

    id: str
    stream: str
    kind: IncidentKind
    after_silence: bool
    first: datetime
    last: datetime
    members: list[_Followed] = field(default_factory=list)
    told: Notification | None = None
    fresh: int = 0

    @property
    def size(self) -> int:
        return self.fresh + (len(self.told.members) if self.told else 0)

    @property
    def open(self) -> list[_Followed]:
        return [each for each in self.members if each.ended is None]


class _Silences:
    """The silences there ever were, at a moment."""

    def __init__(self, view: ControlView, now: datetime) -> None:
        self._all = list(view.silences.values())
        self._active = [each for each in self._all if each.active(now)]

    def hold(self, about: Callable[[Matchers], bool], at: datetime | None = None) -> bool:
        """Whether one holds that is about something: now, or at another moment."""
        if at is None:
            return any(about(each.record.silence.matchers) for each in self._active)
        return any(about(each.record.silence.matchers) and each.active(at) for each in self._all)

    def ends(self, about: Callable[[Matchers], bool], first: datetime, last: datetime) -> list[datetime]:
        """When those ended that are about something, of their windows that reached into a time."""
        found = [each for each in self._all if about(each.record.silence.matchers)]
        return [end for each in found for _, end in each.spans(first, last)]


def _about_alert(alert: Alert, matchers: Matchers) -> bool:
    return matchers.cover_alert(alert)


def _about_stream(stream: str, matchers: Matchers) -> bool:
    """Whether a silence is about a stream as a whole, and not about some of its alerts."""
    return fits(matchers.stream, stream) and matchers == Matchers(stream=matchers.stream)


@dataclass(slots=True, eq=False)
class _Watch:
    """How long a stream's topic has stood at one position: since when, and watched for so many seconds."""

    position: str
    since: datetime
    looked: datetime
    quiet_s: float = 0.0


class Incidents:
    """The incidents of an installation, from what was told in the past.

    Call :meth:`take` for each alert from the first that is retained, :meth:`forget_settled` once all below
    the end are taken, and then :meth:`decide` now and then.

    Attributes:
        held: open alerts that a silence holds back, by the last decision.
    """

    def __init__(self, config: Config, past: Iterable[Notification]) -> None:
        self._config = config
        self._wait, self._within, self._repeat = (
            timedelta(seconds=each)
            for each in (config.notify.wait, config.notify.within, config.notify.repeat)
        )
        last = {each.id: each for each in past}
        self._open = {key: each for key, each in last.items() if each.event != "resolved"}
        self._told = {alert for each in self._open.values() for alert in each.members}
        self._over = {alert for each in last.values() for alert in each.members} - self._told
        self._silent = {each.stream: each for each in last.values() if each.kind == "stream silent"}
        self._alerts: dict[str, _Followed] = {}
        self._pending: dict[str, _Followed] = {}
        self._watches: dict[str, _Watch] = {}
        self.held = 0

    @property
    def open(self) -> int:
        """Incidents that were told and are not over."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Alerts that are to be told, by the last decision."""
        return len(self._pending)

    def take(self, alert: Alert, offset: int, arrived: datetime) -> None:
        """A record of the alerts topic, in its order; what is taken twice changes nothing."""
        known = self._alerts.get(alert.id)
        if known is not None:
            if alert.revision > known.alert.revision:
                known.take(alert, offset, arrived)
        elif alert.state == "firing" and alert.id not in self._over:
            self._alerts[alert.id] = _Followed(_brief(alert), offset, offset, arrived)

    def forget_settled(self, next_offset: int) -> None:
        """Of what was over below a position that was committed, all was told that is to be told."""
        for key, each in list(self._alerts.items()):
            if each.ended is not None and each.last_offset < next_offset and key not in self._told:
                del self._alerts[key]

    def settled(self, next_offset: int) -> int:
        """Below it, nothing waits to be told; ``next_offset`` is the one to read next."""
        return min([next_offset, *(each.offset for each in self._pending.values())])

    def watched(self, view: ControlView) -> list[str]:
        """The streams whose topic is to be looked at."""
        return [
            name
            for name in self._config.streams
            if self._silent_after(name, view) is not None or self._is_silent(name)
        ]

    def decide(self, now: datetime, view: ControlView, positions: Mapping[str, str]) -> list[Notification]:
        """What is to be told now; it counts as told from here on.

        Args:
            now: the wall clock.
            view: what people decided.
            positions: where the topic of each watched stream stands, unless it is empty; another text for
                another position.
        """
        silences = _Silences(view, now)
        said = {each.alert: each.who for _, each in view.feedback if each.verdict == "ack"}
        told = [*self._streams(now, view, silences, positions)]
        for incident in self._incidents(now, silences):
            event = self._due(incident, now, silences, said)
            if event is not None:
                told.append(self._tell(incident, event, now, said))
        return told

    def _incidents(self, now: datetime, silences: _Silences) -> list[_Incident]:
        """Those that are open, with the alerts that join them, and those that alerts begin."""
        found = [self._reopened(each) for each in self._open.values() if each.kind != "stream silent"]
        newest: dict[tuple[str, IncidentKind, bool], _Incident] = {}
        for incident in sorted(found, key=lambda each: each.last):
            newest[incident.stream, incident.kind, incident.after_silence] = incident
        for since, each, after_silence in self._untold(now, silences):
            stream, kind = each.alert.stream, each.alert.kind
            joined = newest.get((stream, kind, after_silence))
            if joined is None or since > joined.last + self._within or joined.size >= MOST_MEMBERS:
                number = incident_id(self._config.namespace, stream, kind, each.alert.id)
                joined = _Incident(number, stream, kind, after_silence, since, since)
                newest[stream, kind, after_silence] = joined
                found.append(joined)
            joined.members.append(each)
            joined.fresh += 1
            joined.last = max(joined.last, since)
        return found

    def _reopened(self, told: Notification) -> _Incident:
        """Alerts that their topic retains no more count as over."""
        members = [self._alerts[each] for each in told.members if each in self._alerts]
        last = max((each.arrived for each in members), default=told.at)
        if told.after_silence:
            last = max(last, told.at)
        return _Incident(
            told.id, told.stream, told.kind, told.after_silence, told.at, last, members, told
        )  # fmt: skip

    def _untold(self, now: datetime, silences: _Silences) -> list[tuple[datetime, _Followed, bool]]:
        """Alerts to be told, by when nothing held them back any more, and whether a silence did."""
        found, self.held, self._pending = [], 0, {}
        for key, each in list(self._alerts.items()):
            if key in self._told:
                continue
            about, at = partial(_about_alert, each.alert), max(each.ended or now, each.arrived)
            sheltered = self._sheltered_until(each)
            if silences.hold(about, each.ended) or at < sheltered:
                if each.ended is None:
                    self.held += 1
                else:
                    del self._alerts[key]  # it began and ended unheard
                continue
            ends = silences.ends(about, each.arrived, at)
            found.append((max([each.arrived, sheltered, *ends]), each, bool(ends)))
            self._pending[key] = each
        return sorted(found, key=lambda one: (one[0], one[1].offset))

    def _due(
        self, incident: _Incident, now: datetime, silences: _Silences, said: Mapping[str, str]
    ) -> Event | None:
        told, still = incident.told, incident.open
        if told is None:
            return None if now < incident.first + self._wait else "opened" if still else "resolved"
        if not still:
            return "resolved"

        def heard(each: _Followed) -> bool:  # asked last, and of few: there may be very many
            return not silences.hold(partial(_about_alert, each.alert))

        if now >= told.at + self._within:
            critical = [each for each in still if each.alert.severity == "critical"]
            if incident.fresh or (told.severity == "warning" and any(map(heard, critical))):
                return "changed"
        acknowledged = any(each in said for each in told.members)
        if now >= told.at + self._repeat and not acknowledged and any(map(heard, still)):
            return "repeated"
        return None

    def _tell(
        self, incident: _Incident, event: Event, now: datetime, said: Mapping[str, str]
    ) -> Notification:
        fresh = incident.members[len(incident.members) - incident.fresh :]
        earlier = [incident.told] if incident.told is not None else []
        members = [key for each in earlier for key in each.members] + [each.alert.id for each in fresh]
        alerts = ranked(Member.of(each.alert) for each in incident.members)
        severities = {each.severity for each in alerts} | {each.severity for each in earlier}
        made = Notification(
            id=incident.id,
            sequence=sum(each.sequence for each in earlier) + 1,
            event=event,
            namespace=self._config.namespace,
            stream=incident.stream,
            kind=incident.kind,
            severity="critical" if "critical" in severities else "warning",
            at=now,
            started_at=min([each.started_at for each in alerts] + [each.started_at for each in earlier]),
            title=title(incident.stream, incident.kind, event, alerts, after_silence=incident.after_silence),
            count=len(members),
            open=len(incident.open),
            alerts=alerts[:MOST_SHOWN],
            members=members,
            acknowledged_by=next((said[each] for each in members if each in said), None),
            after_silence=incident.after_silence,
        )
        for each in fresh:
            del self._pending[each.alert.id]
        if event == "resolved":
            self._open.pop(made.id, None)
            self._told.difference_update(members)
            for each in incident.members:
                del self._alerts[each.alert.id]
        else:
            self._open[made.id] = made
            self._told.update(members)
        return made

    def _silent_after(self, stream: str, view: ControlView) -> float | None:
        """By the policy in force; by the configuration where there is none yet."""
        in_force = view.settings.get(view.policies.get(stream, ""), self._config.stream(stream))
        return in_force.events.silent_after

    def _is_silent(self, stream: str) -> bool:
        told = self._silent.get(stream)
        return told is not None and told.event != "resolved"

    def _streams(
        self, now: datetime, view: ControlView, silences: _Silences, positions: Mapping[str, str]
    ) -> Iterator[Notification]:
        """What is to be told of streams as a whole."""
        for name, position in positions.items():
            watch, about = self._look(name, position, now), partial(_about_stream, name)
            number = incident_id(self._config.namespace, name, "stream silent", position)
            told, silent_after = self._silent.get(name), self._silent_after(name, view)
            if told is not None and told.event != "resolved":
                if told.id != number:
                    yield self._tell_stream(told, "resolved", now)
                elif now >= told.at + self._repeat and not silences.hold(about):
                    yield self._tell_stream(told, "repeated", now)
            elif silent_after is not None and watch.quiet_s >= silent_after and not silences.hold(about):
                made = Notification(
                    id=number,
                    sequence=1,
                    event="opened",
                    namespace=self._config.namespace,
                    stream=name,
                    kind="stream silent",
                    severity="critical",
                    at=now,
                    started_at=watch.since,
                    title=stream_title(name, "opened", watch.since),
                    count=0,
                    open=0,
                    alerts=[],
                    members=[],
                    acknowledged_by=None,
                    after_silence=bool(silences.ends(about, watch.since, now)),
                )
                self._silent[name] = self._open[number] = made
                yield made

    def _look(self, stream: str, position: str, now: datetime) -> _Watch:
        watch = self._watches.get(stream)
        if watch is None or watch.position != position:
            watch = self._watches[stream] = _Watch(position, now, now)
        watch.quiet_s += min(max((now - watch.looked).total_seconds(), 0.0), _MOST_APART_S)
        watch.looked = now
        return watch

    def _tell_stream(self, told: Notification, event: Event, now: datetime) -> Notification:
        sentence = stream_title(told.stream, event, told.started_at)
        more = {"sequence": told.sequence + 1, "event": event, "at": now, "title": sentence}
        made = self._silent[told.stream] = self._open[told.id] = told.model_copy(update=more)
        if event == "resolved":
            del self._open[told.id]
        return made

    def _sheltered_until(self, followed: _Followed) -> datetime:
        """Until when a silent series is part of its whole stream's silence; in the past where it never was.

        The clock of a partition stands while nothing comes, so all its series are told to be silent in the
        moment in which records come again, most of them to be back a moment later.
        """
        alert, told = followed.alert, self._silent.get(followed.alert.stream)
        if told is None or alert.kind != "silent" or followed.arrived < told.started_at:
            return _NEVER
        if told.event != "resolved":
            return _FOR_EVER
        return max(told.at, followed.arrived) + self._within if alert.started_at <= told.at else _NEVER
