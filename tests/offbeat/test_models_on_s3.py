"""``offbeat models`` where the registry is a bucket, on a server that speaks the protocol of S3."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest
from installation import Installation

from pipeline.errors import BundleError

STREAM = """
  sensors:
    topic: sensors
    events: {series: series, features: [temperature]}
    model: {window: 4, code: 1, hidden: [2]}
    training: {steps: 5}
"""


@pytest.fixture
def registry(s3_url: str) -> str:
    return f"{s3_url}/{uuid.uuid4().hex}"


@pytest.fixture
def installation(tmp_path: Path, registry: str) -> Installation:
    made = Installation(tmp_path).configure(STREAM, registry=registry)
    made.ok("topics", "create")
    return made


def trained(installation: Installation, count: int) -> str:
    lines = [f"2026-01-01T{n // 60:02}:{n % 60:02}:00Z,a,{20 + (n * 7) % 11}" for n in range(count)]
    file = installation.folder / f"{count}.csv"
    file.write_text("\n".join(["time,series,temperature", *lines]) + "\n")
    installation.ok("train", "--files", str(file), "--series-column", "series")
    return str(installation.json("models", "show", "sensors")[0]["bundle"])


def roles(installation: Installation) -> dict[str, str | None]:
    return {each["bundle"]: each["role"] for each in installation.json("models", "list")}


def test_a_bundles_whole_life_in_a_bucket(installation: Installation, registry: str) -> None:
    store, root = fsspec.url_to_fs(f"{registry}/sensors")
    first, second = trained(installation, 100), trained(installation, 200)
    assert roles(installation) == {first: "before", second: "champion"}
    assert f"lies in       {registry}/sensors/{second}" in installation.ok("models", "show", "sensors")

    installation.ok("models", "rollback", "sensors", "--why", "to go back")
    assert roles(installation) == {first: "champion", second: None}
    installation.ok("produce", "files", "--stream", "sensors", str(installation.folder / "100.csv"))
    installation.ok("detect", "--until-idle", "0.2")
    [told] = [each for each in installation.json("doctor") if "is sound and fits" in each["found"]]
    assert first[:12] in told["found"]

    copy = installation.folder / "second.tar"
    installation.ok("models", "export", "sensors", second, str(copy))
    model = f"{root}/{second}/model.safetensors"
    content = bytearray(store.cat_file(model))
    content[-1] ^= 1
    store.pipe_file(model, bytes(content))
    damaged = installation.run("models", "promote", "sensors", second, "--why", "to see it refused")
    assert damaged.exit_code == BundleError.exit_code
    assert f"{registry}/sensors/{second} is refused: model.safetensors does not match" in damaged.stderr
    assert roles(installation)[first] == "champion"

    installation.ok("models", "import", "sensors", str(copy))  # the sound one takes its place
    installation.ok("models", "promote", "sensors", second, "--why", "sound again")
    installation.ok("models", "rollback", "sensors", "--why", "to have it off the line")
    [found] = installation.json("models", "gc", "--keep", "0", "--yes")
    assert list(found["bundles"]) == [second]
    assert {each.rsplit("/", 1)[-1] for each in store.ls(root, refresh=True)} == {first}


def test_a_bucket_that_is_not_there_is_a_sentence(installation: Installation) -> None:
    installation.configure(STREAM, registry="s3://no-such-bucket/models")
    file = installation.folder / "rows.csv"
    file.write_text(
        "time,series,temperature\n" + "".join(f"{1_700_000_000 + n * 60},a,{n % 7}\n" for n in range(100))
    )

    done = installation.run("train", "--files", str(file), "--series-column", "series", "--json")

    assert done.exit_code not in {0, 70}
    assert "the registry at s3://no-such-bucket/models" in done.stderr
    assert "cannot be used" in done.stderr
    assert not [line for line in done.stdout.splitlines() if "bundle" in json.loads(line)]
