"""The metrics: what Prometheus scrapes is what the table says, and the documentation lists it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import free_port

from pipeline.errors import ConfigError
from pipeline.metrics import METRICS, StatusCollector, serve
from pipeline.status import Status

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
STATUS = Status(
    doing="live",
    message="scoring",
    partitions=(0, 3),
    lag=7,
    bins={"scored": 5, "late": 2},
    gap_filled=1,
    frozen=4,
    series=6,
    alerts=8,
    dead_letters=9,
    cut=10,
    columnar=False,
    drift=0.25,
)


@contextmanager
def served(collector: StatusCollector) -> Iterator[int]:
    port = free_port()
    server = serve(collector, port)
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()


def scraped(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Value by labels by name, as Prometheus reads them."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert {family.type for family in families} == {"gauge"}
    assert {family.name: family.documentation for family in families} == METRICS
    return {
        family.name: {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
        for family in families
    }


def test_every_metric_is_served_with_its_meaning_and_nothing_else() -> None:
    of = ("stream", "pumps")

    with served(StatusCollector("pumps", lambda: STATUS)) as port:
        found = scraped(port)

    assert found == {
        "offbeat_records": {(("bin", "scored"), of): 5, (("bin", "late"), of): 2},
        "offbeat_doing": {(("doing", "live"), of): 1},
        "offbeat_rows_gap_filled": {(of,): 1},
        "offbeat_rows_frozen": {(of,): 4},
        "offbeat_alerts_committed": {(of,): 8},
        "offbeat_dead_letters_committed": {(of,): 9},
        "offbeat_outputs_cut": {(of,): 10},
        "offbeat_lag_records": {(of,): 7},
        "offbeat_series": {(of,): 6},
        "offbeat_partitions_owned": {(of,): 2},
        "offbeat_columnar_fetch": {(of,): 0},
        "offbeat_model_drift": {(of,): 0.25},
    }


def test_a_scrape_sees_the_moment() -> None:
    states = iter([Status("standing by", ""), Status("live", "", bins={"scored": 1})])

    with served(StatusCollector("pumps", lambda: next(states))) as port:
        first, second = scraped(port), scraped(port)

    assert list(first["offbeat_doing"]) == [(("doing", "standing by"), ("stream", "pumps"))]
    assert first["offbeat_records"] == {}
    assert sum(second["offbeat_records"].values()) == 1


def test_a_port_that_is_taken_is_a_mistake_that_can_be_mended() -> None:
    collector = StatusCollector("pumps", lambda: STATUS)

    with (
        served(collector) as port,
        pytest.raises(ConfigError, match=f"metrics port {port} .* choose another"),
    ):
        serve(collector, port)


def test_the_documentation_lists_the_metrics_with_their_meanings() -> None:
    section = re.search(r"^## Metrics\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert section is not None

    listed = dict(re.findall(r"^\| `(offbeat_\w+)` \| (.*?) \|", section[1], re.MULTILINE))

    assert listed == METRICS


def test_the_documentation_lists_the_metrics_of_the_retrainer() -> None:
    from consumers.retrainer import METRICS as RETRAINERS  # noqa: PLC0415 - it loads torch

    page = PAGE.read_text("utf-8")
    section = re.search(r"^## Metrics of the retrainer\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section is not None

    listed = dict(re.findall(r"^\| `(offbeat_\w+)` \| (.*?) \|", section[1], re.MULTILINE))

    assert listed == RETRAINERS
