"""The short form of ``make fuzz``: its seeds, a thousand inputs grown from them, and all it ever found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz_columnar import check, seeds

FOUND = sorted((Path(__file__).parent / "fuzz_findings").glob("*.bin"))
ALL = list(seeds())


@pytest.mark.parametrize("part", range(8))
def test_inputs_to_begin_with(part: int) -> None:
    for data in ALL[part::8]:
        check(data)


@pytest.mark.parametrize("seed", range(4))
def test_grown_inputs(seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(250):
        data = bytearray(chosen.choice(ALL) + chosen.choice(ALL)[4:])
        for _ in range(chosen.randint(1, 6)):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        check(bytes(data))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_was_found_once_is_not_found_again(path: Path) -> None:
    check(path.read_bytes())
