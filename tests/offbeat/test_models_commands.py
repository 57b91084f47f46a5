"""``offbeat models``: what a person does with bundles, on an installation with a stream of its own."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from forgery import Evil, filed, forge, forge_model, forge_tensors
from installation import Installation, Program, wait_until

from models import Registry
from models.bundle import attach
from models.manifest import MANIFEST_FILE, MODEL_FILE
from offbeat.app import StreamModels
from offbeat.bundles import Rubbish, remove, rubbish
from offbeat.controls import Control
from pipeline.bus import connect
from pipeline.config import load
from pipeline.control import ControlView, Refused, send
from pipeline.errors import BundleError, OffbeatError

SMALL = """
  sensors:
    topic: sensors
    events: {series: series, features: [temperature]}
    model: {window: 4, code: 1, hidden: [2]}
    training: {steps: 5}
"""


def rows(path: Path, series: str, count: int) -> Path:
    lines = [
        f"2026-01-01T{n // 60:02}:{n % 60:02}:00Z,{series},{20 + (n * 7) % 11 + len(series)}"
        for n in range(count)
    ]
    path.write_text("\n".join(["time,series,temperature", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Three bundles, the last one in use, none by a worker yet."""
    made = Installation(tmp_path_factory.mktemp("models-commands")).configure(SMALL)
    made.ok("topics", "create")
    for number, count in enumerate((100, 200, 300)):
        file = rows(made.folder / f"{number}.csv", "a" if number < 2 else "bb", count)
        made.ok("train", "--files", str(file), "--series-column", "series")
    return made


@pytest.fixture
def installation(trained: Installation, tmp_path: Path) -> Installation:
    shutil.copytree(trained.folder, tmp_path / "copy")
    return Installation(tmp_path / "copy").configure(SMALL)


def ids(installation: Installation) -> list[str]:
    return [each["bundle"] for each in installation.json("models", "list")]


def there(installation: Installation, bundle: str) -> bool:
    """Whether it is in the registry; the list names bundles that are needed and missing as well."""
    return (installation.folder / "models" / "sensors" / bundle).is_dir()


def in_use(installation: Installation) -> str:
    [found] = [each["bundle"] for each in installation.json("models", "list") if each["role"] == "champion"]
    return str(found)


def complaint(installation: Installation, *arguments: str) -> str:
    done = installation.run(*arguments)
    assert done.exit_code not in {0, 70}, done.output
    return done.stderr.strip().removeprefix("error: ")


def test_the_list_says_which_bundle_is_in_use_and_which_came_before_it(installation: Installation) -> None:
    found = installation.json("models", "list", "sensors")
    table = installation.ok("models", "list").splitlines()

    assert [each["role"] for each in found] == [None, "before", "champion"]
    assert [each["spec"]["window_rows"] for each in found] == [4, 4, 4]
    assert table[0].split() == ["bundle", "made", "at", "kind", "models", "layers", "learned", "from", "role"]
    assert table[3].startswith(found[2]["bundle"][:12])
    assert table[3].endswith("1 file        champion")


def test_a_bundle_is_shown_in_full_with_who_promoted_it_and_why(installation: Installation) -> None:
    text = installation.ok("models", "show", "sensors")

    assert f"bundle        {in_use(installation)} (champion)" in text
    assert "4-2-1-2-4" in text
    assert f"trained on {installation.folder.parent}" not in text
    assert "promoted" in text
    assert "(offbeat train): trained on" in text
    assert "1 file (300 of 300 rows, 2026-01-01T00:00:00+00:00 to 2026-01-01T04:59:00+00:00)" in text
    assert text.splitlines()[-2].split() == ["series", "model", "rows", "learned", "error", "deviation"]
    assert text.splitlines()[-1].split()[:3] == ["bb", "own", "300"]
    [shown] = installation.json("models", "show", "sensors", ids(installation)[0][:6])
    assert shown["bundle"] == ids(installation)[0]
    assert shown["role"] is None


