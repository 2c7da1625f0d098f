"""OpenAI's SDK for Node as an agent's client: one program that makes the calls and prints what its user gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from muster_agent.testing import CallTools, ModelCall, Reply, Say, scripted_agent
from tests.proxy.sdks import installs

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def modules() -> Path:
    """The SDK, installed."""
    return installs.node_modules()


def _reply(call: ModelCall) -> Reply:
    """The model calculates where it is told to, and else says how much the user has said."""
    role, text = call.messages[-1]
    if role == "user" and text == "calculate":
        return CallTools([("calculator", {"expression": "23 * 7"})])
    return (
        Say("It is 161 .") if role == "tool" else Say(str([role for role, _ in call.messages].count("user")))
    )


async def test_calls(modules: Path, tmp_path: Path) -> None:
    """Every call gives its user what OpenAI's own API would, with the agent's tools used on the way."""
    (tmp_path / "node_modules").symlink_to(modules)
    program = tmp_path / "openai_node.mjs"
    program.write_bytes((HERE / "openai_node.mjs").read_bytes())
    async with scripted_agent(improvise=_reply) as agent:
        found: dict[str, Any] = json.loads(
            await installs.run("node", program, json.dumps({"url": agent.url}))
        )

    assert found == {
        "models": ["muster-agent"],
        "chat": {"text": "It is 161 .", "ends": "stop"},
        "stream": {"text": "It is 161 .", "calls": 0, "hasUsage": True},
        "response": {"text": "It is 161 .", "items": ["reasoning", "message"], "status": "completed"},
        "next": "2",
        "responseStream": {"first": "response.created", "last": "response.completed", "text": "It is 161 ."},
        "conversation": "2",
        "kept": "It is 161 .",
        "unknownModel": ["NotFoundError", 404, "model_not_found"],
    }
