"""The files round the code agree with each other: Makefile, locks, documentation, deployment."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import config

ROOT = Path(__file__).resolve().parent.parent
# They come with a GPU build of torch only, in the versions that it pins itself.
GPU_LIBRARIES = re.compile(r"(nvidia|cuda|triton)\b.*")
NOT_SET_UP = ("azure", "gcs")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files belong to it")
    listed = run("git", "ls-files", "-z").stdout.split("\0")
    return [path for name in listed if name and (path := ROOT / name).is_file()]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def direct_requirements() -> list[Requirement]:
    """What `make setup` installs."""
    package, groups = project()["project"], project()["dependency-groups"]
    extras = package["optional-dependencies"]
    lines = [
        *package["dependencies"],
        *(line for name in extras.keys() - {"all", *NOT_SET_UP} for line in extras[name]),
        *groups["dev"],
    ]
    return [Requirement(line) for line in lines]


def other_requirements() -> list[Requirement]:
    """What `make setup` leaves out: `make fuzz` installs its own, and nothing here runs those stores."""
    extras, groups = project()["project"]["optional-dependencies"], project()["dependency-groups"]
    lines = [*groups["fuzz"], *(line for name in NOT_SET_UP for line in extras[name])]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len({pin.name for pin in found}) == len(found)
    return {canonicalize_name(pin.name): pin for pin in found}


def installed_needs(of: list[Requirement]) -> dict[str, str]:
    """Name and installed version of ``of`` and of everything that they need on this machine."""
    needs: dict[str, str] = {}
    waiting, seen = list(of), set()
    while waiting:
        requirement = waiting.pop()
        wanted = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted in seen or GPU_LIBRARIES.fullmatch(wanted[0]):
            continue
        seen.add(wanted)
        package = importlib.metadata.distribution(requirement.name)
        needs[wanted[0]] = package.version
        for line in package.requires or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return needs


# `make help` is how a newcomer finds the targets, so it leaves none out.
def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)

    shown = re.findall(r"^  make (\S+) +\S", run("make", "help").stdout, re.MULTILINE)

    assert targets
    assert sorted(shown) == sorted(targets)


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_setup_without_a_usable_python_says_what_to_do(python: str, tmp_path: Path) -> None:
    done = run("make", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'env'}")

    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "make setup PYTHON=" in done.stderr
    assert not (tmp_path / "env").exists()


# What is tested is what is installed: each package, and each package that it brings along, has one version.
def test_constraints_pin_everything_that_is_installed() -> None:
    pinned = pins()

    for name, version in installed_needs(direct_requirements()).items():
        assert name in pinned, f"constraints.txt: add {name}=={version}"
        assert pinned[name].specifier.contains(version, prereleases=True), (
            f"{name} {version} is installed, constraints.txt has {pinned[name]}: run `make setup`"
        )


def test_setup_and_all_leave_no_other_extra_out() -> None:
    extras = project()["project"]["optional-dependencies"]
    [everything] = [Requirement(line) for line in extras["all"]]
    installed = re.search(r"--editable '\.\[(.*)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))

    assert everything.extras == extras.keys() - {"all"}
    assert installed is not None
    assert {*installed[1].split(","), *NOT_SET_UP} == everything.extras


def test_constraints_are_exact_and_fit_the_project() -> None:
    pinned = pins()

    for pin in pinned.values():
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), pin
    for requirement in [*direct_requirements(), *other_requirements()]:
        version = str(pinned[canonicalize_name(requirement.name)].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_every_dependency_is_explained() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = [name for name in re.findall(r"^\| ([\w-]+) \|", page, re.MULTILINE) if name != "Package"]

    needed = [*direct_requirements(), *other_requirements()]
    assert sorted(explained) == sorted(canonicalize_name(each.name) for each in needed)


# A checkout works wherever it lies: nothing in it points into one person's machine.
def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(r"(?<![\w.~$}-])/(?:work|root|Users)/|\.\./" + "shared")

    for path in tracked_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        found = place.search(text)
        assert found is None, f"{path.relative_to(ROOT)} names {found.group()!r}"


def test_links_between_documents_resolve() -> None:
    link = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    pages = [path for path in tracked_files() if path.suffix == ".md"]

    for page in pages:
        for target in link.findall(page.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            linked = page.parent / name if name else page
            assert linked.exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"
            assert not anchor or anchor in anchors(linked), f"{page.relative_to(ROOT)}: no heading {target}"


# A complaint without a test is a promise, and a test without its complaint is not found by who complains.
def test_every_complaint_about_alerts_names_its_test() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests" / "end_to_end" / "test_complaints.py").read_text(encoding="utf-8")

    rows = re.findall(r"^\| (?!Complaint).*\|$", page, re.MULTILINE)
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]

    assert sorted(name for names in named for name in names) == sorted(
        re.findall(r"^def (test_\w+)", tests, re.MULTILINE)
    )
    assert all(len(names) == 1 for names in named)
    sections = {"events": config.Events, "threshold": config.Joint, "alerts": config.AlertRules}
    for section, name in re.findall(r"`(\w+)\.(\w+)`", "".join(rows)):
        assert name in sections[section].model_fields, f"{section}.{name} is no setting"
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in re.findall(r"`(offbeat(?: [a-z-]+)+?)(?: --.*?)?`", "".join(rows)):
        assert f"\n## {command}\n" in commands, f"{command} is no command"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_floor_imports_only_from_floors_below() -> None:
    done = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")

    assert done.returncode == 0, done.stdout


# A module of the core that the contract does not name could do I/O unseen.
def test_the_pure_core_is_named_in_full() -> None:
    edges = {"pipeline.loop", "pipeline.metrics"}
    contracts = {each["name"]: each for each in project()["tool"]["importlinter"]["contracts"]}

    modules = {f"pipeline.{path.stem}" for path in (ROOT / "pipeline").glob("[!_]*.py")}

    assert modules - edges == set(contracts["The pure core knows no server"]["source_modules"])


def test_the_deployed_configuration_is_valid() -> None:
    deployed = config.load(ROOT / "deploy" / "offbeat.yaml")

    for url, service in ((deployed.bus, "kafka"), (deployed.state, "valkey")):
        assert f"//{service}:" in url
        assert service in compose()["services"]


def test_the_compose_file_holds_together() -> None:
    services, volumes = compose()["services"], compose()["volumes"]

    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert "build" in service or re.search(r":\d", service["image"]), f"{name}: pin its image"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (ROOT / source).exists() if source.startswith(".") else source in volumes
            assert known, f"{name}: {source} does not exist"


def test_the_image_is_built_from_files_that_exist() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    copied = " ".join(copies).split()

    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in allowed, f".dockerignore keeps {name} out"


def test_ci_runs_as_a_program() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert run("bash", "-n", ".ci/run").returncode == 0
