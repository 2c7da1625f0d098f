"""Answers that a test has written down beforehand."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from muster_proxy.testing import asked as asked_for
from muster_proxy.testing import dialects
from muster_proxy.testing.asked import Asked
from muster_proxy.testing.spoken import Head, Part, Piece, Spoken, Used


@dataclass(frozen=True)
class Reply:
    """What the engine does with one request.

    Attributes:
        text: The answer; a stream gives it word by word.
        finish_reason: How it ends; calls end with `tool_calls` in any case.
        tool_calls: Calls after the text, each a tool's name and its arguments as JSON; alone if `text` is empty.
        status: Of the HTTP answer; anything but 200 answers with `error`.
        error: The body of an error.
        headers: More headers of an error.
        raw: The answer's body, in these pieces, in place of what `text` would give.
        content_type: Of a raw answer.
        release: The first byte waits for it.
        breaks_after: Pieces after which the connection is cut; 0 cuts it before the answer's head.
        fails_after: Pieces after which a stream ends with `error`, as vLLM ends one whose engine has failed.
        pauses_after: Pieces after which a stream waits for `resume`.
        resume: See `pauses_after`.
    """

    text: str = "Hello there, how are you?"
    finish_reason: str = "stop"
    tool_calls: Sequence[tuple[str, str]] = ()
    status: int = 200
    error: Mapping[str, Any] | bytes = field(default_factory=dict[str, Any])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    raw: Sequence[bytes] | None = None
    content_type: str = "application/json"
    release: asyncio.Event | None = None
    breaks_after: int | None = None
    fails_after: int | None = None
    pauses_after: int | None = None
    resume: asyncio.Event | None = None

    @property
    def spoken(self) -> Spoken:
        """The answer, word by word; its last token has no text, as the one with which a model ends."""
        words = [word for word in self.text.replace(" ", "\0 ").split("\0") if word]
        calls = [Part((*_halves(arguments),), name) for name, arguments in self.tool_calls]
        if calls:
            return Spoken(((Part((*words,)),) if words else ()) + (*calls,), "tool_calls")
        return Spoken((Part((*words, "")),), self.finish_reason)


class CutError(Exception):
    """Leaves the answer unfinished: the server then cuts the connection."""


@dataclass(frozen=True)
class Stage:
    """Where a reply is played.

    Attributes:
        asked: The request; None on a route that does not generate.
        head: What all of the answer's objects say.
        plain: The body of a good answer on a route that does not generate.
        cut: Closes the connection at once.
    """

    asked: Asked | None
    head: Head
    plain: Mapping[str, Any]
    cut: Callable[[Scope], None]


class ScriptedAnswer:
    """Plays a reply."""

    def __init__(self, reply: Reply, stage: Stage) -> None:
        self._reply = reply
        self._stage = stage

    async def play(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        reply = self._reply
        if reply.release is not None:
            await reply.release.wait()
        if reply.breaks_after == 0:
            self._stage.cut(scope)
            return
        await self._answer()(scope, receive, send)

    def _answer(self) -> Response:
        reply, asked = self._reply, self._stage.asked
        if reply.status != 200:  # noqa: PLR2004  HTTP's own number
            error = reply.error if isinstance(reply.error, bytes) else json.dumps(reply.error).encode()
            return Response(error, reply.status, dict(reply.headers), "application/json")
        if reply.raw is not None:
            return StreamingResponse(self._paced(reply.raw), media_type=reply.content_type)
        if asked is None:
            return JSONResponse(self._stage.plain)
        if asked.is_stream:
            return StreamingResponse(self._paced(self._events(asked)), media_type="text/event-stream")
        return self._whole(asked)

    async def _paced(self, pieces: Sequence[bytes]) -> AsyncGenerator[bytes]:
        for number, piece in enumerate(pieces):
            if number == self._reply.breaks_after:
                raise CutError
            if number == self._reply.pauses_after and self._reply.resume is not None:
                await self._reply.resume.wait()
            yield piece
        if len(pieces) == self._reply.fails_after:  # the dialect has no words for it
            raise CutError

    def _whole(self, asked: Asked) -> Response:
        spoken = self._spoken(asked)
        return JSONResponse(dialects.of(asked, self._stage.head).whole(spoken, _used(asked, spoken)))

    def _events(self, asked: Asked) -> list[bytes]:
        """The stream's events; where it fails, what comes in place of the rest."""
        dialect = dialects.of(asked, self._stage.head)
        spoken = self._spoken(asked)
        events = dialect.begin()
        for index, piece in _by_turns(spoken):
            events += dialect.grow(index, spoken[index], piece)
        if self._reply.fails_after is None:
            return [*events, *dialect.end(spoken, _used(asked, spoken))]
        return [*events[: self._reply.fails_after], *dialect.fail(_mapping(self._reply.error))]

    def _spoken(self, asked: Asked) -> list[Spoken]:
        return [self._choice(asked)] * (len(asked.prompts) * asked.choices)

    def _choice(self, asked: Asked) -> Spoken:
        """What the reply says, or the call that the request insists on where the reply is not a test's own."""
        if asked.tool is None or self._reply != Reply():
            return self._reply.spoken
        call = (asked.tool["name"], asked_for.arguments(asked.tool))
        spoken = Reply("", tool_calls=[call]).spoken
        return Spoken(spoken.parts, "stop") if asked.is_named else spoken


def _mapping(error: Mapping[str, Any] | bytes) -> Mapping[str, Any]:
    return json.loads(error) if isinstance(error, bytes) else error


def _halves(arguments: str) -> list[str]:
    middle = (len(arguments) + 1) // 2
    return [half for half in (arguments[:middle], arguments[middle:]) if half]


def _used(asked: Asked, spoken: Sequence[Spoken]) -> Used:
    made = sum(1 for choice in spoken for piece in choice.pieces() if piece.text)
    return Used(asked.prompt_tokens, made)


def _by_turns(spoken: Sequence[Spoken]) -> list[tuple[int, Piece]]:
    """All choices' tokens, the first of each, then the second of each, and so on; the choices are alike."""
    rows = zip(*(choice.pieces() for choice in spoken), strict=True)
    return [(index, piece) for row in rows for index, piece in enumerate(row)]
