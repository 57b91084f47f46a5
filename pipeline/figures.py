"""Figures as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that only show their help load nothing heavy
    from pipeline.alerts import Joined


def number(value: float) -> str:
    """A value with the digits that matter, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def joined(of: Joined) -> str:
    """What a joined score was made of, what adds most first."""
    channels = [f"{each.name} {each.z:.1f} sd" for each in of.channels]
    rarity = [] if of.rarity is None else [f"rarity {of.rarity:.2g}"]
    return ", ".join([*channels, *rarity])


def measured(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{number(value)} {unit}".rstrip()


def lasting(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
