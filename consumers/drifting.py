"""Whether a stream has moved away from its champion, looked at now and then in its newest rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from consumers.attempt import Pace, Parts
from consumers.challenge import champion_of, paced
from models import StackScorer, learning
from models.drift import drift
from models.episodes import LeftOut
from models.history import Part, gather, recent_ms
from pipeline.config import Stream
from pipeline.control import ControlView
from pipeline.detect import Detector

NEWEST_S: Final = 6 * 3_600.0
ROWS: Final = 1_000
"""The rows that are looked at: those of so long before the newest record, and so many of a series at most; as
far as the share that workers tell reaches back."""


class Drifting:
    """The drift of one stream; see :func:`models.drift.drift`.

    Attributes:
        share: at the last look; None where nothing is known.
    """

    def __init__(self, parts: Parts, go_on: Callable[[], object]) -> None:
        """``go_on`` is called between batches; what it raises ends a look."""
        self._parts, self._go_on = parts, go_on
        self._looked: tuple[str, float] | None = None
        self.share: float | None = None

    def look(self, view: ControlView, settings: Stream) -> None:
        """Measure again, where ``training.drift_every`` has passed or the champion is another one.

        Raises:
            BusDown, Unreadable, StoreDown: a server failed; trying again can help.
        """
        parts, champion = self._parts, view.champions.get(self._parts.stream)
        every_s, now_s = settings.training.drift_every, parts.clock()
        if champion is None or not every_s:
            self.share = None
        elif self._looked is None or self._looked[0] != champion or now_s >= self._looked[1] + every_s:
            self.share = self._measured(view, settings)
            self._looked = champion, now_s

    def _measured(self, view: ControlView, settings: Stream) -> float | None:
        parts = self._parts
        champion, _ = champion_of(parts.registry, parts.stream, settings, view)
        if champion is None:
            return None
        since_ms = recent_ms(parts.reader, settings.topic, NEWEST_S)
        source = learning.from_topic(parts.reader, settings.topic, since_ms, None)
        pace = Pace(parts, settings.training.read_rate, self._go_on)
        freezes = view.decisions(parts.stream, view.decided(parts.stream)).freezes
        history = gather(
            Detector(parts.config.namespace, parts.stream, settings),
            [paced(each, pace) for each in source.batches],
            Part(ROWS),
            LeftOut(freezes),
            lambda _: None,
        )
        return drift(StackScorer(champion), history.series, settings.model.window)
