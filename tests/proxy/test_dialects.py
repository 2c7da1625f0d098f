"""What is read of answers, API by API, in the forms in which vLLM gives them."""

from typing import Any

import httpx2
import openai
import orjson
import pytest

from muster_batching import Usage
from muster_proxy import sse
from muster_proxy.dialects import COMPLETIONS, DIALECTS, MESSAGES, PLAIN, RESPONSES, Dialect
from muster_proxy.failures import Reason, RequestError
from muster_proxy.wire import Kind

ALL = [PLAIN, COMPLETIONS, RESPONSES, MESSAGES]
DIALECT = pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: type(dialect).__name__)
LOST = RequestError(Reason.UPSTREAM_STREAM_ERROR)


def data(*events: dict[str, Any]) -> bytes:
    """Events of data alone, as of chat completions."""
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)


def named(*events: dict[str, Any]) -> bytes:
    """Events that have their type for a name, as of responses and messages."""
    return b"".join(f"event: {event['type']}\n".encode() + data(event) for event in events)


def chunk(content: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **fields}


OPENAI_USAGE = {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}
NEWER_USAGE = {"input_tokens": 7, "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 1}}
CACHED_USAGE = {
    "input_tokens": 2,
    "output_tokens": 3,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 1,
}
USAGE_CHUNK = {"id": "c", "choices": [], "usage": OPENAI_USAGE}


def response(status: str = "completed", kind: str = "message", **fields: Any) -> dict[str, Any]:
    """A response of the Responses API."""
    return {"object": "response", "status": status, "error": None, "output": [{"type": kind}], **fields}


def message(stop_reason: str | None = "end_turn", **fields: Any) -> dict[str, Any]:
    """A message of Anthropic's API."""
    return {"type": "message", "content": [], "stop_reason": stop_reason, **fields}


def test_each_route_has_its_dialect() -> None:
    """Only those that stream differ."""
    assert set(DIALECTS) == set(Kind)
    assert DIALECTS[Kind.CHAT] is DIALECTS[Kind.COMPLETIONS] is COMPLETIONS
    assert DIALECTS[Kind.EMBEDDINGS] is DIALECTS[Kind.TOKENIZE] is PLAIN
    assert [dialect.wants_include_usage for dialect in ALL] == [False, True, False, False]


@pytest.mark.parametrize(
    ("dialect", "answer", "usage"),
    [
        (COMPLETIONS, {"choices": [], "usage": OPENAI_USAGE}, Usage(7, 3)),
        (COMPLETIONS, {"choices": [], "usage": None}, None),
        (COMPLETIONS, {"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": 3}}, None),
        (COMPLETIONS, {"choices": [], "usage": {"prompt_tokens": 2**40}}, None),
        (PLAIN, {"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}, Usage(7, 0)),
        (PLAIN, {"count": 3, "tokens": [1, 2, 3]}, None),
        (RESPONSES, response(usage=NEWER_USAGE), Usage(7, 3)),
        (RESPONSES, response(usage=None), None),
        (MESSAGES, message(usage=CACHED_USAGE), Usage(7, 3)),
    ],
)
def test_the_usage_of_an_answer(dialect: Dialect, answer: dict[str, Any], usage: Usage | None) -> None:
    """By each API's names; none where there is none, or where it makes no sense."""
    assert dialect.usage_of(orjson.dumps(answer)) == usage


@DIALECT
@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b'{"usage": 3}', b'{"a": 1} x', b'{"a":' * 100_000]
)
def test_an_answer_that_is_no_such_json_is_the_engines_fault(dialect: Dialect, answer: bytes) -> None:
    """It becomes a clean error."""
    with pytest.raises(RequestError) as caught:
        dialect.usage_of(answer)

    assert caught.value.reason is Reason.UPSTREAM_PROTOCOL_ERROR


@DIALECT
def test_an_error_that_comes_as_a_success_is_an_error(dialect: Dialect) -> None:
    """Whatever its status said."""
    with pytest.raises(RequestError) as caught:
        dialect.usage_of(b'{"error": {"message": "at 10.0.0.1"}}')

    assert caught.value.reason is Reason.UPSTREAM_ERROR


