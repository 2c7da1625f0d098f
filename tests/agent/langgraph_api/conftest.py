"""What the tests of LangGraph's API share with those of runs: a service on a database.

What touches the database in a way of its own is tried on both kinds; what is about the wire alone, on SQLite.
"""

from pathlib import Path

import pytest

from tests.agent.runs.conftest import empty_database, postgres_database, start

__all__ = ["postgres_database", "start"]

_ON_BOTH = {
    "test_forged",
    "test_protocol_v2",
    "test_run_routes",
    "test_store_routes",
    "test_tenants",
    "test_thread_routes",
    "test_unusable_states",
}


def _chooses_itself(metafunc: pytest.Metafunc) -> bool:
    marks = metafunc.definition.iter_markers("parametrize")
    return any("database_url" in str(mark.args[0]) for mark in marks)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the kinds of database for a test."""
    if "database_url" not in metafunc.fixturenames or _chooses_itself(metafunc):
        return
    is_on_both = metafunc.definition.path.stem in _ON_BOTH
    metafunc.parametrize(
        "database_url", ["sqlite", "postgresql"] if is_on_both else ["sqlite"], indirect=True
    )


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of the kind that was chosen."""
    return empty_database(request, tmp_path)
