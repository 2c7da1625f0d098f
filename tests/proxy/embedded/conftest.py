"""What the tests of the embedded engine share: an environment that the machine's own settings do not disturb."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

_SETTINGS = ("PIP_", "MUSTER_", "HF_", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def environment(_no_proxy: None, tmp_path: Path) -> Mapping[str, str]:
    """This process's environment without what would lead pip or Muster elsewhere, and with a cache of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "MUSTER_CACHE_DIR": str(tmp_path / "cache")}
    return clean | own | {"PYTHONPATH": os.pathsep.join(sys.path)}
