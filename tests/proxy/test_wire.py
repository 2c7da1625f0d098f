"""What is read of requests, route by route."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_proxy import wire
from muster_proxy.failures import Reason, RequestError
from muster_proxy.wire import Call, Kind

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "CANARY"}]

LEAST: dict[Kind, dict[str, Any]] = {
    Kind.CHAT: {"messages": MESSAGES},
    Kind.CHAT_BATCH: {"messages": [MESSAGES, MESSAGES]},
    Kind.COMPLETIONS: {"prompt": "CANARY"},
    Kind.EMBEDDINGS: {"input": "CANARY"},
    Kind.RESPONSES: {"input": "CANARY"},
    Kind.MESSAGES: {"messages": MESSAGES, "max_tokens": 16},
    Kind.TOKENIZE: {"prompt": "CANARY"},
    Kind.DETOKENIZE: {"tokens": [1, 2]},
    Kind.RERANK: {"query": "CANARY", "documents": ["a", "b", "c"]},
    Kind.SCORE: {"text_1": "CANARY", "text_2": ["a", "b"]},
}
"""The least that each route's request has, beside the model."""

KINDS = pytest.mark.parametrize("kind", list(Kind))


def call(kind: Kind = Kind.CHAT, **fields: Any) -> Call:
    """A route's least request with more or other fields."""
    return wire.read(kind, json.dumps({"model": "m", **LEAST[kind], **fields}).encode())


def refused(kind: Kind, **fields: Any) -> RequestError:
    """The error of a request that is refused, which must not repeat anything of it."""
    with pytest.raises(RequestError) as caught:
        call(kind, **fields)
    assert caught.value.http_status == 400
    assert "CANARY" not in caught.value.body().decode()
    return caught.value


def part(kind: str, **fields: Any) -> list[dict[str, Any]]:
    """A conversation with one part beside a text."""
    return [{"role": "user", "content": [{"type": "text", "text": "t"}, {"type": kind, **fields}]}]


@KINDS
def test_every_route_is_read(kind: Kind) -> None:
    """With the model, and unknown fields as they are."""
    read = call(kind, made_up={"a": [1]})

    assert (read.kind, read.model, read.is_stream) == (kind, "m", False)
    assert read.fields["made_up"] == {"a": [1]}
    assert list(read.media()) == []
    assert read.forbidden() == ()
    wire.refuse_media(read)
    wire.refuse_remote_media(read)


@KINDS
@pytest.mark.parametrize(
    "value",
    [
        '"\\ud800"',
        '"\\udc00"',
        '"\\ud800\\u0041"',
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 400,
        "[" * 5000 + "]" * 5000,
        "'CANARY'",
        "01",
        '"a\x01"',
    ],
    ids=lambda value: value[:12],
)
def test_an_unknown_field_must_be_strict_json(kind: Kind, value: str) -> None:
    """Nothing that an engine would stumble over passes, wherever it stands."""
    body = json.dumps({"model": "m", **LEAST[kind]})[:-1] + f', "x": {{"y": [{value}]}}}}'

    with pytest.raises(RequestError) as caught:
        wire.read(kind, body.encode())

    assert caught.value.reason is Reason.INVALID_JSON
    assert "CANARY" not in caught.value.body().decode()


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"3", b'{"model": "\xff"}', b'\xef\xbb\xbf{"model": "m"}']
)
def test_a_body_must_be_an_object_in_utf_8(body: bytes) -> None:
    """Or it is no JSON for any route."""
    with pytest.raises(RequestError) as caught:
        wire.read(Kind.RESPONSES, body)

    assert caught.value.reason is Reason.INVALID_JSON


@KINDS
def test_the_model_is_needed_everywhere(kind: Kind) -> None:
    """It says to which engines a request goes."""
    with pytest.raises(RequestError) as caught:
        wire.read(kind, orjson.dumps(LEAST[kind]))

    assert caught.value.param == "model"


