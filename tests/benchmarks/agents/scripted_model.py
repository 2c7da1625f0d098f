"""A model in a process of its own, whose replies are told it by what the user asks.

    python -m tests.benchmarks.agents.scripted_model --port PORT [--think-s 0]

A user's message is JSON: how many steps the run has, and the line that it is to write in its second step, if any. Every
step but the last calls a tool. Every word of a reply is the moment when the model sent it, as `t` and nanoseconds of
the system's monotonic clock, which all processes share.
"""

import argparse
import asyncio
import random
import re
import sys
import time
from dataclasses import asdict, dataclass

import orjson
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from muster_agent.testing import CallTools, ModelCall, Reply, Say, ScriptedModel
from muster_observability import server

CONTROL = "/benchmark"
"""Where the pace is set (`?think_s=2`) and the calls so far are told."""

SENT = re.compile(rb"t(\d{9,})")
"""The moment in a word."""

WORDS = 8
"""Of the last reply of a run; the others have one each."""


@dataclass(frozen=True)
class Asked:
    """What a user asks for.

    Attributes:
        steps: Model calls of the run.
        line: What its second step writes with the tool that changes the world; without it, it calculates.
    """

    steps: int
    line: str | None = None

    def message(self) -> dict[str, str]:
        """It as a message."""
        return {"role": "user", "content": orjson.dumps(asdict(self)).decode()}


def reply(call: ModelCall) -> Reply:
    """The model's reply in the step at which the conversation is."""
    last = max(at for at, (role, _) in enumerate(call.messages) if role == "user")
    asked = Asked(**orjson.loads(call.messages[last][1]))
    done = sum(role == "assistant" for role, _ in call.messages[last:])
    now = f"t{time.monotonic_ns()}"
    if done + 1 >= asked.steps:
        return Say(" ".join([now] * WORDS))
    if done == 1 and asked.line is not None:
        return CallTools([("append_line", {"line": asked.line})], now)
    return CallTools([("calculator", {"expression": f"{done} + 7"})], now)


class PacedModel:
    """The scripted model behind a while of thought.

    Args:
        think_s: Mean of the seconds before it answers; each time it is another, from none to twice the mean.
    """

    def __init__(self, think_s: float) -> None:
        self._think_s = think_s
        self._model = ScriptedModel(reply)
        self._random = random.Random(1)  # noqa: S311 - no secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application."""
        if scope["type"] == "http" and scope["path"] == CONTROL:
            await self._control(scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            await asyncio.sleep(self._random.uniform(0, 2 * self._think_s))
        await self._model(scope, receive, send)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, value = scope["query_string"].decode().partition("=")
        if name == "think_s":
            self._think_s = float(value)
        await JSONResponse({"calls": len(self._model.calls)})(scope, receive, send)


def main() -> int:
    """Serve it until told to stop."""
    options = argparse.ArgumentParser(prog="scripted_model", description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--think-s", type=float, default=0.0)
    chosen = options.parse_args()
    with server.bind(chosen.port, "--port") as listener:
        return server.serve(PacedModel(chosen.think_s), listener, part="model", drain_s=0)


if __name__ == "__main__":
    sys.exit(main())
