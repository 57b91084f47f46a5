"""The tutorial's script does what the page says, here in a short form."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial-autoencoder.md").read_text(encoding="utf-8")


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    [command] = re.findall(r"```sh\npython (.*)\n```", PAGE)
    short = ["--out", str(tmp_path), "--steps", "300", "--seeds", "1", "--digits", "4"]

    done = subprocess.run(
        [sys.executable, *shlex.split(command), *short],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    off = {
        name: float(by) for name, by in re.findall(r"^(\w+): 64 .*off by ([\d.]+)", done.stdout, re.MULTILINE)
    }
    assert off["autoencoder"] < off["PCA"] < 2.5
    [(network, linear)] = re.findall(r"^\| 4 \| ([\d.]+) .*\| ([\d.]+) ", done.stdout, re.MULTILINE)
    assert float(network) > 0.85
    assert float(linear) > 0.85
    drawn = {each.name for each in tmp_path.iterdir()}
    assert drawn == set(re.findall(r"\((tutorial-[\w-]+\.svg)\)", PAGE))
    assert drawn <= {each.name for each in (ROOT / "docs").iterdir()}
