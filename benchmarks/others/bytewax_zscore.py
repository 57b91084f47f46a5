"""The same topic through bytewax: ``bytewax_zscore.py SERVERS TOPIC WARM RECORDS``."""

import sys

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.operators import filter_map
from bytewax.testing import run_main
from zscore import Meter, Series

servers, topic, warm, records = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
meter = Meter(warm, records)
flow = Dataflow("zscore")
source = KafkaSource(
    [servers],
    [topic],
    tail=False,
    # Its first second goes to librdkafka's back-off otherwise; statistics every second are its own default.
    add_config={"fetch.queue.backoff.ms": "5", "enable.partition.eof": "true"},
    batch_size=10_000,
)


def parse(message: KafkaSourceMessage) -> tuple[str, float]:
    """The series and its value."""
    event = orjson.loads(message.value)
    return event["series"], event["temperature"]


def judge(series: Series | None, value: float) -> tuple[Series, float]:
    """The state and the score."""
    series = series or Series()
    return series, series.score(value)


def shown(scored: tuple[str, float]) -> str | None:
    """A line for a row above the line."""
    name, z = scored
    return f"# {name} {z:.1f}" if meter.count(z) else None


read = op.input("in", flow, source)
keyed = op.map("parse", read, parse)
scored = op.stateful_map("judge", keyed, judge)
above = filter_map("above", scored, shown)
op.output("out", above, StdOutSink())
run_main(flow)
meter.tell()
