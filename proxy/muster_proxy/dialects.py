"""What the proxy reads of answers, API by API: usage, the end of a stream, failures; and how each is told an error.

A stream is read in runs of whole events. What is asked of every run is a search of its bytes; JSON is parsed where a
search has found something. Quotes within JSON texts are escaped and line ends too, so nothing that a model says can
look like what is searched for.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import msgspec
import orjson

from muster_batching import Usage
from muster_proxy import sse
from muster_proxy.failures import TABLE, Reason, RequestError
from muster_proxy.wire import Kind

_MOST_TOKENS = 2**31

# What msgspec raises for bytes that are not what they should be.
_NOT_UNDERSTOOD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Told = TypeVar("_Told")


class _Tokens(msgspec.Struct):
    """A usage by any of its names: OpenAI's first API's, or the Responses API's and Anthropic's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Accounted(msgspec.Struct):
    usage: _Tokens | None = None
    error: Any = None


class _Chunk(msgspec.Struct):
    usage: Any = None
    choices: list[msgspec.Raw] | None = None


class _Item(msgspec.Struct):
    type: str | None = None


class _Response(_Accounted):
    status: str | None = None
    output: list[_Item] | None = None

    @property
    def is_final(self) -> bool:
        """Whether the model had no more to say and no tool to call."""
        items = self.output or ()
        return self.status == "completed" and not any((item.type or "").endswith("_call") for item in items)


class _ResponseEvent(msgspec.Struct):
    response: _Response | None = None


class _MessageEvent(msgspec.Struct):
    type: str | None = None
    message: _Accounted | None = None
    usage: _Tokens | None = None


_accounted = msgspec.json.Decoder(_Accounted)
_chunks = msgspec.json.Decoder(_Chunk)
_responses = msgspec.json.Decoder(_Response)
_response_events = msgspec.json.Decoder(_ResponseEvent)
_message_events = msgspec.json.Decoder(_MessageEvent)

# How engines say that a stream has failed: vLLM, SGLang and llama.cpp by an error for data, others by the event's name.
_FAILURE = re.compile(
    rb'^(?:event: (?:error|response\.failed)\r?$|data: ?\{\s*"error"\s*:\s*[^\sn])', re.MULTILINE
)


def _read(decoder: msgspec.json.Decoder[_Told], answer: bytes) -> _Told:
    try:
        return decoder.decode(answer)
    except _NOT_UNDERSTOOD as error:
        raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error


def _each(decoder: msgspec.json.Decoder[_Told], events: bytes) -> Iterator[_Told]:
    """The data of a run's events; what is no such JSON is passed over."""
    for data in sse.data_of(events):
        try:
            yield decoder.decode(data)
        except _NOT_UNDERSTOOD:
            continue


def _usage(tokens: _Tokens | None) -> Usage | None:
    """The tokens accounted for; None where there are none or they make no sense."""
    if tokens is None:
        return None
    if tokens.prompt_tokens is not None:
        taken, made = tokens.prompt_tokens, tokens.completion_tokens or 0
    elif tokens.input_tokens is not None:
        # Anthropic counts the cached ones apart, OpenAI within.
        cached = (tokens.cache_read_input_tokens or 0) + (tokens.cache_creation_input_tokens or 0)
        taken, made = tokens.input_tokens + cached, tokens.output_tokens or 0
    else:
        return None
    return Usage(taken, made) if 0 <= taken <= _MOST_TOKENS >= made >= 0 else None


class Dialect:
    """An API whose answers are one JSON object: embeddings, scores, tokens.

    Its streams are those of chat completions, as far as there are any, and its errors OpenAI's.
    """

    wants_include_usage: ClassVar[bool] = False
    """Whether a stream tells its usage only where the request asks for it (`stream_options.include_usage`)."""

    _STOPPED: ClassVar[re.Pattern[bytes] | None] = None

    def usage_of(self, answer: bytes) -> Usage | None:
        """The tokens that an answer accounts for; None where it tells of none, or of a number that none has.

        Raises:
            RequestError: It is not the JSON object that it should be, or an error that came as a success.
        """
        told = _read(_accounted, answer)
        if told.error is not None and told.usage is None:
            raise RequestError(Reason.UPSTREAM_ERROR)
        return _usage(told.usage)

    def usage_in(self, events: bytes) -> Usage | None:
        """The last usage that a run of events accounts for; events that are not understood account for nothing."""
        if b'"usage"' not in events:
            return None
        found = None
        for tokens in self._tokens_in(events):
            found = _usage(tokens) or found
        return found

    def _tokens_in(self, events: bytes) -> Iterable[_Tokens | None]:
        return (told.usage for told in _each(_accounted, events))

    def is_end(self, events: bytes) -> bool:
        """Whether a stream that closes after this run has come to its own end."""
        return events.endswith(sse.DONE) or events.rstrip().endswith((b"data: [DONE]", b"data:[DONE]"))

    def is_failure(self, events: bytes) -> bool:
        """Whether the engine says in this run that it has failed; its words may hold addresses and go no further."""
        # The word is in every such event, and to search for it takes a tenth of the expression's time.
        return b"error" in events and _FAILURE.search(events) is not None

    def before_failure(self, events: bytes) -> bytes:
        """The whole events of a run before the one that says that the engine has failed."""
        failure = _FAILURE.search(events)
        return events if failure is None else sse.whole_events(events[: failure.start()])

    def is_final(self, said: bytes) -> bool:
        """Whether, in an answer or a run of events, the model ended by itself and called no tool."""
        return self._STOPPED is not None and self._STOPPED.search(said) is not None

    def without_usage(self, events: bytes) -> bytes:
        """A run of events for a client that did not ask for the usage."""
        return events

    def error_body(self, error: RequestError) -> bytes:
        """An error as an answer."""
        return error.body()

    def error_events(self, error: RequestError) -> bytes:
        """An error as the end of a stream that has begun."""
        return error.events()


