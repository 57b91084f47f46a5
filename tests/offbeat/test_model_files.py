"""``offbeat models encode | decode | reconstruct | generate``: files in, files out, mistakes in sentences."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from installation import Installation

from models import Codec, Registry

WINDOW, CODE = 4, 2
STREAM = """
  sensors:
    topic: sensors
    events: {{series: series, features: [temperature, pressure]}}
    model: {{window: 4, code: 2, kind: {kind}}}
    training: {{steps: 60}}
"""


def values(series: int, rows: int = 200) -> np.ndarray:
    random = np.random.default_rng(series)
    angle = np.arange(rows) * 0.5
    return np.stack([20 * series + np.sin(angle), np.cos(angle)], axis=1) + random.normal(0, 0.1, (rows, 2))


def write_rows(path: Path, rows: list[list[object]], header: str) -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def trained_in(folder: Path, kind: str) -> Installation:
    made = Installation(folder).configure(STREAM.format(kind=kind))
    made.ok("topics", "create")
    rows = [
        [f"2026-01-01T{n // 60:02}:{n % 60:02}:00Z", f"s{series}", *values(series)[n]]
        for n in range(200)
        for series in (1, 2)
    ]
    file = write_rows(folder / "past.csv", rows, "time,series,temperature,pressure")
    made.ok("train", "--files", str(file), "--series-column", "series")
    return made


@pytest.fixture(scope="module")
def sensors(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return trained_in(tmp_path_factory.mktemp("files"), "variational")


@pytest.fixture(scope="module")
def codec(sensors: Installation) -> Codec:
    registry = Registry(sensors.folder / "models")
    return Codec(registry.load("sensors", registry.bundles("sensors")[0]))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten rows of s1 and six of s2 taking turns, then the rest; with a column that is no feature."""
    order = [1, 2] * 6 + [1] * 4
    seen = {1: 0, 2: 0}
    rows: list[list[object]] = []
    for series in order:
        rows.append([f"s{series}", "x", *values(series)[seen[series]][::-1]])
        seen[series] += 1
    return write_rows(tmp_path / "mixed.csv", rows, "series,note,pressure,temperature")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(found: list[dict[str, str]], *columns: str) -> np.ndarray:
    return np.array([[float(row[column]) for column in columns] for row in found])


def test_each_code_names_the_row_its_window_ends_at(
    sensors: Installation, codec: Codec, mixed: Path, tmp_path: Path
) -> None:
    said = sensors.run("models", "encode", "--in", str(mixed), "--out", str(tmp_path / "codes.csv"))

    found = table(tmp_path / "codes.csv")
    assert said.exit_code == 0, said.output
    assert "wrote 10 codes of 2 numbers" in said.stderr
    assert list(found[0]) == ["row", "series", "code_0", "code_1"]
    assert [int(row["row"]) for row in found] == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert [row["series"] for row in found] == ["s1", "s2"] * 3 + ["s1"] * 4
    for series, rows in (("s1", 10), ("s2", 6)):
        mine = [row for row in found if row["series"] == series]
        expected = codec.encode(codec.cut(values(int(series[1]))[:rows]), series)
        np.testing.assert_allclose(numbers(mine, "code_0", "code_1"), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["csv", "parquet", "npy"])
def test_decoding_what_was_encoded_is_reconstructing(
    sensors: Installation, codec: Codec, tmp_path: Path, form: str
) -> None:
    rows = values(1)[:20]
    restored = codec.reconstruct(codec.cut(rows), "s1")
    np.save(tmp_path / "rows.npy", rows)
    if form != "npy":
        write_rows(tmp_path / "rows.csv", rows.tolist(), "temperature,pressure")
    source = str(tmp_path / f"rows.{'npy' if form == 'npy' else 'csv'}")
    codes, windows, expected = (str(tmp_path / f"{name}.{form}") for name in ("codes", "windows", "expected"))

    sensors.ok("models", "encode", "--in", source, "--out", codes, "--series", "s1")
    sensors.ok("models", "decode", "--in", codes, "--out", windows, "--series", "s1")
    sensors.ok("models", "reconstruct", "--in", source, "--out", expected, "--series", "s1")

    errors = np.stack([restored.errors.window, restored.errors.last], axis=1)
    if form == "npy":
        assert np.load(codes).shape == (17, CODE)
        np.testing.assert_allclose(np.load(windows), restored.windows, atol=1e-5)
        np.testing.assert_allclose(np.load(expected)[:, :2], restored.windows[:, -1], atol=1e-5)
        np.testing.assert_allclose(np.load(expected)[:, 2:], errors, rtol=1e-5)
        return
    read = table if form == "csv" else lambda path: pq.read_table(path).to_pylist()
    found = read(Path(windows))
    assert list(found[0]) == ["window", "step", "series", "temperature", "pressure"]
    assert [(int(row["window"]), int(row["step"])) for row in found[:5]] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0),
    ]  # fmt: skip
    flat = numbers(found, "temperature", "pressure")
    np.testing.assert_allclose(flat.reshape(-1, WINDOW, 2), restored.windows, atol=1e-5)
    found = read(Path(expected))
    assert list(found[0]) == ["row", "series", "temperature", "pressure", "error", "last_error"]
    assert [int(row["row"]) for row in found] == list(range(3, 20))
    np.testing.assert_allclose(numbers(found, "error", "last_error"), errors, rtol=1e-5)


def test_windows_of_an_array_are_taken_as_they_are(
    sensors: Installation, codec: Codec, tmp_path: Path
) -> None:
    sensors.ok("models", "generate", "--count", "7", "--seed", "3", "--out", str(tmp_path / "made.npy"))
    sensors.ok("models", "encode", "--in", str(tmp_path / "made.npy"), "--out", str(tmp_path / "codes.npy"))

    made = np.load(tmp_path / "made.npy")
    np.testing.assert_allclose(made, codec.generate(7, 3))
    np.testing.assert_allclose(np.load(tmp_path / "codes.npy"), codec.encode(made), atol=1e-6)


