"""The environment that the relays run in: none of the project's, as most of what is measured is no part of it."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.peers.install import cache_directory, make

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def interpreter(say: Callable[[str], None], cache: Path | None = None) -> str:
    """Path of the environment's Python; makes the environment unless that was done before, for these versions.

    Args:
        say: Told before what takes long.
        cache: Where it is; default that of the peers.

    Raises:
        InstallError: It cannot be made here.
    """
    place = place_of(REQUIREMENTS.read_bytes(), cache or cache_directory())
    make(place, "the servers and clients", ["--requirement", str(REQUIREMENTS)], say)
    return str(place / "bin/python")


def place_of(requirements: bytes, cache: Path) -> Path:
    """The folder of an environment, named after what is in it."""
    digest = hashlib.sha256(requirements).hexdigest()[:16]
    return cache / f"relays-{digest}-py{sys.version_info.major}.{sys.version_info.minor}"