def test_two_bundles_are_compared(installation: Installation) -> None:
    first, second, third = ids(installation)

    [found] = installation.json("models", "diff", "sensors", second, first)
    assert (found["series"], found["gained"], found["lost"]) == (1, 0, 0)
    assert [each[0] for each in found["settings"]] == ["made at", "source files"] or found["settings"]
    assert found["weights"] > 0

    [found] = installation.json("models", "diff", "sensors", first)
    assert found["before"] == third
    assert (found["series"], found["gained"], found["lost"]) == (0, 1, 1)
    assert "series with a model of their own: 0 in both" in installation.ok(
        "models", "diff", "sensors", first
    )


def test_rollbacks_go_back_step_by_step_and_say_when_there_is_none(installation: Installation) -> None:
    first, second, third = ids(installation)
    assert in_use(installation) == third

    text = installation.ok("models", "rollback", "sensors", "--why", "it alarms at noon")
    assert f"bundle {second[:12]} is in use for stream 'sensors' now (before: {third[:12]})" in text
    installation.ok("models", "rollback", "sensors", "--why", "this one too")
    assert in_use(installation) == first

    assert "is its first" in complaint(installation, "models", "rollback", "sensors", "--why", "again")
    assert "rolled back: this one too" in installation.ok("models", "show", "sensors")


def test_a_pinned_bundle_is_named_and_stays_until_it_is_unpinned(installation: Installation) -> None:
    first, *_, third = ids(installation)
    extra = orphan(installation)
    installation.ok("models", "pin", "sensors", extra[:8], "--why", "a good week")

    roles = {each["bundle"]: each["role"] for each in installation.json("models", "list")}
    assert (roles[extra], roles[third], roles[first]) == ("pinned", "champion", None)
    installation.ok("models", "gc", "--keep", "0", "--yes")
    assert there(installation, extra)

    installation.ok("models", "pin", "sensors", third[:8], "--why", "a better week")
    assert f"{third} (champion, pinned)" in installation.ok("models", "show", "sensors")
    installation.ok("models", "unpin", "sensors", "--why", "new pumps")
    installation.ok("models", "gc", "--keep", "0", "--yes")
    assert not there(installation, extra)


def test_pinning_tells_programs_what_was_pinned_before(installation: Installation) -> None:
    first, second, _ = ids(installation)
    why = ["--why", "a good week"]

    told = [
        *installation.json("models", "pin", "sensors", first, *why),
        *installation.json("models", "pin", "sensors", second[:8], *why),
        *installation.json("models", "unpin", "sensors", *why),
        *installation.json("models", "unpin", "sensors", *why),
    ]

    assert told == [
        {"pinned": first, "before": None},
        {"pinned": second, "before": first},
        {"pinned": None, "before": second},
        {"pinned": None, "before": None},
    ]
    assert "has no pinned bundle; nothing was changed" in installation.ok("models", "unpin", "sensors", *why)


def test_a_champion_that_is_gone_is_named_and_nothing_else_is_removed(installation: Installation) -> None:
    first, second, third = ids(installation)
    shutil.rmtree(installation.folder / "models" / "sensors" / third)

    [missing] = [each for each in installation.json("models", "list") if each["damage"]]
    assert (missing["bundle"], missing["role"]) == (third, "champion")
    assert "missing" in installation.ok("models", "list")
    assert "bring it back" in complaint(installation, "models", "gc", "--keep", "0", "--yes")
    assert ids(installation) == [third, first, second]


def test_a_rollback_to_a_bundle_that_is_gone_changes_nothing(installation: Installation) -> None:
    _, second, third = ids(installation)
    shutil.rmtree(installation.folder / "models" / "sensors" / second)

    said = complaint(installation, "models", "rollback", "sensors", "--why", "x")

    assert "there is no bundle at" in said
    assert second in said
    assert in_use(installation) == third


