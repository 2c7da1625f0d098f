"""What the tests of LangGraph's API share with those of runs: a service on either database."""

from tests.agent.runs.conftest import database_url, postgres_database, postgres_url, start

__all__ = ["database_url", "postgres_database", "postgres_url", "start"]
