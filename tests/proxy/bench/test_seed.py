"""The original comparison runs on a real engine and tells what it saw; how fast is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from muster_proxy.bench.labs import BenchmarkError
from muster_proxy.bench.ways import Target, requests, windows
from muster_proxy.testing import FakeVllm, Reply
from tests.stacks import Stack


@pytest.mark.engine
@pytest.mark.timeout(400)  # fourteen answers of a real engine, on whatever machine
def test_the_original_comparison_runs_every_way(stack: Stack, tmp_path: Path) -> None:
    """Five rows in the original's order, in the table, in the JSON and in the chart."""
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    command = ["bench", "seed", "--upstream", stack.url("engine"), "--requests", "2", "--json", str(figures)]
    command += ["--plot", str(chart)]
    done = subprocess.run(
        [sys.executable, "-m", "muster_proxy", *command], capture_output=True, text=True, check=True
    )
    rows = {row["way"]: row for row in json.loads(figures.read_text())["rows"]}

    ways = ["one at a time", "all at once", "one explicit batch", "through Muster", "in windows of 32"]
    assert list(rows) == ways
    assert all(row["requests_per_s"] > 0 and row["output_tokens_per_s"] > 0 for row in rows.values())
    assert rows["one at a time"]["ratio"] == 1
    assert (rows["one explicit batch"]["batches"], rows["one explicit batch"]["mean_batch_size"]) == (1, 2)
    assert rows["through Muster"]["batches"] in (1, 2)
    assert (rows["in windows of 32"]["batches"], rows["in windows of 32"]["mean_batch_size"]) == (1, 2)
    assert all(way in done.stdout and way in chart.read_text() for way in rows)
    assert "through Muster / all at once:" in done.stdout


def test_an_engine_that_is_not_there_is_told(tmp_path: Path) -> None:
    """One line, exit code 1, no traceback."""
    command = ["bench", "seed", "--upstream", "http://127.0.0.1:9"]
    done = subprocess.run(
        [sys.executable, "-m", "muster_proxy", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_window_goes_together_and_waits_for_its_slowest() -> None:
    """33 requests are two windows, the second of which is sent when the first is answered whole."""
    ended: list[None] = []
    async with FakeVllm() as engine:
        target = Target(engine.url, engine.model, fixed_length=True)
        result = await windows(target, requests(33, "a"), lambda: ended.append(None))

    assert (engine.peak, len(ended), len(result.latencies_s)) == (32, 33, 33)
    assert (result.batches, result.mean_batch_size) == (2, 16.5)
    assert result.output_tokens > 0


async def test_a_window_that_fails_is_told() -> None:
    """One refused request fails the window, with what the engine said."""
    async with FakeVllm() as engine:
        engine.script(Reply(status=500, error={"error": {"message": "out of order"}}))
        with pytest.raises(ExceptionGroup) as caught:
            await windows(Target(engine.url, engine.model, fixed_length=True), requests(2, "a"), lambda: None)

    assert all(isinstance(error, BenchmarkError) for error in caught.value.exceptions)
    assert "out of order" in str(caught.value.exceptions[0])


def test_every_way_has_the_same_work() -> None:
    """The same lengths each time, under labels of their own so that no cache helps."""
    one, two = requests(50, "a"), requests(50, "b")

    assert [each.max_tokens for each in one] == [each.max_tokens for each in two]
    assert min(each.max_tokens for each in one) >= 10
    assert max(each.max_tokens for each in one) <= 150
    assert not {each.prompt for each in one} & {each.prompt for each in two}


def test_the_original_comparison_runs_on_a_modelled_engine(tmp_path: Path) -> None:
    """The modelled engine is started for it, and answers over HTTP: every way is the real one."""
    figures = tmp_path / "figures.json"
    command = ["bench", "seed", "--simulate", "--requests", "4", "--json", str(figures)]
    subprocess.run([sys.executable, "-m", "muster_proxy", *command], capture_output=True, check=True)
    found = json.loads(figures.read_text())

    assert len(found["rows"]) == 5
    assert all(row["requests_per_s"] > 0 for row in found["rows"])


def test_a_run_has_one_place() -> None:
    """A real engine or a modelled one."""
    command = ["bench", "seed", "--simulate", "--upstream", "http://127.0.0.1:9"]
    done = subprocess.run(
        [sys.executable, "-m", "muster_proxy", *command], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "--upstream and --simulate exclude each other" in done.stderr
