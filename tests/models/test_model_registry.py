"""The registry: bundles by id, and a pointer that is the old one or the new one, never half."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from models import Bundle, ModelSpec, Registry, SeriesRows, train
from pipeline.errors import BundleError, NotFound


@pytest.fixture(scope="module")
def other(history: dict[str, SeriesRows], spec: ModelSpec) -> Bundle:
    return train(history, replace(spec, steps=1), source={}, created_at="2026-01-02T00:00:00Z")


def test_a_saved_bundle_is_listed_and_loaded_by_its_id(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    assert registry.bundles("pumps") == []

    bundle_id = registry.save("pumps", bundle)
    assert registry.save("pumps", bundle) == bundle_id

    assert bundle_id == bundle.sha
    assert registry.bundles("pumps") == [bundle_id]
    assert registry.load("pumps", bundle_id).sha == bundle_id
    assert registry.bundles("fans") == []


def test_promotion_moves_the_pointer_and_keeps_the_predecessor(
    bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    registry = Registry(str(tmp_path))
    first, second = registry.save("pumps", bundle), registry.save("pumps", other)
    assert registry.champion("pumps") is None

    registry.promote("pumps", first)
    registry.promote("pumps", second)
    registry.promote("pumps", second)

    assert registry.champion("pumps") == second
    pointer = json.loads((tmp_path / "pumps" / "champion.json").read_bytes())
    assert pointer == {"bundle_id": second, "predecessor_id": first}
    assert Registry(tmp_path).champion("pumps") == second


def test_a_reader_sees_the_old_champion_or_the_new_one(bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    ids = [registry.save("pumps", each) for each in (bundle, other)]
    registry.promote("pumps", ids[0])
    seen: set[str | None] = set()
    done = threading.Event()

    def read() -> None:
        reader = Registry(tmp_path)
        while not done.is_set():
            seen.add(reader.champion("pumps"))

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(40):
        registry.promote("pumps", ids[turn % 2])
    done.set()
    thread.join()

    assert seen <= set(ids)
    assert [each.name for each in (tmp_path / "pumps").iterdir() if each.name.startswith(".")] == []


def test_only_a_bundle_that_is_there_can_be_promoted_or_loaded(tmp_path: Path) -> None:
    registry = Registry(tmp_path)

    with pytest.raises(NotFound, match="has no bundle"):
        registry.promote("pumps", "0" * 64)
    with pytest.raises(NotFound):
        registry.load("pumps", "0" * 64)


@pytest.mark.parametrize("name", ["../pumps", "", ".", "..", "a/b", "a\n", ".hidden"])
def test_names_cannot_climb_out_of_the_registry(tmp_path: Path, name: str) -> None:
    registry = Registry(tmp_path)

    for use in (registry.bundles, registry.champion):
        with pytest.raises(NotFound):
            use(name)
    with pytest.raises(NotFound):
        registry.load("pumps", name)


def test_a_bundle_under_anothers_id_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.save("pumps", bundle)
    shutil.copytree(tmp_path / "pumps" / bundle_id, tmp_path / "pumps" / ("0" * 64))

    with pytest.raises(BundleError, match="holds the bundle"):
        registry.load("pumps", "0" * 64)


def test_a_damaged_pointer_is_said_so_and_mended_by_promoting(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.save("pumps", bundle)
    (tmp_path / "pumps" / "champion.json").write_text("{")

    with pytest.raises(BundleError, match="promote a bundle again"):
        registry.champion("pumps")
    registry.promote("pumps", bundle_id)

    assert registry.champion("pumps") == bundle_id
