"""Folders of bundles away from the disk: fsspec's own file system in memory stands for an object store."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from models import Bundle, Registry
from models.bundle import attach
from models.manifest import MANIFEST_FILE, MODEL_FILE
from pipeline.errors import BundleError, ConfigError, NotFound, StoreDown


@pytest.fixture
def url() -> Iterator[str]:
    name = f"memory://{uuid.uuid4().hex}"
    yield name
    files, path = fsspec.url_to_fs(name)
    if files.exists(path):
        files.rm(path, recursive=True)


def test_a_registry_away_from_the_disk_keeps_and_hands_out_bundles(bundle: Bundle, url: str) -> None:
    registry = Registry(url)
    assert registry.bundles("pumps") == []

    bundle_id = registry.save("pumps", bundle)
    assert registry.save("pumps", bundle) == bundle_id

    assert registry.bundles("pumps") == [bundle_id]
    assert registry.load("pumps", bundle_id).sha == bundle_id
    assert registry.where("pumps", bundle_id).endswith(f"/pumps/{bundle_id}")
    registry.delete("pumps", bundle_id)
    assert registry.bundles("pumps") == []


def test_a_bundle_without_its_manifest_is_none_yet(bundle: Bundle, url: str) -> None:
    registry = Registry(url)
    bundle_id = registry.save("pumps", bundle)
    files, path = fsspec.url_to_fs(f"{url}/pumps/{bundle_id}/{MANIFEST_FILE}")
    files.rm_file(path)

    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        registry.load("pumps", bundle_id)

    registry.save("pumps", bundle)  # whoever writes it again completes it
    assert registry.load("pumps", bundle_id).sha == bundle_id


def test_the_manifest_is_written_last(bundle: Bundle, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    files, _ = fsspec.url_to_fs(url)
    before = type(files).pipe_file

    def noting(self: object, path: str, *arguments: object, **more: object) -> object:
        written.append(path.rsplit("/", 1)[-1])
        return before(self, path, *arguments, **more)

    monkeypatch.setattr(type(files), "pipe_file", noting)
    Registry(url).save("pumps", attach(bundle, {"report.json": b"{}"}))

    assert written == ["report.json", MODEL_FILE, MANIFEST_FILE]


def test_damage_away_from_the_disk_is_found_as_well(bundle: Bundle, url: str) -> None:
    registry = Registry(url)
    bundle_id = registry.save("pumps", bundle)
    files, path = fsspec.url_to_fs(f"{url}/pumps/{bundle_id}/{MODEL_FILE}")
    content = bytearray(files.cat_file(path))
    content[-1] ^= 1
    files.pipe_file(path, bytes(content))

    with pytest.raises(BundleError, match="does not match its hash"):
        registry.load("pumps", bundle_id)


def test_what_fsspec_cannot_open_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        Registry("nonsense://models")


def test_a_disk_that_takes_nothing_is_said_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the registry should be")

    with pytest.raises(StoreDown, match="cannot be used"):
        Registry(tmp_path / "models").save("pumps", bundle)

    assert [each.name for each in tmp_path.iterdir()] == ["models"]


def test_reports_are_part_of_what_is_hashed(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    told = attach(bundle, {"report.json": b'{"rows": 1}', "report.html": b"<p>1 row</p>"})
    bundle_id = registry.save("pumps", told)

    assert bundle_id != bundle.sha
    assert registry.load("pumps", bundle_id).reports == told.reports
    assert registry.file("pumps", bundle_id, "report.html") == b"<p>1 row</p>"
    with pytest.raises(NotFound, match=r"report\.json"):
        registry.file("pumps", registry.save("pumps", bundle), "report.json")

    (tmp_path / "pumps" / bundle_id / "report.html").write_bytes(b"<p>2 row</p>")
    with pytest.raises(BundleError, match=r"report\.html does not match its hash"):
        registry.load("pumps", bundle_id)


@pytest.mark.parametrize("name", ["model.pkl", "../report.json", MODEL_FILE])
def test_a_bundle_keeps_no_other_files(bundle: Bundle, name: str) -> None:
    with pytest.raises(BundleError, match="a bundle keeps"):
        attach(bundle, {name: b""})


def test_a_bundle_is_found_by_its_first_digits(bundle: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.save("pumps", bundle)
    assert registry.find("pumps", bundle_id[:4]) == bundle_id

    shutil.copytree(tmp_path / "pumps" / bundle_id, tmp_path / "pumps" / (bundle_id[:8] + "0" * 56))
    with pytest.raises(NotFound, match="give more digits"):
        registry.find("pumps", bundle_id[:8])
    with pytest.raises(NotFound, match="at least 4"):
        registry.find("pumps", "../")