def test_a_refused_challenger_is_named_until_somebody_promotes_it(
    installation: Installation,
) -> None:
    extra = orphan(installation)
    told = {"stream": "sensors", "at": datetime.now(UTC), "who": "the gate", "why": "it finds less"}
    config = load(installation.config)
    with closing(connect(config.bus)) as broker:
        producer = broker.producer()
        producer.send([send(Refused(**told, bundle=extra, fence=1), config.control_topic)])
        producer.flush()

    assert [each["role"] for each in installation.json("models", "list") if each["bundle"] == extra] == [
        "refused"
    ]
    assert "by the gate: it finds less" in installation.ok("models", "show", "sensors", extra)
    installation.ok("models", "promote", "sensors", extra, "--why", "it is right")
    assert in_use(installation) == extra


def test_a_bundle_that_was_rolled_back_can_be_promoted_again(installation: Installation) -> None:
    *_, second, third = ids(installation)
    installation.ok("models", "rollback", "sensors", "--why", "a mistake")

    installation.ok("models", "promote", "sensors", third[:8], "--why", "it was right")

    assert in_use(installation) == third
    assert second[:12] in installation.ok("models", "rollback", "sensors", "--why", "or was it")


def test_promoting_the_one_in_use_changes_nothing(installation: Installation) -> None:
    text = installation.ok("models", "promote", "sensors", in_use(installation), "--why", "no reason")

    assert "is in use for stream 'sensors' already" in text


def test_a_bundle_for_other_rows_is_not_promoted(installation: Installation) -> None:
    first, *_ = ids(installation)
    Installation(installation.folder).configure(SMALL.replace("window: 4", "window: 8"))

    assert "windows of 4 rows" in complaint(installation, "models", "promote", "sensors", first, "--why", "x")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "sensors", "zzzz"), "is no id of a bundle"),
        (("show", "sensors", "0000000000"), "has no bundle 0000000000"),
        (("show", "pumps"), "pumps"),
        (("import", "sensors", "nowhere.tar"), "is not there"),
        (("export", "sensors", "0000000000", "x.tar"), "has no bundle"),
    ],
)
def test_mistakes_are_answered_in_sentences(
    installation: Installation, arguments: tuple[str, ...], says: str
) -> None:
    assert says in complaint(installation, "models", *arguments)


def test_a_damaged_bundle_is_listed_as_such_and_cannot_be_promoted(installation: Installation) -> None:
    first, _, third = ids(installation)
    model = installation.folder / "models" / "sensors" / first / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    (installation.folder / "models" / "sensors" / ids(installation)[1] / "manifest.json").write_text("{}")

    assert "does not match its hash" in complaint(
        installation, "models", "promote", "sensors", first, "--why", "x"
    )
    [damaged] = [each for each in installation.json("models", "list") if each["damage"]]
    assert "cannot be read" in damaged["damage"]
    assert "damaged" in installation.ok("models", "list")
    assert in_use(installation) == third


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_worker_keeps_its_model_where_a_damaged_one_was_promoted(
    installation: Installation, control: Control, name: str
) -> None:
    first, _, third = ids(installation)
    told = rows(installation.folder / "live.csv", "a", 100).read_text().splitlines()
    for number, part in enumerate((told[1:51], told[51:])):
        file = installation.folder / f"part-{number}.csv"
        file.write_text("\n".join([told[0], *part]) + "\n")
        installation.ok("produce", "files", "--stream", "sensors", "--series-column", "series", str(file))
        said = installation.ok("detect", "sensors", "--until-idle", "0.2", "--json")
        if number == 0:
            assert "is refused" not in said
            damaged = installation.folder / "models" / "sensors" / first / name
            content = bytearray(damaged.read_bytes())
            content[len(content) // 2] ^= 1
            damaged.write_bytes(content)
            control.promote("sensors", first, "nobody looked")

    assert "is refused" in said
    assert "goes on as it is" in said
    [row] = installation.json("thresholds", "show", "sensors")
    assert (row["bundle"], row["next_offset"]) == (third, 100)


def forged(good: Path, change: Callable[[Path], object]) -> str:
    """A bundle beside another one, under its own id; returns that."""
    folder = Path(shutil.copytree(good, good.parent / "forged"))
    change(folder)
    return filed(folder).name


def cut(folder: Path) -> None:
    forge(folder, lambda document: document.update(created_at="2027-01-01T00:00:00Z"))
    os.truncate(folder / MODEL_FILE, 1_000)


def spoil(folder: Path) -> None:
    forge_tensors(folder, lambda arrays: arrays["weight.0"].fill(np.nan))


def pickled(folder: Path) -> None:
    forge_model(folder, pickle.dumps(Evil(folder.parent / "trace")))


def swell(folder: Path) -> None:
    forge(folder, lambda document: document.update(models=1 << 62))


def climb(folder: Path) -> None:
    forge(
        folder, lambda document: document["files"].update({"../x/report.json": document["files"][MODEL_FILE]})
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (cut, f"{MODEL_FILE} does not match its hash"),
        (spoil, "weight.0 has numbers that are not finite"),
        (pickled, f"{MODEL_FILE} cannot be read"),
        (swell, "the bound is"),
        (climb, f"{MANIFEST_FILE} names files"),
    ],
)
def test_no_forged_bundle_comes_to_a_worker_and_each_is_refused_in_its_own_words(
    installation: Installation, change: Callable[[Path], object], says: str
) -> None:
    first, *_ = ids(installation)
    good = installation.folder / "models" / "sensors" / first
    bundle, config = forged(good, change), load(installation.config)

    with pytest.raises(BundleError, match=re.escape(says)):
        StreamModels(config, "sensors").scorer(bundle, config.stream("sensors"))

    assert says in complaint(installation, "models", "promote", "sensors", bundle, "--why", "x")
    assert not (good.parent / "trace").exists()


