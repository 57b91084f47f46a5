"""Flat JSON objects to columns in one compiled pass; whatever is not plain is left to the JSON library.

Plain is an object without objects or lists in it, of ASCII strings without escapes, and of numbers whose
nearest double is certain. What is plain reads as the library reads it (docs/decisions/0010-flat-json.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import kernel
from pipeline.ports import Float64s, Int32s
from pipeline.records import Int64s

Bytes = NDArray[np.uint8]

_QUOTE, _BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE = b'"\\,:{}'
_MINUS, _PLUS, _POINT, _ZERO, _NINE, _E, _BIG_E = b"-+.09eE"
_N, _U, _L, _T, _R, _F, _A, _S = b"nultrfas"
_BLANKS = b" \t\n\r"
_SPACE, _TAB, _LINE, _RETURN = _BLANKS
_DELETE = 0x7F

_POWERS = np.array([10.0**power for power in range(23)])
"""The powers of ten that are doubles."""
_EXACT = 2**53
_MOST_BEFORE_A_DIGIT = (10**18 - 10) // 10
_SPLITTER = 2.0**27 + 1
_DOUBT = 1 + 2.0**-30


class Fields(NamedTuple):
    """The fields that are read: features first, then time and series. Names hold no quotes nor backslashes.

    names uint8[.], start int64[K], length int64[K]; the first ``numbers`` of them are numbers, of which the
    first ``features`` may be missing or null. The one behind them is the series.
    """

    names: Bytes
    start: Int64s
    length: Int64s
    features: int
    numbers: int

    @classmethod
    def of(cls, features: Sequence[str], time: str | None, series: str) -> Fields:
        """The fields of a wide event; without ``time`` the record's own timestamp counts."""
        names = [name.encode() for name in (*features, *(() if time is None else (time,)), series)]
        length = np.array([len(name) for name in names], np.int64)
        start = np.cumsum(length) - length
        joined = np.frombuffer(b"".join(names), np.uint8)
        return cls(joined, start, length, len(features), len(names) - 1)


class Found(NamedTuple):
    """What was read of each record.

    plain bool[n], without which the rest means nothing; values float64[n, F], NaN is missing; time
    float64[n]; key int64[n] and key_length int32[n] (-1 where it is not plain): where the series stands.
    """

    plain: NDArray[np.bool_]
    values: Float64s
    time: Float64s
    key: Int64s
    key_length: Int32s

    @classmethod
    def room(cls, records: int, features: int) -> Found:
        """Columns in which nothing is plain."""
        return cls(
            np.zeros(records, bool),
            np.empty((records, features)),
            np.empty(records),
            np.zeros(records, np.int64),
            np.full(records, -1, np.int32),
        )


@kernel
def _past_blanks(text: Bytes, at: int, end: int) -> int:
    while at < end and (text[at] == _SPACE or text[at] in (_TAB, _LINE, _RETURN)):
        at += 1
    return at


@kernel
def _string_end(text: Bytes, at: int, end: int) -> int:
    """Where the string that begins at ``at`` has its closing quote; -1 where it is not plain."""
    while at < end:
        byte = text[at]
        if byte == _QUOTE:
            return at
        if byte < _SPACE or byte >= _DELETE or byte == _BACKSLASH:
            return -1
        at += 1
    return -1


@kernel
def _quotient(mantissa: int, divisor: float) -> float:
    """``mantissa / divisor`` as the nearest double, NaN where that is not certain.

    The remainder of the first quotient is exact (Dekker 1971, "A floating-point technique for extending the
    available precision"), and corrects it; the correction must not lie near a tie.
    """
    high = float(mantissa)
    low = float(mantissa - int(high))
    first = high / divisor
    big = first * _SPLITTER
    first_high = big - (big - first)
    first_low = first - first_high
    big = divisor * _SPLITTER
    divisor_high = big - (big - divisor)
    divisor_low = divisor - divisor_high
    product = first * divisor
    error = (
        (first_high * divisor_high - product) + first_high * divisor_low + first_low * divisor_high
    ) + first_low * divisor_low
    more = (((high - product) - error) + low) / divisor
    nearest = first + more
    tail = more - (nearest - first)
    return nearest if nearest + tail * _DOUBT == nearest else np.nan