@pytest.mark.parametrize(
    ("dialect", "events", "usage"),
    [
        (
            COMPLETIONS,
            data(chunk("a", usage={"prompt_tokens": 7, "completion_tokens": 1}), USAGE_CHUNK),
            Usage(7, 3),
        ),
        (COMPLETIONS, data(chunk("a", usage=None)), None),
        (COMPLETIONS, data(chunk('"usage"')) + sse.DONE, None),
        (COMPLETIONS, data(USAGE_CHUNK) + sse.DONE, Usage(7, 3)),
        (COMPLETIONS, b'data: {"usage": oops}\n\n' + data(USAGE_CHUNK) + b'data: "usage"\n\n', Usage(7, 3)),
        (RESPONSES, named({"type": "response.created", "response": response(usage=None)}), None),
        (
            RESPONSES,
            named({"response": response(usage=NEWER_USAGE), "type": "response.completed"}),
            Usage(7, 3),
        ),
        (MESSAGES, named({"type": "message_start", "message": message(None, usage=CACHED_USAGE)}), None),
        (MESSAGES, named({"type": "message_delta", "delta": {}, "usage": CACHED_USAGE}), Usage(7, 3)),
        (MESSAGES, named({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}), None),
        (
            MESSAGES,
            named(
                {"type": "message_start", "message": message(None, usage=CACHED_USAGE)},
                {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}},
            ),
            Usage(7, 9),
        ),
    ],
)
def test_the_usage_in_a_stream(dialect: Dialect, events: bytes, usage: Usage | None) -> None:
    """The last that a run of events tells, of the whole answer."""
    assert dialect.usage_in(events) == usage


DONE_EVENT = named({"type": "response.completed", "response": response()})
STOP_EVENT = named({"type": "message_stop"})


@pytest.mark.parametrize(
    ("dialect", "events", "is_end"),
    [
        (COMPLETIONS, data(chunk("a")) + sse.DONE, True),
        (COMPLETIONS, b"data:[DONE]\r\n\r\n", True),
        (COMPLETIONS, data(chunk(None, "stop")), False),
        (COMPLETIONS, data(chunk("data: [DONE]")), False),
        (RESPONSES, DONE_EVENT, True),
        (RESPONSES, DONE_EVENT + sse.DONE, True),
        (RESPONSES, sse.DONE, True),
        (RESPONSES, named({"type": "response.incomplete"}), True),
        (RESPONSES, named({"type": "response.failed"}).replace(b"\n", b"\r\n"), True),
        (RESPONSES, named({"type": "response.output_text.done"}), False),
        (
            RESPONSES,
            named({"type": "response.output_text.delta", "delta": "\nevent: response.completed\n"}),
            False,
        ),
        (MESSAGES, STOP_EVENT, True),
        (MESSAGES, named({"type": "message_delta"}), False),
        (MESSAGES, named({"type": "content_block_delta", "text": "\nevent: message_stop\n"}), False),
    ],
)
def test_the_end_of_a_stream(dialect: Dialect, events: bytes, is_end: bool) -> None:
    """What the engine sends last; nothing that a model says is taken for it."""
    assert dialect.is_end(events) is is_end


@pytest.mark.parametrize(
    ("dialect", "failure"),
    [
        (COMPLETIONS, b'data: {"error": {"message": "at 10.0.0.1"}}\n\n'),
        (COMPLETIONS, b'data:{ "error":"lost"}\r\n\r\n'),
        (COMPLETIONS, b'event: error\ndata: {"message": "at 10.0.0.1"}\n\n'),
        (RESPONSES, b'event: error\ndata: {"type": "error"}\n\n'),
        (RESPONSES, named({"type": "response.failed", "response": response("failed")})),
        (MESSAGES, named({"type": "error", "error": {"type": "internal_error"}})),
        (MESSAGES, b'event: made_up\ndata: {"error": {"type": "internal_error"}}\n\n'),
    ],
)
def test_a_failure_in_a_stream(dialect: Dialect, failure: bytes) -> None:
    """What came before it is kept, in whole events; the engine's words are not."""
    before = data(chunk("a"), chunk("b"))

    assert dialect.is_failure(before + failure + sse.DONE)
    assert dialect.before_failure(before + failure + sse.DONE) == before
    assert dialect.before_failure(failure) == b""


@DIALECT
def test_words_about_errors_are_no_failure(dialect: Dialect) -> None:
    """Not in a text, not as a field without a value."""
    events = data(
        chunk('\ndata: {"error": 1}\n\nevent: error\n'),
        {"error": None, "choices": []},
        {"type": "response.created", "response": response(text="response.failed")},
        {"choices": [], "logprobs": ["error", {"error": 1}]},
    )

    assert not dialect.is_failure(events)
    assert dialect.before_failure(events) == events


