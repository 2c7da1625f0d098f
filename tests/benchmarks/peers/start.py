"""From the start of a proxy to its first good answer."""

import contextlib
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from tests.benchmarks.peers import process_tree
from tests.benchmarks.peers.connection import PATH
from tests.benchmarks.peers.launch import LOG, Cores, free_port, running
from tests.benchmarks.peers.pace import Pace
from tests.benchmarks.peers.proxies import Place, Proxy

READY_WITHIN_S = 90.0
POLL_S = 0.01
WORDS = 300
"""Characters of a failed program's last line."""

SETTLES_S = 0.5
"""Between the first answer and the reading of the memory at rest."""

_http = build_opener(ProxyHandler({}))


class StartError(Exception):
    """A proxy did not come up; the message says what it did instead."""


@dataclass(frozen=True)
class Started:
    """A proxy that answers.

    Attributes:
        url: Its root.
        pid: Its first process.
        ready_s: Seconds from its start to its first good answer.
        idle_bytes: Memory that its processes hold then, before any load.
    """

    url: str
    pid: int
    ready_s: float
    idle_bytes: int | None


@contextlib.contextmanager
def started(
    proxy: Proxy, engine: str, directory: Path, cores: Cores, programs: Path | None = None
) -> Generator[Started]:
    """Run a proxy for the length of the block.

    Args:
        proxy: Which.
        engine: Root URL of the engine behind it.
        directory: An empty one for its files.
        cores: It gets the proxy's.
        programs: Folder of its installed programs.

    Raises:
        StartError: It gives no good answer in time.
    """
    place = Place(engine, free_port(), directory, programs)
    command = proxy.command(place)
    url = f"http://127.0.0.1:{place.port}"
    began_s = time.perf_counter()
    with running(command, directory, cores.proxy, proxy.variables) as process:
        try:
            _wait_for_answer(url, proxy.key, process)
        except StartError as error:
            raise StartError(f"{error}; it last said: {_last_words(directory)}") from None
        up = Started(url, process.pid, time.perf_counter() - began_s, None)
        time.sleep(SETTLES_S)
        yield replace(up, idle_bytes=process_tree.resident_bytes(process.pid))


def _wait_for_answer(url: str, key: str | None, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.perf_counter() + READY_WITHIN_S
    said = "no connection"
    while time.perf_counter() < deadline_s:
        if (code := process.poll()) is not None:
            raise StartError(f"it ended with exit code {code}")
        said = _try(url, key)
        if not said:
            return
        time.sleep(POLL_S)
    raise StartError(f"no answer in {READY_WITHIN_S:.0f} s: {said}")


def _last_words(directory: Path) -> str:
    """The last line that a program wrote, as far as it fits on one of ours."""
    lines = (directory / LOG).read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[-WORDS:] if lines else "nothing"


def _try(url: str, key: str | None) -> str:
    """Ask for one token; what is wrong with the answer, or nothing."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        with _http.open(Request(url + PATH, Pace(tokens=1).body(), headers), timeout=5) as answer:  # noqa: S310  it is http
            return "" if b" token" in answer.read() else "not what the engine answers"
    except HTTPError as error:
        error.close()
        return f"status {error.code}"
    except (URLError, OSError):
        return "no connection"


def page(url: str) -> str:
    """What GET answers.

    Raises:
        OSError: It cannot be reached.
    """
    with _http.open(url, timeout=5) as answer:
        return answer.read().decode()
