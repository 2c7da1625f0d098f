"""Starts the servers that a benchmark needs, as processes of their own, and stops them."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from typing import IO

import httpx

from muster_observability import server
from muster_proxy.embedded.command import prepare_weights
from muster_proxy.embedded.settings import EngineSettings

START_WITHIN_S = 300.0
STOP_WITHIN_S = 10.0
_POLL_S = 0.05
_LAST_WORDS_BYTES = 2000


class ServerFailedError(Exception):
    """A server did not start; the message says which, and its last words."""


def free_port() -> int:
    """A port that nothing listens on now."""
    with server.bind(0, "") as listener:
        port: int = listener.getsockname()[1]
        return port


def muster(*arguments: str, ready_path: str) -> contextlib.AbstractContextManager[str]:
    """Run a `muster` command that serves; the block has its URL once `ready_path` answers 200.

    Raises:
        ServerFailedError: It ended, or was not ready in time.
    """
    return _served(f"muster {arguments[0]}", "muster_proxy", *arguments, ready_path=ready_path)


def modelled_engine(profile: str) -> contextlib.AbstractContextManager[str]:
    """Run the model of an engine at its own pace; the block has its URL.

    Raises:
        ServerFailedError: It ended, or was not ready in time.
    """
    module = "muster_proxy.testing"
    return _served("the modelled engine", module, "--profile", profile, ready_path="/health")


@contextlib.contextmanager
def embedded_engine() -> Generator[tuple[str, int]]:
    """Run the embedded engine; the block has its URL, and the limit that Muster should have for it.

    Its weights are fetched first, where the cache lacks them.

    Raises:
        EmbeddedError: They are not to be had.
        ServerFailedError: It ended, or was not ready in time.
    """
    engine = EngineSettings()
    prepare_weights(engine, None)
    with muster("engine", "--slots", str(engine.slots), ready_path="/health") as url:
        yield url, engine.slots


@contextlib.contextmanager
def _served(name: str, module: str, *arguments: str, ready_path: str) -> Generator[str]:
    port = free_port()
    url = f"http://{server.LOOPBACK}:{port}"
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        # It ends when its standard input does, so also if this process is killed.
        environment = {**os.environ, server.SUPERVISED_VARIABLE: "1"}
        process = subprocess.Popen(  # noqa: S603  our own
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
        try:
            _wait_until_ready(process, url + ready_path, name, log)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, name: str, log: IO[bytes]) -> None:
    deadline_s = time.monotonic() + START_WITHIN_S
    with httpx.Client(trust_env=False, timeout=2.0) as client:
        while process.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).is_success:
                    return
            time.sleep(_POLL_S)
    log.seek(0)
    last_words = log.read()[-_LAST_WORDS_BYTES:].decode("utf-8", "replace")
    raise ServerFailedError(f"{name} did not start:\n{last_words}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
