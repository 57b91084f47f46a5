"""What becomes of a partition's state where something else comes into force, and of alerts nobody can end.

Pure, like the detect step: live work, re-reading and replay come to the same state and the same alerts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from pipeline.alerts import Alert, Ended, Kind, Transition, alert_id, severity
from pipeline.control import Decisions
from pipeline.detect import Detector, Outputs
from pipeline.episodes import FIRING, IDLE, accept
from pipeline.journal import InForce
from pipeline.ports import Scorer
from pipeline.records import TopicPartition
from pipeline.series import PartitionState


def adopt(
    detector: Detector,
    state: PartitionState,
    partition: TopicPartition,
    change: InForce,
    scorer: Scorer | None,
    *,
    decisions: Decisions,
) -> tuple[PartitionState, Outputs]:
    """Bring ``change`` into force at the state's offset; ``detector`` is that of its policy.

    Another model starts the thresholds from its calibration and goes on with windows and episodes. A policy
    under which rows are made otherwise begins all series anew. Series whose keys belong to another partition
    since there are more end here. What was accepted since is the normal of its series from here on;
    ``decisions`` are what ``change.decided`` comes to.
    """
    endings, before = _Endings(detector, state, partition), state.in_force
    state.in_force = change
    if state.layout != detector.layout and state.layout.same_rows(detector.layout):
        state.relay(detector.layout)
        state.look_at_all()
    elif state.layout != detector.layout:
        endings.end(range(len(state.names)), "policy changed")
        anew = detector.fresh(state.topic_id, state.next_offset)
        anew.counters, anew.clock_ns = state.counters, state.clock_ns
        anew.letters_second, anew.letters_count = state.letters_second, state.letters_count
        anew.in_force, anew.journal_offset = state.in_force, state.journal_offset
        state = anew
    elif before is not None and before.policy_sha != change.policy_sha:
        state.look_at_all()
    if before is not None and before.partitions != change.partitions:
        hashes = state.rows["key_hash"].tolist()
        moved = [slot for slot, key in enumerate(hashes) if state.belongs_elsewhere(key, partition.partition)]
        endings.end(moved, "moved")
        state.rows["moved"] = 0  # what had come from elsewhere may belong here now
        state.look_at_all()
    if change.bundle_sha is None:
        state.bundle_id = None
    elif scorer is not None:
        state.adopt(scorer, change.bundle_sha)
    state.decisions = decisions
    if before is not None:
        endings.accept(series for offset, series in decisions.accepted if offset >= before.decided)
    return state, endings.outputs


def reconcile(
    detector: Detector,
    state: PartitionState,
    partition: TopicPartition,
    published: Mapping[str, Transition],
) -> Outputs:
    """End the open alerts that a rebuilt state knows nothing of; episodes that only it knows are none."""
    endings, known = _Endings(detector, state, partition), set()
    for slot, each in endings.open(range(len(state.names))):
        if each.id in published:
            known.add(each.id)
        elif each.alert == "anomaly":
            row = state.rows[slot]
            row["episode"], row["armed"], row["run"] = IDLE, 0, 0
            state.dirty[slot] = True
    for each in published.values():
        if each.id not in known:
            endings.close(each, "state lost")
    return endings.outputs


@dataclass(slots=True, eq=False)
class _Endings:
    """The alerts of a partition that end otherwise than by a row of their series."""

    detector: Detector
    state: PartitionState
    partition: TopicPartition
    outputs: Outputs = field(default_factory=Outputs)

    def end(self, slots: Iterable[int], reason: Ended) -> None:
        """Close what is open of series, and drop them."""
        live = [slot for slot in slots if slot < len(self.state.names) and self.state.rows["live"][slot]]
        for _, each in self.open(live):
            self.close(each, reason)
        self.state.drop(live)

    def accept(self, names: Iterable[str]) -> None:
        """Let what series do now be their normal, and close what is open of them."""
        for name in dict.fromkeys(names):
            slot = self.state.index.get(name)
            if slot is None or not self.state.rows["live"][slot]:
                continue
            for _, each in self.open([slot]):
                if each.alert == "anomaly":
                    self.close(each, "accepted")
            accept(self.state.rows[slot])
            self.state.dirty[slot] = True

    def open(self, slots: Iterable[int]) -> Iterator[tuple[int, Transition]]:
        """The firing alerts of series, by slot, as their newest published revisions."""
        state, detector = self.state, self.detector
        for slot in slots:
            row, name = state.rows[slot], state.names[slot]
            found: list[tuple[Kind, int, int]] = []
            if name is not None and row["episode"] == FIRING:
                found.append(("anomaly", int(row["start_ns"]), int(row["revision"])))
            if name is not None and row["silent"]:
                found.append(("silent", int(row["silent_start_ns"]), 1))
            for kind, start_ns, revision in found:
                transition = Transition(
                    id=alert_id(detector.namespace, detector.name, name or "", kind, start_ns),
                    revision=revision,
                    alert=kind,
                    state="firing",
                    series=name or "",
                    labels=dict(zip(state.layout.labels, state.labels[slot], strict=False)),
                    started_ns=start_ns,
                    at_ns=max(int(row["last_ns"]), start_ns),
                    offset=int(row["offset"]),
                    severity=severity(float(row["peak"]), detector.stream)
                    if kind == "anomaly"
                    else "warning",
                    judged=False,
                )
                yield slot, transition

    def close(self, firing: Transition, reason: Ended) -> None:
        """The last revision of an alert."""
        revision = firing.revision + 1
        closed = msgspec.structs.replace(firing, revision=revision, state="resolved", judged=False)
        self.outputs.changes.append(closed)
        self.outputs.alerts.append(
            Alert.of(
                closed,
                self.detector.namespace,
                self.detector.name,
                self.partition,
                reason=reason,
                score=None,
                peak_score=None,
                error=None,
                threshold=None,
                features=[],
                bundle=self.state.bundle_id,
            )
        )
