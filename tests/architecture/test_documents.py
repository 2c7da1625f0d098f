"""What the documents say is what the code has."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from muster_batching import TurnAwayReason
from muster_proxy import settings
from muster_proxy.failures import TABLE, TURNED_AWAY

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")])


def test_every_setting_is_documented_once() -> None:
    """Each variable has its row in the table, with what the code says of it."""
    table = (ROOT / "docs/configuration.md").read_text("utf-8")
    for name, info in settings.variables().items():
        assert table.count(f"| `{name}` |") == 1, name
        assert (info.description or "") in table, name


def test_every_failure_is_documented() -> None:
    """Each error code has its row, with its status."""
    table = (ROOT / "docs/errors.md").read_text("utf-8")
    for reason, row in TABLE.items():
        assert f"| `{reason.value}` | {row.status} |" in table


def test_every_reason_to_turn_away_has_a_failure() -> None:
    """The scheduler cannot say something that the proxy has no words for."""
    assert set(TURNED_AWAY) == set(TurnAwayReason)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link is a file that there is."""
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_readme_is_short_and_shows_the_first_commands() -> None:
    """150 lines at most."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.count("\n") <= 150
    assert "make run" in readme
    assert "make test" in readme


def test_every_target_of_make_is_in_its_help() -> None:
    """`make help` lists what there is."""
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY"))
    listed = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in phony.split()[1:]:
        assert f"make {target}" in listed


def test_the_lock_has_hashes_and_names_no_host() -> None:
    """It must serve behind any mirror."""
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^[a-z0-9_.-]+(?:\[[a-z,]+\])?==", lock, re.MULTILINE)
    assert len(pinned) > 50
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock


def test_the_wheel_holds_the_five_packages() -> None:
    """And nothing else becomes importable."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(Path(package).name for package in packages) == [
        "muster_agent",
        "muster_batching",
        "muster_observability",
        "muster_proxy",
        "muster_storage",
    ]
