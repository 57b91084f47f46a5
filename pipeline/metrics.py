"""What a worker tells Prometheus: every metric and its meaning stands in :data:`METRICS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.errors import ConfigError
from pipeline.status import Status

METRICS = {
    # Gauges, all of them: they follow the partitions that a worker owns, and those come and go.
    "offbeat_records": "Records read from the owned partitions since each was first read, by bin",
    "offbeat_rows_gap_filled": "Rows made or completed by holding values over a hole",
    "offbeat_rows_frozen": "Rows that taught the threshold nothing because they were judged anomalous",
    "offbeat_alerts_committed": "Alert revisions committed by this worker since its start",
    "offbeat_dead_letters_committed": "Dead letters committed by this worker since its start",
    "offbeat_outputs_cut": "Of these, committed smaller because their topic takes none so large",
    "offbeat_lag_records": "Records of the owned partitions not yet read",
    "offbeat_series": "Live series of the owned partitions",
    "offbeat_partitions_owned": "Partitions that this worker owns",
    "offbeat_columnar_fetch": "1 where records come as columns, 0 where the Kafka client is read one by one",
    "offbeat_model_drift": "Share of the newest errors far above the calibration; 0.2 or more is a drift",
    "offbeat_doing": "1 for what the worker is doing now, by the name in its status line",
}


class StatusCollector(Collector):
    """Reads a worker's status whenever it is scraped."""

    def __init__(self, stream: str, status: Callable[[], Status]) -> None:
        self._stream, self._status = stream, status

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        status = self._status()
        stream, meanings = self._stream, METRICS
        yield gauge("offbeat_records", meanings, stream, dict(status.bins), label="bin")
        yield gauge("offbeat_doing", meanings, stream, {status.doing: 1}, label="doing")
        plain = {
            "offbeat_rows_gap_filled": status.gap_filled,
            "offbeat_rows_frozen": status.frozen,
            "offbeat_alerts_committed": status.alerts,
            "offbeat_dead_letters_committed": status.dead_letters,
            "offbeat_outputs_cut": status.cut,
            "offbeat_lag_records": status.lag,
            "offbeat_series": status.series,
            "offbeat_partitions_owned": len(status.partitions),
            "offbeat_columnar_fetch": int(status.columnar),
            "offbeat_model_drift": status.drift,
        }
        for name, value in plain.items():
            yield gauge(name, meanings, stream, {"": value})


def gauge(
    name: str,
    meanings: Mapping[str, str],
    stream: str,
    values: Mapping[str, float],
    *,
    label: str | None = None,
) -> Metric:
    """A gauge of a stream; its values by ``label``, or one under any name where it has none."""
    made = GaugeMetricFamily(name, meanings[name], labels=["stream", label] if label else ["stream"])
    for key, value in values.items():
        made.add_metric([stream, key] if label else [stream], value)
    return made


def serve(collector: Collector, port: int) -> WSGIServer:
    """Serve the metrics on loopback, ``http://127.0.0.1:port/metrics``, until the server is shut down.

    Raises:
        ConfigError: the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigError(
            f"the metrics port {port} cannot be listened on ({error}); choose another"
        ) from error
    return server
