"""Bundles: what was saved is what is loaded, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgery import Evil, forge, forge_model, forge_tensors, header, with_header
from hypothesis import given, settings
from hypothesis import strategies as st

from models import Bundle, StackScorer, load, save
from models.bundle import attach
from models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, parse
from pipeline.errors import BundleError, NotFound

FILES = [MANIFEST_FILE, MODEL_FILE]


@pytest.fixture(scope="module")
def saved(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "good"
    save(bundle, folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refused(folder: Path, reason: str) -> None:
    """It is refused for this reason, by name, with what to do next."""
    with pytest.raises(BundleError, match=reason) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "train again or choose another bundle" in str(error.value)


def test_a_loaded_bundle_is_the_saved_one_to_the_bit(bundle: Bundle, saved: Path) -> None:
    loaded = load(saved)

    assert loaded.sha == bundle.sha == hashlib.sha256((saved / MANIFEST_FILE).read_bytes()).hexdigest()
    assert loaded.manifest == bundle.manifest
    assert all(map(torch.equal, loaded.network.tensors(), bundle.network.tensors()))
    assert np.array_equal(loaded.calibration, bundle.calibration)
    mine, theirs = StackScorer(bundle), StackScorer(loaded)
    windows = bundle.canary.windows
    assert mine.score(windows).window.tolist() == theirs.score(windows).window.tolist()
    assert mine.assign(["pump-1", "x"]).model.tolist() == theirs.assign(["pump-1", "x"]).model.tolist()


def test_a_loaded_bundle_can_be_saved_again_unchanged(saved: Path, tmp_path: Path) -> None:
    save(load(saved), tmp_path / "again")

    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_the_manifest_says_what_a_person_asks(saved: Path) -> None:
    document = json.loads((saved / MANIFEST_FILE).read_bytes())

    assert document["spec"]["features"] == ["load", "heat"]
    assert document["spec"]["hidden"] == [8]
    assert document["spec"]["code"] == 2
    assert (document["models"], document["networks"]) == (3, 3)
    assert document["source"]["topic_id"] == "t1"
    assert document["versions"]["torch"] == torch.__version__


def test_saving_over_the_same_bundle_changes_nothing_and_over_another_thing_is_refused(
    bundle: Bundle, copy: Path
) -> None:
    save(bundle, copy)
    assert load(copy).sha == bundle.sha
    (copy / MANIFEST_FILE).write_text("something else")

    with pytest.raises(BundleError, match="choose another folder"):
        save(bundle, copy)

    assert [each.name for each in copy.parent.iterdir()] == ["copy"]


def test_a_bundle_that_can_be_seen_can_be_loaded(bundle: Bundle, tmp_path: Path) -> None:
    folders = [tmp_path / f"b{i}" for i in range(20)]
    loaded: list[str] = []
    failed: list[BundleError] = []

    def read() -> None:
        for folder in folders:
            while not folder.exists():
                pass
            try:
                loaded.append(load(folder).sha)
            except BundleError as error:
                failed.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    for folder in folders:
        save(bundle, folder)
    thread.join(timeout=30)

    assert failed == []
    assert loaded == [bundle.sha] * len(folders)


def test_a_bundle_whose_bytes_come_out_otherwise_here_is_not_written(copy: Path, tmp_path: Path) -> None:
    model = (copy / MODEL_FILE).read_bytes()
    forge_model(copy, with_header(model, header(model)))  # the same tensors, and blanks between the words

    with pytest.raises(BundleError, match="another version of safetensors"):
        save(load(copy), tmp_path / "again")

    assert not (tmp_path / "again").exists()


def test_a_save_that_fails_leaves_nothing_behind(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")

    with pytest.raises(BundleError):
        save(bundle, tmp_path / "taken")

    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load(tmp_path / "nowhere")


def regions(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """Every part of every file: its file, its name, where it begins and where it ends."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        if path.name != MODEL_FILE:
            yield path.name, "all", 0, len(content)
            continue
        head, start = header(content), 8 + int.from_bytes(content[:8], "little")
        yield path.name, "length", 0, 8
        yield path.name, "header", 8, start
        for name, entry in head.items():
            first, last = entry["data_offsets"]
            if last > first:
                yield path.name, name, start + first, start + last


