"""A trial: the same replayed records, without and with faults, through the detect step of every contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.episodes import Episode
from models.excerpt import Excerpt
from models.faults import Changed, Injecting, changes, place
from models.history import Batches
from models.samples import HELD_OUT_SHARE, SeriesRows, as_windows, evenly, windows_at
from models.scaling import TARGET_CLIP
from models.tracks import survey
from pipeline.control import NO_DECISIONS, Decisions
from pipeline.detect import Detector
from pipeline.ports import Float64s, Scorer, Windows
from pipeline.records import Int64s, TopicPartition

MAX_RECORDS: Final = 1_000_000
"""Records that a trial holds and goes through some six times: seconds each, and 350 MB with four features."""
MAX_WINDOWS: Final = 8_192
"""Held-out windows, over all series: enough to know the mean of their errors to a percent."""

_BLOCKS: Final = 10  # of each series' held-out windows
_DAY_NS: Final = 86_400 * 10**9


class Alarm(NamedTuple):
    """An alert that fired: the track of its series, its first row's time, and that of the row it fired at."""

    track: int
    started_ns: int
    at_ns: int
    peak: float


@dataclass(frozen=True, slots=True)
class Extent:
    """What a trial looks at, and out of how much.

    Attributes:
        records, of_records: replayed, and found in the sources.
        series, of_series: the same of series.
        first_ns, last_ns: event times of the first and the last judged row.
        rows: judged rows of the replay that count.

    Raises:
        ValueError: no event has such times; a bundle from elsewhere may say so.
    """

    records: int
    of_records: int
    series: int
    of_series: int
    first_ns: int
    last_ns: int
    rows: int

    def __post_init__(self) -> None:
        if not -(2**63) <= self.first_ns <= self.last_ns < 2**63:
            raise ValueError("times that no event has")


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Windows to compare errors by.

    Attributes:
        series: names.
        of: int64[n], the index of each window's series, rising.
        block: int64[n], rising; neighbouring windows of one series, which are alike, have one.
        raw: float64[n, W, F], in the features' own units.
        spread: float64[series, F], by which the residuals of all contenders are divided.
    """

    series: list[str]
    of: Int64s
    block: Int64s
    raw: Float64s
    spread: Float64s

    def windows(self, scorer: Scorer) -> Windows:
        """The windows as a scorer is handed them."""
        return as_windows(self.raw, scorer.assign(self.series).model[self.of])

    def errors(self, scorer: Scorer) -> Float64s:
        """float64[blocks]: the root of the mean absolute residual, in the rows' spreads and not a model's."""
        why = scorer.explain(self.windows(scorer))
        residual = np.abs(why.observed - why.expected) / self.spread[self.of][:, None]
        errors = np.sqrt(residual.clip(max=TARGET_CLIP).mean(axis=(1, 2)))
        return np.bincount(self.block, errors) / np.bincount(self.block)


class Trial:
    """Records of a stream's past, and the faults that are put into them.

    Attributes:
        stream: the settings that all contenders run under.
        tracks: the series that are looked at.
        faults: what is put into them.
        extent: how much is looked at.
    """

    def __init__(
        self,
        detector: Detector,
        sources: Sequence[Batches],
        *,
        decisions: Decisions = NO_DECISIONS,
        known: Sequence[Episode] = (),
        most_records: int = MAX_RECORDS,
        on_records: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Read every source to its end, once.

        Args:
            detector: of the stream.
            sources: each opens the records of one partition.
            decisions: what people decided about how its rows are judged.
            known: anomalies that were told of: no fault stands in them, and alerts in confirmed ones are not
                false.
            most_records: bound on the records that are kept.
            on_records: hears how many records were read, or gone through once more; what it raises ends the
                work.

        Raises:
            BusDown, Unreadable, InputError: from a source.
        """
        self.stream, self._detector, self._decisions = detector.stream, detector, decisions
        self._on_records = on_records
        excerpts = [Excerpt(detector, each, most_records // len(sources), on_records) for each in sources]
        self._sources = [excerpt.batches for excerpt in excerpts if excerpt.batches]
        self.tracks = [
            track
            for batches in self._sources
            for track in survey(detector, batches, decisions.freezes, known)
        ]
        self._index = {(each.partition, each.series): n for n, each in enumerate(self.tracks)}
        self.faults = place(self.tracks, self.stream, self.stream.training.seed)
        self._changed = changes(self.tracks, self.faults, self.stream, self.stream.training.seed)
        times = [each.time_ns for each in self.tracks]
        self.extent = Extent(
            records=sum(map(len, chain(*self._sources))),
            of_records=sum(each.of_records for each in excerpts),
            series=len(self.tracks),
            of_series=sum(each.of_series for each in excerpts),
            first_ns=min((int(each[0]) for each in times), default=0),
            last_ns=max((int(each[-1]) for each in times), default=0),
            rows=sum(int(each.usable.sum()) for each in self.tracks),
        )

    def alarms(self, scorer: Scorer, *, raised: float = 1.0) -> list[Alarm]:
        """What a contender raises without faults, at rows that count; ``raised`` times are the lines."""
        return [
            alarm
            for alarm in self._run(scorer, {}, raised)
            if (track := self.tracks[alarm.track]).usable[np.searchsorted(track.time_ns, alarm.at_ns)]
        ]

    def found(self, scorer: Scorer, *, raised: float = 1.0) -> NDArray[np.bool_]:
        """bool[faults]: whether a contender raises an alert in a fault's stretch or a window after it.

        An alert that was open before has not found it.
        """
        alarms = self._run(scorer, self._changed, raised)
        found = np.zeros(len(self.faults), bool)
        for n, fault in enumerate(self.faults):
            found[n] = any(
                alarm.track == fault.track
                and fault.start_ns <= alarm.started_ns <= alarm.at_ns <= fault.until_ns
                for alarm in alarms
            )
        return found

    def _run(self, scorer: Scorer, changed: Mapping[TopicPartition, Changed], raised: float) -> list[Alarm]:
        """The anomalies that fire, by the one detect step from fresh states."""
        share = raised * self._decisions.raised(self.stream.alerts) - 1
        rules = self.stream.alerts.model_copy(update={"raise_by": share, "raise_most": share})
        stream = self.stream.model_copy(update={"alerts": rules})
        own = self._detector
        detector = Detector(own.namespace, own.name, stream, Injecting(stream, changed))
        fired = dict[str, Alarm]()
        for batches in self._sources:
            state = detector.fresh("", 0)
            state.decisions = replace(self._decisions, false_alarms=1)
            for batch in batches:
                outputs = detector.step(state, batch, scorer)
                for change, alert in zip(outputs.changes, outputs.alerts, strict=True):
                    if change.alert == "anomaly":
                        track = self._index[batch.partition, change.series]
                        alarm = fired.get(change.id) or Alarm(track, change.started_ns, change.at_ns, 0.0)
                        fired[change.id] = alarm._replace(peak=alert.peak_score or 0.0)
                self._on_records(len(batch))
        return list(fired.values())

    def days(self, contenders: Sequence[Sequence[Alarm]]) -> tuple[Float64s, Float64s]:
        """How many of its alarms each contender raised on each day of each series, and how long that day is.

        float64[contenders, n] and, in days of rows that count, float64[n].
        """
        counts, lengths = [np.zeros((len(contenders), 0))], [np.zeros(0)]
        for index, track in enumerate(self.tracks):
            day, rows = np.unique(track.time_ns[track.usable] // _DAY_NS, return_counts=True)
            at = [[alarm.at_ns // _DAY_NS for alarm in each if alarm.track == index] for each in contenders]
            counts.append(np.stack([(np.array(each, np.int64)[:, None] == day).sum(axis=0) for each in at]))
            lengths.append(rows * track.every_ns / _DAY_NS)
        return np.concatenate(counts, axis=1), np.concatenate(lengths)

    def rows(self) -> dict[str, SeriesRows]:
        """The rows that count, by series, as training takes them."""
        found = {}
        for track in self.tracks:
            torn = track.fresh | ~track.usable
            found[track.series] = SeriesRows(
                track.values[track.usable], np.cumsum(torn)[track.usable].astype(np.int32)
            )
        return found

    def held_out(self) -> HeldOut:
        """Windows of the newest fifth of each series' rows that count, evenly chosen.

        Training holds out as much of the same rows, and a model that is older has not seen them either.
        """
        window, each = self.stream.model.window, max(MAX_WINDOWS // max(len(self.tracks), 1), 1)
        raw = [np.zeros((0, window, len(self.stream.feature_names)))]
        of, block = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for index, track in enumerate(self.tracks):
            usable = np.flatnonzero(track.usable)
            newest = evenly(usable[len(usable) - round(HELD_OUT_SHARE * len(usable)) :], each)
            raw.append(windows_at(track.values, newest - window + 1, window))
            of.append(np.full(len(newest), index))
            block.append(_BLOCKS * index + np.arange(len(newest)) * _BLOCKS // max(len(newest), 1))
        _, blocks = np.unique(np.concatenate(block), return_inverse=True)
        spread = np.array([track.spread for track in self.tracks]).reshape(-1, raw[0].shape[2])
        return HeldOut(
            [track.series for track in self.tracks], np.concatenate(of), blocks, np.concatenate(raw), spread
        )
