"""The OpenAPI document of the proxy: its routes, what it checks of a request, what it answers, how it fails.

Requests are described from the types that check them (`wire`) and failures from the one table (`failures`), so neither
can be forgotten here. Answers are the engine's: of them it names what clients build on, and no more.
"""

import functools
import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
import orjson

from muster_batching import RequestClass
from muster_proxy import agent_headers, wire
from muster_proxy.failures import TABLE, Reason
from muster_proxy.wire import Kind

Json: TypeAlias = dict[str, Any]

_SCHEMAS = "#/components/schemas/"

_NOT_OF_A_ROUTE = (Reason.URL_NOT_FOUND, Reason.METHOD_NOT_ALLOWED)
"""What a request meets that found no route."""


_OF_KEYS = (Reason.INVALID_API_KEY, Reason.TOO_MANY_BAD_KEYS, Reason.AUTHENTICATION_UNAVAILABLE)


class _Route(NamedTuple):
    """What is said of one relayed route, and nowhere else.

    Attributes:
        summary: What it does.
        request: The type of its body.
        answer: The fields of an answer that clients build on.
        event: What the data of each event is, where it streams.
    """

    summary: str
    request: type[wire.Request]
    answer: Json
    event: str | None = None


def _list_of(item: Json) -> Json:
    return {"type": "array", "items": item}


_INTEGER: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_STRING: Json = {"type": "string"}
_OBJECT: Json = {"type": "object"}
_INDEX: Json = {"index": _INTEGER}

_ROUTES: dict[Kind, _Route] = {
    Kind.CHAT: _Route(
        "Answer a conversation.",
        wire.ChatRequest,
        {"choices": _list_of({"type": "object", "properties": {**_INDEX, "message": _OBJECT}})},
        "a chunk of the completion; the last one is `[DONE]`",
    ),
    Kind.CHAT_BATCH: _Route(
        "Answer several conversations, each by one choice.",
        wire.BatchChatRequest,
        {"choices": _list_of({"type": "object", "properties": {**_INDEX, "message": _OBJECT}})},
    ),
    Kind.COMPLETIONS: _Route(
        "Continue a text, or several.",
        wire.CompletionRequest,
        {"choices": _list_of({"type": "object", "properties": {**_INDEX, "text": _STRING}})},
        "a chunk of the completion; the last one is `[DONE]`",
    ),
    Kind.EMBEDDINGS: _Route(
        "Compute vectors of texts.",
        wire.EmbeddingRequest,
        {
            "data": _list_of(
                {
                    "type": "object",
                    "properties": {**_INDEX, "embedding": {"anyOf": [_list_of(_NUMBER), _STRING]}},
                }
            )
        },
    ),
    Kind.RESPONSES: _Route(
        "Answer by OpenAI's Responses API.",
        wire.ResponsesRequest,
        {"output": _list_of(_OBJECT)},
        "an event of the Responses API, with its name",
    ),
    Kind.MESSAGES: _Route(
        "Answer by Anthropic's Messages API.",
        wire.MessagesRequest,
        {"content": _list_of(_OBJECT)},
        "an event of the Messages API, with its name",
    ),
    Kind.TOKENIZE: _Route(
        "Give the tokens of a text or a conversation.", wire.TokenizeRequest, {"tokens": _list_of(_INTEGER)}
    ),
    Kind.DETOKENIZE: _Route("Give the text of tokens.", wire.DetokenizeRequest, {"prompt": _STRING}),
    Kind.RERANK: _Route(
        "Order documents by a query.",
        wire.RerankRequest,
        {"results": _list_of({"type": "object", "properties": {**_INDEX, "relevance_score": _NUMBER}})},
    ),
    Kind.SCORE: _Route(
        "Score texts against each other.",
        wire.ScoreRequest,
        {"data": _list_of({"type": "object", "properties": {**_INDEX, "score": _NUMBER}})},
    ),
}


