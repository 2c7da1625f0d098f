"""Answers to HTTP requests from the modelled engine, whole or token by token."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from muster_batching.testing import EngineRequest
from muster_proxy.testing import asked as asked_for
from muster_proxy.testing import dialects, made_text
from muster_proxy.testing.asked import Asked
from muster_proxy.testing.engine_run import EngineRun, Generation
from muster_proxy.testing.spoken import Head, Part, Piece, Spoken, Used

STREAM_START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


@dataclass
class _Choice:
    """One of an answer's choices.

    Attributes:
        generation: How far it is.
        spoken: What it will be in the end.
        pieces: Its tokens; where it ends with `stop`, the last has no text.
        sent: How many of its tokens have been sent.
    """

    generation: Generation
    spoken: Spoken
    pieces: Sequence[Piece]
    sent: int = 0

    @property
    def is_sent(self) -> bool:
        """Whether all of it is sent."""
        return self.sent == len(self.pieces)

    def unsent(self) -> Iterator[Piece]:
        """Its new tokens, each counted as sent when it is given."""
        while self.sent < self.generation.tokens:
            self.sent += 1
            yield self.pieces[self.sent - 1]


@dataclass
class ModelledAnswer:
    """One HTTP request's answer: its prompts in the model, and what it made of them.

    Attributes:
        run: The engine.
        asked: The request.
        head: What all of the answer's objects say; its number is new to the engine.
        max_model_len: The most tokens that a prompt and its answer have together.
    """

    run: EngineRun
    asked: Asked
    head: Head
    max_model_len: int
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _choices: list[_Choice] = field(default_factory=list[_Choice])

    def __post_init__(self) -> None:
        self._dialect = dialects.of(self.asked, self.head)

    async def play(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; being cancelled takes the prompts out of the engine at once."""
        try:
            self._begin()
            await (self._stream(send) if self.asked.is_stream else self._whole(scope, receive, send))
        finally:
            for choice in self._choices:
                self.run.abort(choice.generation)

    def _begin(self) -> None:
        for prompt in self.asked.prompts:
            for number in range(self.asked.choices):
                choice = self._choice(prompt, self._spoken(prompt, number))
                self._choices.append(choice)
                self.run.begin(choice.generation)

    def _spoken(self, prompt: str, number: int) -> Spoken:
        room = self.asked.room(prompt, self.max_model_len)
        if self.asked.tool is not None:
            return _called(self.asked, room)
        tokens = made_text.answer_tokens(prompt, number, room)
        if self.asked.is_free:
            tokens[-1] = ""
        return Spoken((Part(tuple(tokens)),), "stop" if self.asked.is_free else "length")

    def _choice(self, prompt: str, spoken: Spoken) -> _Choice:
        pieces = spoken.pieces()
        text = prompt + "".join(piece.text for piece in pieces)
        request = EngineRequest(
            id=f"{self.head.number}-{len(self._choices)}",
            prompt_tokens=made_text.tokens_in(prompt),
            output_tokens=len(pieces),
            blocks=made_text.block_names(text, self.run.model.profile.block_size),
            priority=self.asked.priority,
        )
        reason = "length" if spoken.finish_reason == "length" else "stop"
        return _Choice(Generation(request, reason, self._news, self.asked.is_stream), spoken, pieces)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not all(choice.generation.is_complete for choice in self._choices):
            await self._next_news()
        body = self._dialect.whole([choice.spoken for choice in self._choices], self._used())
        await JSONResponse(body)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        await send(STREAM_START)
        await _send_on(send, self._dialect.begin())
        while not all(choice.is_sent for choice in self._choices):
            await self._next_news()
            await _send_on(send, self._events())
        last = self._dialect.end([choice.spoken for choice in self._choices], self._used())
        await send({"type": "http.response.body", "body": b"".join(last)})

    async def _next_news(self) -> None:
        await self._news.wait()
        self._news.clear()

    def _events(self) -> list[bytes]:
        return [
            event
            for index, choice in enumerate(self._choices)
            for piece in choice.unsent()
            for event in self._dialect.grow(index, choice.spoken, piece)
        ]

    def _used(self) -> Used:
        completion = sum(choice.generation.tokens for choice in self._choices)
        firsts = self._choices[:: self.asked.choices]
        cached = sum(choice.generation.cached_tokens for choice in firsts)
        return Used(self.asked.prompt_tokens, completion, cached)


def _called(asked: Asked, room: int) -> Spoken:
    """A call of the tool that must be called; vLLM ends it with `stop` where the request named the tool."""
    assert asked.tool is not None  # noqa: S101  the caller's condition, for the type checker
    tokens = made_text.text_tokens(asked_for.arguments(asked.tool))
    if room < len(tokens):  # vLLM gives what is no whole call as text
        return Spoken((Part(tuple(tokens[:room])),), "length")
    return Spoken((Part(tuple(tokens), asked.tool["name"]),), "stop" if asked.is_named else "tool_calls")


async def _send_on(send: Send, events: Sequence[bytes]) -> None:
    if events:
        await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
