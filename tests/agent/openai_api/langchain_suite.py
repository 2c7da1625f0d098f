"""LangChain's own tests of a chat model, run against the agent as a model; prints how each ended, as JSON.

It runs in the environment of `tests/proxy/sdks/langchain_suite`: `langchain_suite.py URL`.
"""

import json
import os
import sys
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import (  # pyright: ignore[reportMissingImports]  see above
    ChatModelIntegrationTests,
)

_URL = "AGENT_URL"
_SETTINGS = {
    "asyncio_mode": "auto",
    # ChatOpenAI keeps one HTTP client for all its models.
    "asyncio_default_test_loop_scope": "session",
    "asyncio_default_fixture_loop_scope": "session",
}


class _Agent(ChatModelIntegrationTests):  # pyright: ignore[reportUntypedBaseClass]  as above
    """The agent runs its own tools, and takes none from its clients."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        to = {"model": "muster-agent", "base_url": os.environ[_URL], "api_key": "none", "max_retries": 0}
        # ChatOpenAI asks for a stream's usage by itself only where it talks to OpenAI.
        return {**to, "stream_usage": True}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestChatCompletions(_Agent):
    """`/v1/chat/completions`."""


class TestResponses(_Agent):
    """`/v1/responses`."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """The model, by the other API."""
        return {**super().chat_model_params, "use_responses_api": True}


class _Ends:
    """Notes how each test ends."""

    def __init__(self) -> None:
        self.noted: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.partition("::")[2]
            self.noted[report.outcome][name] = report.longreprtext[-500:]


if __name__ == "__main__":
    os.environ[_URL] = sys.argv[1]
    ends = _Ends()
    options = ["--quiet", "--noconftest", "--timeout=60", "-p", "no:cacheprovider", "-c", os.devnull]
    options += [f"--override-ini={name}={value}" for name, value in _SETTINGS.items()]
    pytest.main([__file__, *options, "--rootdir", os.curdir], plugins=[ends])
    sys.stdout.write("\n" + json.dumps(ends.noted))