def document() -> Json:
    """The document, made anew: some milliseconds."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Muster",
            "version": importlib.metadata.version("muster"),
            "description": "An OpenAI-compatible batching proxy. Fields that a request's schema does not name go to "
            "the engine as they are, but for those that only the proxy sets.",
        },
        # Where no keys are configured nothing is needed.
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "paths": _own_paths() | {kind.value: {"post": _operation(kind)} for kind in Kind},
        "components": {
            "schemas": _schemas(),
            "responses": _error_responses(),
            "headers": _HEADERS,
            "parameters": _PARAMETERS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "Counts where `authorization` has no key.",
                },
            },
        },
    }


@functools.cache
def encoded() -> bytes:
    """The document as JSON; made once."""
    return orjson.dumps(document())


def _own_paths() -> Json:
    """What the proxy answers itself."""
    told = {"status": _STRING}
    return {
        "/v1/models": {
            "get": {
                "operationId": "models",
                "summary": "List the models of all engines.",
                "responses": {"200": _ok(_named("Models")), **_errors(_OF_KEYS)},
            }
        },
        "/v1/models/{model}": {
            "get": {
                "operationId": "model",
                "summary": "Tell of one model.",
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _STRING}],
                "responses": {"200": _ok(_named("Model")), **_errors([*_OF_KEYS, Reason.MODEL_NOT_FOUND])},
            }
        },
        "/v1/muster/key": {
            "get": {
                "operationId": "key",
                "summary": "Tell whose key came with the request.",
                "responses": {"200": _ok(_named("Key"), "cache-control"), **_errors(_OF_KEYS)},
            }
        },
        "/health/live": _open("live", "Tell that the process runs.", {"200": _ok(_object(told))}),
        "/health/ready": _open(
            "ready",
            "Tell whether the proxy takes work.",
            {"200": _ok(_object(told)), "503": {**_ok(_object(told)), "description": "Not now."}},
        ),
        "/metrics": _open(
            "metrics",
            "Show the metrics, for Prometheus.",
            {
                "200": {
                    "description": "All of them.",
                    "headers": _header_refs("x-request-id"),
                    "content": {
                        "text/plain": {"schema": _STRING},
                        "application/openmetrics-text": {"schema": _STRING},
                    },
                }
            },
        ),
    }


def _open(name: str, summary: str, responses: Json) -> Json:
    """A path that needs no key."""
    return {"get": {"operationId": name, "summary": summary, "security": [], "responses": responses}}


def _operation(kind: Kind) -> Json:
    route = _ROUTES[kind]
    reasons = [reason for reason in TABLE if reason not in _NOT_OF_A_ROUTE]
    parameters = [{"$ref": f"#/components/parameters/{name}"} for name in _PARAMETERS]
    return {
        "operationId": kind.name.lower(),
        "summary": route.summary,
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _named(route.request.__name__)}},
        },
        "responses": {"200": _answer(kind), **_errors(reasons, is_messages=kind is Kind.MESSAGES)},
    }


def _answer(kind: Kind) -> Json:
    route = _ROUTES[kind]
    answer = _ok(_named(_answer_name(kind)), "server-timing", "x-muster-upstream", "x-muster-shared")
    if route.event is not None:
        schema = {**_object({"data": _STRING}), "description": f"Each event; its data is {route.event}."}
        answer["content"]["text/event-stream"] = {"schema": schema}
    return answer


def _ok(schema: Json, *headers: str) -> Json:
    return {
        "description": "The answer.",
        "headers": _header_refs("x-request-id", *headers),
        "content": {"application/json": {"schema": schema}},
    }


def _errors(reasons: Iterable[Reason], *, is_messages: bool = False) -> Json:
    """References to the responses that these reasons have."""
    statuses = sorted({TABLE[reason].status for reason in reasons})
    form = "MessagesError" if is_messages else "Error"
    return {str(status): {"$ref": f"#/components/responses/{form}{status}"} for status in statuses}


def _error_responses() -> Json:
    """A response for each status of the table, in both forms."""
    statuses = sorted({row.status for row in TABLE.values()})
    return {
        f"{form}{status}": _error_response(form, status)
        for form in ("Error", "MessagesError")
        for status in statuses
    }


def _error_response(form: str, status: int) -> Json:
    rows = {reason: row for reason, row in TABLE.items() if row.status == status}
    helps = any(row.retry_after_s is not None for row in rows.values())
    return {
        "description": "\n".join(f"- `{reason.value}`: {row.message}" for reason, row in rows.items()),
        "headers": _header_refs("x-request-id", *(("retry-after", "x-should-retry") if helps else ())),
        "content": {"application/json": {"schema": _named(form)}},
    }


def _schemas() -> Json:
    requests = [route.request for route in _ROUTES.values()]
    _, described = msgspec.json.schema_components(requests, ref_template=_SCHEMAS + "{name}")
    answers = {_answer_name(kind): _object(route.answer) for kind, route in _ROUTES.items()}
    for name, (fields, more) in _CHECKED_TOO.items():
        described[name]["properties"] |= fields
        described[name] |= more
    return described | answers | _OWN_SCHEMAS


def _one_of(*names: tuple[str, ...]) -> Json:
    """That the fields of one of these groups are there, and not null."""
    there = {"not": {"type": "null"}}
    return {
        "anyOf": [{"required": list(group), "properties": dict.fromkeys(group, there)} for group in names]
    }


def _answer_name(kind: Kind) -> str:
    return _ROUTES[kind].request.__name__.replace("Request", "Answer")


def _object(properties: Mapping[str, Json]) -> Json:
    """An object with these fields and maybe others."""
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _named(name: str) -> Json:
    return {"$ref": _SCHEMAS + name}


def _header_refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(description: str, schema: Json) -> Json:
    return {"description": description, "schema": schema}


def _parameter(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_HEADERS: Json = {
    "x-request-id": _header("The request's id, in the log and with the engine.", _STRING),
    "server-timing": _header("`queue`, `ttft` and, but for a stream, `total`, in milliseconds.", _STRING),
    "x-muster-upstream": _header("The name of the engine that answered.", _STRING),
    "cache-control": _header("What is told of a key holds for now.", {"const": "no-store"}),
    "x-muster-shared": _header("Whether another request led the generation.", _STRING),
    "retry-after": _header("Seconds after which to come back.", {"type": "integer", "minimum": 1}),
    "x-should-retry": _header("Read by OpenAI's SDKs.", {"const": "true"}),
}

_FOR_THE_LOG = "for the proxy's log alone, and left out of it where it is malformed"

_PARAMETERS: Json = {
    "request_id": _parameter(
        "x-request-id", "An id to use in place of one of the proxy's; a malformed one is not.", _STRING
    ),
    "session": _parameter(
        "x-session-id",
        "The conversation or agent run that the request is of; a malformed one is ignored.",
        _STRING,
    ),
    "class": _parameter(
        "x-muster-class",
        "How urgent it is; a key may allow less.",
        {"enum": [each.value for each in RequestClass]},
    ),
    "deadline": _parameter(
        "x-slo-ttft-ms",
        "Milliseconds within which the first token is of use.",
        {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    ),
    "run": _parameter("x-muster-run-id", f"An agent's run; {_FOR_THE_LOG}.", _STRING),
    "thread": _parameter(
        "x-muster-thread-id", f"The conversation that the run is of; {_FOR_THE_LOG}.", _STRING
    ),
    "step": _parameter(
        "x-muster-step",
        f"Which of the run's model calls it is; {_FOR_THE_LOG}.",
        {"type": "integer", "minimum": 1, "maximum": agent_headers.MOST},
    ),
    "call_kind": _parameter(
        "x-muster-call-kind", f"What the call is for; {_FOR_THE_LOG}.", {"enum": sorted(agent_headers.KINDS)}
    ),
}

_TOKENS: Json = {**_list_of({"type": "integer", "minimum": 0, "maximum": 2**31}), "minItems": 1}
_TEXTS: list[Json] = [
    _STRING,
    {**_list_of(_STRING), "minItems": 1},
    _TOKENS,
    {**_list_of(_TOKENS), "minItems": 1},
]

_CHECKED_TOO: dict[str, tuple[Json, Json]] = {
    "CompletionRequest": ({"prompt": {"anyOf": _TEXTS}}, {}),
    "EmbeddingRequest": (
        {"input": {"anyOf": [*_TEXTS, {**_list_of(_OBJECT), "minItems": 1}, {"type": "null"}]}},
        _one_of(("input",), ("messages",)),
    ),
    "TokenizeRequest": ({}, _one_of(("prompt",), ("messages",))),
    "ScoreRequest": (
        {},
        _one_of(("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")),
    ),
}
"""What a request's own `check` asks for beside its types: other schemas of some fields, and more of the whole."""

_ERROR_FIELDS: Json = {
    "message": _STRING,
    "type": _STRING,
    "param": {"type": ["string", "null"]},
    "code": {"enum": [reason.value for reason in Reason]},
}

_OWN_SCHEMAS: Json = {
    "Error": _object({"error": _object(_ERROR_FIELDS)}),
    "MessagesError": _object({"type": {"const": "error"}, "error": _object(_ERROR_FIELDS)}),
    "Key": _object(
        {
            "object": {"const": "muster.key"},
            "tenant": {**_STRING, "description": "Who pays; empty where no keys are configured."},
            "name": {"type": ["string", "null"], "description": "Which of the tenant's keys it is."},
            "class": {
                "enum": [each.value for each in RequestClass],
                "description": "The most urgent class that its requests may have.",
            },
        }
    ),
    "Model": _object({"id": _STRING, "object": _STRING}),
    "Models": _object({"object": {"const": "list"}, "data": _list_of(_named("Model"))}),
}
