"""Records made to break every stage come in bulk amid the load, and workers are killed over them."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import msgspec

from pipeline.alerts import LETTER_BYTES, Alert, DeadLetter
from pipeline.records import Send

from . import load
from .check import left
from .place import Grounds, Run, place_at, running
from .seam import Outcome, judged
from .valkey import must, start, work_on
from .words import Orders, Point

BEFORE, AMID, AFTER = 2_400, 1_920, 2_880
"""Records of the load before the poison, between its records, and after it."""
LARGE_AT = 30, 60
"""Of the times that poison comes, those with large records too."""
BEHIND_S = 3 * load.EVERY_S
"""So long before the load's is the time of what is taken, so that the poison moves no partition clock."""
CALM = 60
"""Times that come before a calm series becomes bitter."""
CUTS = (Point.COMMITTED, 1), (Point.SENT, 1)
STAMP_MS = 1_750_000_000_000
NOW = b"1700000000"
EVENT = b'{"time":%s,"series":%s,"load":%s,"heat":%s}'


def _event(time: bytes = NOW, series: bytes = b'"p"', load: bytes = b"1", heat: bytes = b"1") -> bytes:
    return EVENT % (time, series, load, heat)


_Refusal = tuple[bytes | None, str]
POISON: dict[bytes | None, str] = {
    # no JSON at all, or hardly any
    None: "it has no value",
    b"": "it is not JSON",
    b"null": "a field is wrong",
    b"\x00\xff\xfe\xfd": "it is not JSON",
    b"\xef\xbb\xbf" + _event(): "it is not JSON",
    _event()[:-1]: "it is not JSON",
    _event() + b"}": "it is not JSON",
    b"[" * 2_000: "a field is wrong",
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000: "it is not JSON: it is nested too deeply",
    b'{"time":' + NOW + b',"series":"p\xc3\x28","load":1}': "it is not UTF-8",
    # numbers
    _event(load=b"NaN"): "it is not JSON",
    _event(load=b"-Infinity"): "it is not JSON",
    _event(load=b"1e400"): "a field is wrong",
    _event(load=b"9" * 5_000): "a field is wrong",
    _event(load=b"0x10"): "it is not JSON",
    _event(load=b'"1"'): "a field is wrong",
    _event(load=b"[1]"): "a field is wrong",
    _event(load=b"true"): "a field is wrong",
    # times
    _event(time=b"1e300"): "its time is outside the years 1900 to 2099",
    _event(time=b"-1e300"): "its time is outside the years 1900 to 2099",
    _event(time=b"253402300800"): "its time is outside the years 1900 to 2099",
    _event(time=b"1750009999"): "ahead of its record's timestamp",
    _event(time=b"null"): "a field is wrong",
    # series
    _event(series=b'""'): "its series key is not",
    _event(series=b'"' + b"p" * 501 + b'"'): "its series key is not",
    _event(series=b'"p\\u0000"'): "its series key is not",
    _event(series=b'"\\ud800"'): "it is not JSON",
    _event(series=b"{}"): "a field is wrong",
    b'{"time":' + NOW + b',"load":1,"heat":1}': "a field is wrong",
}
"""Each of these is refused, for what it says."""
LARGE: dict[bytes | None, str] = {
    b"[" * 1_000_000: "a field is wrong",
    _event(load=b"9" * 1_000_000): "a field is wrong",
    _event(series=b'"' + b"p" * 1_000_000 + b'"'): "its series key is not",
    _event().ljust(load.MAX_BYTES + 1): f"it is {load.MAX_BYTES + 1} bytes, over `max_bytes`",
}
"""And these."""
LARGE_KEY = b"k" * 900_000
BITTER = (
    (b"1e308", b"-1e308"),
    (b"-1e308", b"5e-324"),
    (b"1e154", b"1e154"),
    (b"3.4e38", b"-3.4e38"),
    (b"0." + b"0" * 5_000 + b"1", b"1" + b"0" * 300),
)
"""Values that are taken, each pair by two series of its own, and overflow on their way."""
TWICE = b'{"load":7,"time":1,"time":%s,"series":"x","series":"twice","load":1}'
OLD = _event(b"-2208988800", b'"old"')


