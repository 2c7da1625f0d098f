"""OpenAI's SDK for Node as a client: one program that makes the calls and prints what its user gets."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.sdks import installs
from tests.proxy.sdks.conftest import KEY, WORDS, Full

TEXT = "".join(WORDS)
VECTORS = b'{"data": [{"index": 0, "object": "embedding", "embedding": "AACAPwAAAEA="}], "object": "list"}'
CALLS = [["weather", '{"city": "Rome"}'], ["weather", "{}"]]


@pytest.fixture(scope="session")
def modules() -> Path:
    """OpenAI's SDK for Node, installed."""
    return installs.node_modules()


async def _calls(modules: Path, folder: Path, **told: str) -> dict[str, Any]:
    """What the program prints; it is run beside its packages, as Node looks for them there."""
    (folder / "node_modules").symlink_to(modules)
    program = folder / "calls.mjs"
    program.write_bytes((installs.HERE / "node" / "calls.mjs").read_bytes())
    return json.loads(await installs.run("node", program, json.dumps(told)))


def _failure(name: str, status: int | None, code: str, param: str | None = None) -> dict[str, Any]:
    failure = {"name": name, "isOurs": True, "code": code, "param": param, "hasId": True, "saysWhen": False}
    return failure if status is None else {**failure, "status": status}


async def test_calls(modules: Path, tmp_path: Path, keyed_url: str, full: Full, engine: FakeVllm) -> None:
    """Every call gives its user what OpenAI's own API would, and each fault the error that stands for it."""
    usual = Reply()
    vectors = Reply(raw=[VECTORS])
    tools = Reply("", tool_calls=[(name, arguments) for name, arguments in CALLS])
    broken = Reply(breaks_after=3)
    paused = Reply(pauses_after=3, resume=asyncio.Event())
    engine.script(usual, usual, usual, tools, usual, vectors, usual, usual, broken, paused)
    found = await _calls(modules, tmp_path, url=keyed_url, fullUrl=full.url, key=KEY, model=engine.model)

    assert found == {
        "chat": {"text": TEXT, "hasId": True},
        "stream": {"text": TEXT, "choices": [1], "usages": 0},
        "streamWithUsage": {"text": TEXT, "last": [], "tokens": len(WORDS)},
        "tools": CALLS,
        "completion": TEXT,
        "embeddings": [[1, 2]],
        "response": TEXT,
        "responseStream": TEXT,
        "models": [engine.model],
        "broken": _failure("APIError", None, "upstream_stream_error"),
        "seenBeforeTheBreak": [None, None, None],
        "badRequest": _failure("BadRequestError", 400, "invalid_value", "max_tokens"),
        "unknownModel": _failure("NotFoundError", 404, "model_not_found", "model"),
        "wrongKey": _failure("AuthenticationError", 401, "invalid_api_key"),
        "full": _failure("RateLimitError", 429, "queue_full") | {"saysWhen": True},
    }
    await engine.aborted.acquire()
