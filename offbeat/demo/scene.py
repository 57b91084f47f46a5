"""What there is to see of a demo: written by its threads, read by whoever draws it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pipeline.alerts import Alert
from pipeline.status import Processed, Status
from producers.host import Feature, Reading
from producers.pacing import Progress

KEPT_ROWS = 600


@dataclass(slots=True, eq=False)
class Scene:
    """Each attribute has one writer, and is replaced or appended to in one step.

    Attributes:
        features: what the readings hold.
        phase: a key of :data:`offbeat.demo.view.PHASES`.
        fraction: of the phase, 0 to 1; None when its length is not known.
        detail: figures of the phase, for people.
        sent: readings handed to the bus.
        readings: the newest readings, newest last.
        judged: rows with a score so far.
        scores: their newest scores; 1 is the line.
        status: the worker's.
        alerts: every revision read back from the alerts topic, in order.
        records_read: as committed by the worker's group; known at the end.
    """

    features: tuple[Feature, ...]
    phase: str = "starting"
    fraction: float | None = None
    detail: str = ""
    sent: int = 0
    readings: deque[Reading] = field(default_factory=lambda: deque(maxlen=KEPT_ROWS))
    judged: int = 0
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_ROWS))
    status: Status = field(default_factory=lambda: Status("starting", "not up yet"))
    alerts: list[Alert] = field(default_factory=list)
    records_read: int = 0

    def begin(self, phase: str, detail: str = "") -> None:
        """The next phase."""
        self.phase, self.fraction, self.detail = phase, None, detail

    def on_sent(self, progress: Progress) -> None:
        """The producer tells how far it is."""
        self.sent = progress.sent

    def on_status(self, status: Status) -> None:
        """The worker tells what it does."""
        self.status = status

    def on_processed(self, processed: Processed) -> None:
        """The worker has committed a batch."""
        for scores in processed.outputs.scores:
            self.scores.extend(scores.score.tolist())
            self.judged += len(scores.score)

    @property
    def bins(self) -> dict[str, int]:
        """Records by bin, by the worker's last status."""
        return dict(self.status.bins)

    @property
    def firing(self) -> bool:
        """Whether the newest alert is still open; there is one series, so the others are not."""
        return bool(self.alerts) and self.alerts[-1].state == "firing"

    def recent(self, feature: str, rows: int) -> list[float]:
        """The newest values of a feature, without those that were missing."""
        values = [reading.get(feature) for reading in list(self.readings)[-rows:]]
        return [value for value in values if value is not None]

    def mean(self, feature: str, rows: int) -> float:
        """The mean of the newest values of a feature; NaN when there are none."""
        values = self.recent(feature, rows)
        return float(np.mean(values)) if values else float("nan")
