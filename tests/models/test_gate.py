"""The gate on real bundles: what passes, what each bound keeps out, and what it says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from machines import SPEC, waves
from replaying import history, source, stream

from models import Bundle, SeriesRows, StackScorer, train
from models.baselines import EwmaZ, linear
from models.gate import Comparison, Ruling, gate
from models.intervals import Estimate
from models.trial import MAX_RECORDS, Trial
from pipeline.config import Stream
from pipeline.detect import Detector
from pipeline.ports import Scorer

DAYS = {f"pump-{n}": waves(n, 10 * n, 1_500).values for n in range(1, 5)}
WHEN = "2026-01-01T00:00:00Z"


def trained(rows: Mapping[str, SeriesRows]) -> Bundle:
    return train(rows, SPEC, source={}, created_at=WHEN)


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(Detector("n", "pumps", stream()), [source(DAYS)])


@pytest.fixture(scope="module")
def good() -> Bundle:
    return trained(history(DAYS))


@pytest.fixture(scope="module")
def noise() -> Bundle:
    """Trained on rows of the right level and spread without any shape."""
    random = np.random.default_rng(0)
    return trained(
        history({name: random.normal(rows.mean(0), rows.std(0), rows.shape) for name, rows in DAYS.items()})
    )


@pytest.fixture(scope="module")
def ewma_z() -> dict[str, Scorer]:
    return {"ewma-z": EwmaZ(history(DAYS))}


def with_lines(bundle: Bundle, times: float) -> Bundle:
    """A bundle whose thresholds start at so many times what they should."""
    return replace(bundle, calibration=bundle.calibration * [times, times, times, times, 1])


def with_bias(bundle: Bundle, by: float) -> Bundle:
    """A bundle whose last layer is damaged."""
    *biases, last = bundle.network.biases
    return replace(bundle, network=replace(bundle.network, biases=(*biases, last + by)))


def verdicts(ruling: Ruling) -> dict[str, str]:
    return {each.measure: each.verdict for each in ruling.comparisons}


def against(trial: Trial, challenger: Scorer, champion: Scorer) -> Ruling:
    return gate(trial, challenger, champion=champion, baselines={})


def test_a_challenger_that_has_learned_more_is_promoted(trial: Trial, good: Bundle) -> None:
    early = trained({name: SeriesRows(rows[:900], np.zeros(900, np.int32)) for name, rows in DAYS.items()})

    ruling = against(trial, StackScorer(good), StackScorer(early))

    assert ruling.promoted
    assert set(verdicts(ruling).values()) == {"within"}
    mine, other = ruling.contenders["challenger"], ruling.contenders["champion"]
    figures = [
        f"0 false alarms, {each.found.faults} of 120 faults found, held-out error {each.held_out_error:.3f}"
        for each in (mine, other)
    ]
    assert ruling.sentence == (
        f"promoted: in 4.15 days of one series challenger {figures[0]}; champion {figures[1]}"
    )
    assert sum(each.faults for each in mine.by_kind.values()) == mine.found.faults > 100


def test_a_challenger_that_learned_from_noise_is_refused(trial: Trial, good: Bundle, noise: Bundle) -> None:
    ruling = against(trial, StackScorer(noise), StackScorer(good))

    assert not ruling.promoted
    assert verdicts(ruling)["faults found"] == "worse"
    assert ruling.sentence.startswith("refused: ")
    assert " of 120 faults found, champion " in ruling.sentence
    assert "where 5 are allowed" in ruling.sentence


# Each bound alone: without it, the one test below it would see its challenger promoted.
def test_more_false_alarms_alone_are_refused(trial: Trial, good: Bundle, ewma_z: dict[str, Scorer]) -> None:
    ruling = against(trial, StackScorer(with_lines(good, 0.7)), ewma_z["ewma-z"])

    assert verdicts(ruling) == {"false alarms": "worse", "faults found": "within", "held-out error": "within"}
    assert not ruling.promoted
    assert ruling.sentence.startswith(
        "refused: 12 false alarms, champion 0 (2.89 more a day and series, between "
    )


def test_fewer_faults_alone_are_refused(trial: Trial, good: Bundle) -> None:
    ruling = against(trial, StackScorer(with_lines(good, 2)), StackScorer(good))

    assert verdicts(ruling) == {"false alarms": "within", "faults found": "worse", "held-out error": "within"}
    assert not ruling.promoted
    assert "points fewer" in ruling.sentence


def test_a_higher_error_on_held_out_rows_alone_is_refused(trial: Trial, good: Bundle) -> None:
    """Both have lines so high that they alarm and find alike; the challenger's network is damaged."""
    blunt = with_lines(good, 9)

    ruling = against(trial, StackScorer(with_bias(blunt, 0.3)), StackScorer(blunt))

    assert verdicts(ruling) == {"false alarms": "within", "faults found": "within", "held-out error": "worse"}
    assert not ruling.promoted
    assert "% more" in ruling.sentence


