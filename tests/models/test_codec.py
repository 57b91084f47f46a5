"""A bundle taken apart: encode, decode, reconstruct and generate, in the features' own units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models import Bundle, Codec, ModelSpec, SeriesRows, StackScorer, train
from models.samples import as_windows
from pipeline.errors import ConfigError

WHEN = "2026-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def codec(bundle: Bundle) -> Codec:
    return Codec(bundle)


@pytest.fixture(scope="module")
def generator(history: dict[str, SeriesRows], spec: ModelSpec) -> Codec:
    variational = replace(spec, kind="variational", steps=1_200)
    return Codec(train(history, variational, source={}, created_at=WHEN))


def test_windows_are_cut_one_ending_at_each_row(codec: Codec) -> None:
    rows = np.arange(24.0).reshape(12, 2)

    windows = codec.cut(rows)

    assert windows.shape == (5, 8, 2)
    assert windows[0].tolist() == rows[:8].tolist()
    assert windows[-1, -1].tolist() == rows[-1].tolist()


def test_decoding_the_code_is_reconstructing_and_comes_near_in_the_features_own_units(
    codec: Codec, history: dict[str, SeriesRows]
) -> None:
    windows = codec.cut(history["pump-2"].values)  # around 500

    codes = codec.encode(windows, "pump-2")
    restored = codec.reconstruct(windows, "pump-2")

    assert codes.dtype == np.float32
    assert codes.shape == (len(windows), codec.code)
    np.testing.assert_allclose(codec.decode(codes, "pump-2"), restored.windows, atol=1e-5)
    assert np.abs(restored.windows - windows).mean() < 0.4  # values go up and down by 1 and by 2


def test_errors_are_those_a_detector_sees(
    bundle: Bundle, codec: Codec, history: dict[str, SeriesRows]
) -> None:
    windows = codec.cut(history["pump-1"].values)
    scorer = StackScorer(bundle)
    seen = scorer.score(as_windows(windows, scorer.assign(["pump-1"] * len(windows)).model))

    found = codec.reconstruct(windows, "pump-1").errors

    np.testing.assert_allclose(found.window, seen.window, rtol=1e-6)
    np.testing.assert_allclose(found.last, seen.last, rtol=1e-6)


def test_each_window_goes_through_the_model_of_its_series(
    codec: Codec, history: dict[str, SeriesRows]
) -> None:
    """In any order; an unseen series and none at all go through the shared one."""
    windows = codec.cut(history["pump-1"].values)[:6]
    names = ["pump-2", "pump-1", "nobody", "pump-1", "pump-2", "pump-1"]

    mixed = codec.encode(windows, names)
    decoded = codec.decode(mixed, names)

    for name in {*names}:
        mine = [i for i, each in enumerate(names) if each == name]
        np.testing.assert_allclose(mixed[mine], codec.encode(windows[mine], name), atol=1e-6)
        np.testing.assert_allclose(decoded[mine], codec.decode(mixed[mine], name), rtol=1e-5)
    assert np.array_equal(codec.encode(windows, "nobody"), codec.encode(windows))
    assert not np.allclose(codec.encode(windows, "pump-1"), codec.encode(windows, "pump-2"), atol=0.01)


def test_no_windows_make_no_codes_and_no_codes_no_windows(codec: Codec) -> None:
    assert codec.encode(np.empty((0, 8, 2))).shape == (0, codec.code)
    assert codec.decode(np.empty((0, codec.code), np.float32)).shape == (0, 8, 2)


def test_generated_windows_are_like_the_seriess_own_and_the_same_from_the_same_seed(
    generator: Codec, history: dict[str, SeriesRows]
) -> None:
    """Around its level, as wide as it, and of its shape: the second feature follows the first."""
    made = generator.generate(500, 1, "pump-2")
    real = generator.cut(history["pump-2"].values)

    assert np.array_equal(made, generator.generate(500, 1, "pump-2"))
    assert not np.array_equal(made, generator.generate(500, 2, "pump-2"))
    assert np.abs(made.mean((0, 1)) - real.mean((0, 1))).max() < 0.2
    np.testing.assert_allclose(made.std((0, 1)), real.std((0, 1)), rtol=0.25)
    apart = [np.corrcoef(each.reshape(len(each), -1).T) for each in (made, real)]
    assert np.abs(apart[0] - apart[1]).mean() < 0.2


def test_only_a_variational_model_generates(codec: Codec) -> None:
    with pytest.raises(ConfigError, match=r"kind undercomplete.*only a variational one generates"):
        codec.generate(1, 0)
