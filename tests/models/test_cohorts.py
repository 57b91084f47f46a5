"""Who shares a network: by scope and shape, each series with its own scaling and calibration all the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import Bundle, ModelSpec, SeriesRows, StackScorer, train
from models.cohorts import MAX_COHORTS, divide, group, shape
from models.samples import split
from pipeline.config import Scope
from pipeline.ports import Windows

WHEN = "2026-01-01T00:00:00Z"
SPEC = ModelSpec(features=("a",), window_rows=8, hidden=(8,), code=3, seed=5, steps=300)
ROWS = 300


def rows_of(values: np.ndarray) -> SeriesRows:
    return SeriesRows(values[:, None], np.zeros(len(values), np.int32))


def mixed(each: int = 4) -> dict[str, SeriesRows]:
    """Slow sines and noise, at levels and of sizes that have nothing to do with it."""
    random, found = np.random.default_rng(0), {}
    for i in range(each):
        level, size = random.uniform(-1_000, 1_000), random.uniform(0.1, 50)
        angle = np.arange(ROWS) * 0.3 + random.uniform(0, 6)
        found[f"sine-{i}"] = rows_of(level + size * (np.sin(angle) + random.normal(0, 0.05, ROWS)))
        found[f"noise-{i}"] = rows_of(level + size * random.normal(size=ROWS))
    return found


@pytest.fixture(scope="module")
def bundles() -> dict[Scope, Bundle]:
    scopes: tuple[Scope, ...] = ("series", "cohort", "global")
    return {
        scope: train(mixed(), SPEC, source={}, created_at=WHEN, scope=scope, max_models=4) for scope in scopes
    }


def network_of(bundle: Bundle, name: str) -> int:
    return int(bundle.network_of[StackScorer(bundle).assign([name]).model[0]])


def test_a_series_has_a_network_of_its_own_up_to_the_bound_and_cohorts_take_the_rest(
    bundles: dict[Scope, Bundle],
) -> None:
    bundle = bundles["series"]

    users = Counter(network_of(bundle, name) for name in mixed())

    assert sorted(users.values()) == [1, 1, 1, 1, 4]
    assert sorted(bundle.owners()) == ["cohort"] * 4 + ["fallback"] + ["own"] * 4
    assert (bundle.manifest.models, bundle.manifest.networks) == (9, 6)


def test_the_longest_histories_have_networks_of_their_own() -> None:
    rows = mixed()
    longest = SeriesRows(np.tile(rows["noise-1"].values, (2, 1)), np.zeros(2 * ROWS, np.int32))

    bundle = train({**rows, "z": longest}, replace(SPEC, steps=1), source={}, created_at=WHEN, max_models=1)

    owners = bundle.owners()
    assert owners.count("own") == 1
    assert owners[StackScorer(bundle).assign(["z"]).model[0]] == "own"


def test_cohorts_hold_series_that_look_alike_whatever_their_level_and_size(
    bundles: dict[Scope, Bundle],
) -> None:
    bundle = bundles["cohort"]

    sines = {network_of(bundle, name) for name in mixed() if name.startswith("sine")}
    noise = {network_of(bundle, name) for name in mixed() if name.startswith("noise")}

    assert (len(sines), len(noise), bundle.manifest.networks) == (1, 1, 3)
    assert not sines & noise


def test_one_network_judges_all_in_the_scope_global(bundles: dict[Scope, Bundle]) -> None:
    bundle = bundles["global"]

    assert {network_of(bundle, name) for name in mixed()} == {0}
    assert bundle.manifest.networks == 2  # and the fallback's


@pytest.mark.parametrize("scope", ["series", "cohort", "global"])
def test_a_series_never_seen_has_the_fallback_and_joins_at_the_next_training(
    bundles: dict[Scope, Bundle], scope: Scope
) -> None:
    scorer = StackScorer(bundles[scope])
    last = bundles[scope].manifest.models - 1
    assert scorer.assign(["late", "sine-0"]).model.tolist()[0] == last
    assert bundles[scope].owners()[last] == "fallback"
    assert bundles[scope].network_of[last] not in bundles[scope].network_of[:last]

    rows = {**mixed(), "late": rows_of(np.sin(np.arange(2 * ROWS) * 0.3))}
    again = train(rows, replace(SPEC, steps=1), source={}, created_at=WHEN, scope=scope, max_models=4)

    assert again.owners()[StackScorer(again).assign(["late"]).model[0]] != "fallback"


def test_a_series_with_too_few_rows_has_the_fallback_in_every_scope() -> None:
    rows = {**mixed(), "short": rows_of(np.sin(np.arange(40) * 0.3))}

    bundle = train(rows, replace(SPEC, steps=1), source={}, created_at=WHEN, scope="cohort")

    assert StackScorer(bundle).assign(["short"]).model.tolist() == [bundle.manifest.models - 1]


@pytest.mark.parametrize("scope", ["cohort", "global"])
def test_members_of_a_cohort_keep_their_own_scaling_and_calibration(
    bundles: dict[Scope, Bundle], scope: Scope
) -> None:
    """Each member's held-out windows, scored by its own model, are what its calibration says."""
    bundle, rows = bundles[scope], mixed()
    scorer = StackScorer(bundle)
    for name, each in rows.items():
        found = scorer.assign([name])
        held_out = split(each.segment, 8).held_out
        raw = each.values[held_out[:, None] + np.arange(8)]
        anchor = raw[:, -1]
        windows = Windows(
            (raw - anchor[:, None]).astype(np.float32), anchor, np.repeat(found.model, len(raw))
        )

        assert scorer.score(windows).window.mean() == pytest.approx(found.calibration[0, 0], rel=1e-4)
        assert bundle.scaling.median[found.model[0], 0] == pytest.approx(
            np.median(each.values[: split(each.segment, 8).train[-1] + 8])
        )
    levels = bundle.scaling.median[:-1, 0]
    assert len(set(levels.tolist())) == len(rows)