def test_a_running_worker_goes_on_with_its_champion_when_a_damaged_one_is_promoted(
    installation: Installation, control: Control
) -> None:
    first, _, third = ids(installation)
    bundle = forged(installation.folder / "models" / "sensors" / first, cut)
    told = rows(installation.folder / "live.csv", "a", 100).read_text().splitlines()
    (installation.folder / "one.csv").write_text("\n".join(told[:51]) + "\n")
    (installation.folder / "two.csv").write_text("\n".join([told[0], *told[51:]]) + "\n")
    topic = ("produce", "files", "--stream", "sensors", "--series-column", "series")
    installation.ok(*topic, str(installation.folder / "one.csv"))
    worker = Program(installation, "detect")
    try:
        wait_until(lambda: worker.said(doing="live", bundle_id=third), "the worker is live")
        control.promote("sensors", bundle, "nobody looked")
        wait_until(lambda: "goes on as it is" in worker.log.read_text(), "the worker refuses it")
        installation.ok(*topic, str(installation.folder / "two.csv"))
        wait_until(lambda: committed(installation) == 100, "the worker goes on")
        control.promote("sensors", first, "this one is whole")
        wait_until(lambda: f"model {first[:12]} from offset 100 on" in worker.log.read_text(), "it is taken")
    finally:
        worker.end()


def committed(installation: Installation) -> int:
    with closing(connect(load(installation.config).bus)) as broker:
        return sum(broker.admin().committed("offbeat.sensors.detect", "sensors").values())


