"""What clients do of their own accord when a run fails: OpenAI's SDKs send a failed request up to twice more."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from muster_agent.testing import CallTools, Hold, ModelCall, Refuse, Reply, Say, scripted_agent
from tests.agent.runs.tools import EFFECTS, effects

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

MAIL = CallTools([("send_mail", {"to": "ada"})])
BROKEN = Refuse(500, {"message": "?", "type": "server_error"})
FULL = Refuse(429, {"message": "full", "type": "rate_limit_error"}, {"retry-after": "0"})


def _agents(**fields: Any) -> dict[str, Any]:
    tools = {"own": ["tests.agent.runs.tools:send_mail"]}
    return {
        "agent": {"openai_model": "muster-agent", "tools": tools, "approval": {"tools": "none"}, **fields}
    }


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tool writes what it does."""
    path = tmp_path / "effects"
    monkeypatch.setenv(EFFECTS, str(path))
    return path


@pytest.mark.parametrize(
    ("then", "limits"), [(BROKEN, {}), (Hold(Say("late")), {"limits": {"run_timeout_s": 0.5}})]
)
async def test_what_was_done_is_not_done_again(done: Path, then: Reply, limits: dict[str, Any]) -> None:
    """A run that fails or takes too long after a tool has run is not asked for again by the SDK."""

    def improvise(call: ModelCall) -> Reply:
        return then if call.messages[-1][0] == "tool" else MAIL

    async with (
        scripted_agent(improvise=improvise, agents=_agents(**limits)) as agent,
        openai.AsyncOpenAI(base_url=f"{agent.url}/v1", api_key="none") as client,
    ):
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(
                model="muster-agent", messages=[{"role": "user", "content": "Write."}]
            )
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="muster-agent", input="Write.")

    assert effects(done) == ["ada", "ada"]
    assert len(agent.model.calls) == 4


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_was_turned_away_is_asked_again(ask: Ask, *, streamed: bool) -> None:
    """The client may repeat a request whose first call the proxy did not take, and no other."""
    overloaded = Refuse(503, {"message": "full", "type": "server_error"})
    async with scripted_agent(FULL, overloaded, BROKEN) as agent:
        answers = [await ask(agent, "?", stream=streamed) for _ in range(3)]

    told = [(answer.status_code, answer.headers.get("x-should-retry")) for answer in answers]
    assert told == [(429, None), (503, None), (502, "false")]