# PCA restores best what it was fitted on, and is no better for that: kinds are compared by what they do.
def test_a_champion_of_another_kind_is_not_held_up_by_its_errors(trial: Trial, good: Bundle) -> None:
    blunt = with_lines(good, 9)
    damaged = StackScorer(with_bias(blunt, 0.3))

    ruling = gate(trial, damaged, champion=StackScorer(blunt), baselines={}, same_kind=False)

    assert verdicts(ruling) == {"false alarms": "within", "faults found": "within"}
    assert ruling.promoted


def test_a_champion_that_alarms_often_leaves_room_by_its_share(trial: Trial, good: Bundle) -> None:
    often = StackScorer(with_lines(good, 0.5))

    ruling = against(trial, StackScorer(good), often)

    alarms = ruling.contenders["champion"].false_alarms
    assert alarms > 4 * 5
    assert ruling.comparisons[0].bound == pytest.approx(alarms / 4 / ruling.series_days)
    assert ruling.promoted


def test_a_challenger_that_learned_anomalies_as_normal_is_refused(trial: Trial, good: Bundle) -> None:
    poisoned = {name: rows.copy() for name, rows in DAYS.items()}
    for n, rows in enumerate(poisoned.values()):
        for first in range(100 * n, 1_500, 300):
            rows[first : first + 100] += np.random.default_rng(first).normal(0, 6, (100, 2))

    ruling = against(trial, StackScorer(trained(history(poisoned))), StackScorer(good))

    assert not ruling.promoted
    assert verdicts(ruling)["faults found"] == "worse"


class TestReference:
    """Champion and challenger both learned from rows that were pushed a little at each retrain."""

    def pushed(self, series: int, spreads: float, good: Bundle) -> dict[str, np.ndarray]:
        spread = good.scaling.spread[0]
        return {name: rows + spreads * spread * (n < series) for n, (name, rows) in enumerate(DAYS.items())}

    def test_a_drift_that_champion_and_challenger_share_is_noticed(self, good: Bundle) -> None:
        days = self.pushed(1, 1.5, good)
        learned = StackScorer(trained(history(days)))
        trial = Trial(Detector("n", "pumps", stream()), [source(days)])

        without = against(trial, learned, learned)
        ruling = gate(trial, learned, champion=learned, baselines={}, reference=good)

        assert without.promoted
        assert not ruling.promoted
        assert [each.series for each in ruling.drifted] == ["pump-1"]
        assert ruling.sentence.startswith(
            "refused: 1 of 4 series have drifted from the pinned reference, pump-1 by +1.5 of its spreads "
            "(farthest "
        )

    def test_rows_as_the_reference_knows_them_pass(self, trial: Trial, good: Bundle) -> None:
        ruling = gate(trial, StackScorer(good), champion=StackScorer(good), baselines={}, reference=good)

        assert ruling.promoted
        assert (ruling.drifted, ruling.referenced) == ((), 4)

    @pytest.mark.parametrize(("series", "promoted"), [(2, True), (3, False)])
    def test_a_few_series_of_many_do_not_hold_back_the_others(self, series: int, promoted: bool) -> None:  # noqa: FBT001
        days = {f"pump-{n:02}": waves(n, 10, 120).values for n in range(40)}
        known = train(history(days), replace(SPEC, steps=100), source={}, created_at=WHEN)
        for name in list(days)[:series]:
            days[name] = days[name] + 5.0
        trial = Trial(Detector("n", "pumps", stream()), [source(days)])

        ruling = gate(trial, StackScorer(known), champion=None, baselines={}, reference=known)

        assert [each.series for each in ruling.drifted] == list(days)[:series]
        assert ruling.referenced == 40
        assert ruling.promoted is promoted


