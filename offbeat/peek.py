"""What the state store holds of a stream, read without taking anything over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from pipeline.alerts import timestamp
from pipeline.config import Static, Stream
from pipeline.control import ControlView
from pipeline.episodes import FIRING, PENDING
from pipeline.policy import JudgePolicy, judge_policy
from pipeline.records import TopicPartition
from pipeline.series import Header, Layout, PartitionState
from pipeline.state.redis import RedisStore
from pipeline.thresholds import BINS, joined_line, line

_EPISODES = {PENDING: "pending", FIRING: "firing"}


@dataclass(frozen=True, slots=True)
class Known:
    """What the companions of a series know, with the policy `joint`.

    Attributes:
        grown: by how much its own alerts raise the line.
        levels: mean and standard deviation of each feature, in spreads from the model's median.
        prototypes: shapes that are remembered.
        shapes_mean, shapes_sd: of how far the newest rows are from them.
        levels_seen: rows counted by the height of their level; None where rarity is off.
    """

    grown: float
    levels: dict[str, tuple[float, float]]
    prototypes: int
    shapes_mean: float
    shapes_sd: float
    levels_seen: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """One series as it was at the last checkpoint.

    Attributes:
        partition, next_offset: every record of the partition below the offset is in this row.
        rows: judged rows that the moments rest on, those of the calibration included; 0 before the first.
        mean, sd: of the window's error; ``last_mean`` and ``last_sd`` of the last row's own.
        threshold: the error, or joined score, that is the line now; None before the first judged row.
        known: None without companions.
        raised: what false alarms multiply it by, which is in it.
        episode: ``none``, ``pending`` or ``firing``.
        peak: highest score of the open episode, None without one.
        window_filled, window_rows: rows in the window, and how many make it full.
        values: the newest row, by feature, after transforms.
    """

    series: str
    labels: dict[str, str]
    partition: TopicPartition
    next_offset: int
    bundle: str | None
    rows: int
    mean: float
    sd: float
    last_mean: float
    last_sd: float
    threshold: float | None
    known: Known | None
    raised: float
    episode: str
    episode_since: datetime | None
    peak: float | None
    silent: bool
    last_time: datetime
    quiet_until: datetime | None
    window_filled: int
    window_rows: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Peeked:
    """What is stored of a stream.

    Attributes:
        rows: its series, by name.
        unreadable: partitions whose state is of another version, or of a policy that is not known.
    """

    rows: list[Row]
    unreadable: list[TopicPartition]


def peek(store: RedisStore, name: str, stream: Stream, view: ControlView) -> Peeked:
    """Read all that is stored of a stream; raises StoreDown.

    Each partition is read under the policy and the decisions it was stored under, or under ``stream`` where
    it names none.
    """
    rows: list[Row] = []
    unreadable = []
    for partition in store.partitions():
        claim = store.peek(partition)
        if claim is None or claim.rows is None:
            continue
        header = Header.of(claim.rows)
        in_force = header.in_force if header is not None else None
        settings = stream if in_force is None else view.settings.get(in_force.policy_sha, stream)
        state = PartitionState.unpack(Layout.of(settings), claim.rows)
        if state is None:
            unreadable.append(partition)
        else:
            decisions = view.decisions(name, in_force.decided if in_force is not None else 0)
            raised = decisions.raised(settings.alerts)
            rows += _rows(partition, state, settings, judge_policy(settings), raised)
    return Peeked(sorted(rows, key=lambda row: row.series), unreadable)


def _rows(
    partition: TopicPartition, state: PartitionState, stream: Stream, policy: JudgePolicy, raised: float
) -> Iterator[Row]:
    sketch = state.series.sketch
    for slot, name in enumerate(state.names):
        if name is None or not state.rows["live"][slot]:
            continue
        row = state.rows[slot]
        judged = float(row["rows"]) > 0  # below 0 until the first row under another model
        fixed = isinstance(stream.threshold, Static)
        open_episode = int(row["episode"]) == FIRING
        window = state.window(slot)
        known = _known(state, slot, stream) if state.layout.parts.joint else None
        if known is not None:
            height = joined_line(float(row["rows"]), known.grown, policy)
        else:
            height = float(line(row["error_mean"], row["error_variance"], sketch[slot][:BINS], policy))
        yield Row(
            series=name,
            labels=dict(zip(stream.events.labels, state.labels[slot], strict=False)),
            partition=partition,
            next_offset=state.next_offset,
            bundle=state.bundle_id,
            rows=max(int(row["rows"]), 0),
            mean=float(row["error_mean"]),
            sd=float(row["error_variance"]) ** 0.5,
            last_mean=float(row["last_mean"]),
            last_sd=float(row["last_variance"]) ** 0.5,
            threshold=raised * height if judged or fixed else None,
            known=known,
            raised=raised,
            episode=_EPISODES.get(int(row["episode"]), "none"),
            episode_since=timestamp(int(row["start_ns"])) if open_episode else None,
            peak=float(row["peak"]) if open_episode else None,
            silent=bool(row["silent"]),
            last_time=timestamp(int(row["last_ns"])),
            quiet_until=timestamp(quiet) if (quiet := int(row["quiet_until_ns"])) > 0 else None,
            window_filled=len(window),
            window_rows=stream.model.window,
            values=dict(zip(stream.feature_names, window[-1].tolist(), strict=True)) if len(window) else {},
        )


def _known(state: PartitionState, slot: int, stream: Stream) -> Known:
    now, parts = state.series.companions, state.layout.parts
    mine, level = now.scalars[slot, 0], now.level[slot].reshape(-1, 3)
    return Known(
        grown=float(mine["grown"]),
        levels={
            name: (float(mean), float(variance) ** 0.5)
            for name, (mean, variance, _) in zip(stream.feature_names, level, strict=False)
        },
        prototypes=int(mine["stored"]) if parts.shapes else 0,
        shapes_mean=float(mine["shape_mean"]),
        shapes_sd=float(mine["shape_variance"]) ** 0.5,
        levels_seen=int(now.counts[slot].sum()) if parts.rarity else None,
    )
