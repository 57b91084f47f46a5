"""What people said of alerts, and what it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from offbeat.silencing import silences_of
from offbeat.stored_alerts import Revisions, as_it_stands
from pipeline.config import AlertRules
from pipeline.control import ControlView, Feedback, Verdict
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.alerts import Alert

SAID: Mapping[Verdict, str] = {
    "ack": "acknowledged",
    "confirm": "confirmed",
    "false alarm": "called a false alarm",
    "accept": "accepted",
}
_RIGHT: frozenset[Verdict] = frozenset({"confirm", "false alarm"})
"""Of these two the last that was said of an alert counts."""


@dataclass(frozen=True, slots=True)
class Rise:
    """How far false alarms have raised the line of a stream, and how far they may; shares of the line."""

    share: float
    most: float

    @classmethod
    def of(cls, view: ControlView, stream: str) -> Rise:
        """That of a stream under the policy in force."""
        sha = view.policies.get(stream)
        rules = AlertRules() if sha is None else view.settings[sha].alerts
        raised = view.decisions(stream, view.decided(stream)).raised(rules)
        return cls(round(raised - 1, 9), rules.raise_most)

    def __str__(self) -> str:
        if not self.share:
            return "as its policy has it"
        return f"{self.share * 100:.3g} % higher (at most {self.most * 100:.3g} %)"


def check(alert: Alert, verdict: Verdict) -> None:
    """See that a verdict means something for an alert.

    Raises:
        ConfigError: it is about silence, which no line decides.
    """
    if alert.kind == "silent" and verdict in {"false alarm", "accept"}:
        raise ConfigError(
            f"alert {alert.id[:12]} says that series {alert.series!r} of stream {alert.stream!r} was silent, "
            "which no line decides; let `events.silent_after` be longer, or silence the series (`offbeat "
            "silences add`)"
        )


def effect(alert: Alert, verdict: Verdict, rise: Rise) -> str:
    """What a verdict does, as a sentence."""
    is_open = alert.state == "firing"
    if verdict == "accept":
        then = (
            "the alert closes with the next records"
            if is_open
            else "its line starts again with the next record"
        )
        return f"what {alert.series} does now is its normal; {then}"
    if verdict == "ack":
        return "it is not told again while it is open" if is_open else "it is over already"
    return f"the line of stream {alert.stream} is {'now ' * (verdict == 'false alarm')}{rise}"


def of_alert(view: ControlView, alert_id: str) -> list[Feedback]:
    """What was said of an alert, in order."""
    return [each for _, each in view.feedback if each.alert == alert_id]


@dataclass(frozen=True, slots=True)
class Summary:
    """One stream: alerts that are stored (those that began in a silence included), and what was said of any.

    An alert counts once for each verdict; of confirm and false alarm the last counts.
    """

    stream: str
    alerts: int
    open: int
    critical: int
    silenced: int
    acked: int
    confirmed: int
    false_alarms: int
    accepted: int
    rise: Rise


def summary(streams: Iterable[str], view: ControlView, revisions: Revisions) -> list[Summary]:
    """Streams, and others that alerts or feedback name, by name."""
    alerts = [as_it_stands(each) for each in revisions.values()]
    said = [each for _, each in view.feedback]
    names = {*streams, *(each.stream for each in alerts), *(each.stream for each in said)}
    silences, now = list(view.silences.values()), datetime.now(UTC)
    found = []
    for name in sorted(names):
        own = [each for each in alerts if each.stream == name]
        about = [each for each in said if each.stream == name]
        right = [*{each.alert: each.verdict for each in about if each.verdict in _RIGHT}.values()]
        others = [verdict for _, verdict in {(each.alert, each.verdict) for each in about}]
        found.append(
            Summary(
                stream=name,
                alerts=len(own),
                open=sum(each.state == "firing" for each in own),
                critical=sum(each.severity == "critical" for each in own),
                silenced=sum(bool(silences_of(each, silences, now)) for each in own),
                acked=others.count("ack"),
                confirmed=right.count("confirm"),
                false_alarms=right.count("false alarm"),
                accepted=others.count("accept"),
                rise=Rise.of(view, name),
            )
        )
    return found