@kernel
def _number(text: Bytes, at: int, end: int) -> tuple[float, int]:
    """The number that begins at ``at`` and where it ends; -1 for none, or where its double is not certain."""
    negative = text[at] == _MINUS
    if negative:
        at += 1
    begin = at
    mantissa, power = 0, 0
    while at < end and _ZERO <= text[at] <= _NINE:
        if mantissa > _MOST_BEFORE_A_DIGIT:
            return 0.0, -1
        mantissa = mantissa * 10 + int(text[at]) - _ZERO
        at += 1
    if at == begin or (text[begin] == _ZERO and at > begin + 1):
        return 0.0, -1
    if at < end and text[at] == _POINT:
        at += 1
        begin = at
        while at < end and _ZERO <= text[at] <= _NINE:
            if mantissa > _MOST_BEFORE_A_DIGIT:
                return 0.0, -1
            mantissa = mantissa * 10 + int(text[at]) - _ZERO
            at += 1
        if at == begin:
            return 0.0, -1
        power = begin - at
    if at < end and (text[at] == _E or text[at] == _BIG_E):
        at += 1
        down = at < end and text[at] == _MINUS
        if at < end and (text[at] == _MINUS or text[at] == _PLUS):
            at += 1
        begin, shift = at, 0
        while at < end and _ZERO <= text[at] <= _NINE and at - begin < 4:
            shift = shift * 10 + int(text[at]) - _ZERO
            at += 1
        if at == begin:
            return 0.0, -1
        power += -shift if down else shift
    if mantissa == 0 and negative:
        return 0.0, -1  # whether that is -0.0 is the library's to say
    if not -_POWERS.shape[0] < power < _POWERS.shape[0]:
        return 0.0, -1
    if mantissa <= _EXACT:
        value = mantissa * _POWERS[power] if power >= 0 else mantissa / _POWERS[-power]
    elif power <= 0:
        value = _quotient(mantissa, _POWERS[-power])
    else:
        return 0.0, -1
    if np.isnan(value):
        return 0.0, -1
    return (-value if negative else value), at


@kernel
def _is_named(text: Bytes, begin: int, end: int, fields: Fields, which: int) -> bool:
    """Whether the name that begins at ``begin``, with its closing quote, is that of a field."""
    start, length = fields.start[which], fields.length[which]
    if begin + length >= end or text[begin + length] != _QUOTE:
        return False
    same = True
    for at in range(length):
        same = same and text[begin + at] == fields.names[start + at]
    return same


@kernel
def _field(text: Bytes, begin: int, end: int, fields: Fields) -> int:
    """Which field has this name, -1 for none."""
    for which in range(fields.start.shape[0]):
        if _is_named(text, begin, end, fields, which):
            return which
    return -1


@kernel
def _word(text: Bytes, at: int, end: int) -> int:
    """Where ``null``, ``true`` or ``false`` ends that begins at ``at``; -1 where it is none of them."""
    if end - at >= 4:
        a, b, c, d = text[at], text[at + 1], text[at + 2], text[at + 3]
        if (a == _N and b == _U and c == _L and d == _L) or (a == _T and b == _R and c == _U and d == _E):
            return at + 4
        if end - at >= 5 and a == _F and b == _A and c == _L and d == _S and text[at + 4] == _E:
            return at + 5
    return -1


@kernel
def _object(text: Bytes, at: int, end: int, fields: Fields, found: Found, row: int) -> bool:
    """Read one record; False where it is not plain."""
    values = found.values[row]
    for feature in range(fields.features):
        values[feature] = np.nan
    found.time[row] = np.nan
    found.key_length[row] = -1
    at = _past_blanks(text, at, end)
    if at >= end or text[at] != _OPEN:
        return False
    expected = fields.features
    while True:
        at = _past_blanks(text, at + 1, end)
        if at >= end or text[at] != _QUOTE:
            return False
        begin = at + 1
        if _is_named(text, begin, end, fields, expected):
            which, at = expected, begin + fields.length[expected]
        else:
            which, at = _field(text, begin, end, fields), _string_end(text, begin, end)
            if at < 0:
                return False
        expected = which + 1 if 0 <= which < fields.numbers else 0
        at = _past_blanks(text, at + 1, end)
        if at >= end or text[at] != _COLON:
            return False
        at = _past_blanks(text, at + 1, end)
        if at >= end:
            return False
        if text[at] == _QUOTE:
            begin = at + 1
            at = _string_end(text, begin, end)
            if at < 0 or 0 <= which < fields.numbers:
                return False
            if which == fields.numbers:
                found.key[row], found.key_length[row] = begin, at - begin
            at += 1
        elif text[at] == _MINUS or _ZERO <= text[at] <= _NINE:
            value, at = _number(text, at, end)
            if at < 0 or which == fields.numbers:
                return False
            if 0 <= which < fields.features:
                values[which] = value
            elif which >= 0:
                found.time[row] = value
        else:
            null = text[at] == _N
            at = _word(text, at, end)
            if at < 0 or which >= fields.features or (which >= 0 and not null):
                return False
            if which >= 0:
                values[which] = np.nan
        at = _past_blanks(text, at, end)
        if at >= end:
            return False
        if text[at] == _CLOSE:
            break
        if text[at] != _COMMA:
            return False
    timed = fields.numbers == fields.features or not np.isnan(found.time[row])
    return bool(timed and _past_blanks(text, at + 1, end) == end and found.key_length[row] >= 0)


@kernel
def read(text: Bytes, start: Int64s, length: Int32s, most_bytes: int, fields: Fields, found: Found) -> None:
    """Read the records at ``start`` int64[n] with ``length`` int32[n] into ``found``, each by itself."""
    for row in range(start.shape[0]):
        found.plain[row] = 0 <= length[row] <= most_bytes and _object(
            text, start[row], start[row] + length[row], fields, found, row
        )
        if not found.plain[row]:
            found.key_length[row] = -1
