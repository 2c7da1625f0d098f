"""LangChain's `ChatOpenAI` as a client of the agent, by LangChain's own integration tests of chat models."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI

from muster_agent.agents.declarations import AgentsFile
from muster_agent.app import create_app
from muster_agent.settings import AgentSettings
from muster_agent.testing import CallTools, Say, scripted_agent, serving
from tests.proxy.sdks import installs
from tests.proxy.sdks.obliging import ObligingEngine

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

AGENTS = AgentsFile.model_validate({"agents": {"agent": {"openai_model": "muster-agent", "tools": {}}}})
REFUSED = {"test_structured_output_pydantic_2_v1"}
"""LangChain asks for this form by a tool of its own, whatever it is told; the agent takes none."""
MULTIPLY = CallTools([("calculator", {"expression": "23*7"})])


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter that has LangChain's tests."""
    return installs.python_of("langchain_suite")


@pytest.mark.parametrize("responses", [False, True])
async def test_chat_openai(*, responses: bool) -> None:
    """ChatOpenAI gets the text, whole and streamed, and no tool calls that it would have to make."""
    async with scripted_agent(MULTIPLY, Say("It is 161."), MULTIPLY, Say("It is 161.")) as agent:
        model: Any = await asyncio.to_thread(
            ChatOpenAI,
            model="muster-agent",
            base_url=f"{agent.url}/v1",
            api_key=lambda: "none",
            max_retries=0,
            use_responses_api=responses,
        )
        whole = await model.ainvoke("What is 23 times 7?")
        pieces = [piece async for piece in model.astream("What is 23 times 7?")]

    assert (whole.text, whole.tool_calls) == ("It is 161.", [])
    assert "".join(piece.text for piece in pieces) == "It is 161."
    assert not any(piece.tool_call_chunks for piece in pieces)


async def test_langchains_own_tests(python: Path, tmp_path: Path) -> None:
    """Each of LangChain's tests that is not about tools or media passes, over both of the APIs."""
    async with ObligingEngine() as engine:
        settings = AgentSettings(proxy=engine.url, database_url=f"sqlite:///{tmp_path}/agent.db")
        async with serving(await asyncio.to_thread(create_app, settings, AGENTS)) as url:
            program = Path(__file__).parent / "langchain_suite.py"
            printed = await installs.run(python, program, f"{url}/v1")
    ends = json.loads(printed.splitlines()[-1])

    assert {name.partition("::")[2] for name in ends["failed"]} == REFUSED
    assert len(ends["passed"]) == 50
