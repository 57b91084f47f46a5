"""A slot belongs to one live process of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from installation import Installation

from offbeat import slots
from pipeline.config import Config, load
from pipeline.errors import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from offbeat import slots
from pipeline.config import load
with slots.hold(load(Path(sys.argv[1])), "sensors", None) as slot:
    print(slot, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def config(installation: Installation) -> Config:
    return load(installation.config)


def test_the_first_free_slot_is_taken_and_given_back(config: Config) -> None:
    with slots.hold(config, "sensors", None) as first, slots.hold(config, "sensors", None) as second:
        assert (first, second) == (0, 1)
    with slots.hold(config, "sensors", None) as again:
        assert again == 0


def test_streams_have_slots_of_their_own(config: Config) -> None:
    with slots.hold(config, "sensors", 0), slots.hold(config, "others", 0) as slot:
        assert slot == 0


def test_a_taken_slot_is_refused(config: Config) -> None:
    with slots.hold(config, "sensors", 2), pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        slots.hold(config, "sensors", 2).__enter__()


# A lock file that is left behind by a killed worker must not keep its slot for ever.
def test_a_killed_process_gives_its_slot_back(installation: Installation, config: Config) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(installation.config)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "0\n"
        with slots.hold(config, "sensors", None) as beside:
            assert beside == 1
        holder.kill()

    with slots.hold(config, "sensors", None) as after:
        assert after == 0


def test_a_folder_that_cannot_be_written_is_named(installation: Installation) -> None:
    (installation.folder / "models").write_text("a file where the registry should be")

    with pytest.raises(ConfigError, match=r"models/\.locks.*cannot be written"):
        slots.hold(load(Path(installation.config)), "sensors", None).__enter__()
