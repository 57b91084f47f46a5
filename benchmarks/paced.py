"""Sends readings of now at a rate: ``paced.py SERVERS TOPIC RATE QUIET_S SPIKY_S``.

A second of silence, then ``QUIET_S`` with a spike a second, then ``SPIKY_S`` with fifty. Each phase is told
when it is over, with how many milliseconds the records were behind at most; the windows' history goes first.
"""

from __future__ import annotations

import json
import sys
import time

from confluent_kafka import Producer

from offbeat.benchmark.installation import STACKED
from offbeat.benchmark.live import LiveReadings

LINGER_MS = 5
TICK_S = 0.002
SPIKE_EVERY_S = {"quiet": 1.0, "spiky": 0.02}


def main() -> None:
    """Send until the time is over."""
    servers, topic = sys.argv[1:3]
    rate, quiet_s, spiky_s = map(float, sys.argv[3:])
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": LINGER_MS,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    readings = LiveReadings(STACKED)
    for key, value in readings.history(time.time()):
        producer.produce(topic, value, key)
    producer.flush()
    tell("history")
    sys.stdin.readline()  # until whoever started us is ready
    for phase, seconds in (("quiet", quiet_s), ("spiky", spiky_s)):
        send(producer, topic, readings, phase, total=round(rate * seconds), rate=rate)
    producer.flush()


def send(
    producer: Producer, topic: str, readings: LiveReadings, phase: str, *, total: int, rate: float
) -> None:
    """One phase."""
    began_s, began, spikes, sent, behind_s = time.time(), time.perf_counter(), 0, 0, 0.0
    while sent < total:
        passed_s = time.perf_counter() - began
        due = min(int(passed_s * rate), total)
        behind_s = max(behind_s, passed_s - sent / rate if sent else 0.0)
        for _ in range(sent, due):
            now_s = time.time()
            wanted = spikes < (now_s - began_s) / SPIKE_EVERY_S[phase]
            key, value, spike = readings.next(now_s, spike=wanted)
            producer.produce(topic, value, key)
            spikes += spike
        sent = due
        producer.poll(0)
        time.sleep(TICK_S)
    tell(phase, began_s=began_s, ended_s=time.time(), sent=sent, spikes=spikes, behind_ms=1_000 * behind_s)


def tell(phase: str, **more: float) -> None:
    """A JSON line."""
    print(json.dumps({"phase": phase, **more}), flush=True)


main()