@dataclass(frozen=True)
class Poison:
    """It comes between the load's records; workers are killed over it, and the last one reads the rest."""

    name = "a poison batch"
    buses = ("sqlite", "kafka")
    tries = len(CUTS) + 1
    given_up = ""

    def suffer(self, grounds: Grounds) -> Outcome:
        poisoned, alone = (replace(grounds, folder=grounds.folder / name) for name in ("place", "alone"))
        refused = Counter[_Refusal]()
        with place_at(alone, fed=False) as place, running(place, deciding=False) as run:
            place.feed(BEFORE + AMID + AFTER)
            worker = run.start(Orders(config=str(place.path)))  # it works beside the others
            with place_at(poisoned, fed=False) as other, running(other, deciding=False) as others:
                self._suffer(others, refused)
                verdict, found = judged(other, others), left(other)
            run.follow(lambda: worker.ended)
            expected = _of_the_load(left(place).alerts)
        verdict.wrong += _refused_otherwise(found.dead_letters, refused)
        if _of_the_load(found.alerts) != expected or not expected:
            verdict.wrong.append("other series have other alerts than without the poison")
        scored = {alert.series for alert in found.alerts if alert.score is not None}
        if not scored >= {f"calm-{number}" for number in range(len(BITTER))}:
            verdict.wrong.append(f"not all that overflows was judged, only {sorted(scored)}")
        return Outcome(self, grounds.bus, verdict, [others.recovery_s])

    @staticmethod
    def _suffer(run: Run, refused: Counter[_Refusal]) -> None:
        place = run.place
        sends = place.sends
        place.sends = islice(sends, BEFORE)
        live = start(run, 0)
        work_on(run, None)
        begin = place.records
        place.sends = _amid(islice(sends, AMID), refused)
        work_on(run, begin)
        run.strike()
        live.process.kill()
        run.follow(lambda: live.ended)
        place.feed()
        for point, after in CUTS:
            worker = run.start(Orders(config=str(place.path), point=point, after=after))
            run.follow(lambda worker=worker: worker.ended)
            must(worker.process.returncode == -signal.SIGKILL, f"the worker came to its point\n{run.told()}")
            run.positions.update(place.committed())
            must(begin < run.position < place.records, "the worker was killed over the poison")
        place.sends = islice(sends, AFTER)
        place.feed()
        last = run.start(Orders(config=str(place.path)))
        run.follow(lambda: last.ended)
        must(max(run.reread) > 0, "poison was read again")


def _of_the_load(alerts: Iterable[Alert]) -> Counter[str]:
    """The alerts of the load's series, as they are in every installation and at any offset."""
    measured = {"score", "peak_score", "error", "threshold", "features"}
    own = {"id", "namespace", "source"}
    return Counter(
        alert.model_dump_json(exclude=measured | own) for alert in alerts if alert.series.startswith("s")
    )


def _amid(sends: Iterator[Send], refused: Counter[_Refusal]) -> Iterator[Send]:
    """The load, and all of the poison after each row of it; counts what is to be refused, and for what."""
    for turn, stretch in enumerate(iter(lambda: list(islice(sends, load.SERIES)), [])):
        yield from stretch
        time = b"%d" % (max(map(_time, stretch)) - BEHIND_S)
        poison: list[tuple[bytes | None, bytes | None]] = [(None, value) for value in _taken(turn, time)]
        poison += [(b"\xff", value) for value in POISON]
        refused.update(POISON.items())
        if turn in LARGE_AT:
            poison += [(None, value) for value in LARGE] + [(LARGE_KEY, b"{}")]
            refused.update([*LARGE.items(), (b"{}", "a field is wrong")])
        for number, (key, value) in enumerate(poison):
            at_ms, partition = STAMP_MS + 1_000 * turn, number % load.PARTITIONS
            yield Send(stretch[0].topic, key, value, timestamp_ms=at_ms, partition=partition)


def _time(send: Send) -> float:
    try:
        return float(msgspec.json.decode(send.value or b"")["time"])
    except msgspec.DecodeError:
        return 0.0


def _taken(turn: int, time: bytes) -> Iterator[bytes]:
    """What no reader refuses."""
    for number, (one, other) in enumerate(BITTER):
        yield _event(time, b'"bitter-%d"' % number, one, other)
        calm = (b"%d" % (turn % 2), b"%d" % -(turn % 2))
        yield _event(time, b'"calm-%d"' % number, *(calm if turn < CALM else (one, other)))
    yield TWICE % time
    yield OLD
    if turn in LARGE_AT:
        yield _event(time, b'"large"').ljust(load.MAX_BYTES)


def _refused_otherwise(letters: Iterable[DeadLetter], refused: Counter[_Refusal]) -> list[str]:
    """What was refused otherwise than it should be, a sentence for each."""
    found, wrong = Counter[_Refusal](), []
    for letter in letters:
        for value, reason in refused:
            if letter.value == (value and value[:LETTER_BYTES]) and reason in letter.reason:
                found[value, reason] += 1
    for (value, reason), times in refused.items():
        if found[value, reason] != times:
            wrong.append(f"{(value or b'')[:60]!r}: {found[value, reason]} of {times} for {reason!r}")
    return wrong


def faults() -> Iterator[Poison]:
    """All of this module."""
    yield Poison()