def test_generated_windows_stand_in_a_table_row_by_row(
    sensors: Installation, codec: Codec, tmp_path: Path
) -> None:
    out = tmp_path / "made.tsv"
    sensors.ok("models", "generate", "--count", "3", "--series", "s2", "--out", str(out))

    with out.open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert len(found) == 3 * WINDOW
    assert {row["series"] for row in found} == {"s2"}
    made = numbers(found, "temperature", "pressure").reshape(3, WINDOW, 2)
    np.testing.assert_allclose(made, codec.generate(3, 0, "s2"), rtol=1e-6)


def complaint(installation: Installation, *arguments: str) -> str:
    done = installation.run("models", *arguments)
    assert done.exit_code not in {0, 70}, done.output
    return done.stderr.strip().removeprefix("error: ")


GOOD = "temperature,pressure\n1,2\n1,2\n1,2\n1,2\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "temperature,humidity\n1,2\n", "no column 'pressure'; it has temperature, humidity"),
        ("a.csv", GOOD.replace("1,2", "1,", 1), "line 2, column 'pressure': empty"),
        ("a.csv", GOOD.replace("1,2", "1,high", 1), "line 2, column 'pressure': 'high' is not a number"),
        ("a.csv", GOOD.replace("1,2", "1,2,3", 1), "line 2: 3 cells under a header of 2"),
        ("a.csv", GOOD.rsplit("1", 1)[0], "found 3 of 4 rows that a window takes; give more rows"),
        ("a.csv", "series,temperature,pressure\na,1,2\nb,1,2\na,1,2\n", "found 2 of 4 rows.*longest of its"),
        ("a.csv", "temperature,pressure\n", "no rows in it"),
        ("a.json", GOOD, ".json is no format of rows and codes"),
        ("a.npy", "no array", "not readable as an array"),
    ],
)
def test_a_file_that_cannot_be_encoded_is_answered_in_a_sentence(
    sensors: Installation, tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    out = tmp_path / "out.csv"

    said = complaint(sensors, "encode", "--in", str(tmp_path / name), "--out", str(out))

    assert str(tmp_path / name) in said
    assert reason in said or re.search(reason, said), said
    assert not out.exists()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((5, 3)), r"\[5, 3\]; this model takes rows \[n, 2\] \(temperature, pressure\) or windows"),
        (np.full((5, 2), np.nan), "not finite"),
        (np.array([["a"]]), "array of numbers"),
        (np.array([{}]), "not readable"),
        (np.zeros((0, 2)), "no rows"),
    ],
)
def test_an_array_that_does_not_fit_is_answered_in_a_sentence(
    sensors: Installation, tmp_path: Path, array: np.ndarray, reason: str
) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)

    said = complaint(
        sensors, "reconstruct", "--in", str(tmp_path / "a.npy"), "--out", str(tmp_path / "b.npy")
    )

    assert re.search(reason, said), said


def test_codes_of_another_width_are_refused(sensors: Installation, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros((5, 3)))
    write_rows(tmp_path / "codes.csv", [[1]], "code_0")
    out = ["--out", str(tmp_path / "out.csv")]

    array = complaint(sensors, "decode", "--in", str(tmp_path / "codes.npy"), *out)
    columns = complaint(sensors, "decode", "--in", str(tmp_path / "codes.csv"), *out)

    assert "[5, 3]; codes of this model are [n, 2]" in array
    assert "no column 'code_1'; it has code_0, and needs code_0, code_1" in columns


def test_options_that_cannot_be_are_answered_in_a_sentence(
    sensors: Installation, mixed: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 2)))
    file, array, out = (
        ["--in", str(mixed)],
        ["--in", str(tmp_path / "a.npy")],
        ["--out", str(tmp_path / "o.csv")],
    )

    assert "give one of them" in complaint(
        sensors, "encode", *file, *out, "--series", "a", "--series-column", "series"
    )
    assert "an array has no columns" in complaint(sensors, "encode", *array, *out, "--series-column", "x")
    assert "no column 'machine'" in complaint(sensors, "encode", *file, *out, "--series-column", "machine")
    assert "no such file" in complaint(sensors, "encode", "--in", str(tmp_path / "no.csv"), *out)
    assert "o.xlsx: .xlsx is no format" in complaint(sensors, "encode", *file, "--out", "o.xlsx")
    assert "cannot be written" in complaint(sensors, "encode", *file, "--out", str(tmp_path / "no" / "o.csv"))
    assert "cannot be written" in complaint(sensors, "encode", *file, "--out", str(tmp_path / "no" / "o.npy"))
    assert "no bundle abcd" in complaint(sensors, "encode", *file, *out, "--model", "abcd")


def test_parquet_without_pyarrow_says_what_to_install(
    sensors: Installation, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)

    said = complaint(sensors, "encode", "--in", str(mixed), "--out", str(tmp_path / "codes.parquet"))

    assert "writing Parquet needs pyarrow; install it with: pip install 'offbeat[parquet]'" in said


def test_a_model_of_another_kind_does_not_generate(tmp_path: Path) -> None:
    plain = trained_in(tmp_path, "pca")

    said = complaint(plain, "generate", "--out", str(tmp_path / "made.csv"))

    assert "of kind pca" in said
    assert "only a variational one generates" in said


def test_a_stream_without_a_model_says_what_to_do(installation: Installation, tmp_path: Path) -> None:
    said = complaint(installation, "generate", "--out", str(tmp_path / "made.csv"))

    assert "offbeat train sensors" in said
