"""The gate's ruling on a report's page: why a model was put to use or not, to be seen at a glance."""

from __future__ import annotations

from html import escape
from typing import Final

from models import reference
from models.gate import CHALLENGER, CHAMPION, DRIFTED_MOST, Comparison, Ruling
from models.markup import Picture, table
from models.pictures import Scale
from models.verdict import COMPARED, WORDS, compared, extent, faults, figures, found, verdict

_DRIFTED_SHOWN: Final = 20
_FURTHEST: Final = 12.0
"""Bounds that a picture reaches to either side; an arrow says that an interval goes on."""
_SHARES: Final = Scale((0.0, 1.0), [(0.0, "grid"), (0.5, "grid"), (1.0, "grid")], 90)


def verdict_html(ruling: Ruling, champion: str, why: str) -> str:
    """The section; ``champion`` says which one that was, and ``why`` is what the control record says."""
    style = "within" if ruling.promoted else "worse" if verdict(ruling) == "refused" else "open"
    return "".join(
        (
            f"<h2>At the gate: {verdict(ruling)}</h2>",
            f'<div class="verdict {style}"><p>{escape(why or ruling.sentence)}</p></div>',
            _comparisons(ruling, champion),
            _drift(ruling),
            "<h3>What each found and raised</h3>",
            _contenders(ruling),
            f'<p class="soft">Replayed as they were and with known faults: {escape(extent(ruling))}.</p>',
        )
    )


def _comparisons(ruling: Ruling, champion: str) -> str:
    if not ruling.comparisons:
        return ""
    scale = _scale(ruling)
    heads = Picture(scale.heads("left is better, right is worse", "as good", "allowed"))
    rows = []
    for each in ruling.comparisons:
        row = compared(ruling, each)
        said = Picture(f'<b class="{each.verdict}">{WORDS[each.verdict]}</b>')
        rows.append((*row, Picture(_interval(scale, each, row[-2])), said))
    rule = f"The champion is {escape(champion)}; a later model must be shown to be no worse by any measure."
    if CHAMPION not in ruling.contenders:
        rule = "A first model is let in unless it is surely worse: the other choice is to watch nothing."
    caption = (
        "Further right is worse. The dot is what was measured; the bar holds the true difference in nine of "
        "ten trials. <b>No worse</b>: the whole bar is left of what is allowed. <b>Worse</b>: the dot is "
        "right of that, and the whole bar right of as good. All else is unclear: too little data to tell. "
        f"{rule} False alarms are compared to a day and series."
    )
    return f'{table((*COMPARED, heads, Picture("verdict")), rows)}<p class="soft">{caption}</p>'


def _scale(ruling: Ruling) -> Scale:
    """One for all: 0 is as good as the other, 1 as much worse as is allowed."""
    ends = [
        end / each.bound
        for each in ruling.comparisons
        if each.worse_by is not None
        for end in (each.worse_by.low, each.worse_by.high)
    ]
    low, high = min([*ends, -1.0]), max([*ends, 2.0])
    # Room for what the marks are called.
    low, high = max(min(low, -0.4 * high), -_FURTHEST), min(max(high, 1.4 - 0.4 * low), _FURTHEST)
    return Scale((low, high), [(0.0, "axis"), (1.0, "line mark dash")])


def _interval(scale: Scale, each: Comparison, told: str) -> str:
    if each.worse_by is None:
        return ""
    value, low, high = (
        end / each.bound for end in (each.worse_by.value, each.worse_by.low, each.worse_by.high)
    )
    return scale.interval(
        f"{each.measure}, against {each.against}: worse by {told}", value, low, high, each.verdict
    )


def _contenders(ruling: Ruling) -> str:
    """A column of figures for each contender, and of what share of the faults it found."""
    names = [f"{role}, this model" if role == CHALLENGER else role for role in ruling.contenders]
    rows: list[tuple[str, ...]] = []
    for name, *cells in figures(ruling):
        rows.append((name, *(cell for each in cells for cell in (each, Picture("")))))
    all_found = [faults(each) for each in ruling.contenders.values()]
    for name in all_found[0]:
        row = [name]
        for (role, _), each in zip(ruling.contenders.items(), all_found, strict=True):
            told, share = found(each[name]), each[name].share
            picture = ""
            if share is not None:
                style = "within" if role == CHALLENGER else "open"
                picture = _SHARES.interval(
                    f"{role}: {name} {told}", share.value, share.low, share.high, style
                )
            row += [told, Picture(picture)]
        rows.append(tuple(row))
    return table(("", *(cell for name in names for cell in (name, Picture("")))), rows)


def _drift(ruling: Ruling) -> str:
    if not ruling.referenced:
        return ""
    count, of = len(ruling.drifted), ruling.referenced
    said = (
        f"<h3>Against the pinned reference</h3><p>{count:,} of {of:,} series have drifted from what the "
        f"pinned bundle learned; nothing is promoted where more than {DRIFTED_MOST:.0%} have. A series has "
        f"where half of its features moved by {reference.LEVEL:g} of their spreads, or a few so much farther "
        f"that it is not by chance (1 or above); where spreads are {reference.SPREAD:g} times as large or "
        f"as small; or where its error is {reference.ERROR:g} times its calibration.</p>"
    )
    worst = sorted(ruling.drifted, key=lambda each: (-each.beyond, each.series))[:_DRIFTED_SHOWN]
    if not worst:
        return said
    rows = [
        (
            each.series,
            f"{each.level:+.2f}",
            f"{each.few:.2f}",
            f"{each.spread:.2f}",
            f"{each.error:.2f}",
            ", ".join(f"{name} {level:+.1f}" for name, level in each.features.items()),
        )
        for each in worst
    ]
    more = f'<p class="soft">And {count - len(rows):,} more.</p>' if count > len(rows) else ""
    heads = ("series that drifted", "half moved", "a few moved", "spread, times", "error, times", "!farthest")
    return f"{said}{table(heads, rows)}{more}"
