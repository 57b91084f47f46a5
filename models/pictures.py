"""Small pictures as SVG, drawn with the colours of the page they stand in (:mod:`models.page`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 34  # room for ticks, in pixels
_SMALL, _END = 18, 6  # height of a small picture and the room at its ends, in pixels
_LEAST_BAR: Final = 2.0  # a rare value must show


@dataclass(slots=True)
class Plot:
    """A plot with two axes, to which things are added in the order in which they are drawn.

    Attributes:
        title: what it shows, for whoever cannot see it.
        x, y: the lowest and the highest value of each axis; the lower is below the higher.
        labels: under the x axis, and above the y axis.
        log: whether the y axis is logarithmic; both its ends are above 0 then.
        width, height: in pixels.
        x_ticks: values and their names; regular ones where there are none.
    """

    title: str
    x: tuple[float, float]
    y: tuple[float, float]
    labels: tuple[str, str] = ("", "")
    log: bool = False
    width: int = 640
    height: int = 240
    x_ticks: Sequence[tuple[float, str]] = ()
    _parts: list[str] = field(default_factory=list)

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str, name: str = "") -> None:
        """A line in the colours of the CSS class ``style``; it breaks where a value is no number."""
        path, pen = list[str](), "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                path.append(f"{pen}{self._x(x):.1f} {self._y(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        self._parts.append(f'<path class="line {style}" d="{" ".join(path)}">{_tip(name)}</path>')

    def bars(self, edges: Sequence[float], heights: Sequence[float], styles: Sequence[str]) -> None:
        """A bar between each two edges, from the bottom up."""
        bottom = self.height - _BOTTOM
        for left, right, height, style in zip(edges[:-1], edges[1:], heights, styles, strict=True):
            if height:
                tall = max(bottom - self._y(height), _LEAST_BAR)
                self._parts.append(
                    f'<rect class="bar {style}" x="{self._x(left) + 0.5:.1f}" y="{bottom - tall:.1f}" '
                    f'width="{max(self._x(right) - self._x(left) - 1, 0.5):.1f}" height="{tall:.1f}">'
                    f"{_tip(f'{left:.3g} to {right:.3g}: {height:,.0f}')}</rect>"
                )

    def mark(self, x: float, text: str) -> None:
        """A line from top to bottom, and its name."""
        at = self._x(x)
        right = at > self.width / 2
        self._parts.append(
            f'<path class="line mark" d="M{at:.1f} {_TOP}V{self.height - _BOTTOM}"/>'
            f'<text class="mark" x="{at - 5 if right else at + 5:.1f}" y="{_TOP + 12}" '
            f'text-anchor="{"end" if right else "start"}">{escape(text)}</text>'
        )

    def svg(self) -> str:
        """The picture."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for value in self._y_ticks():
            at = self._y(value)
            parts.append(
                f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>'
                f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_figure(value)}</text>'
            )
        for value, text in self.x_ticks or [(value, _figure(value)) for value in _ticks(*self.x)]:
            parts.append(
                f'<text x="{self._x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>'
            )
        under, above = map(escape, self.labels)
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f"{''.join(parts)}{''.join(self._parts)}"
            f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>'
            f'<text class="label" x="{right}" y="{self.height - 4}" text-anchor="end">{under}</text>'
            f'<text class="label" x="{_LEFT + 4}" y="{_TOP + 4}">{above}</text></svg>'
        )

    def _y_ticks(self) -> list[float]:
        low, high = self.y
        if self.log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            round_ = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            found = [value for value in round_ if low <= value <= high]
            if len(found) > 2:
                return found
        return list(_ticks(low, high))

    def _x(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.height - _BOTTOM - share * (self.height - _BOTTOM - _TOP)


@dataclass(frozen=True, slots=True)
class Scale:
    """What small pictures that stand below each other in a table have in common.

    Attributes:
        x: the lowest and the highest value; what lies beyond is cut off, and an arrow says so.
        marks: values at which lines stand, and their CSS classes.
        width: in pixels.
    """

    x: tuple[float, float]
    marks: Sequence[tuple[float, str]] = ()
    width: int = 180

    def at(self, value: float) -> float:
        """Where a value stands, in pixels."""
        low, high = self.x
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return _END + share * (self.width - 2 * _END)

    def interval(self, title: str, value: float, low: float, high: float, style: str) -> str:
        """A value and the ends of its interval, in the colours of the CSS class ``style``."""
        left, right, middle = self.at(low), self.at(high), _SMALL / 2
        ends = []
        for end, x, cut in ((-1, left, low < self.x[0]), (1, right, high > self.x[1])):
            tip = f"l{-4 * end} -4m{4 * end} 4l{-4 * end} 4" if cut else "m0 -4v8"
            ends.append(f'<path class="line {style}" d="M{x:.1f} {middle}{tip}"/>')
        dot = f'<circle class="dot {style}" cx="{self.at(value):.1f}" cy="{middle}" r="3.5"/>'
        line = f'<path class="line {style}" d="M{left:.1f} {middle}H{right:.1f}"/>'
        return self._svg(title, f"{line}{''.join(ends)}{dot if self.x[0] <= value <= self.x[1] else ''}")

    def heads(self, title: str, before: str, after: str) -> str:
        """What stands above: what the first mark is, left of it, and the last one, right of it."""
        first, last = self.at(self.marks[0][0]), self.at(self.marks[-1][0])
        return self._svg(
            title,
            f'<text x="{first - 4:.1f}" y="13" text-anchor="end">{escape(before)}</text>'
            f'<text x="{last + 4:.1f}" y="13">{escape(after)}</text>',
        )

    def _svg(self, title: str, parts: str) -> str:
        lines = "".join(
            f'<path class="{style}" d="M{self.at(x):.1f} 0V{_SMALL}"/>' for x, style in self.marks
        )
        return (
            f'<svg class="small" width="{self.width}" height="{_SMALL}" role="img" '
            f'aria-label="{escape(title)}">{_tip(title)}{lines}{parts}</svg>'
        )


def bounds(*columns: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest number of columns, a little apart where they are one."""
    numbers = [value for column in columns for value in column if math.isfinite(value)]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round values, three to six of them."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    yield from (n * step for n in range(first, last + 1))


def _figure(value: float) -> str:
    if abs(value) >= 100_000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.6g}"


def _tip(text: str) -> str:
    """What stands beside the pointer."""
    return f"<title>{escape(text)}</title>" if text else ""
