"""Wall clocks are set: the machine's while workers work, and that of one device.

What workers take from theirs are the stamps of what they publish, and nothing else. Leases, sessions,
checkpoints and pauses go by clocks that nobody sets; events bring their own time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import msgspec

from pipeline.alerts import Alert
from pipeline.records import Send
from pipeline.state import connect as connect_state

from . import load
from .check import left
from .jumping import WallClock
from .place import Grounds, Run, place_at, running
from .seam import Fault, Outcome, judged
from .topics import work
from .valkey import must, start, wait_until_stored, work_on

AHEAD_S = 7_200
"""Kafka refuses what a client stamps more than an hour ahead of the broker's clock."""
SHIFTS_S = (AHEAD_S, 0, -AHEAD_S, 0) * 2
DEVICE = "s3"
SHIFTED = {range(300, 400): 3_600, range(600, 700): -3_600}
"""Its rows, and how far its clock is ahead."""
SEEN = 50
"""Events at least, of some 100 each: every sixth is late anyway."""
PART = load.SERIES * load.ROWS // (len(SHIFTS_S) + 3)


@dataclass(frozen=True)
class Jumps:
    """The wall clock of two workers is set ahead and back while they work; no partition changes hands."""

    name = "the wall clock jumps two hours ahead and back under live workers"
    buses = "sqlite", "kafka"
    tries = len(SHIFTS_S)
    given_up = ""

    def suffer(self, grounds: Grounds) -> Outcome:
        with (
            place_at(grounds, fed=False, query="") as place,
            closing(connect_state(place.settings.state)),
        ):
            with running(place, deciding=False) as run:
                self._suffer(run)
            verdict = judged(place, run)
        return Outcome(self, grounds.bus, verdict)

    @staticmethod
    def _suffer(run: Run) -> None:
        path = run.place.folder / "clock"
        clock = WallClock(path)
        live = [start(run, slot, str(path)) for slot in range(2)]
        work_on(run, PART)
        wait_until_stored(run.place)  # a first checkpoint claims its partition once more
        claims = dict(run.claims)
        for shift_s in SHIFTS_S:
            clock.set(shift_s)
            work_on(run, PART)
            must(clock.seen_s == shift_s, f"a worker saw a clock that is {shift_s} s ahead")
        must(run.claims == claims, f"no partition changed hands: {claims} claims, then {run.claims}")
        work_on(run, None, decide=True)
        run.end(*live)


@dataclass(frozen=True)
class Device:
    """One device's clock is an hour ahead for a while, and later an hour behind; records are stamped rightly.

    What comes of all other series is what comes of them without it.
    """

    name = "a device's clock jumps an hour ahead and back"
    buses = "sqlite", "kafka"
    tries = 2
    given_up = (
        "Events of that device that are ahead of their records by more than `ahead` are dead letters, and "
        "those that are behind by more than `late` are `late`. All other series go on as if nothing had been."
    )

    def suffer(self, grounds: Grounds) -> Outcome:
        others, ahead, late = list[Counter[tuple[object, ...]]](), list[int](), list[int]()
        for shifts in (dict[range, int](), SHIFTED):
            with place_at(replace(grounds, folder=grounds.folder / str(len(shifts))), fed=False) as place:
                place.sends = stamped(place.sends, shifts)
                place.feed()
                with running(place, deciding=False) as run:
                    work(run)
                verdict, outputs = judged(place, run), left(place)
            others.append(Counter(map(_told, (each for each in outputs.alerts if each.series != DEVICE))))
            ahead.append(sum("ahead" in each.reason for each in outputs.dead_letters))
            late.append(verdict.bins["late"])
        if others[0] != others[1] or not others[0]:
            verdict.wrong.append("other series were judged otherwise")
        must(ahead[1] - ahead[0] >= SEEN, "events of the device were ahead")
        must(late[1] - late[0] >= SEEN, "events of the device were late")
        return Outcome(self, grounds.bus, verdict)


def faults() -> Iterator[Fault]:
    """All of this module."""
    yield Jumps()
    yield Device()


def stamped(sends: Iterable[Send], shifts: Mapping[range, int]) -> Iterator[Send]:
    """The records, each stamped with the latest event time so far; by its rows, the device's clock is set."""
    now_s = 0.0
    for number, send in enumerate(sends):
        value = send.value or b""
        if value.startswith(b"{"):
            event = msgspec.json.decode(value)
            now_s = max(now_s, event["time"])
            shift_s = next((s for rows, s in shifts.items() if number // load.SERIES in rows), 0)
            if event["series"] == DEVICE:
                value = msgspec.json.encode(event | {"time": event["time"] + shift_s})
        yield replace(send, value=value, timestamp_ms=round(now_s * 1_000))


def _told(alert: Alert) -> tuple[object, ...]:
    """What an alert says, whatever the installation is called."""
    where = alert.started_at, alert.at, alert.source.offset
    return alert.series, alert.kind, alert.state, alert.reason, *where
