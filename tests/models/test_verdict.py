"""A ruling as people read it, on a bundle's page and in its report: all of it, at a glance, and as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
from machines import SPEC, waves
from reading_pages import Reader
from replaying import history, source, stream

from models import Bundle, SeriesRows, StackScorer, train
from models.baselines import EwmaZ
from models.gate import Comparison, Ruling, gate
from models.intervals import Estimate
from models.trial import Trial
from models.verdict import compared, verdict
from models.verdict_page import verdict_html
from pipeline.detect import Detector

HOSTILE = "<script>alert('x')</script>"
DAYS = {name: waves(n, 10 * n, 700).values for n, name in enumerate(("pump-1", HOSTILE))}


@cache
def trained(rows: int = 700) -> Bundle:
    learned = {name: SeriesRows(each[:rows], np.zeros(rows, np.int32)) for name, each in DAYS.items()}
    return train(learned, replace(SPEC, steps=100), source={}, created_at="2026-01-01T00:00:00Z")


@cache
def refused() -> Ruling:
    """Its network is damaged, and a series has drifted from the reference."""
    good = trained()
    *biases, last = good.network.biases
    damaged = replace(good, network=replace(good.network, biases=(*biases, last + 1.0)))
    moved = {**DAYS, HOSTILE: DAYS[HOSTILE] + 3.0}
    trial = Trial(Detector("n", "pumps", stream()), [source(moved)])
    return gate(trial, StackScorer(damaged), champion=StackScorer(good), baselines={}, reference=good)


@cache
def nothing() -> Ruling:
    """Not a row counts: the first model is let in, and nothing is known of it."""
    trial = Trial(Detector("n", "pumps", stream()), [source({"pump-1": DAYS["pump-1"][:5]})])
    others = {"ewma-z": EwmaZ(history(DAYS))}
    return gate(trial, StackScorer(trained()), champion=None, baselines=others)


def page(ruling: Ruling, why: str = "") -> Reader:
    seen = Reader()
    seen.feed(verdict_html(ruling, "pca 0123456789ab", why))
    assert seen.open == []
    return seen


class TestThePage:
    def test_why_a_model_was_refused_stands_there_with_every_figure(self) -> None:
        ruling = refused()

        seen = page(ruling, "alerts in 2 h of shadow: challenger 4, champion 0; " + ruling.sentence)

        assert "At the gate: refused" in seen.text
        assert "alerts in 2 h of shadow: challenger 4, champion 0; refused: " in seen.text
        assert "pca 0123456789ab" in seen.text
        for figures in ruling.contenders.values():
            for each in (figures.found, *figures.by_kind.values()):
                assert each.share
                assert f"{each.faults} of {each.of} ({100 * each.share.low:.0f} to " in seen.text
            assert f"{figures.held_out_error:.3f}" in seen.text
        assert {*ruling.contenders["champion"].by_kind} <= set(re.findall(r"[a-z]+(?: [a-z]+)?", seen.text))
        for each in ruling.comparisons:
            assert all(cell in seen.text for cell in compared(ruling, each))
        assert "1,400 of 1,400 records and 2 of 2 series, 2026-01-01 00:00 to " in seen.text
        assert "1 of 2 series have drifted" in seen.text

    def test_a_name_is_no_markup_and_an_interval_is_drawn_for_each_comparison_and_share(self) -> None:
        ruling = refused()

        seen = page(ruling)

        assert HOSTILE in seen.text
        assert "script" not in seen.tags
        kinds = len(ruling.contenders["champion"].by_kind)
        assert seen.tags.count("svg") == 1 + len(ruling.comparisons) + (kinds + 1) * len(ruling.contenders)

    # The picture and the word must say the same: worse is right of what is allowed, no worse is left of it.
    def test_bars_stand_where_the_verdict_says(self) -> None:
        ruling = replace(
            refused(),
            comparisons=(
                Comparison.of("champion", "false alarms", Estimate(0.1, -0.2, 0.4), 0.5),
                Comparison.of("champion", "faults found", Estimate(0.2, 0.1, 0.3), 0.05),
                Comparison.of("champion", "held-out error", Estimate(90.0, 80.0, 1e9), 0.10),
            ),
        )

        html = verdict_html(ruling, "", "")

        allowed = float(re.findall(r'class="line mark dash" d="M([\d.]+) ', html)[0])
        bars = re.findall(r'class="line (\w+)" d="M([\d.]+) 9.0H([\d.]+)"', html)[:3]
        assert [style for style, _, _ in bars] == ["within", "worse", "worse"]
        within, worse, beyond = [(float(low), float(high)) for _, low, high in bars]
        assert within[1] < allowed < worse[0] < worse[1]
        assert beyond[0] == beyond[1] > worse[1]  # an arrow at the end stands for the rest
        assert f'd="M{beyond[1]:.1f} 9.0l-4 -4m4 4l-4 4"' in html

    def test_a_ruling_about_nothing_is_said_without_figures(self) -> None:
        seen = page(nothing())

        assert "At the gate: promoted" in seen.text
        assert "unknown" in seen.text
        assert "none of 5 records made a row that counts" in seen.text
        assert "nan" not in seen.text
        assert "inf" not in seen.text


def test_in_few_words_a_ruling_is_one_of_three() -> None:
    open_ = Comparison.of("champion", "faults found", Estimate(0.0, -0.2, 0.2), 0.05)
    unsure = replace(refused(), comparisons=(open_,), drifted=())

    assert verdict(refused()) == "refused"
    assert verdict(replace(unsure, drifted=refused().drifted)) == "refused"
    assert verdict(unsure) == "not promoted, too little data to tell"
    assert verdict(nothing()) == "promoted"


@pytest.mark.parametrize("ruling", [refused, nothing])
def test_a_ruling_is_read_again_as_it_was_written(ruling: Callable[[], Ruling]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(ruling()), type=Ruling) == ruling()


# A bundle's report may come from anywhere.
@pytest.mark.parametrize("damage", ["challenger", "spike", "first_ns"])
def test_a_ruling_with_figures_missing_is_none(damage: str) -> None:
    said = refused().as_json()
    if damage == "challenger":
        del said["contenders"]["challenger"]
    elif damage == "spike":
        del said["contenders"]["champion"]["by_kind"]["spike"]
    else:
        said["extent"]["first_ns"] = -(10**30)

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(said, Ruling)
