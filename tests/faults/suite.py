"""All faults of the suite. A module that holds some has a function ``faults``, and its place here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from . import broker, clocks, cluster, full_disks, inputs, kills, members, sizes, topics, valkey
from .seam import Fault


def faults() -> Iterator[Fault]:
    """One for each row of the report, whatever its bus."""
    modules = kills, members, broker, cluster, topics, inputs, sizes, valkey, full_disks, clocks
    return chain.from_iterable(module.faults() for module in modules)
