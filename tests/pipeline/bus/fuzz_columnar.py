"""Coverage-guided fuzzing of the columnar fetch: ``make fuzz SECONDS=300``.

An input says which sound log is read, from where, in fetches of what size, and which edits spoil it;
libFuzzer grows inputs that reach new code. What must hold of each is :meth:`damaged.Damaged.check`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the short form is a test, which needs no atheris
    import atheris

    with atheris.instrument_imports(include=["pipeline.bus"]):
        import pipeline.bus.columnar
        import pipeline.bus.kafka_codecs  # noqa: F401 - the client is given its codecs there

from bus_contract import Row
from damaged import FIRST_OFFSET, HEADER_BYTES, Damaged, has_checksum, read_by_client, stored, with_checksum

CODECS = range(5)
SHAPES = [(5, 6, 7), (1, 1, 1, 1), (12, 1, 9), (40, 30)]
ROOMS = [1, 300, 700, 1 << 20]
FIELDS = [
    (0, 8),
    (8, 4),
    (12, 4),
    (16, 1),
    (17, 4),
    (21, 2),
    (23, 4),
    (27, 8),
    (35, 8),
    (43, 8),
    (51, 2),
    (53, 4),
    (57, 4),
]
"""Where each field of a batch's header lies, and its size."""
FLIP, FIELD, WRITE, DELETE, INSERT, CUT, SPLICE = range(7)
EDIT = struct.Struct(">BBHB")
"""Which edit, of which batch, at which byte, with how many bytes; they follow."""
HEAD = struct.Struct(">BBBB")
"""Codec and shape; where reading begins; room; flags."""
GAPLESS, FITS = 1, 2
MOST_EDITS = 8


@cache
def log(codec: int, shape: int) -> tuple[tuple[bytes, ...], tuple[int, ...], tuple[tuple[Row, ...], ...]]:
    """A sound log: its batches, where they begin, their rows."""
    counts = SHAPES[shape]
    starts = tuple(FIRST_OFFSET + sum(counts[:i]) for i in range(len(counts)))
    batches = tuple(bytes(stored(base, count, codec)) for base, count in zip(starts, counts, strict=True))
    return batches, starts, tuple(tuple(read_by_client(batch) or ()) for batch in batches)


def check(data: bytes) -> None:
    """Read the log that an input describes: nothing is wrong, lost in silence, or stands still."""
    if len(data) < HEAD.size:
        return
    kind, begin, room, flags = HEAD.unpack_from(data)
    codec, shape = kind % len(CODECS), kind // len(CODECS) % len(SHAPES)
    sound, starts, rows = log(codec, shape)
    batches = [bytearray(batch) for batch in sound]
    spoilt = {}
    for number, edited in _edits(data[HEAD.size :], batches):
        batches[number] = edited
        spoilt[number] = bool(flags & FITS)
    spoilt = {number: fits for number, fits in spoilt.items() if batches[number] != sound[number]}
    gapless = bool(flags & GAPLESS)
    moved = any(batches[number][:8] != sound[number][:8] for number in spoilt)
    if not spoilt or (len(spoilt) > 1 and (moved or not gapless)):
        return  # several batches can agree on what is false
    for number, fits in spoilt.items():
        if fits and len(batches[number]) > HEADER_BYTES:
            with_checksum(batches[number])
        spoilt[number] = has_checksum(batches[number])  # another batch in its place has one that fits
    start = FIRST_OFFSET + (begin % sum(SHAPES[shape]) if gapless else 0)
    Damaged(batches, starts, rows, spoilt).check(start, ROOMS[room % len(ROOMS)], gapless=gapless)


def _edits(script: bytes, batches: list[bytearray]) -> Iterator[tuple[int, bytearray]]:
    at = 0
    for _ in range(MOST_EDITS):
        if len(script) - at < EDIT.size:
            return
        what, number, place, size = EDIT.unpack_from(script, at)
        data = script[at + EDIT.size : at + EDIT.size + size]
        at += EDIT.size + size
        number %= len(batches)
        yield number, _edited(batches[number], what % 7, place, size, data, batches)


def _edited(
    batch: bytearray, what: int, place: int, size: int, data: bytes, batches: list[bytearray]
) -> bytearray:
    edited, at = bytearray(batch), place % max(len(batch), 1)
    if what == FLIP:
        for i, byte in enumerate(data[: len(batch) - at]):
            edited[at + i] ^= byte
    elif what == FIELD and len(batch) >= HEADER_BYTES:
        field, width = FIELDS[place % len(FIELDS)]
        edited[field : field + width] = data[:width].rjust(width, b"\0")
    elif what == WRITE:
        edited[at : at + len(data)] = data
    elif what == DELETE:
        del edited[at : at + size]
    elif what == INSERT:
        edited[at:at] = data
    elif what == CUT:
        del edited[at:]
    elif what == SPLICE:
        other = batches[size % len(batches)]
        edited[at:] = other[at:]
    return edited or bytearray(1)


def seeds() -> Iterator[bytes]:
    """One edit of each kind, of every field, of each codec and shape."""
    kinds = range(len(CODECS) * len(SHAPES))
    for kind, flags in product(kinds, range(4)):
        head = HEAD.pack(kind, 7 * (flags & GAPLESS), kind + flags, flags)
        for field, (_, width) in enumerate(FIELDS):
            for value in (b"", b"\x01", b"\xff" * width, b"\x7f" + b"\xff" * (width - 1)):
                yield head + EDIT.pack(FIELD, 1, field, len(value)) + value
        for what in (FLIP, WRITE, DELETE, INSERT, CUT, SPLICE):
            for place in (0, 8, 30, HEADER_BYTES, HEADER_BYTES + 20):
                yield head + EDIT.pack(what, 1, place, 3) + b"\x10\x01\x80"


def main() -> None:
    """Fuzz; the first argument is the folder of the corpus, the others are libFuzzer's."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number, seed in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([*sys.argv[:1], *sys.argv[2:], str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
