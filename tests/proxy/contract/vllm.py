"""Real vLLM on the CPU, with the small model that the project shares; about 30 s until it serves."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from muster_observability import server
from tests.stacks import until

_SCRIPTS = Path(__file__).parents[4] / "shared" / "vllm-cpu"
"""Beside the checkout, not in it: setting it up takes minutes and gigabytes."""

_WITHIN_S = 300.0
_GRACE_S = 30.0


@contextlib.contextmanager
def serving() -> Generator[str]:
    """Set vLLM up where that is still to be done, and serve; the block has its root URL.

    Skips the test where the scripts are not.
    """
    if not _SCRIPTS.is_dir():
        pytest.skip(f"no real vLLM: ../shared/{_SCRIPTS.name} is not beside this checkout")
    subprocess.run([_SCRIPTS / "setup.sh"], check=True, stdout=subprocess.DEVNULL)
    with server.bind(0, "") as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [_SCRIPTS / "serve.sh", str(port)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield _ready(process, f"http://127.0.0.1:{port}", log.fileno())
        finally:
            _stop(process)


def _ready(process: subprocess.Popen[bytes], url: str, log: int) -> str:
    for _ in until(_WITHIN_S, "vLLM"):
        assert process.poll() is None, _tail(log)
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                break
    return url


def _tail(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, 4_000, max(0, size - 4_000)).decode("utf-8", "replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started, which is in its process group."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
