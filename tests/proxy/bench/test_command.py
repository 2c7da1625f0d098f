"""Every benchmark runs in virtual time, and tells what it found; how good the figures are is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner, Result

from muster_proxy.bench.command import bench

SIMULATED = {
    "light": ["direct", "Muster"],
    "mixed": ["people alone", "direct", "Muster"],
    "overload": ["direct", "Muster"],
    "tenants": [
        f"{what}, {way}"
        for what in ("polite, alone", "polite, flooded", "all backlogged")
        for way in ("direct", "Muster")
    ],
    "agents": [f"{factor} x KV, {way}" for factor in ("0.5", "2") for way in ("direct", "Muster")],
    "metrics": [
        "honest",
        "never there",
        "lost after 5 s",
        "frozen after 5 s",
        "always idle",
        "always full",
    ],
    "scale": ["10 waiting", "1,000 waiting"],
}

NAMES = {
    "light": ["direct", "Muster"],
    "mixed": ["alone", "direct", "Muster"],
    "overload": ["answered", "gave up", "capacity", "direct", "Muster"],
    "tenants": ["flooded", "direct, all backlogged", "Muster, all backlogged"],
    "agents": ["direct", "Muster"],
    "metrics": SIMULATED["metrics"],
    "scale": ["submit", "finish", "cancel"],
}


def muster_bench(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(bench, list(arguments))


@pytest.mark.parametrize("case", SIMULATED)
def test_a_benchmark_finds_and_draws(case: str, tmp_path: Path) -> None:
    """A row for each way, figures against targets, JSON, and a chart with the series' names as text."""
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    done = muster_bench(case, "--quick", "--json", str(figures), "--plot", str(chart))
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(figures.read_text())

    assert found["case"] == case
    assert [row["way"] for row in found["rows"]] == SIMULATED[case]
    assert all(
        figure["holds"] in (True, False) for figure in found["figures"] if figure["target"] is not None
    )
    assert any(figure["target"] is not None for figure in found["figures"])
    assert found["options"]["seed"] == "7"
    assert case == "scale" or found["engine"]["virtual_s"] > 0
    assert all(figure["name"].split()[0] in done.stdout for figure in found["figures"])
    assert ET.parse(chart).getroot().tag.endswith("svg")  # noqa: S314  our own file
    assert [name for name in NAMES[case] if name not in chart.read_text()] == []


@pytest.mark.parametrize("case", ["light", "mixed", "overload", "tenants", "agents", "metrics"])
def test_one_seed_gives_one_result(case: str, tmp_path: Path) -> None:
    """In virtual time two runs see the same, to the last bit, but for the real time that the scheduler takes."""

    def rows() -> Any:
        file = tmp_path / "figures.json"
        assert muster_bench(case, "--quick", "--json", str(file)).exit_code == 0
        return json.loads(file.read_text())["rows"]

    assert rows() == rows()


def test_a_chart_is_the_same_each_time(tmp_path: Path) -> None:
    """No date and no random ids are in it: a chart in a repository changes when its figures do."""
    charts = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for chart in charts:
        assert muster_bench("mixed", "--quick", "--plot", str(chart)).exit_code == 0

    assert charts[0].read_bytes() == charts[1].read_bytes()


def test_options_change_the_plan(tmp_path: Path) -> None:
    """What is asked for is what is run, and what the JSON says was run."""
    file = tmp_path / "figures.json"
    sizes = ["--load", "0.2", "--duration", "3", "--lengths", "0.5", "--seed", "8", "--profile", "cpu-135m"]
    done = muster_bench("light", "--quick", "--capacity-requests", "50", *sizes, "--json", str(file))
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    options = found["options"]

    assert (options["load"], options["duration_s"], options["seed"]) == (0.2, 3.0, "8")
    assert (options["capacity_requests"], options["mix"]["scale"]) == (50, 0.5)
    assert found["engine"]["simulated"] == "cpu-135m"


def test_repeated_options_are_a_list(tmp_path: Path) -> None:
    """Several sizes are measured one after another."""
    file = tmp_path / "figures.json"
    done = muster_bench("scale", "--quick", "--waiting", "5", "--waiting", "50", "--json", str(file))
    assert done.exit_code == 0, done.output

    assert [row["way"] for row in json.loads(file.read_text())["rows"]] == ["5 waiting", "50 waiting"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["light", "--simulate", "--upstream", "http://127.0.0.1:9"], "--upstream and --simulate exclude"),
        (["agents", "--live", "--simulate"], "--live and --simulate exclude"),
        (["agents", "--live", "--working-set", "1"], "--working-set is not for --live"),
        (["agents", "--live", "--sessions", "1"], "--sessions is not for --live"),
        (["agents", "--live", "--kv-tokens", "9"], "--kv-tokens is not for --live"),
        (["agents", "--rounds", "2"], "--rounds is for --live"),
        (["agents", "--agents", "2"], "--agents is for --live"),
        (["light", "--profile", "abacus"], "expected one of h200-8b, cpu-135m, got 'abacus'"),
        (["light", "--upstream", "http://127.0.0.1:9"], "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_what_cannot_be_run_is_told(arguments: list[str], message: str) -> None:
    """One line, exit code 1, no traceback."""
    done = muster_bench(*arguments)

    assert done.exit_code == 1, done.output
    assert message in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_without_matplotlib_a_chart_is_refused_before_the_run(tmp_path: Path) -> None:
    """The message says what to install, and nothing was run in vain."""
    program = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['muster', 'bench', 'light', '--quick',"
        " '--plot', 'chart.svg', '--json', 'figures.json']; from muster_proxy.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "pip install 'muster[bench]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