TOO_MANY_STOPS = ["CANARY"] * 65
SAMPLED = [Kind.CHAT, Kind.CHAT_BATCH, Kind.COMPLETIONS, Kind.RESPONSES]
BOUNDED: list[tuple[list[Kind], str, Any, str]] = [
    (SAMPLED, "temperature", 2.1, "temperature"),
    (SAMPLED, "top_p", -0.1, "top_p"),
    (SAMPLED, "top_k", -2, "top_k"),
    (SAMPLED, "min_p", 1.5, "min_p"),
    (SAMPLED, "presence_penalty", 3, "presence_penalty"),
    (SAMPLED, "frequency_penalty", "CANARY", "frequency_penalty"),
    (SAMPLED, "repetition_penalty", 0, "repetition_penalty"),
    (SAMPLED, "seed", 2**63, "seed"),
    (SAMPLED, "stop", TOO_MANY_STOPS, "stop"),
    (SAMPLED, "stop", ["a", "CANARY" * 200], "stop[1]"),
    (SAMPLED, "stop_token_ids", [-1], "stop_token_ids[0]"),
    (SAMPLED, "logit_bias", {"CANARY": 1}, "logit_bias"),
    (SAMPLED, "logit_bias", {str(token): 1 for token in range(1025)}, "logit_bias"),
    (SAMPLED, "stream", "CANARY", "stream"),
    ([Kind.CHAT, Kind.COMPLETIONS], "n", 129, "n"),
    ([Kind.CHAT, Kind.COMPLETIONS], "best_of", 0, "best_of"),
    ([Kind.CHAT, Kind.COMPLETIONS], "min_tokens", -1, "min_tokens"),
    ([Kind.CHAT, Kind.COMPLETIONS], "prompt_logprobs", -1, "prompt_logprobs"),
    ([Kind.CHAT, Kind.RESPONSES], "top_logprobs", 21, "top_logprobs"),
    ([Kind.CHAT, Kind.RESPONSES], "tools", [{}] * 1025, "tools"),
    ([Kind.CHAT, Kind.TOKENIZE, Kind.MESSAGES], "messages", MESSAGES * 10_001, "messages"),
    ([Kind.CHAT, Kind.MESSAGES], "max_tokens", 0, "max_tokens"),
    ([Kind.CHAT], "max_completion_tokens", 2**31 + 1, "max_completion_tokens"),
    ([Kind.CHAT_BATCH], "messages", [MESSAGES, []], "messages[1]"),
    ([Kind.CHAT_BATCH], "messages", MESSAGES, "messages[0]"),
    ([Kind.CHAT_BATCH], "stream", True, "stream"),
    ([Kind.CHAT_BATCH], "n", 2, "n"),
    ([Kind.COMPLETIONS], "logprobs", 21, "logprobs"),
    ([Kind.COMPLETIONS], "max_tokens", 0, "max_tokens"),
    ([Kind.COMPLETIONS], "prompt", None, "prompt"),
    ([Kind.COMPLETIONS], "prompt", [], "prompt"),
    ([Kind.COMPLETIONS], "prompt", ["a", 3], "prompt[1]"),
    ([Kind.COMPLETIONS], "prompt", [3, "CANARY"], "prompt[1]"),
    ([Kind.COMPLETIONS], "prompt", [[1], [-1]], "prompt[1][0]"),
    ([Kind.COMPLETIONS], "prompt", [[1], []], "prompt[1]"),
    ([Kind.COMPLETIONS], "prompt", [True], "prompt[0]"),
    ([Kind.COMPLETIONS], "prompt", ["CANARY"] * 1025, "prompt"),
    ([Kind.EMBEDDINGS], "input", None, "input"),
    ([Kind.EMBEDDINGS], "input", [1.5], "input[0]"),
    ([Kind.EMBEDDINGS], "input", [{"content": "CANARY"}], "input[0].role"),
    ([Kind.EMBEDDINGS], "messages", [[{"role": 3}]], "messages[0][0].role"),
    ([Kind.EMBEDDINGS], "dimensions", 0, "dimensions"),
    ([Kind.EMBEDDINGS], "encoding_format", "bytes", "encoding_format"),
    ([Kind.RESPONSES], "input", None, "input"),
    ([Kind.RESPONSES], "input", [3], "input[0]"),
    ([Kind.RESPONSES], "max_output_tokens", 0, "max_output_tokens"),
    ([Kind.RESPONSES], "previous_response_id", 3, "previous_response_id"),
    ([Kind.RESPONSES], "store", "CANARY", "store"),
    ([Kind.RESPONSES], "background", True, "background"),
    ([Kind.MESSAGES], "max_tokens", None, "max_tokens"),
    ([Kind.MESSAGES], "system", 3, "system"),
    ([Kind.MESSAGES], "messages", [{"role": "CANARY", "content": "x"}], "messages[0].role"),
    ([Kind.MESSAGES], "stop_sequences", TOO_MANY_STOPS, "stop_sequences"),
    ([Kind.MESSAGES], "tool_choice", {"type": "CANARY"}, "tool_choice.type"),
    ([Kind.TOKENIZE], "prompt", None, "prompt"),
    ([Kind.DETOKENIZE], "tokens", ["CANARY"], "tokens[0]"),
    ([Kind.RERANK], "documents", [], "documents"),
    ([Kind.RERANK], "documents", ["a", 3], "documents[1]"),
    ([Kind.RERANK], "query", None, "query"),
    ([Kind.RERANK], "top_n", -1, "top_n"),
    ([Kind.SCORE], "text_2", None, "queries"),
    ([Kind.SCORE], "text_1", [3], "text_1[0]"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "param"),
    [(kind, name, value, param) for kinds, name, value, param in BOUNDED for kind in kinds],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_value_is_refused_by_its_name(kind: Kind, name: str, value: Any, param: str) -> None:
    """Before an engine hears of it, and without a word of the request's own."""
    assert refused(kind, **{name: value}).param == param


@pytest.mark.parametrize(
    ("kind", "fields", "most"),
    [
        (Kind.CHAT, {}, None),
        (Kind.CHAT, {"max_tokens": 5}, 5),
        (Kind.CHAT, {"max_tokens": 5, "max_completion_tokens": 7, "n": 3}, 21),
        (Kind.CHAT_BATCH, {"max_tokens": 5}, 10),
        (Kind.COMPLETIONS, {}, None),
        (Kind.COMPLETIONS, {"max_tokens": 0, "echo": True}, 0),
        (Kind.COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "max_tokens": 5}, 20),
        (Kind.COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 5}, 5),
        (Kind.COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 5}, 10),
        (Kind.RESPONSES, {"max_output_tokens": 9}, 9),
        (Kind.MESSAGES, {}, 16),
        (Kind.EMBEDDINGS, {}, 0),
        (Kind.TOKENIZE, {}, 0),
    ],
)
def test_the_most_tokens_are_those_of_all_choices(
    kind: Kind, fields: dict[str, Any], most: int | None
) -> None:
    """Of every prompt's; unknown where the client set no limit."""
    assert call(kind, **fields).max_output_tokens == most


