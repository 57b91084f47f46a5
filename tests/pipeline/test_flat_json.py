"""Flat events: what the compiled reader calls plain reads as the JSON library reads it, to the last bit."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from feeding import COMPILED, PARTITION
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import Stream
from pipeline.flat_json import Fields, Found, read
from pipeline.readings import Decoder, Readings
from pipeline.records import RecordBatch
from pipeline.series import Layout, PartitionState

CLOSELY = settings(deadline=None, derandomize=True, max_examples=2_000 if COMPILED else 100)
FIELDS = Fields.of(["x", "y"], "time", "series")
SETTINGS = Stream.model_validate(
    {
        "topic": "t",
        "events": {"features": ["x", "y"], "missing": "hold", "time": {"format": "s"}, "ahead": 1e8},
    }
)


class Event(msgspec.Struct):
    """What the library makes of such an event."""

    time: float
    series: str
    x: float | None = None
    y: float | None = None


def found(*values: bytes) -> Found:
    batch = RecordBatch.of(PARTITION, 0, [(None, value, 0) for value in values])
    columns = Found.room(len(values), 2)
    text = np.frombuffer(batch.buffer, np.uint8)
    read(text, batch.value_start, batch.value_length, 1 << 20, FIELDS, columns)
    return columns


def bits(number: float | None) -> bytes:
    return b"missing" if number is None or np.isnan(number) else struct.pack("<d", number)


def reads_as_the_library_does(value: bytes) -> bool:
    """Whether the reader calls ``value`` plain; then the library must find the same in it."""
    columns = found(value)
    if not columns.plain[0]:
        assert columns.key_length[0] == -1
        return False
    event = msgspec.json.decode(value, type=Event)
    key = value[columns.key[0] : columns.key[0] + columns.key_length[0]]
    assert key.decode() == event.series
    assert bits(columns.time[0]) == bits(event.time)
    assert [bits(number) for number in columns.values[0]] == [bits(event.x), bits(event.y)]
    return True


def an_event(number: str) -> bytes:
    return b'{"time":1,"series":"a","x":%s}' % number.encode()


DIGITS = st.text("0123456789", min_size=1, max_size=20)
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e6, 1e6).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), DIGITS, DIGITS),
    st.builds("{}.{}e{}".format, DIGITS, DIGITS, st.integers(-330, 330)),
    st.text("0123456789+-.eE", max_size=12),
)


@CLOSELY
@given(NUMBERS)
@example("9007199254740993")
@example("9007199254740993.0")
@example("0.30000000000000004")
@example("1.7976931348623157e308")
@example("5e-324")
@example("-0.0")
@example("-0")
@example("1e22")
@example("1e23")
@example("01")
@example("1.")
@example(".5")
def test_a_number_is_the_double_that_the_library_reads(number: str) -> None:
    reads_as_the_library_does(an_event(number))


@CLOSELY
@given(st.integers(2**53, 10**18 - 1), st.integers(0, 22))
@example(9007199254740993, 0)
@example(900719925474099250, 2)
def test_a_long_number_is_rounded_once(mantissa: int, places: int) -> None:
    digits = str(mantissa).rjust(places + 1, "0")
    number = f"{digits[: len(digits) - places]}.{digits[len(digits) - places :]}" if places else digits

    reads_as_the_library_does(an_event(number))


@pytest.mark.parametrize(
    "value",
    [
        b'{"time":1.5,"series":"a","x":1,"y":-2.5}',
        b'{"y":0.1,"x":null,"series":"a","time":17e2}',
        b' {\t"time" : 1 , "series" : "" ,\r\n"other":"text","more":true,"less":false,"x":1e-3 } \n',
        b'{"time":1,"series":"a","x":1,"x":null,"series":"b"}',
        b'{"time":1767225600.123456,"series":"unit-1","x":49.54899999999999949}'[:-10] + b"}",
        b'{"time":1,"series":"a","x":0.1234567890123456}',
    ],
)
def test_what_events_look_like_is_plain(value: bytes) -> None:
    assert reads_as_the_library_does(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"null",
        b'{"time":1,"series":"a","x":[1]}',
        b'{"time":1,"series":"a","other":{}}',
        b'{"time":1,"series":"\xc3\xa4"}',
        b'{"time":1,"series":"\\u0061"}',
        b'{"time":1,"series":"a\x00"}',
        b'{"time":1,"series":7}',
        b'{"time":null,"series":"a"}',
        b'{"time":"1","series":"a"}',
        b'{"series":"a","x":1}',
        b'{"time":1,"x":1}',
        b'{"time":1,"series":"a","x":true}',
        b'{"time":1,"series":"a","x":"1"}',
        b'{"time":1,"series":"a"}}',
        b'{"time":1,"series":"a"},{"time":1,"series":"b"}',
        b'{"time":1,"series":"a",}',
        b'{"time":1 "series":"a"}',
        b'{"time":1,"series":"a"',
        b'{"time":1,"series":"a","x":nul}',
        b'{"time":1,"series":"a","x":1e400}',
        b'{"time":1,"series":"a","x":NaN}',
        b'\xef\xbb\xbf{"time":1,"series":"a"}',
    ],
)
def test_what_is_not_plain_is_left_to_the_library(value: bytes) -> None:
    assert not reads_as_the_library_does(value)


TEXT = st.text('ab"\\/é\u2028\x7f', max_size=4)
VALUES = st.one_of(
    st.none(), st.booleans(), TEXT, st.integers(), st.floats(), st.lists(st.integers(), max_size=2)
)
OBJECTS = st.dictionaries(st.sampled_from(["time", "series", "x", "y", "z", "", "é"]), VALUES, max_size=6)
GOOD = st.fixed_dictionaries(
    {"time": st.integers(0, 10**9) | st.floats(0, 1e9), "series": st.sampled_from(["a", "b", "ü", 7])},
    optional={"x": st.none() | st.floats(), "y": st.integers(), "z": VALUES},
)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """JSON as programs write it, and as damage leaves it."""
    fields = list(draw(GOOD | OBJECTS).items())
    text = json.dumps(
        dict(draw(st.permutations(fields))),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])),
    ).encode()
    if draw(st.booleans()):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 2)) :]


@CLOSELY
@given(records())
def test_any_bytes_read_as_the_library_reads_them_or_are_left_to_it(value: bytes) -> None:
    reads_as_the_library_does(value)


def decoded(values: list[bytes], state: PartitionState, *, compiled: bool) -> Readings:
    decoder = Decoder(SETTINGS)
    if not compiled:
        decoder._flat = None
    batch = RecordBatch.of(PARTITION, 0, [(b"k", value, 0) for value in values])
    return decoder.decode(batch, state)


def seen(readings: Readings, state: PartitionState) -> tuple[Any, ...]:
    columns = [column.tobytes() for column in readings.columns]
    return columns, readings.rejected, state.names, state.index


@settings(CLOSELY, max_examples=200 if COMPILED else 20)
@given(st.lists(st.lists(records(), max_size=8), min_size=1, max_size=3))
def test_batches_give_the_same_with_and_without_the_compiled_reader(batches: list[list[bytes]]) -> None:
    states = PartitionState(Layout.of(SETTINGS)), PartitionState(Layout.of(SETTINGS))
    for values in batches:
        with_it = decoded(values, states[0], compiled=True)
        without = decoded(values, states[1], compiled=False)

        assert seen(with_it, states[0]) == seen(without, states[1])
