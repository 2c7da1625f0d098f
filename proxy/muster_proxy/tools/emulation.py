"""Makes a chat completion with tools out of one without, in both directions.

To the engine goes a plain conversation with a `response_format`; back to the client go `tool_calls`, unary
or streamed, as an engine with a tool parser would give them.
"""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from muster_proxy import sse
from muster_proxy.failures import Reason, RequestError
from muster_proxy.tools import grammar, prompt
from muster_proxy.tools.reply import Arguments, CallBegun, Piece, ReplyReader, Text
from muster_proxy.tools.stops import StopText
from muster_proxy.wire import Call, ChatRequest, Function, NamedChoice

# What the engine must not see: it would act on the tools, stop inside the frame of a reply, or give the
# probabilities of the frame's tokens.
_KEPT_BACK = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "stop",
    "logprobs",
    "top_logprobs",
    "response_format",
)


class ToolEmulation:
    """The emulation of one request's tools.

    Args:
        call: The request.
    """

    def __init__(self, call: Call) -> None:
        request = call.chat
        self._call = call
        self._is_named = isinstance(request.tool_choice, NamedChoice)
        self._functions = _callable(request)
        self._answer_name = _free_name({tool.function.name for tool in request.tools or ()})
        self._must_call = request.tool_choice == "required" or self._is_named

    @classmethod
    def of(cls, call: Call) -> Self | None:
        """The emulation that a request needs, or None where it has nothing to do with tools.

        Raises:
            RequestError: The request uses `functions`, which OpenAI has replaced by `tools`.
        """
        request = call.chat
        if "functions" in call.fields:
            raise RequestError(
                Reason.INVALID_VALUE, "Use tools: this model does not take functions.", "functions"
            )
        speaks_of_tools = any(
            message.tool_calls or message.role in ("tool", "function") for message in request.messages
        )
        return cls(call) if request.tools or speaks_of_tools else None

    def body(self, changes: Mapping[str, Any], removals: Collection[str] = ()) -> bytes:
        """The request as the engine gets it.

        Args:
            changes: Fields to set besides.
            removals: Fields to take out.

        Raises:
            RequestError: A value in it is nested too deeply to be written again.
        """
        try:
            fields = {name: value for name, value in self._fields().items() if name not in removals}
            return orjson.dumps(fields | dict(changes))
        except (orjson.JSONEncodeError, RecursionError):
            raise RequestError(Reason.INVALID_VALUE, "A value is nested too deeply.") from None

    def _fields(self) -> dict[str, Any]:
        request = self._call.chat
        parallel = request.parallel_tool_calls is not False and not self._is_named and bool(self._functions)
        answer_name = None if self._must_call else self._answer_name
        told = prompt.instructions(self._functions, answer_name=answer_name, parallel=parallel)
        schema = grammar.reply_schema(
            self._functions,
            answer_name=answer_name,
            answer_format=request.response_format,
            parallel=parallel,
        )
        fields = {name: value for name, value in self._call.fields.items() if name not in _KEPT_BACK}
        fields["messages"] = prompt.conversation(fields["messages"], told, self._answer_name)
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": schema},
        }
        return fields

    def answer(self, body: bytes) -> bytes:
        """The engine's whole answer as the client gets it.

        Raises:
            KeyError, TypeError, IndexError: The answer is no chat completion.
        """
        completion = orjson.loads(body)
        for choice in completion["choices"]:
            reply = self.new_reply()
            text: str = choice["message"].get("content") or ""
            pieces = reply.feed(text) + reply.finish(choice["finish_reason"])
            choice["message"] |= _message(pieces)
            choice["finish_reason"] = reply.finish_reason
            choice["logprobs"] = None
        return orjson.dumps(completion)

    def stream(self) -> "StreamEmulation":
        """A rewriter of the engine's events."""
        return StreamEmulation(self)

    def new_reply(self) -> "_Reply":
        """The state of one choice of the answer."""
        stop = self._call.chat.stop
        stops = [stop] if isinstance(stop, str) else stop or []
        return _Reply(ReplyReader(self._answer_name), StopText(stops), is_named=self._is_named)