@pytest.mark.parametrize(
    ("kind", "fields", "choices"),
    [
        (Kind.CHAT, {"n": 4}, 4),
        (Kind.EMBEDDINGS, {"input": ["a", "b"]}, 2),
        (Kind.EMBEDDINGS, {"input": [1, 2, 3]}, 1),
        (Kind.EMBEDDINGS, {"input": [[1], [2], [3]]}, 3),
        (Kind.EMBEDDINGS, {"input": None, "messages": MESSAGES}, 1),
        (Kind.EMBEDDINGS, {"input": [MESSAGES, MESSAGES]}, 2),
        (Kind.RERANK, {}, 3),
        (Kind.SCORE, {"text_2": None, "queries": "a", "items": ["b", "c", "d"], "text_1": None}, 3),
        (Kind.RESPONSES, {}, 1),
    ],
)
def test_what_the_engine_makes_of_it_is_counted(kind: Kind, fields: dict[str, Any], choices: int) -> None:
    """Choices, texts, documents: each is a sequence in the engine."""
    assert call(kind, **fields).choices == choices


@pytest.mark.parametrize(
    ("kind", "fields", "wants"),
    [
        (Kind.CHAT, {"stream": True}, False),
        (Kind.CHAT, {"stream": True, "stream_options": {"include_usage": False}}, False),
        (Kind.COMPLETIONS, {"stream": True, "stream_options": {"include_usage": True}}, True),
        (Kind.RESPONSES, {"stream": True}, True),
        (Kind.MESSAGES, {"stream": True}, True),
    ],
)
def test_usage_is_wanted_where_it_was_asked_for(kind: Kind, fields: dict[str, Any], wants: bool) -> None:
    """Or where the API tells it in any case."""
    read = call(kind, **fields)

    assert read.is_stream
    assert read.wants_usage is wants
    assert bool(read.usage_changes()) is not wants


