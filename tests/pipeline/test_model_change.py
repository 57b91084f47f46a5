"""Another model takes over: what series are used to goes on, and the change itself raises no alert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from feeding import COMPILED, Feed, reading, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from test_companions import Values, Warmed, events, exact, joint, machine, noise

from pipeline.companions import PROTOTYPES, RARITY_BINS
from pipeline.config import Stream
from pipeline.episodes import FIRING
from pipeline.ports import Errors, Windows
from pipeline.testing import FakeScorer
from pipeline.thresholds import ACCEPTED, CARRIED

POLICIES: list[dict[str, Any]] = [
    {"policy": "ewma", "k": 5},
    {"policy": "quantile", "q": 0.99, "margin": 2.0},
    {"policy": "joint", "line": 0.8},
]


class Misjudging(Warmed):
    """A model whose errors on the series are ``gain`` times those of its held-out rows."""

    def __init__(self, rows: Values, gain: float, **scaling: float) -> None:
        super().__init__(rows, **scaling)
        self._gain = gain

    def score(self, windows: Windows) -> Errors:
        errors = super().score(windows)
        return Errors(errors.window * self._gain, errors.last * self._gain)


def watched(threshold: dict[str, Any]) -> Stream:
    given_ = {"memory": "0s", "adapt_after": "6h", **threshold}
    return stream(window=8, threshold=given_, features=["x0"])


@settings(deadline=None, derandomize=True, max_examples=60 if COMPILED else 1)
@given(
    threshold=st.sampled_from(POLICIES),
    gain=st.floats(0.1, 30.0),
    median=st.floats(-1.0, 1.0),
    spread=st.floats(0.3, 3.0),
    at=st.integers(600, 900),
    seed=st.integers(0, 5),
)
def test_a_calm_series_does_not_alert_because_of_another_model(
    threshold: dict[str, Any], gain: float, median: float, spread: float, at: int, seed: int
) -> None:
    rows = 0.2 * noise(1_200, seed=seed)
    feed = Feed(watched(threshold), Warmed(rows[:600]))
    feed.send(*events(rows[500:at], first=500))
    assert feed.alerts == []

    feed.scorer = Misjudging(rows[:600], gain, median=median, spread=spread)
    feed.state.adopt(feed.scorer, "another bundle")
    feed.send(*events(rows[at : at + 200], first=at))

    assert [each.at for each in feed.alerts] == []


@pytest.mark.parametrize("threshold", POLICIES, ids=lambda each: each["policy"])
@pytest.mark.parametrize("gain", [0.5, 1.0, 5.0])
def test_a_fault_that_begins_with_the_first_row_of_another_model_is_found(
    threshold: dict[str, Any], gain: float
) -> None:
    rows = 0.2 * noise(900)
    rows[800:] += 8.0
    feed = Feed(watched(threshold), Warmed(rows[:600]))
    feed.send(*events(rows[500:800], first=500))

    feed.scorer = Misjudging(rows[:600], gain)
    feed.state.adopt(feed.scorer, "another bundle")
    feed.send(*events(rows[800:810], first=800))

    assert feed.alerts[0].at.timestamp() == 800.0
    assert feed.state.rows["episode"][0] == FIRING


def test_what_was_not_calm_is_for_the_new_model_to_judge() -> None:
    feed = Feed(watched(POLICIES[0]), FakeScorer())
    feed.send(
        *(reading("a", t, x0=1.0) for t in range(50)), *(reading("a", t, x0=9.0) for t in range(50, 60))
    )
    assert feed.state.rows["episode"][0] == FIRING

    feed.scorer = FakeScorer(level=8.0)
    feed.state.adopt(feed.scorer, "another bundle")
    feed.send(*(reading("a", t, x0=9.0) for t in range(60, 100)))

    assert [each.state for each in feed.alerts][-1] == "resolved"
    assert feed.state.rows["error_mean"][0] == pytest.approx(1.0)


def test_a_series_without_a_judged_window_begins_with_the_calibration() -> None:
    feed = Feed(watched(POLICIES[0]), FakeScorer())
    feed.send(*(reading("a", t, x0=1.0) for t in range(7)))

    feed.state.adopt(FakeScorer(), "another bundle")

    assert feed.state.rows["rows"][0] == 0.0


def test_what_was_accepted_before_the_first_row_of_another_model_is_still_what_is_normal() -> None:
    feed = Feed(joint(line=3.0), FakeScorer())
    feed.send(*events(noise(100)))
    feed.state.rows["rows"] = ACCEPTED
    feed.scorer = FakeScorer(spread=4.0)

    feed.state.adopt(feed.scorer, "another bundle")
    feed.send(*events(noise(1) + 20.0, first=100))

    assert feed.alerts == []
    assert feed.state.series.level[0, 0] == pytest.approx(5.0, abs=1.0)


def test_two_changes_before_a_row_are_as_one() -> None:
    feeds = [Feed(joint(), FakeScorer()) for _ in range(2)]
    for feed in feeds:
        feed.send(*events(noise(100)))
    feeds[0].state.adopt(FakeScorer(spread=7.0), "a bundle between")

    for feed in feeds:
        feed.scorer = FakeScorer(level=1.0, spread=2.0)
        feed.state.adopt(feed.scorer, "another bundle")
        assert feed.state.rows["rows"][0] == CARRIED
        feed.send(*events(noise(50, seed=1), first=100))

    one, two = (feed.state.pack(whole=True).rows.tobytes() for feed in feeds)
    assert one == two


class TestTheCompanions:
    """They are what they were, in the units of the new model."""

    def changed(self, features: int = 1, level: float = 0.5, spread: float = 4.0) -> tuple[Feed, Feed]:
        """The same rows under one model, and under another that only scales otherwise."""
        feeds = []
        for scorer in (FakeScorer(), FakeScorer(level=level, spread=spread)):
            feed = Feed(joint(features, adapt_after="0s"), FakeScorer())
            feed.send(*events(machine(400, features)[:190]))
            feed.scorer = scorer
            feed.state.adopt(scorer, "bundle-1" if not feeds else "bundle-2")
            feed.send(*events(machine(400, features)[190:200], first=190))
            feeds.append(feed)
        return feeds[0], feeds[1]

    @pytest.mark.parametrize("features", [1, 3])
    def test_levels_and_shapes_are_the_same_values(self, features: int) -> None:
        one, two = (feed.state.series for feed in self.changed(features))

        np.testing.assert_allclose(one.level[0, 0::3], two.level[0, 0::3] * 4.0 + 0.5, rtol=1e-6)
        np.testing.assert_allclose(one.level[0, 1::3], two.level[0, 1::3] * 16.0, rtol=1e-6)
        stored = int(one.scalars["stored"][0, 0])
        assert stored == int(two.scalars["stored"][0, 0]) > 10
        shapes = [each.shapes[0].reshape(-1, PROTOTYPES)[:, :stored] for each in (one, two)]
        np.testing.assert_allclose(shapes[0], shapes[1] * 4.0 + 0.5, atol=1e-4)
        np.testing.assert_array_equal(one.uses, two.uses)
        for name, power in (("apart_mean", 1.0), ("shape_mean", 0.5), ("shape_variance", 1.0)):
            ours, theirs = one.scalars[name][0, 0], two.scalars[name][0, 0]
            assert ours == pytest.approx(theirs * 4.0**power, rel=1e-4), name
        np.testing.assert_allclose(one.apart, two.apart * 2.0, rtol=1e-3)

    def test_rows_are_counted_at_the_same_levels_less_a_tenth(self) -> None:
        feed = Feed(joint(), FakeScorer())
        feed.send(*events(exact(np.full((800, 1), 1.1))))
        assert feed.state.series.counts[0, 36] == 793  # the rows that had a window

        feed.scorer = FakeScorer(level=0.1, spread=0.25)
        feed.state.adopt(feed.scorer, "another bundle")
        feed.send(*events(exact(np.full((1, 1), 1.1)), first=800))

        # What stood from 1.0 to 1.25 stands from 3.6 to 4.6 now, beyond 3 in bins of equal ratio.
        counts = feed.state.series.counts[0]
        assert counts.sum() == pytest.approx(715, abs=2)
        assert np.flatnonzero(counts).tolist() == [45, 46, 47]

    def test_what_the_bundle_has_counted_is_not_forgotten(self) -> None:
        seen = noise(600)
        feed = Feed(joint(), Warmed(seen[:100]))
        feed.send(*events(seen[100:150], first=100))

        feed.scorer = Warmed(seen)
        feed.state.adopt(feed.scorer, "another bundle")
        feed.send(*events(noise(1), first=150))

        counts, known = feed.state.series.counts[0], feed.scorer.assign(["a"]).seeds.begin.counts[0]
        assert (counts >= known).all()
        assert counts.sum() == pytest.approx(601, abs=20)
        assert len(counts) == RARITY_BINS
