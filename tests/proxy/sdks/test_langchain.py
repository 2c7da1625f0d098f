"""LangChain's `ChatOpenAI` as a client, by LangChain's own integration tests of chat models."""

import json
from pathlib import Path

import pytest

from tests.proxy.conftest import Proxied
from tests.proxy.sdks import installs
from tests.proxy.sdks.obliging import ObligingEngine

SKIPPED = {
    "test_anthropic_inputs",
    "test_audio_inputs",
    "test_image_inputs",
    "test_image_tool_message",
    "test_pdf_inputs",
    "test_pdf_tool_message",
    "test_stream_time",
}
"""What LangChain tests of models that read media, which its tests fetch from elsewhere, or take Anthropic's messages;
and a benchmark on answers recorded before."""


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter that has LangChain's tests."""
    return installs.python_of("langchain_suite")


async def test_langchains_own_tests(python: Path, proxied: Proxied) -> None:
    """Each of LangChain's tests passes, over chat completions and over responses."""
    async with (
        ObligingEngine() as engine,
        ObligingEngine("another-model") as other,
        proxied(engine.url, other.url) as client,
    ):
        told = {"url": str(client.base_url), "model": engine.model, "other": other.model}
        program = installs.HERE / "langchain_suite" / "suite.py"
        printed = await installs.run(python, program, json.dumps(told))
    ends = json.loads(printed.splitlines()[-1])

    assert ends["failed"] == {}
    assert {name.partition("::")[2] for name in ends["skipped"]} == SKIPPED
    assert len(ends["passed"]) == 86
