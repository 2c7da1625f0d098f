"""The command as a process: it starts, answers and stops."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

HOST = "import typer; from muster_agent.cli import agent; app = typer.Typer(); app.command()(agent); app()"


@contextmanager
def _agent(*options: str) -> Generator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, *options],
        env={**kept, "MUSTER_LOG_FORMAT": "json"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """It says where it listens, answers there without a proxy, and ends well on a signal."""
    database = f"sqlite:///{tmp_path}/agent.db"
    with _agent("--port", "0", "--proxy", "http://127.0.0.1:9/v1", "--database", database) as process:
        assert process.stderr is not None
        listening = next(event for event in map(json.loads, process.stderr) if event["event"] == "listening")
        ready = httpx.get(f"{listening['url']}/ok", trust_env=False)
        process.terminate()
        code = process.wait(30)

    assert (listening["part"], ready.json(), code) == ("agent", {"ok": True}, 0)


@pytest.mark.parametrize(
    ("agents", "complaint"),
    [
        ("agents: {one: {tool: {}}}", "unknown key; did you mean tools?"),
        ("agents: {one: {tools: {own: ['nowhere:tool']}}}", "nowhere:tool cannot be imported"),
    ],
)
def test_wrong_agents_end_the_command(tmp_path: Path, agents: str, complaint: str) -> None:
    """What is wrong with the file, or cannot be opened when the service starts, is the last thing told."""
    file = tmp_path / "agents.yaml"
    file.write_text(agents, encoding="utf-8")
    options = ("--port", "0", "--agents", str(file), "--database", f"sqlite:///{tmp_path}/agent.db")
    with _agent(*options) as process:
        assert process.stderr is not None
        told = process.stderr.read()
        code = process.wait(30)

    assert code == 78
    assert complaint in told.splitlines()[-1]
