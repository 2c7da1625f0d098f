"""Peers in virtual environments of their own, kept in the cache, made on first use."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

INSTALLS_WITHIN_S = 900.0

_DONE = ".installed"


class InstallError(Exception):
    """A peer cannot be installed; the message is the last thing that pip said."""


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/muster/peers`, or `~/.cache/muster/peers`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "muster" / "peers"


def installed(requirement: str, say: Callable[[str], None], cache: Path | None = None) -> Path:
    """The folder of the programs that a requirement brings; installs it unless that was done before.

    Args:
        requirement: With its version, `name==1.2.3`: another version gets another environment.
        say: Told before what takes long.
        cache: Where the environments are; default `cache_directory()`.

    Raises:
        InstallError: It cannot be installed here.
    """
    place = (
        cache or cache_directory()
    ) / f"{requirement}-py{sys.version_info.major}.{sys.version_info.minor}"
    make(place, requirement, [requirement], say)
    return place / "bin"


def make(place: Path, what: str, packages: list[str], say: Callable[[str], None]) -> None:
    """Make an environment, unless that was done before.

    Args:
        place: Its folder.
        what: How it is called, to be told before what takes long.
        packages: What pip is to install, as its arguments.
        say: Told.

    Raises:
        InstallError: It cannot be made here.
    """
    if (place / _DONE).exists():
        return
    say(f"installing {what} (once)")
    shutil.rmtree(place, ignore_errors=True)
    run_step([sys.executable, "-m", "venv", str(place)])
    run_step([str(place / "bin/python"), "-m", "pip", "install", "--quiet", *packages])
    (place / _DONE).touch()


def run_step(command: list[str]) -> None:
    """Run a step of an installation, with this shell's environment: it has the package index that the user chose.

    Raises:
        InstallError: It failed.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALLS_WITHIN_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(type(error).__name__) from error
    if done.returncode != 0:
        raise InstallError(
            _last_line(done.stderr) or _last_line(done.stdout) or f"exit code {done.returncode}"
        )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""