@pytest.mark.parametrize("scope", ["cohort", "global"])
def test_a_shared_network_learns_each_series_in_its_own_units(
    bundles: dict[Scope, Bundle], scope: Scope
) -> None:
    """A sine is copied well at any level and of any size, and noise is not."""
    scorer = StackScorer(bundles[scope])

    sines, noise = (
        scorer.assign([f"{kind}-{i}" for i in range(4)]).calibration[:, 0] for kind in ("sine", "noise")
    )

    assert sines.max() ** 2 < noise.min() ** 2 / 3
    assert sines.max() < 2 * sines.min()


@pytest.mark.parametrize("scope", ["series", "cohort", "global"])
def test_the_same_seed_gives_the_same_bundle_in_every_scope(
    bundles: dict[Scope, Bundle], scope: Scope
) -> None:
    turned = dict(reversed(mixed().items()))

    again = train(turned, SPEC, source={}, created_at=WHEN, scope=scope, max_models=4)

    assert again.sha == bundles[scope].sha


def test_a_cohorts_network_begins_from_the_seed_whoever_stands_beside_it() -> None:
    rows = mixed()
    noise = {name: each for name, each in rows.items() if name.startswith("noise")}
    first = replace(SPEC, steps=1)

    both = train(rows, first, source={}, created_at=WHEN, scope="cohort")
    alone = train(noise, first, source={}, created_at=WHEN, scope="cohort")

    shared = both.network.weights[0][network_of(both, "noise-0")]
    assert torch.allclose(shared, alone.network.weights[0][network_of(alone, "noise-0")])


def test_every_series_is_in_one_group() -> None:
    looks = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    lengths = np.arange(40)

    groups = divide(lengths, "series", 10, lambda place: looks[place], 0)

    assert [each.tolist() for each in groups[:10]] == [[place] for place in range(30, 40)]
    assert sorted(np.concatenate(groups[10:]).tolist()) == list(range(30))
    assert divide(lengths[:0], "cohort", 10, lambda place: looks[place], 0) == []
    assert divide(lengths[:0], "global", 10, lambda place: looks[place], 0) == []


@pytest.mark.parametrize(("series", "most"), [(1, 1), (2, 1), (8, 2), (200, 10), (20_000, MAX_COHORTS)])
def test_the_number_of_cohorts_grows_slowly_and_is_bounded(series: int, most: int) -> None:
    looks = np.random.default_rng(0).normal(size=(series, 2)).astype(np.float32)

    found = group(looks, 0)

    assert found.max() + 1 == most
    assert found[0] == 0


def test_series_all_alike_are_one_cohort() -> None:
    assert group(np.ones((50, 4), np.float32), 2**70).tolist() == [0] * 50


def test_the_shape_does_not_depend_on_where_a_period_begins() -> None:
    angle = np.arange(16)[None] * np.pi / 4
    here, there = (np.sin(angle + each)[..., None].astype(np.float32) for each in (0.0, 1.3))

    np.testing.assert_allclose(shape(here), shape(there), atol=1e-5)
    assert shape(here).argmax() == 2


def test_a_worker_does_not_pay_for_the_search() -> None:
    """Who only scores does not import scikit-learn."""
    asked = "import sys, models.scorer; print([each for each in sys.modules if each.startswith('sklearn')])"

    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
