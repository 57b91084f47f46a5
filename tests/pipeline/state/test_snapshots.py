"""Copies of states in a folder: whole or not there, the newest soon found, the old ones thinned out."""

from __future__ import annotations

import hashlib
import logging
import resource
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from state_helpers import contents, many, packed

from pipeline.errors import ConfigError, StoreDown
from pipeline.records import PackedRows, TopicPartition
from pipeline.state.snapshots import KEPT_DAYS, FolderSnapshots, decode, encode

AT, OTHER = TopicPartition("readings", 3), TopicPartition("readings", 4)
HOUR_NS = 3_600_000_000_000


def any_rows(_: PackedRows) -> bool:
    return True


def rows(offset: int) -> PackedRows:
    """The state at an offset, which can be told from any other."""
    return packed((0, "a", offset % 256), (7, "b", 2), header=b"state at %d" % offset)


def snapshots(url: str, *, namespace: str = "test", stream: str = "pumps") -> FolderSnapshots:
    return FolderSnapshots(url, namespace=namespace, stream=stream)


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of this machine, and a file system of another kind."""
    return str(tmp_path / "copies") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def save(kept: FolderSnapshots, *offsets: int, topic_id: str = "t1", at: TopicPartition = AT) -> None:
    for offset in offsets:
        kept.save(at, topic_id, offset, offset * 1_000_000_000, rows(offset))


def newest(
    kept: FolderSnapshots, at_most: int = 10**9, *, topic_id: str = "t1", at: TopicPartition = AT
) -> int | None:
    found = kept.newest(at, topic_id, at_most, any_rows)
    return None if found is None else int(found.header.split()[-1])


class TestKeeping:
    def test_a_state_comes_back_as_it_was_saved(self, url: str) -> None:
        made = many(5_000, seed=1)
        snapshots(url).save(AT, "t1", 12, 0, made)

        found = snapshots(url).newest(AT, "t1", 12, any_rows)

        assert found is not None
        assert (found.header, contents(found)) == (made.header, contents(made))
        assert found.slots.dtype == np.int32

    def test_a_state_without_series_does_too(self, url: str) -> None:
        snapshots(url).save(AT, "t1", 0, -(1 << 62), packed(header=b"at 0"))

        found = snapshots(url).newest(AT, "t1", 0, any_rows)

        assert found is not None
        assert (found.header, found.series, len(found.slots)) == (b"at 0", [], 0)

    def test_the_newest_at_or_below_an_offset_is_found(self, url: str) -> None:
        kept = snapshots(url)
        save(kept, 5, 30, 9, 1_000)

        assert [newest(kept, at_most) for at_most in (4, 5, 8, 9, 29, 30, 999, 1_000, 10**12)] == [
            *(None, 5, 5, 9, 9, 30, 30),
            *(1_000, 1_000),
        ]

    def test_the_newest_that_fits_is_found(self, url: str) -> None:
        kept = snapshots(url)
        save(kept, 1, 2, 3, 4)

        found = kept.newest(
            AT, "t1", 3, lambda each: each.header in {b"state at 1", b"state at 2", b"state at 4"}
        )

        assert found is not None
        assert found.header == b"state at 2"
        assert kept.newest(AT, "t1", 9, lambda _: False) is None

    def test_partitions_topics_streams_and_installations_are_kept_apart(self, url: str) -> None:
        kept = snapshots(url)
        save(kept, 1)
        save(kept, 2, at=OTHER)
        save(kept, 3, topic_id="t2")
        save(snapshots(url, stream="fans"), 4)
        save(snapshots(url, namespace="other"), 5)

        assert (newest(kept), newest(kept, at=OTHER), newest(kept, topic_id="t2")) == (1, 2, 3)
        assert newest(kept, at=OTHER, topic_id="t2") is None
        assert newest(snapshots(url, namespace="other", stream="fans")) is None

    def test_a_copy_at_the_same_place_takes_the_place_of_the_first(self, url: str) -> None:
        kept = snapshots(url)
        kept.save(AT, "t1", 5, 0, rows(5))
        kept.save(AT, "t1", 5, 0, packed(header=b"under a new model at 5"))

        found = kept.newest(AT, "t1", 5, any_rows)

        assert found is not None
        assert found.header == b"under a new model at 5"

    def test_what_was_saved_by_others_meanwhile_is_seen(self, url: str) -> None:
        one, other = snapshots(url), snapshots(url)
        assert newest(one) is None

        save(other, 7)

        assert newest(one) == 7


class TestSettingBack:
    def test_copies_above_an_offset_are_dropped_and_those_at_and_below_it_stay(self, url: str) -> None:
        kept = snapshots(url)
        save(kept, 3, 5, 6, 9)
        save(kept, 8, at=OTHER)

        kept.drop_after(AT, "t1", 5)

        assert (newest(kept), newest(kept, 4), newest(kept, at=OTHER)) == (5, 3, 8)

    def test_where_nothing_is_nothing_is_dropped(self, url: str) -> None:
        snapshots(url).drop_after(AT, "t1", 0)


def times(url: str) -> list[int]:
    """The partition clocks of the copies, in hours."""
    files, root = fsspec.url_to_fs(url)
    found = files.ls(f"{root}/test/pumps/t1/3", detail=False)
    return sorted(int(path.split("-")[-1].removesuffix(".snapshot")) // 3_600_000 for path in found)


class TestRetention:
    def test_all_of_the_last_day_and_the_first_of_each_day_before_it_are_kept(self) -> None:
        url = f"memory://{uuid.uuid4().hex}"
        kept, last = snapshots(url), 24 * 35 + 5
        for hour in range(0, last + 1, 6):
            kept.save(AT, "t1", hour, hour * HOUR_NS, rows(hour))

        found = times(url)

        newest_hour = max(range(0, last + 1, 6))
        recent = [hour for hour in found if newest_hour - hour < 24]
        assert recent == [newest_hour - 18, newest_hour - 12, newest_hour - 6, newest_hour]
        days = [hour for hour in found if hour not in recent]
        assert all(hour % 24 == 0 for hour in days)
        assert len(days) == KEPT_DAYS
        assert newest(kept) == newest_hour

    def test_of_an_hour_s_copies_none_is_thinned_out(self, url: str) -> None:
        kept = snapshots(url)
        for minute in range(0, 60, 15):
            kept.save(AT, "t1", minute, minute * 60_000_000_000, rows(minute))

        assert len(times(url)) == 4

    # A clock that leaps years ahead, as where a topic begins with old records.
    def test_the_newest_copy_is_always_kept(self, url: str) -> None:
        kept = snapshots(url)
        save(kept, 1)
        kept.save(AT, "t1", 2, 10**18, rows(2))
        kept.save(AT, "t1", 3, 10**18 + 1, rows(3))

        assert [newest(kept, at_most) for at_most in (1, 2, 3)] == [None, 2, 3]


def damaged(data: bytes) -> list[bytes]:
    body = b"no rows at all"
    sealed = data[:19] + hashlib.sha256(body).digest() + body
    return [
        b"",
        data[:5],
        data[:40],
        data[:-1],
        data + b"\0",
        data.replace(b"snapshot 1\n", b"snapshot 2\n", 1),
        data[:60] + bytes([data[60] ^ 1]) + data[61:],
        b"PAR1" + data,
        sealed,
    ]


class TestDamage:
    @pytest.mark.parametrize("case", range(len(damaged(encode(rows(1))))))
    def test_a_file_that_is_none_is_passed_over_and_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: int
    ) -> None:
        kept = snapshots(str(tmp_path))
        save(kept, 1, 2)
        [path] = tmp_path.rglob("*2-*.snapshot")
        path.write_bytes(damaged(path.read_bytes())[case])

        assert newest(kept) == 1
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"the snapshot {path} is damaged and is left out" in caplog.text

    def test_any_byte_that_changed_is_noticed(self) -> None:
        data = encode(rows(1))
        for at in range(len(data)):
            with pytest.raises(ValueError, match=r"snapshot|bytes"):
                decode(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])

    def test_other_files_in_the_folder_are_left_alone(self, tmp_path: Path) -> None:
        kept = snapshots(str(tmp_path))
        save(kept, 1)
        folder = next(tmp_path.rglob("*.snapshot")).parent
        strangers = ["README", "5.snapshot", "0000000000000000009-0000000000000.snapshot.bak"]
        for name in strangers:
            (folder / name).write_bytes(b"mine")

        save(kept, 2)
        kept.drop_after(AT, "t1", 1)

        assert newest(kept) == 1
        assert set(strangers) < {path.name for path in folder.iterdir()}

    def test_what_a_killed_writer_left_is_no_copy_and_goes_with_the_next(self, url: str) -> None:
        kept = snapshots(url)
        save(kept, 1)
        files, root = fsspec.url_to_fs(url)
        draft = f"{root}/test/pumps/t1/3/.{uuid.uuid4().hex}"
        files.pipe_file(draft, encode(rows(9))[:50])

        assert newest(kept) == 1
        save(kept, 2)

        assert not files.exists(draft)
        assert newest(kept) == 2


# Nobody opens a thousand files to find the last one.
def test_of_three_thousand_copies_only_the_newest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = snapshots(str(tmp_path))
    save(kept, 3_000)
    folder = next(tmp_path.rglob("*.snapshot")).parent
    for offset in range(2_999):
        (folder / f"{offset:019}-{offset:013}.snapshot").write_bytes(b"to read this would be told")

    assert newest(kept, 3_500) == 3_000
    assert caplog.records == []


class TestAFolderThatFails:
    @pytest.fixture
    def blocked(self, tmp_path: Path) -> str:
        """A file stands where the folder should be."""
        (tmp_path / "copies").write_bytes(b"")
        return str(tmp_path / "copies")

    def test_a_copy_that_cannot_be_written_is_said_with_its_folder(self, blocked: str) -> None:
        with pytest.raises(StoreDown, match=f"cannot write the snapshots in {blocked} .*see that the folder"):
            save(snapshots(blocked), 1)

    def test_nothing_is_left_of_a_copy_that_found_no_room(self, tmp_path: Path) -> None:
        folder, before = tmp_path / "copies", resource.getrlimit(resource.RLIMIT_FSIZE)
        kept, rows_ = snapshots(str(folder)), many(5_000, seed=1)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))  # as on a disk that is nearly full
            with pytest.raises(StoreDown, match="and has room"):
                kept.save(AT, "t1", 12, 0, rows_)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        assert not [path for path in folder.rglob("*") if path.is_file()]

    def test_what_cannot_be_listed_is_not_taken_for_nothing(self, blocked: str) -> None:
        with pytest.raises(StoreDown, match=f"cannot read the snapshots in {blocked}"):
            newest(snapshots(blocked))

    def test_what_cannot_be_changed_is_said(self, blocked: str) -> None:
        with pytest.raises(StoreDown, match=f"cannot change the snapshots in {blocked}"):
            snapshots(blocked).drop_after(AT, "t1", 0)

    def test_a_url_that_nothing_here_opens_is_a_mistake_in_the_configuration(self) -> None:
        with pytest.raises(ConfigError, match="snapshots: 'nowhere://copies' cannot be opened"):
            snapshots("nowhere://copies")