def test_the_usage_is_asked_for_beside_the_clients_options() -> None:
    """Those stay, but for the one that would put a usage into each event."""
    options = {"include_usage": False, "continuous_usage_stats": True, "include_obfuscation": False}

    changes = call(stream=True, stream_options=options).usage_changes()

    assert changes == {"stream_options": {"include_usage": True, "include_obfuscation": False}}
    assert call().usage_changes() == {}


def test_tier_key_and_tools_are_told() -> None:
    """From the fields of each API that has them."""
    tool = {"type": "function", "function": {"name": "f"}}
    chat = call(service_tier="flex", prompt_cache_key="k", tools=[tool])
    response = call(
        Kind.RESPONSES, service_tier="priority", prompt_cache_key="r", tools=[{"type": "function"}]
    )
    message = call(Kind.MESSAGES, service_tier="auto", tools=[{"name": "f", "input_schema": {}}])

    assert [(each.service_tier, each.cache_key, each.has_tools) for each in (chat, response, message)] == [
        ("flex", "k", True),
        ("priority", "r", True),
        ("auto", None, True),
    ]
    assert not call().has_tools


@KINDS
def test_forbidden_fields_are_found(kind: Kind) -> None:
    """Those that are stripped, and those that are refused where they have a value."""
    assert wire.names_to_strip(call(kind, cache_salt="s", priority=-5, lora_path=None)) == (
        "cache_salt",
        "priority",
        "lora_path",
    )
    for name in ("kv_transfer_params", "prompt_embeds", "custom_logit_processor", "mm_processor_kwargs"):
        with pytest.raises(RequestError) as caught:
            wire.names_to_strip(call(kind, **{name: {"a": 1}}))
        assert caught.value.param == name


