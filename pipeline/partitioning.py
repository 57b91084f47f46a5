"""Which partition a record's key belongs to: Kafka's default partitioner."""

from __future__ import annotations

_M, _MASK = 0x5BD1E995, 0xFFFFFFFF
UNKEYED = -1


def key_hash(key: bytes | None) -> int:
    """Kafka's murmur2 of a key, 31 bits; UNKEYED without one. Modulo the partitions it is the partition."""
    if key is None:
        return UNKEYED
    value = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        value = (value * _M & _MASK) ^ k
    if whole < len(key):
        value = (value ^ int.from_bytes(key[whole:], "little")) * _M & _MASK
    value = (value ^ (value >> 13)) * _M & _MASK
    return (value ^ (value >> 15)) & 0x7FFFFFFF
