"""Live agents go three ways that take turns, with the same work each way; how fast is not a test's business."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from muster_batching.testing import PROFILES
from muster_batching.testing.simulation import Record
from muster_batching.tickets import RequestClass
from muster_observability.server import ExitCode
from muster_proxy.bench.cases import live_agents
from muster_proxy.bench.cases.live_agents import LIVE_WAYS, Plan
from muster_proxy.bench.labs import Scripts, Seen, Way
from muster_proxy.bench.simulated import SimulatedLab
from muster_proxy.testing import FakeVllm
from tests.proxy.bench.test_over_http import FAST, Silent

DIRECT, WITHOUT, WITH = LIVE_WAYS
COMMAND = (sys.executable, "-m", "muster_proxy", "bench", "agents", "--live", "--quick")


@dataclass
class Watched:
    """A simulated lab that keeps what each run saw."""

    lab: SimulatedLab = field(default_factory=lambda: SimulatedLab(PROFILES["cpu-135m"], Silent()))
    runs: list[tuple[str, Way, Seen]] = field(default_factory=list[tuple[str, Way, Seen]])

    is_simulated = True
    kv_tokens = block_size = 16

    def run(self, label: str, way: Way, scripts: Scripts) -> Seen:
        """Run it, and keep what it saw."""
        seen = self.lab.run(label, way, scripts)
        self.runs.append((label, way, seen))
        return seen


def work(records: list[Record]) -> list[tuple[int, int]]:
    """How much was asked for."""
    return sorted((each.call.input_tokens, each.call.output_tokens) for each in records)


def test_the_ways_take_turns() -> None:
    """Each round begins with another way, so that none always has the machine as the others left it."""
    lab = Watched()
    live_agents.run(lab, Plan(rounds=4))

    order = [DIRECT, WITHOUT, WITH, WITHOUT, WITH, DIRECT, WITH, DIRECT, WITHOUT, DIRECT, WITHOUT, WITH]
    assert [label for label, _, _ in lab.runs] == [
        f"round {1 + number // 3} of 4, {way}" for number, way in enumerate(order)
    ]
    assert [way for _, way, _ in lab.runs] == [Way.DIRECT if each is DIRECT else Way.MUSTER for each in order]


def test_every_way_has_the_same_work_and_one_tells_sessions() -> None:
    """16 sessions of 4 steps and 10 people's requests; the next round draws others."""
    lab = Watched()
    live_agents.run(lab, Plan())
    by_label = {label: list(seen.records) for label, _, seen in lab.runs}
    first = [by_label[f"round 1 of 3, {way}"] for way in LIVE_WAYS]

    assert [len(each) for each in by_label.values()] == [Plan().calls] * 9 == [74] * 9
    assert work(first[0]) == work(first[1]) == work(first[2]) != work(by_label["round 2 of 3, direct"])
    assert {(each.call.tenant, each.call.request_class) for records in first for each in records} == {
        ("agents", RequestClass.STANDARD)
    }
    named = [Counter(each.call.session for each in records) for records in first]
    assert named[0] == named[1] == {None: 74}
    assert named[2] == {None: 10} | {f"session-{number}": 4 for number in range(16)}


def test_the_findings_are_of_the_runs() -> None:
    """A row for each way; session times and people's waits as the records have them, by ratio over each other way."""
    lab = Watched()
    found = live_agents.run(lab, Plan(rounds=1))
    rows = {row.way: row.values for row in found.rows}
    figures = {figure.name: figure.value for figure in found.figures}
    records = next(seen.records for _, way, seen in lab.runs if way is Way.DIRECT)
    waits_s = [(each.ended_s or 0.0) - each.sent_s for each in records if not each.call.blocks]

    assert list(rows) == list(LIVE_WAYS)
    assert [(row["complete"], row["answered"]) for row in rows.values()] == [(16, 10)] * 3
    direct_s, with_s = rows[DIRECT]["session p95 s"] or 0.0, rows[WITH]["session p95 s"] or 0.0
    assert figures["Muster over direct: session p95"] == pytest.approx(with_s / direct_s)
    assert len(waits_s) == 10
    assert sorted(waits_s)[-2] <= (rows[DIRECT]["people p95 s"] or 0.0) <= max(waits_s)
    assert len(figures) == 12
    assert found.curves["session_p95_s_by_round"][WITH] == [with_s]


async def test_it_runs_on_a_server(tmp_path: Path) -> None:
    """Table, JSON and chart; the engine hears of sessions one way of three, and what it cached is told."""
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    output = ("--json", str(figures), "--plot", str(chart))
    async with FakeVllm(profile=FAST) as engine:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "--rounds", "2", "--lengths", "4", "--upstream", engine.url, *output),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        sessions = [each.headers.get("x-session-id") for each in engine.requests]
    assert process.returncode == 0, printed.decode()
    found: dict[str, Any] = json.loads(figures.read_text())

    assert [row["way"] for row in found["rows"]] == list(LIVE_WAYS)
    assert [(row["complete"], row["answered"]) for row in found["rows"]] == [(4, 4)] * 3
    assert all(0 < row["prefix hits"] < 1 for row in found["rows"])
    assert {each for each in sessions if each} == {"session-0", "session-1"}
    assert len([each for each in sessions if each]) == 2 * 2 * 2
    assert all(way in printed.decode() and way in chart.read_text() for way in LIVE_WAYS)
    assert ET.parse(chart).getroot().tag.endswith("svg")  # noqa: S314  our own file


def test_an_engine_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    """With the exit code of its own, and no traceback: here the cache of its weights is no directory."""
    cache = tmp_path / "cache"
    cache.write_text("")
    done = subprocess.run(
        COMMAND,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MUSTER_CACHE_DIR": str(cache)},
    )

    assert done.returncode == ExitCode.IO_ERROR, done.stderr
    assert str(cache) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.engine
@pytest.mark.timeout(400)  # eighteen answers of a real engine, on whatever machine
def test_it_runs_on_the_embedded_engine(weights: Path, tmp_path: Path) -> None:
    """Which it starts itself, and which tells what it found in its prefix cache."""
    assert weights.exists()
    figures = tmp_path / "figures.json"
    subprocess.run([*COMMAND, "--json", str(figures)], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(figures.read_text())

    assert [(row["complete"], row["answered"]) for row in found["rows"]] == [(2, 2)] * 3
    assert all(0 < row["prefix hits"] < 1 for row in found["rows"])