REMOTE: list[tuple[Kind, dict[str, Any], str]] = [
    (
        Kind.CHAT,
        {"messages": part("image_url", image_url={"url": "http://169.254.169.254/"})},
        "messages[0].content",
    ),
    (
        Kind.CHAT,
        {"messages": part("image_url", image_url={"url": "file:///etc/passwd"})},
        "messages[0].content",
    ),
    (Kind.CHAT, {"messages": part("image_url", image_url="//host/x")}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("image_url", image_url={"url": 3})}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("video_url", video_url={"url": "HTTPS://x"})}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("audio_url", audio_url={"url": " data:,"})}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("text", text="t", uuid="u", image_url="http://x")}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("CANARY")}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("image_embeds", image_embeds="x")}, "messages[0].content"),
    (Kind.CHAT, {"messages": part("text", text="t", prompt_embeds="x")}, "messages[0].content"),
    (
        Kind.CHAT,
        {"messages": [{"role": "user", "content": [{"image_url": "data:,"}]}]},
        "messages[0].content",
    ),
    (
        Kind.CHAT_BATCH,
        {"messages": [MESSAGES, part("image_url", image_url="http:x")]},
        "messages[1][0].content",
    ),
    (Kind.TOKENIZE, {"messages": part("image_url", image_url="http:x")}, "messages[0].content"),
    (Kind.EMBEDDINGS, {"input": part("image_url", image_url="http:x")}, "input[0].content"),
    (Kind.EMBEDDINGS, {"messages": [part("image_url", image_url="http:x")]}, "messages[0][0].content"),
    (
        Kind.RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
        "input[0].content",
    ),
    (
        Kind.RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]},
        "input[0].content",
    ),
    (
        Kind.RESPONSES,
        {
            "input": [
                {"type": "function_call_output", "output": [{"type": "input_image", "image_url": "ftp:x"}]}
            ]
        },
        "input[0].output",
    ),
    (
        Kind.RESPONSES,
        {
            "input": [
                {
                    "type": "computer_call_output",
                    "output": {"type": "computer_screenshot", "image_url": "http:"},
                }
            ]
        },
        "input[0].output",
    ),
    (
        Kind.MESSAGES,
        {"messages": part("image", source={"type": "url", "url": "http://x"})},
        "messages[0].content",
    ),
    (
        Kind.MESSAGES,
        {
            "messages": part(
                "tool_result",
                tool_use_id="u",
                content=[{"type": "image", "source": {"type": "url", "url": "http://x"}}],
            )
        },
        "messages[0].content",
    ),
    (Kind.MESSAGES, {"system": [{"type": "image", "source": {"url": "http://x"}}]}, "system"),
    (
        Kind.RERANK,
        {"query": {"content": [{"type": "image_url", "image_url": {"url": "http:"}}]}},
        "query.content",
    ),
    (
        Kind.SCORE,
        {"text_2": ["a", {"content": [{"type": "video_url", "video_url": {"url": "http:"}}]}]},
        "text_2[1].content",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "param"), REMOTE)
def test_media_that_an_engine_would_fetch_is_refused(kind: Kind, fields: dict[str, Any], param: str) -> None:
    """Wherever a request can hold it, as are parts that are not known and embeddings."""
    read = call(kind, **fields)

    for refuse in (wire.refuse_remote_media, wire.refuse_media):
        with pytest.raises(RequestError) as caught:
            refuse(read)
        assert caught.value.param == param
        assert "CANARY" not in caught.value.body().decode()


LOCAL: list[tuple[Kind, dict[str, Any]]] = [
    (Kind.CHAT, {"messages": part("image_url", image_url={"url": "DATA:image/png;base64,AA"})}),
    (Kind.CHAT, {"messages": part("image_url", image_url=None, uuid="u")}),
    (Kind.CHAT, {"messages": part("input_audio", input_audio={"data": "AA", "format": "wav"})}),
    (Kind.CHAT, {"messages": part("file", file={"file_data": "data:,"})}),
    (
        Kind.RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
    ),
    (
        Kind.MESSAGES,
        {"messages": part("image", source={"type": "base64", "media_type": "a/b", "data": "AA"})},
    ),
]


@pytest.mark.parametrize(("kind", "fields"), LOCAL)
def test_media_within_the_request_passes(kind: Kind, fields: dict[str, Any]) -> None:
    """And is told apart from text, which is all that some models read."""
    read = call(kind, **fields)

    wire.refuse_remote_media(read)
    assert len(list(read.media())) == 1
    with pytest.raises(RequestError):
        wire.refuse_media(read)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.CHAT, {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]}),
        (Kind.MESSAGES, {"messages": part("tool_use", id="i", name="f", input={"url": "http://x"})}),
        (Kind.MESSAGES, {"messages": part("tool_result", tool_use_id="i", content="t")}),
        (Kind.RESPONSES, {"input": [{"type": "web_search_call", "action": {"url": "http://x"}}]}),
        (Kind.RESPONSES, {"input": [{"type": "function_call_output", "output": "http://x"}]}),
        (Kind.RESPONSES, {"input": [{"type": "shell_call_output", "output": [{"stdout": "x"}]}]}),
    ],
)
def test_addresses_in_texts_and_calls_are_no_media(kind: Kind, fields: dict[str, Any]) -> None:
    """Nobody fetches them."""
    read = call(kind, **fields)

    wire.refuse_remote_media(read)
    assert list(read.media()) == []


