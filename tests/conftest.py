"""What every test has: asyncio, and no way out of this machine."""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from muster_proxy.embedded.command import prepare_weights
from muster_proxy.embedded.settings import EngineSettings
from muster_proxy.embedded.weights import default_cache_dir
from tests.postgres import running_postgres
from tests.stacks import Stack, muster_up

# A slow machine is no failure: nothing is asserted of how long a test takes.
hypothesis.settings.register_profile("muster", deadline=None)
hypothesis.settings.load_profile("muster")

_real_connect = socket.socket.connect


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse two tests of one name: run in several processes, only the first of them would be run."""
    doubles = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if doubles:
        raise pytest.UsageError(f"several tests have the same name: {', '.join(doubles)}")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """All of Muster runs on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def loopback_only() -> Iterator[None]:
    """Fail a test that reaches for an address outside this machine."""

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(
            ("127.", "::1")
        ):
            pytest.fail(f"a test reached for {address}")
        _real_connect(self, address)

    socket.socket.connect = connect  # type: ignore[method-assign]
    yield
    socket.socket.connect = _real_connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def weights() -> Path:
    """The real model's file; fetched once, before any test's time begins to count."""
    return prepare_weights(EngineSettings(), default_cache_dir())


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own; one for all tests, which make databases in it."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def stack(weights: Path) -> Iterator[Stack]:
    """Engine, proxy and agent on real weights, as `muster up` runs them; one for all tests."""
    assert weights.exists()
    with muster_up() as running:
        running.wait_for("ready after")
        yield running
