"""Compression for kafka-python through cramjam: reads snappy, lz4 and zstd, writes zstd.

Writing lz4 is left out: cramjam links its blocks by default, and brokers refuse that.
"""

from __future__ import annotations

from types import SimpleNamespace

import cramjam
from kafka import codec
from kafka.record import default_records, legacy_records


def install_codecs() -> None:
    """Give the client cramjam's codecs.

    It looks for packages of its own choice at import and copies its functions into the modules of records,
    so both places are set.
    """
    codec.snappy = SimpleNamespace(decompress=_snappy_decode)  # used inside its framing
    codec.lz4 = codec.zstd = cramjam  # only asked whether they are there
    default_records.lz4_decode = legacy_records.lz4_decode = _lz4_decode
    default_records.zstd_decode = _zstd_decode
    default_records.zstd_encode = _zstd_encode


def _snappy_decode(data: bytes) -> bytes:
    return bytes(cramjam.snappy.decompress_raw(data))


def _lz4_decode(data: bytes) -> bytes:
    return bytes(cramjam.lz4.decompress(data))


def _zstd_decode(data: bytes) -> bytes:
    return bytes(cramjam.zstd.decompress(data))


def _zstd_encode(data: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(data, level=1))
