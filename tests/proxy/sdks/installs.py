"""Packages of other people that the suite runs as programs, each set in an environment of its own.

litellm wants an older `openai` than the rest, `langchain-tests` brings six plugins for pytest, and `openai` for Node
is no Python at all: none of them goes into the project's environment. Each is locked with hashes beside its program
and installed once, into Muster's cache folder, under the hash of its lock. To lock them anew:

    cd litellm_calls && uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --upgrade --output-file requirements.lock requirements.in
    cd langchain_suite && uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --constraints ../../../../requirements.lock --upgrade --output-file requirements.lock requirements.in
    cd node && npm install --package-lock-only
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from muster_proxy.embedded.weights import default_cache_dir

HERE = Path(__file__).parent

_ENVIRONMENT = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def python_of(name: str) -> Path:
    """The interpreter of the environment that `NAME/requirements.lock` describes; some seconds the first time."""
    lock = HERE / name / "requirements.lock"
    tag = f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    return _installed(tag, [lock], lambda folder: _install_python(lock, folder)) / "bin" / "python"


def node_modules(folder: Path = HERE / "node") -> Path:
    """The packages that a folder's `package-lock.json` describes; skips the test where there is no Node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    files = [folder / name for name in ("package.json", "package-lock.json", ".npmrc")]
    return _installed("node", files, lambda folder: _install_node(files, folder)) / "node_modules"


async def run(*command: str | Path, **variables: str) -> str:
    """What a program writes to its standard output.

    It gets no more of the environment than it is given here, so no proxy and no credential. It is killed if the test
    is cancelled.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**_ENVIRONMENT, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        told, complaints = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, f"{told.decode()}\n{complaints.decode()}"
    return told.decode()


def _installed(name: str, files: list[Path], install: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    place = default_cache_dir() / "sdks" / f"{name}-{digest}"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            fresh = Path(scratch) / "installed"
            install(fresh)
            # Another run may have been faster; its is as good.
            with contextlib.suppress(OSError):
                fresh.rename(place)
    return place


def _install_python(lock: Path, folder: Path) -> None:
    uv = shutil.which("uv", path=Path(sys.executable).parent) or "uv"
    subprocess.run(
        [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder)], check=True
    )
    subprocess.run(
        [
            uv,
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--python",
            str(folder / "bin" / "python"),
            "--requirement",
            str(lock),
        ],
        check=True,
    )


def _install_node(files: list[Path], folder: Path) -> None:
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    subprocess.run(
        ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True
    )
