"""What the state store holds of a stream with companions, as a person reads it."""

from __future__ import annotations

import pytest
from working import STREAM, plant_at

from offbeat.cli.thresholds import _tell
from offbeat.peek import peek


def test_what_the_companions_know_is_read_from_the_store(
    valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with plant_at(valkey_url, threshold={"policy": "joint", "line": 0.5}) as plant:
        plant.produce(*[0.9, 1.0, 1.2] * 13, *[30.0] * 3, *[1.0, 0.8] * 20)
        running = plant.worker().read_all()
        running.later(5).stop()
        [row] = peek(plant.new_store(), STREAM, plant.config.stream(STREAM), plant.desk.log.refresh()).rows

    assert row.known is not None
    assert row.known.grown > 0.04
    assert row.threshold == pytest.approx(0.5 * (1 + row.known.grown))
    assert row.known.prototypes > 1
    mean, sd = row.known.levels["x"]
    assert 0 < mean < 2 < 30 * sd
    _tell(row)
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["level"].startswith(f"x {mean:.3g} ±")
    assert told["shapes"].startswith(f"{row.known.prototypes} remembered, error ")
    assert told["rarity"] == f"levels of {row.known.levels_seen} rows counted"
    assert "for the joined score (raised" in told["threshold"]