def test_a_flip_in_any_part_of_any_file_is_refused_by_the_name_of_the_file(
    bundle: Bundle, tmp_path: Path
) -> None:
    told = attach(bundle, {"report.json": b'{"rows": 1}', "report.html": b"<p>1 row</p>"})
    save(told, tmp_path / "good")
    parts = list(regions(tmp_path / "good"))
    assert {name for _, name, _, _ in parts} >= {"length", "header", "weight.0", "series", "canary.errors"}
    assert {name for name, _, _, _ in parts} == {*FILES, "report.json", "report.html"}

    for name, _, first, last in parts:
        path = tmp_path / "good" / name
        good = path.read_bytes()
        for place in {first, (first + last) // 2, last - 1}:
            content = bytearray(good)
            content[place] ^= 0x10
            path.write_bytes(content)
            refused(tmp_path / "good", name)
        path.write_bytes(good)
    assert load(tmp_path / "good").sha == told.sha


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 100_000), st.integers(1, 255))
def test_a_flip_of_any_byte_of_any_file_is_refused(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, name: str, place: int, flip: int
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("flip") / "b"))
    content = bytearray((folder / name).read_bytes())
    content[place % len(content)] ^= flip
    (folder / name).write_bytes(content)

    refused(folder, "is refused")


def test_a_number_that_is_not_finite_is_refused_in_every_tensor(saved: Path, tmp_path: Path) -> None:
    names = [
        name
        for name, entry in header((saved / MODEL_FILE).read_bytes()).items()
        if entry["dtype"].startswith("F") and entry["data_offsets"][1] > entry["data_offsets"][0]
    ]
    assert {"weight.0", "bias.3", "scaling.median", "calibration", "canary.tail"} <= set(names)

    for name in names:
        folder = Path(shutil.copytree(saved, tmp_path / name))
        forge_tensors(folder, spoil(name, ..., np.nan))
        refused(folder, f"{name} has numbers that are not finite")


def test_a_manifest_with_one_word_changed_is_refused(copy: Path) -> None:
    text = (copy / MANIFEST_FILE).read_text()
    (copy / MANIFEST_FILE).write_text(text.replace("heat", "heap"))

    refused(copy, "does not match its own hash")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_refused(copy: Path, name: str, keep: float) -> None:
    size = (copy / name).stat().st_size
    os.truncate(copy / name, int(size * keep))

    refused(copy, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_regular_file_is_refused_unopened(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)  # whoever opens it waits for ever

    refused(copy, f"{name} cannot be read")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()

    refused(copy, f"{name} cannot be read")


@pytest.mark.parametrize("name", ["../copy/model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_a_file_outside_the_folder_is_never_read(copy: Path, name: str) -> None:
    forge(copy, lambda document: document.update(files={name: document["files"][MODEL_FILE]}))

    refused(copy, "names files")


def test_shapes_beyond_the_bound_are_refused_before_anything_is_allocated(copy: Path) -> None:
    forge(copy, lambda document: document.update(models=1 << 40))

    refused(copy, "the bound is")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(models=1 << 200),
        lambda document: document.update(models=1 << 62, networks=1 << 62),
        lambda document: document.update(schema=1 << 63),
        lambda document: document["spec"].update(window_rows=1 << 62),
        lambda document: document["spec"].update(code=1 << 62),
        lambda document: document["spec"].update(hidden=[65_536] * 10_000),
        lambda document: document["files"][MODEL_FILE].update(size=1 << 62),
        lambda document: document["files"][MODEL_FILE].update(size=-1),
    ],
)
def test_huge_numbers_in_a_manifest_are_refused(
    copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    forge(copy, change)

    refused(copy, "is refused")


def test_a_file_larger_than_its_shapes_is_refused_unread(copy: Path) -> None:
    os.truncate(copy / MODEL_FILE, 1 << 33)

    refused(copy, "at most")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 1}, "has schema 1"),
        ({"models": 0}, "at least the fallback"),
        ({"models": 4}, r"not float64\[4, 2\]"),
        ({"networks": 0}, "0 networks for 3 models"),
        ({"networks": 4}, "4 networks for 3 models"),
        ({"networks": 2}, r"not float32\[2, 16, 8\]"),
        ({"models": "many"}, "cannot be read"),
        ({"extra": 1}, "cannot be read"),
        ({"files": {}}, "names files"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy: Path, change: dict[str, Any], reason: str) -> None:
    forge(copy, lambda document: document.update(change))

    refused(copy, reason)


