"""The topic of the alerts takes no records as large as most of them are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from .check import left
from .place import Grounds, cut_short, place_at, running
from .seam import Outcome, judged
from .words import Orders, Point

MOST_BYTES = 850
"""Of a batch with one alert, CloudEvents attributes and all; with its windows it has some 1,600."""
KILLED = ((Point.SCORED, 8), (Point.SENT, 8), (Point.ASKED, 8), (Point.COMMITTED, 8))
"""The second and the third are reached by the commit with less, when the one before it was refused."""


@dataclass(frozen=True)
class SmallTopic:
    """Alerts with their windows are refused, also those of workers that are killed meanwhile."""

    name = "alerts are larger than their topic takes"
    buses = ("kafka",)
    tries = len(KILLED)
    given_up = (
        "Evidence: alerts that the topic refuses are published without their windows, and without any "
        "features where that is not enough; what has no room even then is waited for. The worker names the "
        "topic, the size and `max.message.bytes`."
    )

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds) as place:
            with closing(KafkaAdminClient(bootstrap_servers=grounds.kafka)) as admin:
                limit = {"max.message.bytes": str(MOST_BYTES)}
                admin.alter_configs(
                    [ConfigResource(ConfigResourceType.TOPIC, place.settings.alerts_topic, limit)]
                )
            with running(place) as run:
                cuts = [Orders(config=str(place.path), point=point, after=after) for point, after in KILLED]
                recoveries = cut_short(run, cuts)
            verdict = judged(place, run)
            evidence = [feature for alert in left(place).alerts for feature in alert.features]
        told = any("less evidence is published" in notice for notice in run.notices)
        bare = not any(feature.window_observed for feature in evidence)
        if not (told and bare and evidence):
            verdict.wrong.append(f"told: {told}, no windows: {bare}, features: {len(evidence)}")
        return Outcome(self, grounds.bus, verdict, recoveries)


def faults() -> Iterator[SmallTopic]:
    """All of this module."""
    yield SmallTopic()
