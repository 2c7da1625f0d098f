"""What is refused when a service starts, and what a list of tools to ask about does."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from muster_agent.agents.declarations import AgentsFile
from muster_agent.app import Opening, create_app
from muster_agent.settings import AgentSettings
from muster_agent.testing import CallTools, Say
from muster_agent.tools.complaints import ToolkitError
from tests.agent.agents.asking import new_thread, run
from tests.agent.agents.conftest import Serve
from tests.agent.agents.tools import TOOLS
from tests.agent.runs.tools import effects

MAIL = "tests.agent.runs.tools:send_mail"


Refusal = Callable[[dict[str, Any]], Awaitable[str | None]]


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Starts the application with these agents, and tells why it does not start."""

    async def started(agents: dict[str, Any]) -> str | None:
        settings = AgentSettings(proxy="http://127.0.0.1:9", database_url=f"sqlite:///{tmp_path}/agent.db")
        declared, opening = AgentsFile.model_validate({"agents": agents}), Opening()
        app = await asyncio.to_thread(create_app, settings, declared, opening)
        with pytest.raises(ToolkitError):
            async with app.router.lifespan_context(app):
                pass
        return opening.problem

    return started


async def test_two_tools_of_one_name(refusal: Refusal) -> None:
    """An agent with two tools that the model could not tell apart does not start."""
    tools = {"calculator": True, "own": [MAIL, "muster_agent.tools.calculator:calculator"]}
    told = await refusal({"agent": {"tools": tools}})
    assert told == "two tools are named calculator: rename one, or leave one out"


@pytest.mark.parametrize("first", [{"openai_model": "b"}, {}])
async def test_two_agents_of_one_model(refusal: Refusal, first: dict[str, Any]) -> None:
    """Two agents that OpenAI's clients could not tell apart do not start, whether the name is given or follows."""
    name = first.get("openai_model", "a")
    told = await refusal({"a": first, "b": {"openai_model": name}})
    assert told == f"two agents have the openai_model {name}: give each its own"


@pytest.mark.parametrize("listed", [["send_mial"], ["send_mail", "delete"], [""]])
async def test_a_listed_tool_that_is_none(refusal: Refusal, listed: list[str]) -> None:
    """A list of tools to ask about that names none of the agent's does not start: nobody would be asked."""
    declared = {"tools": {"own": [MAIL, f"{TOOLS}:note"]}, "approval": {"tools": listed}}
    told = await refusal({"writer": declared})
    assert told == (
        f"approval.tools of the agent writer names {listed[-1]}, which is none of its tools: send_mail, note"
    )


async def test_listed_tools_ask(serve: Serve, done: Path) -> None:
    """A list names the tools that ask, whether they change the world or not, in place of those that change it."""
    declared = {"tools": {"own": [MAIL, f"{TOOLS}:note"]}, "approval": {"tools": ["note"]}}
    mail, note = CallTools([("send_mail", {"to": "ada"})]), CallTools([("note", {"text": "a"})])
    async with serve(declared, mail, note, Say("Done.")) as (_agent, client):
        values = await run(client, await new_thread(client))

    assert effects(done) == ["ada"]
    (question,) = values["__interrupt__"]
    assert [call["name"] for call in question["value"]["action_requests"]] == ["note"]