class Completions(Dialect):
    """OpenAI's chat completions and completions."""

    wants_include_usage = True

    _STOPPED = re.compile(rb'"finish_reason"\s*:\s*"stop"')
    # A call of a function that the client has named ends with "stop" too.
    _CALLED = re.compile(rb'"tool_calls"\s*:\s*\[\s*\{')

    def is_final(self, said: bytes) -> bool:
        """Whether, in an answer or a run of events, the model ended by itself and called no tool.

        A stream's calls come before its end: not to be asked where they end with "stop" (`Call.may_be_final`).
        """
        return b'"stop"' in said and super().is_final(said) and self._CALLED.search(said) is None

    def without_usage(self, events: bytes) -> bytes:
        """A run of events without the one that has the usage and no choices.

        It is all that vLLM, SGLang and llama.cpp add where usage is asked for.
        """
        if b'"usage"' not in events:
            return events
        return b"".join(event for event in sse.events_of(events) if not _is_usage_alone(event))


def _is_usage_alone(event: bytes) -> bool:
    if b'"usage"' not in event:
        return False
    return any(chunk.choices == [] and chunk.usage is not None for chunk in _each(_chunks, event))


class Responses(Dialect):
    """OpenAI's Responses API; vLLM ends its streams without `[DONE]`."""

    _END = re.compile(rb"^event: ?response\.(?:completed|failed|incomplete)\r?$", re.MULTILINE)

    def usage_of(self, answer: bytes) -> Usage | None:
        """The tokens that an answer accounts for; None where it tells of none, or of a number that none has.

        Raises:
            RequestError: It is not the JSON object that it should be, or an error that came as a success.
        """
        told = _read(_responses, answer)
        if told.error is not None and told.status is None:
            raise RequestError(Reason.UPSTREAM_ERROR)
        return _usage(told.usage)

    def _tokens_in(self, events: bytes) -> Iterable[_Tokens | None]:
        return (told.response and told.response.usage for told in _each(_response_events, events))

    def is_end(self, events: bytes) -> bool:
        """Whether a stream that closes after this run has come to its own end; a failure it tells of is one."""
        return self._END.search(events) is not None or super().is_end(events)

    def is_final(self, said: bytes) -> bool:
        """Whether, in an answer or a run of events, the model ended by itself and called no tool."""
        if said.startswith(b"{"):
            with contextlib.suppress(*_NOT_UNDERSTOOD):
                return _responses.decode(said).is_final
        return b"event: response.completed" in said and any(
            told.response is not None and told.response.is_final for told in _each(_response_events, said)
        )

    def error_events(self, error: RequestError) -> bytes:
        """An error as the end of a stream that has begun.

        It has the fields of OpenAI's `error` event, and the `error` object at which its Python client raises. How many
        events came before is not known here: the sequence number is 0.
        """
        told = orjson.loads(error.body())
        event = {**told["error"], **told, "type": "error", "sequence_number": 0}
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n" + sse.DONE


class Messages(Dialect):
    """Anthropic's messages."""

    _END = re.compile(rb"^event: ?message_stop\r?$", re.MULTILINE)
    # The type tool_use stands for a call.
    _STOPPED = re.compile(rb'"stop_reason"\s*:\s*"(?:end_turn|stop_sequence)"')

    _ERROR_TYPES: ClassVar[dict[int, str]] = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }

    def usage_in(self, events: bytes) -> Usage | None:
        """The usage that the end of a stream accounts for.

        The input's tokens count where the run has them: vLLM tells them at the end, others at the start alone.
        """
        if b'"message_delta"' not in events:
            return None
        started = ended = _Tokens()
        for told in _each(_message_events, events):
            if told.message is not None:
                started = told.message.usage or started
            if told.type == "message_delta":
                ended = told.usage or ended
        if ended.input_tokens is None:
            ended = msgspec.structs.replace(started, output_tokens=ended.output_tokens)
        return _usage(ended)

    def is_end(self, events: bytes) -> bool:
        """Whether a stream that closes after this run has come to its own end."""
        return self._END.search(events) is not None

    def error_body(self, error: RequestError) -> bytes:
        """An error as an answer: Anthropic's envelope and type, and the other fields of OpenAI's in it."""
        told = orjson.loads(error.body())["error"]
        ours = "invalid_request_error" if TABLE[error.reason].type == "invalid_request_error" else "api_error"
        told["type"] = self._ERROR_TYPES.get(error.http_status, ours)
        return orjson.dumps({"type": "error", "error": told})

    def error_events(self, error: RequestError) -> bytes:
        """An error as the end of a stream that has begun."""
        return b"event: error\ndata: " + self.error_body(error) + b"\n\n"


PLAIN = Dialect()
COMPLETIONS = Completions()
RESPONSES = Responses()
MESSAGES = Messages()

DIALECTS: dict[Kind, Dialect] = {
    **dict.fromkeys(Kind, PLAIN),
    Kind.CHAT: COMPLETIONS,
    Kind.CHAT_BATCH: COMPLETIONS,
    Kind.COMPLETIONS: COMPLETIONS,
    Kind.RESPONSES: RESPONSES,
    Kind.MESSAGES: MESSAGES,
}
"""The dialect of each route."""
