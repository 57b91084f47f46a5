"""The registry: bundles by id, and a what else stands there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from forgery import forge_model, header, with_header

from models import Bundle, ModelSpec, Registry, SeriesRows, save, train
from models.manifest import MANIFEST_FILE, MODEL_FILE
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


def test_only_a_bundle_that_is_there_can_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Registry(tmp_path).load("pumps", "0" * 64)


@pytest.mark.parametrize("name", ["../pumps", "", ".", "..", "a/b", "a\n", ".hidden"])
def test_names_cannot_climb_out_of_the_registry(tmp_path: Path, name: str) -> None:
    registry = Registry(tmp_path)

    with pytest.raises(NotFound):
        registry.bundles(name)
    with pytest.raises(NotFound):
        registry.load("pumps", name)


def test_a_bundle_under_anothers_id_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.save("pumps", bundle)
    shutil.copytree(tmp_path / "pumps" / bundle_id, tmp_path / "pumps" / ("0" * 64))

    with pytest.raises(BundleError, match="holds the bundle"):
        registry.load("pumps", "0" * 64)


def test_a_bundle_is_taken_in_byte_for_byte_whoever_wrote_it(bundle: Bundle, tmp_path: Path) -> None:
    save(bundle, tmp_path / "from")
    model = (tmp_path / "from" / MODEL_FILE).read_bytes()
    forge_model(tmp_path / "from", with_header(model, header(model)))  # as another version writes it
    registry = Registry(tmp_path / "models")

    bundle_id = registry.take("pumps", tmp_path / "from").sha

    assert bundle_id != bundle.sha
    assert registry.load("pumps", bundle_id).sha == bundle_id
    for name in (MODEL_FILE, MANIFEST_FILE):
        assert registry.file("pumps", bundle_id, name) == (tmp_path / "from" / name).read_bytes()


def test_a_damaged_bundle_is_not_taken_in(bundle: Bundle, tmp_path: Path) -> None:
    save(bundle, tmp_path / "from")
    (tmp_path / "from" / MODEL_FILE).write_bytes(b"")
    registry = Registry(tmp_path / "models")

    with pytest.raises(BundleError, match="does not match its hash"):
        registry.take("pumps", tmp_path / "from")

    assert registry.bundles("pumps") == []


def test_a_sound_bundle_that_is_taken_in_mends_a_damaged_one(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    save(bundle, tmp_path / "from")
    (tmp_path / "models" / "pumps" / registry.save("pumps", bundle) / MODEL_FILE).write_bytes(b"")

    registry.take("pumps", tmp_path / "from")

    assert registry.load("pumps", bundle.sha).sha == bundle.sha