class TestMoving:
    def test_an_exported_bundle_comes_back_as_it_was(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        first, *_ = ids(installation)
        for name in ("one.tar", "two.tar"):
            installation.ok("models", "export", "sensors", first, str(tmp_path / name))
        assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
        assert "is there already" in complaint(
            installation, "models", "export", "sensors", first, str(tmp_path / "one.tar")
        )
        shutil.rmtree(installation.folder / "models" / "sensors" / first)

        text = installation.ok("models", "import", "sensors", str(tmp_path / "one.tar"))
        [again] = installation.json("models", "import", "sensors", str(tmp_path / "one.tar"))

        assert again == {"bundle": first, "misfit": None}
        assert f"bundle {first[:12]} is in the registry" in text
        assert first in ids(installation)
        assert in_use(installation) != first

    def test_a_folder_can_be_imported(self, installation: Installation, tmp_path: Path) -> None:
        first, *_ = ids(installation)
        folder = installation.folder / "models" / "sensors" / first
        shutil.move(folder, tmp_path / "moved")

        installation.ok("models", "import", "sensors", str(tmp_path / "moved"))

        assert first in ids(installation)

    def test_a_bundle_for_other_rows_is_taken_in_and_said_to_be_of_no_use_now(
        self, installation: Installation, exported: Path
    ) -> None:
        config = installation.folder / "offbeat.yaml"
        config.write_text(config.read_text().replace("window: ", "window: 1"))

        text = installation.ok("models", "import", "sensors", str(exported))
        [again] = installation.json("models", "import", "sensors", str(exported))

        assert "cannot be put to use as things are: bundle" in text
        assert "has windows of" in again["misfit"]

    @pytest.fixture
    def exported(self, installation: Installation, tmp_path: Path) -> Path:
        path = tmp_path / "good.tar"
        installation.ok("models", "export", "sensors", ids(installation)[0], str(path))
        return path

    @pytest.mark.parametrize(
        "name",
        ["/etc/passwd", "../../x", "a/b/c/model.safetensors", "a/evil.pkl", "a/manifest.json.exe"],
    )
    def test_a_tar_file_with_anything_else_in_it_is_refused(
        self, installation: Installation, exported: Path, tmp_path: Path, name: str
    ) -> None:
        before = sorted((installation.folder / "models" / "sensors").iterdir())
        hostile = tmp_path / "hostile.tar"
        rebuilt(exported, hostile, [tarfile.TarInfo(name)])

        assert f"it holds {name!r}" in complaint(installation, "models", "import", "sensors", str(hostile))

        assert sorted((installation.folder / "models" / "sensors").iterdir()) == before
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices_are_refused(
        self, installation: Installation, exported: Path, tmp_path: Path, kind: bytes
    ) -> None:
        link = tarfile.TarInfo("a/report.json")
        link.type, link.linkname = kind, "/etc/passwd"
        hostile = tmp_path / "hostile.tar"
        rebuilt(exported, hostile, [link])

        assert "it holds 'a/report.json'" in complaint(
            installation, "models", "import", "sensors", str(hostile)
        )

    def test_a_member_twice_is_refused(
        self, installation: Installation, exported: Path, tmp_path: Path
    ) -> None:
        hostile = tmp_path / "hostile.tar"
        rebuilt(exported, hostile, [tarfile.TarInfo("b/manifest.json")])

        assert "once each" in complaint(installation, "models", "import", "sensors", str(hostile))

    def test_members_that_say_to_be_more_than_there_is_are_refused(
        self, installation: Installation, exported: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "x.tar"
        huge, sparse = tarfile.TarInfo("a/report.html"), tarfile.TarInfo("a/report.html")
        huge.size, sparse.size, sparse.type = 1 << 42, 0, tarfile.GNUTYPE_SPARSE

        path.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + exported.read_bytes())
        assert "'a/report.html' would have" in complaint(
            installation, "models", "import", "sensors", str(path)
        )
        path.write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + exported.read_bytes())
        assert "it holds 'a/report.html'" in complaint(installation, "models", "import", "sensors", str(path))

    def test_headers_in_headers_without_end_are_refused(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        header = tarfile.TarInfo("a/x")
        header.type, header.size = tarfile.XHDTYPE, 512
        path = tmp_path / "x.tar"
        path.write_bytes((header.tobuf() + bytes(512)) * 5_000)

        assert "is refused" in complaint(installation, "models", "import", "sensors", str(path))

    def test_a_pipe_is_not_waited_for(self, installation: Installation, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.tar")

        assert "is no regular file" in complaint(
            installation, "models", "import", "sensors", str(tmp_path / "x.tar")
        )

    def test_a_file_with_more_than_a_bundle_can_hold_is_refused_unread(
        self, installation: Installation, exported: Path
    ) -> None:
        os.truncate(exported, 1 << 34)

        assert "is no regular file of up to" in complaint(
            installation, "models", "import", "sensors", str(exported)
        )

    @pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\x1f\x8b\x08\x00", b"PK\x03\x04"])
    def test_what_is_no_tar_file_is_refused(
        self, installation: Installation, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "x.tar"
        path.write_bytes(content)

        assert "is refused" in complaint(installation, "models", "import", "sensors", str(path))

    def test_a_damaged_bundle_in_a_tar_file_is_refused(
        self, installation: Installation, exported: Path, tmp_path: Path
    ) -> None:
        content = bytearray(exported.read_bytes())
        content[content.index(b"weight.0")] ^= 1
        path = tmp_path / "x.tar"
        path.write_bytes(content)

        said = complaint(installation, "models", "import", "sensors", str(path))

        assert "is refused" in said
        assert str(path) in said


def rebuilt(good: Path, path: Path, more: list[tarfile.TarInfo]) -> None:
    """The members of a good file, and more."""
    with tarfile.open(good) as source, tarfile.open(path, "w") as target:
        for entry in source:
            target.addfile(entry, source.extractfile(entry))
        for entry in more:
            target.addfile(entry, io.BytesIO())


class TestRemoving:
    def test_nothing_is_removed_until_it_is_said_twice(self, installation: Installation) -> None:
        extra = orphan(installation)

        text = installation.ok("models", "gc", "--keep", "0")

        assert f"would remove {extra[:12]}" in text
        assert "3 bundles of stream 'sensors' would stay; --yes removes what is named" in text
        assert there(installation, extra)

    def test_what_is_in_use_or_leads_to_it_stays(self, installation: Installation) -> None:
        extra, before = orphan(installation), ids(installation)

        text = installation.ok("models", "gc", "--keep", "0", "--yes")

        assert f"removed {extra[:12]}" in text
        assert ids(installation) == [each for each in before if each != extra]
        assert all(there(installation, each) for each in ids(installation))

    def test_what_a_killed_writer_left_is_removed_once_it_is_old(self, installation: Installation) -> None:
        folder = installation.folder / "models" / "sensors"
        old, young = (folder / f".{'0' * 64}.{digit * 32}" for digit in "ab")
        for each in (old, young):
            each.mkdir()
        os.utime(old, (0, 0))

        assert "would remove 1 unfinished bundle of" in installation.ok("models", "gc")
        [found] = installation.json("models", "gc", "--yes")

        assert found == {"bundles": [], "leftovers": [old.name], "kept": 3, "removed": True}
        assert not old.exists()
        assert young.exists()

    def test_some_that_nothing_needs_are_kept_unless_asked(self, installation: Installation) -> None:
        orphan(installation)

        assert "4 bundles of stream 'sensors' stay" in installation.ok("models", "gc", "--yes")

    def test_a_bundle_that_judged_records_stays_for_replays(self, installation: Installation) -> None:
        *_, third = ids(installation)
        file = rows(installation.folder / "live.csv", "a", 50)
        installation.ok("produce", "files", "--stream", "sensors", str(file))
        installation.ok("detect", "sensors", "--until-idle", "0.2")
        installation.ok("models", "rollback", "sensors", "--why", "to have it off the line")

        installation.ok("models", "gc", "--keep", "0", "--yes")

        assert there(installation, third)


class Racing:
    """Somebody who promotes a bundle that nothing needs, while somebody else removes what nothing needs."""

    def __init__(self, installation: Installation) -> None:
        config = load(installation.config)
        self.bundle, self.registry = orphan(installation), Registry(config.registry)
        self.broker = connect(config.bus)
        self.promoter = Control(config, self.broker, "a promoter")
        self.remover = Control(config, self.broker, "a remover")
        self.succeeded: bool | None = None

    @property
    def held(self) -> bool:
        return self.registry.holds("sensors", self.bundle)

    def found(self) -> Rubbish:
        return rubbish(self.registry, self.remover.view(), "sensors", replayed=(), keep=0)

    def remove(self, found: Rubbish, look: Callable[[], ControlView] | None = None) -> None:
        remove(self.registry, look or self.remover.view, "sensors", found)

    def promote(self, there: Callable[[], bool] | None = None) -> None:
        self.succeeded = True
        try:
            self.promoter.promote("sensors", self.bundle, "to race", there or (lambda: self.held))
        except OffbeatError:
            self.succeeded = False


def promoted_before_it_is_withdrawn(race: Racing) -> None:
    found = race.found()
    race.promote()
    race.remove(found)
    assert race.succeeded


def said_before_and_looked_for_while_it_is_withdrawn(race: Racing) -> None:
    found, seen = race.found(), list[bool]()

    def look() -> ControlView:
        seen.append(race.held)
        return race.remover.view()

    def there() -> bool:
        race.remove(found, look)
        return seen[0]

    race.promote(there)
    assert not race.succeeded
    assert race.held


def said_before_and_looked_for_after(race: Racing) -> None:
    found = race.found()

    def there() -> bool:
        race.remove(found)
        return race.held

    race.promote(there)
    assert race.succeeded


def promoted_while_it_is_withdrawn_and_before_the_last_look(race: Racing) -> None:
    def look() -> ControlView:
        race.promote()
        return race.remover.view()

    race.remove(race.found(), look)
    assert not race.succeeded
    assert race.held


def promoted_while_it_is_withdrawn_and_after_the_last_look(race: Racing) -> None:
    def look() -> ControlView:
        last = race.remover.view()
        race.promote()
        return last

    race.remove(race.found(), look)
    assert not race.succeeded
    assert not race.held


def promoted_after_it_is_removed(race: Racing) -> None:
    race.remove(race.found())
    race.promote()
    assert not race.succeeded
    assert not race.held


def promoted_and_rolled_back_before_it_is_withdrawn(race: Racing) -> None:
    found, champion = race.found(), race.promoter.view().champions["sensors"]
    race.promote()
    race.promoter.promote("sensors", champion, "rolled back")
    race.remove(found)
    race.succeeded = False
    assert race.held  # a worker may have judged records with it


@pytest.mark.parametrize(
    "order",
    [
        promoted_before_it_is_withdrawn,
        said_before_and_looked_for_while_it_is_withdrawn,
        said_before_and_looked_for_after,
        promoted_while_it_is_withdrawn_and_before_the_last_look,
        promoted_while_it_is_withdrawn_and_after_the_last_look,
        promoted_after_it_is_removed,
        promoted_and_rolled_back_before_it_is_withdrawn,
    ],
)
def test_a_promotion_while_bundles_are_removed_loses_no_champion(
    installation: Installation, order: Callable[[Racing], None]
) -> None:
    before, race = in_use(installation), Racing(installation)

    with closing(race.broker):
        order(race)

        champion = race.promoter.view().champions["sensors"]
        assert champion == (race.bundle if race.succeeded else before)
        assert race.registry.load("sensors", champion).sha == champion


def test_a_bundle_that_is_pinned_while_it_is_removed_is_not_taken_for_pinned(
    installation: Installation,
) -> None:
    race = Racing(installation)
    with closing(race.broker):
        race.remover.pin("sensors", race.bundle, "first", lambda: True)
        race.remover.pin("sensors", None, "no more")
        found = race.found()
        race.promoter.pin("sensors", race.bundle, "to race", lambda: race.held)
        race.remove(found)
        assert race.held

        race.remover.pin("sensors", None, "no more")
        race.remove(race.found())
        with pytest.raises(OffbeatError, match="was removed at the same moment"):
            race.promoter.pin("sensors", race.bundle, "to race", lambda: race.held)
        assert race.remover.view().pinned["sensors"] is None


def orphan(installation: Installation) -> str:
    """A bundle that was never in use."""
    registry = Registry(installation.folder / "models")
    first = registry.load("sensors", ids(installation)[0])
    return registry.save("sensors", attach(first, {"report.json": b"{}"}))


@pytest.fixture
def control(installation: Installation) -> Iterator[Control]:
    config = load(installation.config)
    with closing(connect(config.bus)) as broker:
        yield Control(config, broker, "a test")


def test_the_line_of_champions_leaves_out_what_was_rolled_back(
    installation: Installation, control: Control
) -> None:
    first, second, third = ids(installation)

    control.promote("sensors", second, "back")
    assert control.view().succession("sensors") == [first, second]
    control.promote("sensors", first, "back")
    control.promote("sensors", third, "forward")

    assert control.view().succession("sensors") == [first, third]
