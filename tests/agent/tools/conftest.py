"""What the tests of the tools share."""

from collections.abc import Iterator

import pytest

from tests.postgres import running_postgres


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own, for all tests of a session."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url