def test_addresses_pass_where_fetching_is_allowed() -> None:
    """Those of the web alone; the engine's files never do."""
    web = call(messages=part("image_url", image_url={"url": "https://host/x.png"}))
    file = call(messages=part("image_url", image_url={"url": "file:///etc/passwd"}))

    wire.refuse_remote_media(web, is_fetching_allowed=True)
    with pytest.raises(RequestError):
        wire.refuse_remote_media(file, is_fetching_allowed=True)


@pytest.mark.parametrize(
    ("body", "is_ambiguous"),
    [
        (b'{"model": "m", "prompt": "x"}', False),
        (b'{"model": "m", "prompt": "x", "model": "other"}', True),
        (b'{"model": "m", "prompt": "x", "mo\\u0064el": "other"}', True),
        (b'{"mod\\u0065l": "m", "prompt": "x"}', True),
        (b'{"model": "m", "prompt": "\\u00e9"}', False),
    ],
)
def test_a_model_that_may_be_named_twice_is_written_once(body: bytes, is_ambiguous: bool) -> None:
    """The model that was checked is the one that the engine sees, whichever of two it would take."""
    read = wire.read(Kind.COMPLETIONS, body)
    sent = wire.rewritten(read, {})

    assert read.is_ambiguous is is_ambiguous
    assert (sent == body) is not is_ambiguous
    assert sent.count(b'"model"') == 1
    assert orjson.loads(sent)["model"] == read.model


def test_an_added_field_leaves_the_clients_bytes() -> None:
    """It follows them; a field that is there already makes the body be written anew."""
    body = b'{ "model":"m" ,"prompt" : "x", "top_p":1.0 }\n'
    read = wire.read(Kind.COMPLETIONS, body)

    assert wire.rewritten(read, {"cache_salt": "s"}, ("priority",)) == body[:-2] + b',"cache_salt":"s"}'
    assert wire.rewritten(read, {"top_p": 0.5}, ("prompt",)) == b'{"model":"m","top_p":0.5}'
    assert wire.rewritten(read, {}, ()) is body


def test_a_body_too_deep_to_be_written_is_refused() -> None:
    """It can be read, and added to."""
    body = b'{"model": "m", "prompt": "x", "a": ' + b"[" * 500 + b"]" * 500 + b"}"
    read = wire.read(Kind.COMPLETIONS, body)

    assert orjson.loads(wire.rewritten(read, {"b": 1}))["b"] == 1
    with pytest.raises(RequestError) as caught:
        wire.rewritten(read, {"model": "n"})
    assert caught.value.http_status == 400


NAMES = st.text(max_size=5) | st.sampled_from(["model", "cache_salt", "}", '"', "\\"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)
SPACES = st.text(" \t\r\n", max_size=3)


@given(OBJECTS, OBJECTS, st.lists(NAMES, max_size=3), SPACES, st.sampled_from([None, 1]))
def test_a_rewritten_body_reads_as_it_should(
    fields: dict[str, Any], changes: dict[str, Any], removals: list[str], space: str, indent: int | None
) -> None:
    """Whatever the object, its white space and the changes."""
    text = json.dumps(fields, indent=indent, ensure_ascii=indent is None)
    body = (space + text + space).encode()

    sent = wire.rewrite(body, orjson.loads(body), changes, removals)

    assert orjson.loads(sent) == {name: fields[name] for name in fields if name not in removals} | changes
