"""What a bundle knows for the companions: a series starts where its training rows left them."""

from __future__ import annotations

import numpy as np
import pytest

from models import Bundle, SeriesRows, StackScorer
from models.companions import of_tensors, to_tensors
from pipeline.companions import PROTOTYPES, SETTLING_ROWS, Companions, Scratch, Seeds, level_of

FEATURES = 2


def place(bundle: Bundle, series: str) -> int:
    return int(StackScorer(bundle).assign([series]).model[0])


def test_a_series_starts_with_what_its_own_rows_taught(
    bundle: Bundle, history: dict[str, SeriesRows]
) -> None:
    for name in ("pump-1", "pump-2"):
        model, known = place(bundle, name), bundle.companions
        values = history[name].values
        scaled = (values - bundle.scaling.median[model]) / bundle.scaling.spread[model]

        level = known.level[model].reshape(FEATURES, 3)
        np.testing.assert_allclose(level[:, 0], scaled.mean(axis=0), atol=0.05)
        np.testing.assert_allclose(level[:, 1], scaled.var(axis=0), rtol=0.1)
        scalars = known.scalars[model, 0]
        assert 10 < scalars["stored"] <= PROTOTYPES
        assert len(values) * 0.4 < scalars["shape_rows"] <= len(values) * 0.5
        assert scalars["shape_mean"] > 0

        seeds = StackScorer(bundle).assign([name]).seeds
        found = [
            level_of(seeds.begin, model, row, seeds, model, Scratch.room(12, FEATURES))
            for row in values[-50:]
        ]
        assert np.median(found) < 1.5


def test_a_series_not_seen_starts_with_the_levels_of_all_and_no_shapes(bundle: Bundle) -> None:
    model, known = place(bundle, "nobody"), bundle.companions

    assert model == len(bundle.hashes)
    assert known.scalars["stored"][model, 0] == 0
    assert known.scalars["shape_rows"][model, 0] == -SETTLING_ROWS
    assert not known.shapes[model].any()
    level = known.level[model].reshape(FEATURES, 3)
    assert (level[:, 1] > 0.2).all()
    assert 0 < known.scalars["level_rows"][model, 0] < 100


def test_they_come_back_from_their_tensors_as_they_were(bundle: Bundle) -> None:
    tensors = {name: each.copy() for name, each in to_tensors(bundle.companions).items()}

    found = of_tensors(tensors)

    for name in Companions._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(bundle.companions, name), err_msg=name)


@pytest.mark.parametrize(
    ("tensor", "column", "value", "said"),
    [
        ("scalars", 8, PROTOTYPES + 1, "prototypes"),
        ("scalars", 8, -1, "prototypes"),
        ("scalars", 5, -0.5, "shapes"),
        ("level", 1, -0.5, "levels"),
    ],
)
def test_numbers_that_no_training_gives_are_refused(
    bundle: Bundle, tensor: str, column: int, value: float, said: str
) -> None:
    tensors = {name: each.copy() for name, each in to_tensors(bundle.companions).items()}
    tensors[f"companions.{tensor}"][0, column] = value

    with pytest.raises(ValueError, match=said):
        of_tensors(tensors)


def test_seeds_of_one_bundle_are_the_same_object_for_every_series(bundle: Bundle) -> None:
    scorer = StackScorer(bundle)

    seeds = scorer.assign(["pump-1"]).seeds

    assert isinstance(seeds, Seeds)
    assert scorer.assign(["nobody"]).seeds is seeds
