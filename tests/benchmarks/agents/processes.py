"""The processes of a measurement: a model, the agent service in front of it, and a database where one is asked for."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

from cryptography.fernet import Fernet

from tests.benchmarks.peers.launch import LOG, ROOT, free_port, running
from tests.benchmarks.peers.start import page
from tests.postgres import new_database, running_postgres

READY_WITHIN_S = 120.0
_POLL_S = 0.01


class NotReadyError(Exception):
    """A program did not come up; the message has the end of what it logged."""


@dataclass(frozen=True)
class Service:
    """How a process of the agent service is started.

    Attributes:
        proxy: Root URL of what it thinks with.
        database_url: Where it keeps everything.
        variables: Environment variables beside those that all have.
        options: Of the command line, beside those that follow from the rest.
        port: Where it listens, each time that it is started.
        secret: The same for all that share a database.
    """

    proxy: str
    database_url: str
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    secret: str = field(default_factory=lambda: Fernet.generate_key().decode())

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def started(self, directory: Path) -> Generator[subprocess.Popen[bytes]]:
        """Run it for the length of the block; it need not be ready when that begins."""
        command = (sys.executable, "-m", "muster_proxy", "agent", "--port", str(self.port))
        where = ("--proxy", self.proxy, "--database", self.database_url)
        variables = {
            "PYTHONPATH": str(ROOT),
            "MUSTER_LOG_LEVEL": "warning",
            "MUSTER_AGENT_SECRET": self.secret,
            **self.variables,
        }
        with running([*command, *where, *self.options], directory, None, variables) as process:
            yield process


@contextlib.contextmanager
def scripted_model(directory: Path, think_s: float = 0.0) -> Generator[str]:
    """The model, ready, for the length of the block, which has its root URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.agents.scripted_model", "--port", str(port)]
    with running(
        [*command, "--think-s", str(think_s)], directory, None, {"PYTHONPATH": str(ROOT)}
    ) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{url}/v1/models", process, directory)
        yield url


def wait_until_ready(url: str, process: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait until a URL is answered.

    Raises:
        NotReadyError: The process has ended, or takes longer than `READY_WITHIN_S`.
    """
    deadline_s = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(URLError, OSError):
            page(url)
            return
        time.sleep(_POLL_S)
    raise NotReadyError((directory / LOG).read_text("utf-8", "replace")[-1000:])


@contextlib.contextmanager
def database(asked: str, folder: Path) -> Generator[str]:
    """A database for the length of the block: `sqlite` and `postgresql` are made, any other word is its URL.

    A PostgreSQL that is made lies under `folder`, where it flushes nothing to the disk.
    """
    if asked == "sqlite":
        yield f"sqlite:///{folder}/agent.db"
    elif asked == "postgresql":
        with running_postgres(folder / "postgresql") as server, new_database(server) as url:
            yield url
    else:
        yield asked


@contextlib.contextmanager
def new_folder(kept: Path | None = None) -> Generator[Path]:
    """A folder for what the processes write, gone at the end unless it is one that is to be kept."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="agents-") as name:
        yield Path(name)


def folder(parent: Path, name: str) -> Path:
    """A folder in another."""
    made = parent / name
    made.mkdir()
    return made
