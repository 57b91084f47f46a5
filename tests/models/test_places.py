"""Folders of bundles away from the disk: on fsspec's own file system in memory, and on a server of S3."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import tomllib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from packaging.requirements import Requirement

from models import Bundle, Registry
from models.bundle import attach
from models.manifest import MANIFEST_FILE, MODEL_FILE
from pipeline.errors import BundleError, ConfigError, NotFound, StoreDown

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    root = request.getfixturevalue("s3_url") if request.param == "s3" else "memory:/"
    name = f"{root}/{uuid.uuid4().hex}"
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

    assert registry.bundles("pumps") == []
    assert registry.manifests("pumps") == {}
    with pytest.raises(NotFound, match="has no bundle"):
        registry.find("pumps", bundle_id)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        registry.load("pumps", bundle_id)

    registry.save("pumps", bundle)  # whoever writes it again completes it
    assert registry.load("pumps", bundle_id).sha == bundle_id


@pytest.mark.parametrize("away", [False, True])
def test_what_a_killed_writer_left_is_found_once_it_is_old(
    bundle: Bundle, url: str, tmp_path: Path, *, away: bool
) -> None:
    registry = Registry(url if away else tmp_path)
    bundle_id = registry.save("pumps", bundle)
    other = registry.save("pumps", attach(bundle, {"report.json": b"{}"}))
    files, path = fsspec.url_to_fs(f"{url if away else tmp_path}/pumps")
    files.rm_file(f"{path}/{other}/{MANIFEST_FILE}")  # as an object store is left
    draft = f".{bundle_id}.{uuid.uuid4().hex}"  # as a disk is
    files.makedirs(f"{path}/{draft}")
    files.pipe_file(f"{path}/{draft}/{MODEL_FILE}", b"half a mod")

    now = datetime.now(UTC)
    assert registry.leftovers("pumps", now - timedelta(minutes=1)) == []  # a writer may be at work
    assert registry.leftovers("pumps", now + timedelta(minutes=1)) == sorted([draft, other])

    for name in (draft, other):
        registry.delete("pumps", name)
    assert registry.leftovers("pumps", now + timedelta(minutes=1)) == []
    assert registry.bundles("pumps") == [bundle_id]
    with pytest.raises(NotFound, match="no id"):
        registry.delete("pumps", "..")


# Whoever promotes looks for the bundle after it said so, and must not find one that is about to go.
@pytest.mark.parametrize("away", [False, True])
def test_a_bundle_is_withdrawn_while_it_is_asked_for_and_stays_where_it_is_needed(
    bundle: Bundle, url: str, tmp_path: Path, *, away: bool
) -> None:
    registry = Registry(url if away else tmp_path)
    bundle_id = registry.save("pumps", bundle)
    seen = []

    def needed() -> bool:
        seen.append(registry.holds("pumps", bundle_id))
        seen.append(registry.delete("pumps", bundle_id, lambda: False))  # another one does not take it
        return True

    def failing() -> bool:
        raise StoreDown("the bus is gone")

    assert not registry.delete("pumps", bundle_id, needed)
    assert seen == [False, False]
    with pytest.raises(StoreDown, match="the bus is gone"):
        registry.delete("pumps", bundle_id, failing)
    assert registry.load("pumps", bundle_id).sha == bundle_id

    assert registry.delete("pumps", bundle_id, lambda: False)
    assert registry.bundles("pumps") == []


@pytest.mark.parametrize("away", [False, True])
def test_writers_of_one_bundle_agree(bundle: Bundle, url: str, tmp_path: Path, *, away: bool) -> None:
    registries = [Registry(url if away else tmp_path) for _ in range(8)]

    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda each: each.save("pumps", bundle), registries))

    assert set(saved) == {bundle.sha}
    assert registries[0].load("pumps", bundle.sha).sha == bundle.sha
    assert away or [each.name for each in (tmp_path / "pumps").iterdir()] == [bundle.sha]


# Clients of stores remember what they listed; a worker must see what a retrainer elsewhere saved since.
def test_what_another_program_saved_and_removed_is_seen(bundle: Bundle, s3_url: str) -> None:
    url = f"{s3_url}/{uuid.uuid4().hex}"
    registry = Registry(url)
    assert registry.bundles("pumps") == []
    bundle_id = registry.save("pumps", bundle)
    assert registry.bundles("pumps") == [bundle_id]

    elsewhere, path = fsspec.url_to_fs(f"{url}/pumps", skip_instance_cache=True)
    other = "0" * 64
    elsewhere.copy(f"{path}/{bundle_id}/{MANIFEST_FILE}", f"{path}/{other}/{MANIFEST_FILE}")
    assert registry.bundles("pumps") == sorted([other, bundle_id])
    elsewhere.rm_file(f"{path}/{bundle_id}/{MANIFEST_FILE}")
    assert not registry.holds("pumps", bundle_id)


class Troubled(MemoryFileSystem):
    """A store whose client has errors of its own, as those of S3 and its like have."""

    protocol = "troubled"

    def _trouble(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError("no credentials")

    info = isdir = ls = exists = _trouble


def test_a_store_that_fails_in_its_own_way_is_down(bundle: Bundle) -> None:
    fsspec.register_implementation("troubled", Troubled, clobber=True)
    registry = Registry("troubled://models")

    for asked in (
        lambda: registry.bundles("pumps"),
        lambda: registry.load("pumps", "0" * 64),
        lambda: registry.file("pumps", "0" * 64, "report.json"),
        lambda: registry.save("pumps", bundle),
    ):
        with pytest.raises(StoreDown, match="no credentials"):
            asked()


def test_the_manifest_is_written_last(bundle: Bundle, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    files, _ = fsspec.url_to_fs(url)
    before = files.pipe_file

    def noting(path: str, *arguments: object, **more: object) -> object:
        written.append(path.rsplit("/", 1)[-1])
        return before(path, *arguments, **more)

    monkeypatch.setattr(files, "pipe_file", noting)  # there is one of a store in a process
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
    with pytest.raises(ConfigError, match="registry: 'nonsense://models' cannot be opened"):
        Registry("nonsense://models")


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("s3://models/offbeat", "s3fs", "s3"),
        ("gs://models/offbeat", "gcsfs", "gcs"),
        ("abfs://models/offbeat", "adlfs", "azure"),
        ("az://models/offbeat", "adlfs", "azure"),
    ],
)
def test_a_store_whose_library_is_missing_names_the_extra(
    url: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)  # nor had been used before

    with pytest.raises(ConfigError, match=re.escape(f"install it with: pip install 'offbeat[{extra}]'")):
        Registry(url)

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [Requirement(each).name for each in extras[extra]] == [library]


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
