"""Figures as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """A value with the digits that matter, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def measured(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{number(value)} {unit}".rstrip()
