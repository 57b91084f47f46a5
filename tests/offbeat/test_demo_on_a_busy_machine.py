"""The demo's settings on readings of a machine that was busy with other work, kept from a demo there.

That work kept both of its cores busy, now and then less so, while the demo learned, watched in peace, caused
its burst and looked on. See :mod:`producers.burst` for why the burst shows all the same.
"""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec

from models.episodes import LeftOut
from models.history import Part
from models.learning import Source
from offbeat import app, training
from offbeat.demo import settings
from offbeat.demo.play import STREAM, raised
from pipeline import config
from pipeline.alerts import Alert
from pipeline.detect import Detector
from pipeline.records import RecordBatch, TopicPartition
from producers import host

RECORDED = Path(__file__).with_name("busy_machine.csv")


def recorded() -> list[tuple[str, float, dict[str, float]]]:
    """Phase of the demo, epoch seconds and figures of each reading."""
    with RECORDED.open(encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    return [
        (row.pop("phase"), 1e9 + float(row.pop("time")), {k: float(v) for k, v in row.items()})
        for row in rows
    ]


# No alert for what the other work does, one for the burst, by what the burst does, and it is over after it.
def test_the_burst_raises_the_one_alert_there_is(tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("registry", "snapshots")}
    text = settings(
        host.FEATURES, namespace="demo", bus="sqlite://", state=f"embedded:///{tmp_path}", **places
    )
    demo = config.parse(text)
    rows = recorded()

    def batch(*phases: str) -> RecordBatch:
        events = [
            (b"vm", msgspec.json.encode({"time": at, "host": "vm"} | figures), round(at * 1000))
            for phase, at, figures in rows
            if phase in phases
        ]
        return RecordBatch.of(TopicPartition("demo.host", 0), 0, events)

    stream = demo.stream(STREAM)
    learned = training.learn(
        demo,
        STREAM,
        Source([lambda: iter([batch("learning")])], None, {}),
        Part(stream.training.rows),
        lambda _: None,
        left_out=LeftOut(),
        promote=lambda _: None,
    )
    step = Detector("demo", STREAM, stream)
    scorer = app.StreamModels(demo, STREAM).scorer(learned.bundle_id, stream)
    state = step.fresh("recorded", 0)
    alerts: list[Alert] = step.step(state, batch("quiet", "burst", "after"), scorer).alerts

    times = [at for phase, at, _ in rows if phase == "burst"]
    assert [alert.state for alert in alerts] == ["firing", "resolved"]
    assert raised(alerts, times[0], times[-1]) == alerts
    assert alerts[0].features[0].name == "ctx_switches"
