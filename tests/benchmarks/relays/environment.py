"""The environment that the relays run in: none of the project's, as most of what is measured is no part of it."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.peers.install import cache_directory, run_step

REQUIREMENTS = Path(__file__).with_name("requirements.txt")

_DONE = ".installed"


def interpreter(say: Callable[[str], None], cache: Path | None = None) -> str:
    """Path of the environment's Python; makes the environment unless that was done before, for these versions.

    Args:
        say: Told before what takes long.
        cache: Where it is; default that of the peers.

    Raises:
        InstallError: It cannot be made here.
    """
    place = place_of(REQUIREMENTS.read_bytes(), cache or cache_directory())
    python = str(place / "bin/python")
    if not (place / _DONE).exists():
        say("installing the servers and clients (once)")
        shutil.rmtree(place, ignore_errors=True)
        run_step([sys.executable, "-m", "venv", str(place)])
        run_step([python, "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)])
        (place / _DONE).touch()
    return python


def place_of(requirements: bytes, cache: Path) -> Path:
    """The folder of an environment, named after what is in it."""
    digest = hashlib.sha256(requirements).hexdigest()[:16]
    return cache / f"relays-{digest}-py{sys.version_info.major}.{sys.version_info.minor}"
