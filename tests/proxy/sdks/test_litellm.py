"""litellm as a client, in an environment of its own: it wants another `openai` than the rest of the project."""

import json
from pathlib import Path

import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.sdks import installs
from tests.proxy.sdks.conftest import KEY, WORDS, Full

CALLS = [("weather", '{"city": "Rome"}'), ("weather", "{}")]
VECTORS = b'{"data": [{"index": 0, "object": "embedding", "embedding": [1.0, 2.0]}], "object": "list"}'


@pytest.fixture(scope="session")
def python() -> Path:
    """An interpreter that has litellm."""
    return installs.python_of("litellm_calls")


async def test_calls(python: Path, keyed_url: str, full: Full, engine: FakeVllm) -> None:
    """Every answer is read, and litellm raises for each fault the error that it has for it with OpenAI's API."""
    usual, tools = Reply(), Reply("", tool_calls=CALLS)
    engine.script(usual, usual, usual, tools, tools, Reply(raw=[VECTORS]), Reply(breaks_after=3))
    told = {"url": keyed_url, "full_url": full.url, "key": KEY, "model": engine.model}
    program = installs.HERE / "litellm_calls" / "calls.py"
    found = await installs.run(python, program, json.dumps(told), LITELLM_LOCAL_MODEL_COST_MAP="True")

    assert json.loads(found.splitlines()[-1]) == {
        "chat": ["".join(WORDS), len(WORDS)],
        "stream": "".join(WORDS),
        "stream with usage": [len(WORDS)],
        "tools": [[name, arguments] for name, arguments in CALLS],
        "tools streamed": "".join(arguments for _, arguments in CALLS),
        "embedding": [1.0, 2.0],
        "broken": ["MidStreamFallbackError", 500],
        "bad request": ["BadRequestError", 400],
        "unknown model": ["NotFoundError", 404],
        "wrong key": ["AuthenticationError", 401],
        "full": ["RateLimitError", 429],
    }
