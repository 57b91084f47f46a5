"""Records made to break every stage come in bulk, and the worker that has just read them is killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.records import Send

from . import load
from .check import left
from .place import Grounds, Place, cut_short, place_at, running
from .seam import Outcome, judged
from .words import Orders, Point

BEFORE = 4_000
"""Records of the load that come before the poison; the others come after it."""
TIMES = 40
"""How often all of it comes."""
STAMP_MS = 1_750_000_000_000
EVENT = b'{"time":%s,"series":%s,"load":%s,"heat":%s}'
NOW = b"1700000000"


def _event(time: bytes = NOW, series: bytes = b'"p"', load: bytes = b"1", heat: bytes = b"1") -> bytes:
    return EVENT % (time, series, load, heat)


POISON = (
    # no JSON at all, or hardly any
    None,
    b"",
    b"null",
    b"\x00\xff\xfe\xfd",
    b"\xef\xbb\xbf" + _event(),
    _event()[:-1],
    _event() + b"}",
    b"[" * 100_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'{"time":' + NOW + b',"series":"p\xc3\x28","load":1}',
    # numbers
    _event(load=b"NaN"),
    _event(load=b"-Infinity"),
    _event(load=b"1e400"),
    _event(load=b"9" * 100_000),
    _event(load=b"0." + b"0" * 100_000 + b"1"),
    _event(load=b"0x10"),
    _event(load=b'"1"'),
    _event(load=b"[1]"),
    _event(load=b"true"),
    # times
    _event(time=b"1e300"),
    _event(time=b"-1e300"),
    _event(time=b"253402300800"),
    _event(time=b"null"),
    # series
    _event(series=b'""'),
    _event(series=b'"' + b"p" * 501 + b'"'),
    _event(series=b'"p\\u0000"'),
    _event(series=b'"\\ud800"'),
    _event(series=b"{}"),
    b'{"time":' + NOW + b',"load":1,"heat":1}',
)
"""Each of these is refused."""
BITTER = (
    _event(series=b'"bitter-%d"', load=b"1e308", heat=b"-1e308"),
    _event(series=b'"bitter-%d"', load=b"-1e308", heat=b"5e-324"),
    b'{"load":7,"time":1,"time":' + NOW + b',"series":"x","series":"bitter-%d","load":1e308}',
)
"""And these are taken, and overflow on their way."""


@dataclass(frozen=True)
class Poison:
    """It lies in the topic's midst; two workers are killed over it."""

    name = "a poison batch"
    buses = ("sqlite", "kafka")
    tries = 2
    given_up = ""

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds, fed=False) as place:
            place.feed(BEFORE)
            refused = _poison(place)
            place.feed()
            point = Point.SCORED
            cuts = [Orders(config=str(place.path), point=point, after=after) for after in (12, 12)]
            with running(place) as run:
                recoveries = cut_short(run, cuts)
            verdict = judged(place, run)
            letters = left(place).dead_letters
        reasons = {letter.reason.split(":")[0] for letter in letters}
        if verdict.bins["dead_lettered"] < refused or len(reasons) < REASONS:
            verdict.wrong.append(
                f"{verdict.bins['dead_lettered']} of {refused} refused, for {sorted(reasons)}"
            )
        return Outcome(self, grounds.bus, verdict, recoveries)


REASONS = 6


def _poison(place: Place) -> int:
    """Produce all of it, and some more than the SQLite bus alone takes; returns how much is to be refused."""
    producer, sent = place.broker.producer(), 0
    over = [] if place.bus.startswith("kafka") else [_event(series=b'"' + b"p" * (1 << 20) + b'"')]
    for time in range(TIMES):
        row = time * load.EVERY_S
        bitter = [value.replace(NOW, b"%d" % (1_700_000_000 + row)) for value in BITTER]
        values = [*POISON, *over[: 1 if time < 2 else 0], *(value % n for n, value in enumerate(bitter))]
        keys = (b"k" * 50_000, b"\xff", None)
        producer.send(
            Send(
                place.topic, keys[n % len(keys)], value, timestamp_ms=STAMP_MS, partition=n % load.PARTITIONS
            )
            for n, value in enumerate(values)
        )
        producer.flush()
        sent += len(values)
    place.records += sent
    return sent - TIMES * len(BITTER)


def faults() -> Iterator[Poison]:
    """All of this module."""
    yield Poison()
