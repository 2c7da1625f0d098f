"""Answers that the model of an engine gives, in the shapes of vLLM's."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from muster_batching.testing import EngineRequest
from muster_proxy.testing import made_text
from muster_proxy.testing.asked import Asked
from muster_proxy.testing.engine_run import EngineRun, Generation

_STREAM_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


@dataclass
class _Choice:
    """One of an answer's choices.

    Attributes:
        generation: How far it is.
        tokens: Its text, token by token; where it ends with `stop`, the last has none.
        sent: How many of its tokens have been sent.
    """

    generation: Generation
    tokens: list[str]
    sent: int = 0

    @property
    def finish_reason(self) -> str | None:
        """How it ended, once all of it is sent."""
        return self.generation.finish_reason if self.sent == len(self.tokens) else None

    def unsent(self) -> Iterator[str]:
        """Its new tokens, each counted as sent when it is given."""
        while self.sent < self.generation.tokens:
            self.sent += 1
            yield self.tokens[self.sent - 1]


@dataclass
class ModelledAnswer:
    """One HTTP request's answer: its prompts in the model, and what it made of them.

    Attributes:
        run: The engine.
        asked: The request.
        id: Of the answer, new to the engine.
        head: The fields with which every object of the answer begins, but for `object`.
    """

    run: EngineRun
    asked: Asked
    id: str
    head: dict[str, Any]
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _choices: list[_Choice] = field(default_factory=list[_Choice])

    async def play(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; being cancelled takes the prompts out of the engine at once."""
        try:
            self._begin()
            await (self._stream(send) if self.asked.is_stream else self._whole(scope, receive, send))
        finally:
            for choice in self._choices:
                self.run.abort(choice.generation)

    def _begin(self) -> None:
        for prompt, length in zip(self.asked.prompts, self.asked.lengths, strict=True):
            for number in range(self.asked.choices):
                choice = self._choice(prompt, number, length)
                self._choices.append(choice)
                self.run.begin(choice.generation)

    def _choice(self, prompt: str, number: int, length: int) -> _Choice:
        tokens = made_text.answer_tokens(prompt, number, length)
        if self.asked.finish_reason == "stop":
            tokens[-1] = ""
        request = EngineRequest(
            id=f"{self.id}-{len(self._choices)}",
            prompt_tokens=made_text.tokens_in(prompt),
            output_tokens=length,
            blocks=made_text.block_names(prompt + "".join(tokens), self.run.model.profile.block_size),
            priority=self.asked.priority,
        )
        return _Choice(
            Generation(request, self.asked.finish_reason, self._news, self.asked.is_stream), tokens
        )

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not all(choice.generation.is_complete for choice in self._choices):
            await self._next_news()
        body = {
            **self._head("chat.completion"),
            "choices": [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)],
            "usage": self._usage(),
        }
        await JSONResponse(body)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        await send(_STREAM_START)
        while not all(choice.finish_reason for choice in self._choices):
            await self._next_news()
            events = b"".join(self._events())
            if events:
                await send({"type": "http.response.body", "body": events, "more_body": True})
        await send({"type": "http.response.body", "body": self._last_events()})

    async def _next_news(self) -> None:
        await self._news.wait()
        self._news.clear()

    def _events(self) -> Iterator[bytes]:
        """An event for each new token, and one before each choice of a chat."""
        head = self._head("chat.completion.chunk")
        for index, choice in enumerate(self._choices):
            if self.asked.is_chat and choice.generation.tokens and not choice.sent:
                yield _event(head, _chat_piece(index, {"role": "assistant", "content": ""}, None))
            for token in choice.unsent():
                yield _event(head, self._piece(index, token, choice.finish_reason))

    def _last_events(self) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self.asked.has_usage:
            return done
        no_choices: list[dict[str, Any]] = []
        head = self._head("chat.completion.chunk")
        return _data({**head, "choices": no_choices, "usage": self._usage()}) + done

    def _piece(self, index: int, token: str, finish_reason: str | None) -> dict[str, Any]:
        if self.asked.is_chat:
            return _chat_piece(index, {"content": token} if token else {}, finish_reason)
        return {"index": index, "text": token, "logprobs": None, "finish_reason": finish_reason}

    def _whole_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.unsent())
        ending = {"logprobs": None, "finish_reason": choice.finish_reason, "stop_reason": None}
        if self.asked.is_chat:
            return {"index": index, "message": {"role": "assistant", "content": text}, **ending}
        return {"index": index, "text": text, **ending}

    def _usage(self) -> dict[str, Any]:
        asked = self.asked
        prompt_tokens = sum(made_text.tokens_in(prompt) for prompt in asked.prompts)
        completion_tokens = sum(choice.generation.tokens for choice in self._choices)
        firsts = self._choices[:: asked.choices]
        return {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens": completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": sum(choice.generation.cached_tokens for choice in firsts)
            },
        }

    def _head(self, chat_object: str) -> dict[str, Any]:
        kind = chat_object if self.asked.is_chat else "text_completion"
        return {"id": self.id, "object": kind, **self.head}


def _chat_piece(index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(head: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return _data({**head, "choices": [choice]})


def _data(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
