"""Parts are chosen by the configuration, and refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from installation import STREAM, Installation

from models.spec import check_fits, model_spec
from offbeat import app
from pipeline.config import Config, load
from pipeline.errors import BundleError, ConfigError, NotFound, StoreDown
from pipeline.records import TopicPartition


def configured(installation: Installation, stream: str = STREAM, **places: str) -> Config:
    return load(installation.configure(stream, **places).config)


def test_a_worker_gets_all_its_parts_and_output_topics(installation: Installation) -> None:
    config = configured(installation)
    installation.ok("topics", "create", "--partitions", "2")

    with app.open_parts(config, "sensors", 0) as parts:
        assigned = {each.partition for each in parts.bus.poll(10, 1.0).assigned}
        claim = parts.store.claim(TopicPartition("sensors", 0))

        assert assigned == {TopicPartition("sensors", 0), TopicPartition("sensors", 1)}
        assert claim.rows is None
        assert set(broker_topics(config)) >= {"offbeat.control", "offbeat.sensors.journal"}


def broker_topics(config: Config) -> dict[str, int]:
    with app.open_bus(config.bus) as broker:
        return broker.admin().describe().topics


def test_output_topics_are_made_and_kept_thirty_days(installation: Installation) -> None:
    config = configured(installation)
    assert [(spec.name, spec.retention_ms) for spec in app.output_topics(config)] == [
        ("offbeat.control", -1),
        ("offbeat.alerts", 30 * 24 * 3600 * 1000),
        ("offbeat.notifications", 30 * 24 * 3600 * 1000),
        ("offbeat.dead-letters", 30 * 24 * 3600 * 1000),
    ]
    with app.open_bus(config.bus) as broker:
        broker.admin().create(app.input_topics(config, ["sensors"], 1))

    with app.open_parts(config, "sensors", 0), app.open_bus(config.bus) as broker:
        assert {"offbeat.alerts", "offbeat.dead-letters"} <= broker.admin().describe().topics.keys()


def test_a_missing_input_topic_is_never_made_in_passing(installation: Installation) -> None:
    config = configured(installation)

    with pytest.raises(NotFound, match="`offbeat topics create sensors`"):
        app.open_parts(config, "sensors", 0).__enter__()
    with app.open_bus(config.bus) as broker:
        assert broker.admin().describe().topics == {}


# "Not reachable" is told before the group is joined, so that a worker that can do nothing owns nothing.
def test_a_store_that_does_not_answer_is_told_first(installation: Installation) -> None:
    config = configured(installation, state="redis://127.0.0.1:1/0")

    with pytest.raises(StoreDown, match=r"127\.0\.0\.1:1"):
        app.open_parts(config, "sensors", 0).__enter__()


def test_one_folder_of_a_new_bus_is_made_and_no_tree(tmp_path: Path) -> None:
    with app.open_bus(f"sqlite:///{tmp_path}/new/bus.db"):
        assert (tmp_path / "new" / "bus.db").exists()
    with pytest.raises(ConfigError, match="does not exist"), app.open_bus(f"sqlite:///{tmp_path}/a/b/bus.db"):
        pass


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            ("[temperature, pressure]", "[pressure, temperature]"),
            ["temperature, pressure", "pressure, temperature"],
        ),
        (("threshold:", "model: {window: 16}\n    threshold:"), ["32 rows", "16 rows"]),
        (("every: 1m", "every: 1m, combine: max"), ["mean of every 60 s", "max of every 60 s"]),
        (("[temperature,", "{temperature: {transform: rate},"), ["temperature: rate"]),
    ],
    ids=["features", "window", "grid", "transform"],
)
def test_a_bundle_of_other_rows_is_refused(
    installation: Installation, change: tuple[str, str], names: list[str]
) -> None:
    spec = model_spec(configured(installation).stream("sensors"))
    text = STREAM.replace(*change)
    if "{temperature" in text:
        text = text.replace("pressure]", "pressure: {}}")
    other = configured(installation, text).stream("sensors")

    with pytest.raises(BundleError) as refused:
        check_fits(spec, "0123456789abcdef", "sensors", other)

    for name in [*names, "`offbeat train sensors`", "0123456789ab"]:
        assert name in str(refused.value)


# The shape of the network is the bundle's own business: what was trained smaller still judges the same rows.
def test_a_bundle_of_another_network_fits(installation: Installation) -> None:
    config = configured(installation)
    spec = replace(model_spec(config.stream("sensors")), hidden=(8,), code=2)

    check_fits(spec, "0", "sensors", config.stream("sensors"))