class StreamEmulation:
    """Rewrites an event stream.

    Args:
        tools: The emulation of the request that it answers.
    """

    def __init__(self, tools: ToolEmulation) -> None:
        self._tools = tools
        self._replies: dict[int, _Reply] = {}

    def feed(self, events: bytes) -> bytes:
        """The client's events for a run of the engine's.

        Raises:
            orjson.JSONDecodeError, KeyError, TypeError: The events are no chat completion chunks.
        """
        return b"".join(
            sse.DONE if data == b"[DONE]" else self._chunk(orjson.loads(data)) for data in sse.data_of(events)
        )

    def _chunk(self, chunk: dict[str, Any]) -> bytes:
        choices = chunk["choices"]
        if not choices:  # the usage
            return _event(chunk)
        usage = chunk.pop("usage", None)
        deltas = [each for choice in choices for each in self._choices(choice)]
        out = [chunk | {"choices": [choice]} for choice in deltas]
        if usage is not None and out:
            out[-1] |= {"usage": usage}
        return b"".join(map(_event, out))

    def _choices(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        index: int = choice["index"]
        reply = self._replies.get(index)
        if reply is None:
            reply = self._replies[index] = self._tools.new_reply()
        finish_reason = choice.get("finish_reason")
        pieces = reply.feed(choice["delta"].get("content") or "")
        if finish_reason is not None:
            pieces += reply.finish(finish_reason)
        deltas = [reply.delta(piece) for piece in pieces]
        out = [_choice(index, delta, None) for delta in deltas]
        if finish_reason is not None:
            out.append(_choice(index, reply.last_delta(), reply.finish_reason))
        return out


@dataclass
class _Reply:
    """One choice on its way to the client."""

    reader: ReplyReader
    stops: StopText
    is_named: bool
    finish_reason: str | None = None
    _has_calls: bool = False
    _has_begun: bool = False
    _ids: dict[int, str] = field(default_factory=dict[int, str])

    def feed(self, text: str) -> list[Piece]:
        return self._cut(self.reader.feed(text))

    def finish(self, engine_reason: str) -> list[Piece]:
        pieces = self._cut(self.reader.finish(is_cut=engine_reason == "length"))
        if rest := self.stops.finish():
            pieces.append(Text(rest))
        if engine_reason == "length" and not self.stops.has_stopped:
            self.finish_reason = "length"
        elif self._has_calls and not self.is_named:
            self.finish_reason = "tool_calls"
        else:
            # OpenAI gives "stop" after a call that was named by the client: the model chose nothing.
            self.finish_reason = "stop"
        return pieces

    def delta(self, piece: Piece) -> dict[str, Any]:
        """A piece as a chunk's delta."""
        match piece:
            case Text(text):
                delta: dict[str, Any] = {"content": text}
            case CallBegun(index, name):
                delta = {"tool_calls": [{"index": index, **_tool_call(name)}]}
            case Arguments(index, text):
                delta = {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        if not self._has_begun:
            self._has_begun = True
            delta = {"role": "assistant", "content": None, **delta}
        return delta

    def last_delta(self) -> dict[str, Any]:
        return {} if self._has_begun else {"role": "assistant", "content": ""}

    def _cut(self, pieces: list[Piece]) -> list[Piece]:
        out: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Text):
                if text := self.stops.feed(piece.text):
                    out.append(Text(text))
            else:
                self._has_calls = True
                out.append(piece)
        return out


def _message(pieces: list[Piece]) -> dict[str, Any]:
    """The fields of a whole message that its pieces give."""
    content: list[str] = []
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        match piece:
            case Text(text):
                content.append(text)
            case CallBegun(_, name):
                calls.append(_tool_call(name))
            case Arguments(index, text):
                calls[index]["function"]["arguments"] += text
    message: dict[str, Any] = {"content": "".join(content) if content or not calls else None}
    return {**message, "tool_calls": calls} if calls else message


def _tool_call(name: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": ""},
    }


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _callable(request: ChatRequest) -> list[Function]:
    """The functions that the reply may call, as the client's choice has it."""
    functions = [tool.function for tool in request.tools or ()]
    if request.tool_choice == "none":
        return []
    if isinstance(request.tool_choice, NamedChoice):
        wanted = request.tool_choice.function.name
        return [function for function in functions if function.name == wanted]
    return functions


def _free_name(taken: set[str]) -> str:
    """A name to answer under that none of the client's tools has."""
    name = "answer"
    while name in taken:
        name = f"final_{name}"
    return name