def test_where_data_are_too_few_the_champion_stays_and_a_first_model_is_let_in(
    good: Bundle, noise: Bundle, ewma_z: dict[str, Scorer]
) -> None:
    little = Trial(Detector("n", "pumps", stream()), [source({"pump-1": DAYS["pump-1"][:330]})])

    later = against(little, StackScorer(good), StackScorer(good))
    first = gate(little, StackScorer(noise), champion=None, baselines=ewma_z)

    assert len(little.faults) == 6
    assert not later.promoted
    assert set(verdicts(later).values()) == {"open", "within"}
    assert later.sentence.startswith("the champion stays, there is too little data to tell: ")
    assert first.promoted
    assert "too little data to tell them apart by all measures" in first.sentence


def test_without_a_row_that_counts_nothing_is_compared(good: Bundle, ewma_z: dict[str, Scorer]) -> None:
    none = Trial(Detector("n", "pumps", stream()), [source({"pump-1": DAYS["pump-1"][:5]})])

    later = against(none, StackScorer(good), StackScorer(good))
    first = gate(none, StackScorer(good), champion=None, baselines=ewma_z)

    assert set(verdicts(later).values()) == {"open"}
    assert later.sentence == (
        "the champion stays, there is too little data to tell: of false alarms nothing can be told; "
        "of faults found nothing can be told; of held-out error nothing can be told"
    )
    assert "nan" not in later.sentence
    assert not later.promoted
    assert first.promoted
    assert (
        json.loads(json.dumps(first.as_json(), allow_nan=False))["contenders"]["challenger"]["held_out_error"]
        is None
    )


class TestFirstModel:
    def test_one_that_beats_the_baselines_is_promoted(
        self, trial: Trial, good: Bundle, ewma_z: dict[str, Scorer]
    ) -> None:
        ruling = gate(trial, StackScorer(good), champion=None, baselines=ewma_z)

        assert ruling.promoted
        assert ruling.sentence.startswith(
            "promoted as the first model: in 4.15 days of one series challenger "
        )
        assert "; ewma-z 0 false alarms, " in ruling.sentence
        assert ruling.contenders["ewma-z"].found.faults < ruling.contenders["challenger"].found.faults / 2

    def test_one_that_is_surely_worse_than_a_baseline_is_refused(
        self, trial: Trial, noise: Bundle, ewma_z: dict[str, Scorer]
    ) -> None:
        ruling = gate(trial, StackScorer(noise), champion=None, baselines=ewma_z)

        assert not ruling.promoted
        assert ruling.sentence.startswith("refused: ")
        assert "of 120 faults found, ewma-z " in ruling.sentence

    def test_pca_of_the_same_code_size_is_the_control(
        self, trial: Trial, good: Bundle, ewma_z: dict[str, Scorer]
    ) -> None:
        """Waves are linear: a few directions say all of them, and a small network does not find them all."""
        pca = train(history(DAYS), linear(SPEC), source={}, created_at=WHEN)
        control = {"pca": StackScorer(pca), **ewma_z}

        ruling = gate(trial, StackScorer(good), champion=None, baselines=control)
        itself = gate(trial, control["pca"], champion=None, baselines=control)

        assert pca.manifest.spec.code == good.manifest.spec.code
        assert set(ruling.contenders) == {"challenger", "pca", "ewma-z"}
        assert ruling.is_worse_than("pca")
        assert not ruling.is_worse_than("ewma-z")
        assert not ruling.promoted
        assert "of 120 faults found, pca 120" in ruling.sentence
        assert "ewma-z" not in ruling.sentence
        assert itself.promoted

    def test_a_baselines_held_out_errors_are_shown_and_not_compared(
        self, trial: Trial, good: Bundle, ewma_z: dict[str, Scorer]
    ) -> None:
        ruling = gate(trial, StackScorer(good), champion=None, baselines=ewma_z)

        assert ruling.contenders["ewma-z"].held_out_error is not None
        assert set(verdicts(ruling)) == {"false alarms", "faults found"}

    def test_a_baseline_that_alarms_more_is_compared_at_equally_many_alarms(
        self, trial: Trial, good: Bundle
    ) -> None:
        eager = StackScorer(with_lines(good, 0.7))

        ruling = gate(trial, StackScorer(good), champion=None, baselines={"eager": eager})

        assert len(trial.alarms(eager)) == 12
        assert ruling.contenders["eager"].raised > 1
        assert ruling.contenders["eager"].false_alarms <= 1


