from __future__ import annotations

from pathlib import Path

import pytest
from installation import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path).configure()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Four made-up sensors with five faults in their last third, trained before them, watched to the end."""
    made = Installation(tmp_path_factory.mktemp("watched")).configure()
    sensors = ["--series", "4", "--features", "2", "--rows", "3000"]
    faults = ["--faults", "5", "--kind", "level_shift", "--clean-rows", "2000"]
    made.ok("produce", "synthetic", *sensors, *faults, "--labels", str(made.folder / "faults.jsonl"))
    made.ok("train", "--first", "0.6")
    made.ok("detect", "--until-idle", "0.5")
    return made
