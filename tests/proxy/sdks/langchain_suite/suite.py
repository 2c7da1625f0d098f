"""LangChain's own integration tests of a chat model, run against a proxy; prints how each ended, as JSON.

It runs in an environment of its own (`installs.py`): `suite.py '{"url": …, "model": …, "other": …}'`.
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

TOLD = "SUITE_TOLD"


class _Suite(ChatModelIntegrationTests):  # pyright: ignore[reportUntypedBaseClass]  as above
    """What is not said here holds by LangChain's default: tools, a choice among them, usage, forms of answers."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        told = json.loads(os.environ[TOLD])
        to = {"model": told["model"], "base_url": f"{told['url']}/v1", "api_key": "none", "max_retries": 0}
        # ChatOpenAI asks for a stream's usage by itself only where it talks to OpenAI.
        return {**to, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return json.loads(os.environ[TOLD])["other"]


class TestChatCompletions(_Suite):
    """`/v1/chat/completions`."""


class TestResponses(_Suite):
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


def main() -> None:
    """Run the suite."""
    os.environ[TOLD] = sys.argv[1]
    ends = _Ends()
    settings = {
        "asyncio_mode": "auto",
        # ChatOpenAI keeps one HTTP client for all its models.
        "asyncio_default_test_loop_scope": "session",
        "asyncio_default_fixture_loop_scope": "session",
    }
    options = ["--quiet", "--noconftest", "--timeout=60", "-p", "no:cacheprovider", "-c", os.devnull]
    options += [f"--override-ini={name}={value}" for name, value in settings.items()]
    pytest.main([__file__, *options, "--rootdir", os.curdir], plugins=[ends])
    sys.stdout.write("\n" + json.dumps(ends.noted))


if __name__ == "__main__":
    main()