@pytest.mark.parametrize(
    "change",
    [{"code": 99}, {"window_rows": -3}, {"kind": "magic"}, {"features": []}, {"hidden": [-1]}],
)
def test_a_network_that_makes_no_sense_is_refused(copy: Path, change: dict[str, Any]) -> None:
    forge(copy, lambda document: document["spec"].update(change))

    refused(copy, "cannot be read")


def spoil(name: str, index: object, value: float) -> Callable[[dict[str, Any]], object]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil("weight.1", (0, 0, 0), np.nan), "not finite"),
        (spoil("calibration", (0, 0), np.inf), "not finite"),
        (spoil("scaling.spread", (0, 0), 0), "not above 0"),
        (spoil("calibration", (0, 1), 0), "not above 0"),
        (spoil("series", slice(None), 7), "rising order"),
        (spoil("canary.model", 0, 3), "canary names a model"),
        (spoil("network", 0, 3), "names a network that is not there"),
        (spoil("network", 1, -1), "names a network that is not there"),
        (spoil("weight.0", slice(None), 0.7), "canary's errors differ"),
        (lambda arrays: arrays.pop("bias.0"), "other tensors"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "other tensors"),
        (lambda arrays: arrays.update({"bias.0": arrays["bias.0"][:, :, :1]}), r"not float32\[3, 1, 8\]"),
        (lambda arrays: arrays.update({"bias.0": arrays["bias.0"].astype(np.float64)}), "is float64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_though_their_hashes_do(
    copy: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    forge_tensors(copy, change)

    refused(copy, reason)


def test_what_is_no_safetensors_file_is_refused_though_its_hash_fits(copy: Path) -> None:
    forge_model(copy, b"\xff" * 4_000)

    refused(copy, f"{MODEL_FILE} cannot be read")


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head["bias.0"].update(data_offsets=[0, 1 << 62]),
        lambda head: head["bias.0"].update(data_offsets=[-8, 0]),
        lambda head: head["bias.0"].update(data_offsets=[9, 3]),
        lambda head: head["bias.0"].update(data_offsets=head["weight.0"]["data_offsets"]),
        lambda head: head["bias.0"].update(shape=[1 << 40, 1 << 40]),
        lambda head: head["bias.0"].update(shape=[-1]),
        lambda head: head["bias.0"].update(dtype="OBJECT"),
        lambda head: head.update({"../../bias.9": head["bias.0"]}),
    ],
)
def test_hostile_shapes_and_offsets_of_tensors_are_refused(
    copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    model = (copy / MODEL_FILE).read_bytes()
    head = header(model)
    change(head)
    forge_model(copy, with_header(model, head))

    refused(copy, f"{MODEL_FILE} cannot be read")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length_is_refused(copy: Path, length: int) -> None:
    forge_model(copy, length.to_bytes(8, "little") + (copy / MODEL_FILE).read_bytes()[8:])

    refused(copy, f"{MODEL_FILE} cannot be read")


def test_a_pickle_in_place_of_tensors_is_refused_and_never_run(copy: Path, tmp_path: Path) -> None:
    forge_model(copy, pickle.dumps(Evil(tmp_path / "trace")))

    refused(copy, f"{MODEL_FILE} cannot be read")
    assert not (tmp_path / "trace").exists()


def test_a_pickle_beside_the_model_is_not_even_opened(copy: Path, tmp_path: Path) -> None:
    (copy / "weights.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "trace")))

    load(copy)  # it names no such file
    forge(copy, lambda document: document["files"].update({"weights.pkl": document["files"][MODEL_FILE]}))

    refused(copy, "names files")
    assert not (tmp_path / "trace").exists()


@settings(max_examples=60)
@given(st.binary(max_size=400))
def test_any_bytes_for_a_manifest_end_in_one_kind_of_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse(raw)


def test_a_manifest_written_in_another_way_is_refused(bundle: Bundle) -> None:
    manifest: Manifest = bundle.manifest

    with pytest.raises(ValueError, match="own hash"):
        parse(manifest.render().replace(b"\n", b""))
