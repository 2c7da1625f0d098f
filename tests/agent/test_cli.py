"""The command as a process: it starts, answers and stops."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import httpx

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


def test_it_serves_until_it_is_told_to_stop() -> None:
    """It says where it listens, answers there without a proxy, and ends well on a signal."""
    with _agent("--port", "0", "--proxy", "http://127.0.0.1:9/v1") as process:
        assert process.stderr is not None
        listening = next(event for event in map(json.loads, process.stderr) if event["event"] == "listening")
        ready = httpx.get(f"{listening['url']}/ok", trust_env=False)
        process.terminate()
        code = process.wait(30)

    assert (listening["part"], ready.json(), code) == ("agent", {"ok": True}, 0)
