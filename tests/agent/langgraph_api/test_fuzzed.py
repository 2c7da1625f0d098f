"""Requests made up from `/openapi.json` (schemathesis): whatever they are, the service is not at a loss."""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anyio.from_thread
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error

from muster_agent.app import create_app
from muster_agent.settings import AgentSettings
from muster_agent.testing import Say, scripted_agent

# Their answers last as long as a run or a connection; what they read is read by other routes too.
ENDLESS = ("/stream", "/stream/events")


def _document() -> dict[str, Any]:
    """The document without OpenAI's routes, which are tested by themselves."""
    settings = AgentSettings(proxy="http://127.0.0.1:9", database_url="sqlite:///unused.db")
    document = create_app(settings).openapi()
    kept = {
        path: methods
        for path, methods in document["paths"].items()
        if not path.startswith("/v1") and not (path.startswith("/threads") and path.endswith(ENDLESS))
    }
    return {**document, "paths": kept}


@contextlib.asynccontextmanager
async def _served() -> AsyncGenerator[str]:
    async with scripted_agent(improvise=lambda _: Say("Hi.")) as agent:
        yield agent.url


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The service in a thread of its own: schemathesis sends its requests from this one."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_served()) as url,
    ):
        yield url


schema = schemathesis.openapi.from_dict(_document())


# The service draws random numbers beside Hypothesis, which takes them for its strategies'.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@schema.parametrize()  # pyright: ignore[reportUntypedFunctionDecorator]  schemathesis has no type for it
@hypothesis.settings(max_examples=10, derandomize=True, deadline=None)
def test_no_request_is_too_much(case: schemathesis.Case[Any], served: str) -> None:
    """Whatever is sent, the answer is no server error, and each 4xx is an error in the API's own shape."""
    answer = case.call_and_validate(base_url=served, checks=[not_a_server_error])
    assert answer.headers["x-request-id"]
    if 400 <= answer.status_code < 500:
        assert set(answer.json()) == {"detail"}
