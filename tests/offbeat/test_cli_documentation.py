"""What is written about the commands and what they are hold each other to the truth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
from installation import Installation, offbeat

from offbeat import schemas
from offbeat.cli import cli

DOCS = Path(__file__).parents[2] / "docs"


def commands(
    command: typer.core.TyperCommand, name: str = "offbeat"
) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command by its whole name; ``offbeat`` itself for the options before them."""
    inner = getattr(command, "commands", {})
    if not inner or name == "offbeat":
        yield name, command
    for each, below in inner.items():
        yield from commands(below, f"{name} {each}")


def options(command: typer.core.TyperCommand) -> set[str]:
    return {name for each in command.params for name in each.opts if name.startswith("-")}


def documented() -> dict[str, str]:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (offbeat.*)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(sections[0::2], sections[1::2], strict=True))


ALL = dict(commands(typer.main.get_command(cli)))


def test_every_command_is_documented_and_no_other() -> None:
    assert set(documented()) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_documented_and_no_other(name: str) -> None:
    rows = re.findall(r"^\| (`.*?`) \|", documented()[name], re.MULTILINE)

    named = {option for row in rows for option in re.findall(r"`(--?[\w-]+)", row)}

    assert named == options(ALL[name])


@pytest.mark.parametrize("name", [name for name in ALL if name != "offbeat"])
def test_every_command_has_an_example_that_it_understands(name: str) -> None:
    examples = [
        line for line in documented()[name].splitlines() if line.startswith(f"{name} ") or line == name
    ]

    assert examples
    for example in examples:
        used = set(re.findall(r"(?<= )--?[a-z][\w-]*", example.partition("|")[0]))
        assert used <= options(ALL[name]), example
    assert "Example" in offbeat(*name.split()[1:], "--help").stdout


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        ("config", schemas.config_schema()),
        ("alert", schemas.alert_schema()),
        ("notification", schemas.notification_schema()),
    ],
)
def test_published_schemas_are_current(file: str, schema: dict[str, Any]) -> None:
    text = (DOCS / f"{file}.schema.json").read_text(encoding="utf-8")

    assert json.loads(text) == schema, "print it again: offbeat.schemas"


def test_the_schema_command_prints_the_published_schema() -> None:
    assert json.loads(offbeat("config", "schema").stdout) == schemas.config_schema()


def test_the_example_passes_its_check_and_its_schema(tmp_path: Path) -> None:
    import jsonschema  # noqa: PLC0415
    import yaml  # noqa: PLC0415

    example = offbeat("config", "example").stdout
    installation = Installation(tmp_path)
    installation.config.write_text(example)

    assert "is good: 2 streams" in installation.ok("config", "check")
    jsonschema.validate(yaml.safe_load(example), schemas.config_schema())


# What an alert's readers are promised is what is published.
def test_a_published_alert_fits_its_schema(watched: Installation) -> None:
    import jsonschema  # noqa: PLC0415

    for alert in watched.json("alerts", "list"):
        jsonschema.validate(alert, schemas.alert_schema())


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version  # noqa: PLC0415

    assert offbeat("--version").stdout == f"offbeat {version('offbeat')}\n"


# Help answers at once: what takes seconds to load is loaded by the command that needs it.
@pytest.mark.parametrize("arguments", [["--help"], ["detect", "--help"], ["config", "example"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from offbeat.cli import cli; cli(sys.argv[1:], standalone_mode=False);"
        "print(sorted({'torch', 'numba', 'numpy', 'redis', 'kafka'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"