TOOL_CALL = [{"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("dialect", "said", "is_final"),
    [
        (COMPLETIONS, orjson.dumps({"choices": [{"finish_reason": "stop", "message": {}}]}), True),
        (COMPLETIONS, orjson.dumps({"choices": [{"finish_reason": "tool_calls"}]}), False),
        (COMPLETIONS, orjson.dumps({"choices": [{"finish_reason": "length"}]}), False),
        (
            COMPLETIONS,
            orjson.dumps({"choices": [{"finish_reason": "stop", "message": {"tool_calls": TOOL_CALL}}]}),
            False,
        ),
        (COMPLETIONS, orjson.dumps({"choices": [{"finish_reason": "stop", "tool_calls": []}]}), True),
        (COMPLETIONS, data(chunk(None, "stop")), True),
        (COMPLETIONS, data(chunk('"finish_reason": "stop"')), False),
        (RESPONSES, orjson.dumps(response()), True),
        (RESPONSES, orjson.dumps(response("incomplete")), False),
        (RESPONSES, orjson.dumps(response(kind="function_call")), False),
        (RESPONSES, DONE_EVENT, True),
        (
            RESPONSES,
            named({"type": "response.completed", "response": response(kind="custom_tool_call")}),
            False,
        ),
        (RESPONSES, named({"type": "response.incomplete", "response": response("incomplete")}), False),
        (MESSAGES, orjson.dumps(message()), True),
        (MESSAGES, orjson.dumps(message("tool_use")), False),
        (MESSAGES, orjson.dumps(message("max_tokens")), False),
        (MESSAGES, named({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}), True),
        (MESSAGES, named({"type": "message_start", "message": message(None)}), False),
        (PLAIN, orjson.dumps({"data": [], "finish_reason": "stop"}), False),
    ],
)
def test_a_model_that_stopped_by_itself(dialect: Dialect, said: bytes, is_final: bool) -> None:
    """Told alike in an answer and in a stream; a call of a tool, or a cut, is no end of a session."""
    assert dialect.is_final(said) is is_final


def test_the_usage_is_taken_out_where_it_was_not_asked_for() -> None:
    """One event, in whatever run it comes; all else stays byte by byte."""
    before = data(chunk("a"), chunk('{"choices":[],"usage":1}'), chunk("b", usage=None), {"choices": []})
    usage = data(USAGE_CHUNK)

    for run in (before + usage + sse.DONE, before + usage.replace(b"\n\n", b"\r\n\r\n") + sse.DONE):
        assert COMPLETIONS.without_usage(run) == before + sse.DONE
    assert COMPLETIONS.without_usage(usage) == b""
    assert COMPLETIONS.without_usage(before) == before
    assert MESSAGES.without_usage(usage) == usage


def client_of(events: bytes) -> openai.OpenAI:
    """OpenAI's own client, whatever it asks answered by these events."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1", http_client=http, max_retries=0)


def test_openais_client_raises_at_an_error_in_a_chat() -> None:
    """After what came before it."""
    with client_of(data(chunk("a")) + COMPLETIONS.error_events(LOST)) as client:
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert next(stream).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError) as caught:
            next(stream)

    assert caught.value.code == "upstream_stream_error"


def test_openais_client_raises_at_an_error_in_a_response() -> None:
    """Although OpenAI's own `error` event is one that it passes on."""
    with client_of(RESPONSES.error_events(LOST)) as client:
        stream = client.responses.create(model="m", input="x", stream=True)
        with pytest.raises(openai.APIError) as caught:
            next(stream)

    assert caught.value.code == "upstream_stream_error"


def test_an_error_event_of_a_response_has_openais_fields() -> None:
    """For clients that look for them, and the stream has its end."""
    events = RESPONSES.error_events(LOST)
    first, last = sse.data_of(events)

    assert events.startswith(b"event: error\n")
    assert last == b"[DONE]"
    event = orjson.loads(first)
    assert set(event) == {"type", "code", "message", "param", "sequence_number", "error"}
    assert (event["type"], event["code"]) == ("error", "upstream_stream_error")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestError(Reason.INVALID_VALUE, "m", "p"), "invalid_request_error"),
        (RequestError(Reason.INVALID_API_KEY), "authentication_error"),
        (RequestError(Reason.MODEL_NOT_FOUND), "not_found_error"),
        (RequestError(Reason.BODY_TOO_LARGE), "request_too_large"),
        (RequestError(Reason.QUEUE_FULL), "rate_limit_error"),
        (RequestError(Reason.UPSTREAM_BUSY), "overloaded_error"),
        (RequestError(Reason.UPSTREAM_TIMEOUT), "timeout_error"),
        (RequestError(Reason.INTERNAL_ERROR), "api_error"),
    ],
)
def test_an_error_of_a_message_has_anthropics_envelope(error: RequestError, kind: str) -> None:
    """And the fields of OpenAI's within, so that both kinds of client read it."""
    told = orjson.loads(MESSAGES.error_body(error))

    assert set(told) == {"type", "error"}
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert {"message", "param", "code"} < set(told["error"])
    events = MESSAGES.error_events(error)
    assert events.startswith(b"event: error\n")
    assert list(sse.data_of(events)) == [MESSAGES.error_body(error)]


@DIALECT
def test_every_error_at_the_end_of_a_stream_is_understood_and_is_a_failure(dialect: Dialect) -> None:
    """A proxy in front of this one reads it as it would an engine's."""
    events = dialect.error_events(LOST)

    assert sse.is_understood(events)
    assert dialect.is_failure(events)
    assert sse.whole_events(events) == events