def test_the_same_question_gets_the_same_answer(good: Bundle, noise: Bundle) -> None:
    """In other batches, too: a ruling that can be asked for again."""
    whole, cut = (
        Trial(Detector("n", "pumps", stream()), [source(DAYS, batch=records)]) for records in (5_000, 333)
    )

    rulings = [against(each, StackScorer(noise), StackScorer(good)) for each in (whole, cut)]

    assert whole.faults == cut.faults
    assert rulings[0].sentence == rulings[1].sentence
    assert rulings[0].contenders["challenger"].found == rulings[1].contenders["challenger"].found


def test_a_large_stream_is_looked_at_in_part_and_that_is_said(good: Bundle) -> None:
    many = {f"pump-{n}": waves(n, n, 60).values for n in range(200)}

    trial = Trial(Detector("n", "pumps", stream()), [source(many)], most_records=4_000)
    ruling = against(trial, StackScorer(good), StackScorer(good))

    extent = ruling.extent
    assert (extent.of_records, extent.of_series) == (12_000, 200)
    assert extent.records == 60 * extent.series <= 4_000 < MAX_RECORDS
    assert extent.rows == extent.series * (60 - 7)


def test_a_ruling_is_json_with_every_figure(trial: Trial, good: Bundle, ewma_z: dict[str, Scorer]) -> None:
    ruling = gate(trial, StackScorer(good), champion=None, baselines=ewma_z)

    said = json.loads(json.dumps(ruling.as_json(), allow_nan=False))

    assert said["promoted"] is True
    assert said["sentence"] == ruling.sentence
    assert said["contenders"]["challenger"]["by_kind"]["lost phase"]["of"] == 20
    assert said["comparisons"][0]["worse_by"]["high"] == ruling.comparisons[0].worse_by.high
    assert said["extent"]["records"] == 6_000


@pytest.mark.parametrize(
    ("worse_by", "verdict"),
    [
        (Estimate(0.02, -0.01, 0.05), "within"),
        (Estimate(0.02, 0.01, 0.05), "within"),
        (Estimate(0.02, 0.01, 0.06), "open"),
        (Estimate(0.06, -0.01, 0.13), "open"),
        (Estimate(0.06, 0.01, 0.11), "worse"),
        (None, "open"),
    ],
)
def test_an_interval_decides_by_both_its_ends(worse_by: Estimate | None, verdict: str) -> None:
    assert Comparison.of("champion", "faults found", worse_by, 0.05).verdict == verdict


# Live work, replay and the gate share one step: what a contender raises is what it would have raised live.
@pytest.mark.parametrize("policy", ["ewma", "quantile", "joint"])
def test_contenders_are_judged_as_they_would_have_been_live(good: Bundle, policy: str) -> None:
    plain = stream().model_dump(by_alias=True)
    settings = Stream.model_validate({**plain, "threshold": {"policy": policy}})
    days = {name: rows.copy() for name, rows in DAYS.items()}
    days["pump-1"][700:704] += 5.0
    detector, scorer = Detector("n", "pumps", settings), StackScorer(good)

    alarms = Trial(detector, [source(days)]).alarms(scorer)

    state = detector.fresh("", 0)
    state.adopt(scorer, "bundle")
    changes = [change for batch in source(days)() for change in detector.step(state, batch, scorer).changes]
    fired = [change.at_ns for change in changes if change.revision == 1]
    assert [alarm.at_ns for alarm in alarms] == fired
    assert len(fired) >= 1
