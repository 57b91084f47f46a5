"""Local worker numbers: no two live workers of a stream on this machine share one."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import ConfigError

MOST_SLOTS = 1_000


@contextmanager
def hold(config: Config, stream: str, slot: int | None) -> Iterator[int]:
    """Hold a slot of a stream until the context ends or this process dies; None takes the first free one.

    Raises:
        ConfigError: the slot is taken, or all of them are, or the folder of the locks cannot be written.
    """
    folder = _folder(config)
    wanted = range(MOST_SLOTS) if slot is None else [slot]
    for number in wanted:
        path = folder / f"{config.transactional_id(stream, number)}.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror}), and a worker's slot is locked there; let "
                "`registry` name a folder that this user may write to"
            ) from error
        try:
            if _locked(descriptor):
                yield number
                return
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        finally:
            os.close(descriptor)
    if slot is None:
        raise ConfigError(f"all {MOST_SLOTS} slots of stream {stream!r} are taken on this machine; stop some")
    raise ConfigError(
        f"slot {slot} of stream {stream!r} is taken on this machine by process {holder or 'unknown'}; "
        "choose another --slot, or leave it out to take the first free one"
    )


def _folder(config: Config) -> Path:
    """Beside the bundles where they lie on this machine; locks are of this machine alone."""
    if "://" not in config.registry:
        return Path(config.registry) / ".locks"
    return Path(tempfile.gettempdir()) / f"offbeat-locks-{os.getuid()}"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return True
