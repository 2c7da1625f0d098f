"""LangGraph's SDK for JavaScript as a client: one program that makes the calls and prints what its user gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from muster_agent.testing import CallTools, Hold, ModelCall, Reply, Say, scripted_agent
from tests.agent.runs.test_approval import AGENTS, done
from tests.agent.runs.tools import effects
from tests.proxy.sdks import installs

__all__ = ["done"]

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def modules() -> Path:
    """The SDK, installed."""
    return installs.node_modules(HERE)


def _reply(call: ModelCall) -> Reply:
    """The model asks for a mail where it is told to, thinks for ever where it is told to, and else says yes."""
    role, text = call.messages[-1]
    if role == "user" and "mail" in text:
        return CallTools([("send_mail", {"to": "ada"})])
    return Hold(Say("never")) if text == "hold" else Say("Yes it is.")


async def test_calls(modules: Path, tmp_path: Path, done: Path) -> None:
    """Every call gives its user what LangGraph's own server would."""
    (tmp_path / "node_modules").symlink_to(modules)
    program = tmp_path / "langgraph_sdk.mjs"
    program.write_bytes((HERE / "langgraph_sdk.mjs").read_bytes())
    async with scripted_agent(improvise=_reply, agents=AGENTS) as agent:
        found: dict[str, Any] = json.loads(
            await installs.run("node", program, json.dumps({"url": agent.url}))
        )

    assert found == EXPECTED
    assert effects(done) == ["ada", "ada"]


def _mode(*names: str) -> list[str]:
    return ["metadata", *names, "end"]


YES = ["ai", "Yes it is."]

EXPECTED: dict[str, Any] = {
    "assistant": "agent",
    "nodes": True,
    "schemas": "agent",
    "modes": {
        "values": _mode("values"),
        "updates": _mode("updates"),
        "messages": _mode("messages/metadata", "messages/partial"),
        "messages-tuple": _mode("messages"),
        "events": _mode("events"),
        "custom": _mode(),
        "debug": _mode("debug"),
        "tasks": _mode("tasks"),
        "checkpoints": _mode("checkpoints"),
    },
    "count": 9,
    "wait": YES,
    "join": YES,
    "stateless": [["human", "alone"], YES],
    "resumed": True,
    "last": "end",
    "cancelled": "interrupted",
    "cancelledAgain": 404,
    "question": {"to": "ada"},
    "asking": "interrupted",
    "answered": "Yes it is.",
    "history": 3,
    "parent": True,
    "next": [],
    "byHand": ["human", "by hand"],
    "copied": True,
    "found": [False, True],
    "item": {"what": "tea"},
    "items": ["likes"],
    "namespaces": [["notes", "ada"]],
    "noItem": None,
    "info": "object",
    "chat": _mode("values", "messages"),
    "kept": "of-the-client",
    "regenerated": ["human", "ai"],
    "sidebar": ["chat"],
    "rejected": YES,
    "live": ["Yes it is."],
    "output": 2,
    "interrupted": True,
    "liveQuestion": {"to": "ada"},
    "liveAnswer": "ai",
    "deleted": 404,
}
