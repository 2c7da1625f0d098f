"""The OpenAPI document: it says what is there, and the proxy keeps to it, whatever is sent (schemathesis)."""

import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anyio.from_thread
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from muster_proxy import openapi, wire
from muster_proxy.app import KEYED_PATHS, OPEN_PATHS
from muster_proxy.failures import TABLE, Reason
from muster_proxy.testing import FakeVllm
from muster_proxy.wire import Kind
from tests.proxy.conftest import Proxied

MODEL = "fake-model"

BODIES: dict[Kind, dict[str, Any]] = {
    Kind.CHAT: {"messages": [{"role": "user", "content": "a"}]},
    Kind.CHAT_BATCH: {"messages": [[{"role": "user", "content": "a"}]]},
    Kind.COMPLETIONS: {"prompt": "a"},
    Kind.EMBEDDINGS: {"input": "a"},
    Kind.RESPONSES: {"input": "a"},
    Kind.MESSAGES: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    Kind.TOKENIZE: {"prompt": "a"},
    Kind.DETOKENIZE: {"tokens": [1]},
    Kind.RERANK: {"query": "a", "documents": ["b"]},
    Kind.SCORE: {"text_1": "a", "text_2": "b"},
}


def test_every_path_is_described() -> None:
    """The document has every path of the application, and says of the open ones that they need no key."""
    paths = openapi.document()["paths"]
    is_open = {path for path, methods in paths.items() if methods.get("get", {}).get("security") == []}

    # The document itself is no part of the API.
    assert set(paths) == (OPEN_PATHS | KEYED_PATHS) - {"/openapi.json"}
    assert is_open == OPEN_PATHS - {"/openapi.json"}


@pytest.mark.parametrize("kind", Kind)
def test_a_request_is_described_by_the_type_that_reads_it(kind: Kind) -> None:
    """The schema of a route's body is made from the type that its bodies are checked with."""
    read = wire.read(kind, json.dumps({"model": MODEL, **BODIES[kind]}).encode())
    body = openapi.document()["paths"][kind]["post"]["requestBody"]["content"]["application/json"]

    assert body["schema"]["$ref"].rpartition("/")[2] == type(read.request).__name__


@pytest.mark.parametrize("path", sorted(OPEN_PATHS | KEYED_PATHS))
async def test_other_methods_are_refused(path: str, proxied: Proxied, engine: FakeVllm) -> None:
    """A method that the document does not have for a path is a 405 in OpenAI's shape that tells those it has."""
    described = openapi.document()["paths"].get(path, {"get": {}})
    async with proxied(engine.url) as client:
        for method in {"get", "put", "post", "delete", "patch", "trace"} - set(described):
            answer = await client.request(method, path)

            assert answer.status_code == 405
            assert answer.json()["error"]["code"] == Reason.METHOD_NOT_ALLOWED
            assert answer.headers["x-request-id"]
            assert {each.strip().lower() for each in answer.headers["allow"].split(",")} - {"head"} == set(
                described
            )


@pytest.mark.parametrize("reason", Reason)
def test_every_failure_is_described(reason: Reason) -> None:
    """Each row of the table of failures is told under its status, in both forms of an error."""
    responses = openapi.document()["components"]["responses"]
    for form in ("Error", "MessagesError"):
        assert (
            f"`{reason}`: {TABLE[reason].message}"
            in responses[f"{form}{TABLE[reason].status}"]["description"]
        )


def test_every_reference_is_to_something() -> None:
    """No reference in the document leads nowhere."""
    document = openapi.document()
    for reference in _references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place


def test_the_encoded_document_is_the_document() -> None:
    """What is served is the document, as JSON."""
    assert json.loads(openapi.encoded()) == openapi.document()


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def _about_the_model() -> dict[str, Any]:
    """The document, with the one model that exists: what is found out after its name is tested too."""
    document = openapi.document()
    for kind in Kind:
        name = document["paths"][kind]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        document["components"]["schemas"][name.rpartition("/")[2]]["properties"]["model"] = {"const": MODEL}
    return document


schema = schemathesis.openapi.from_dict(_about_the_model())

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@contextlib.asynccontextmanager
async def _served(proxied: Proxied) -> AsyncGenerator[str]:
    async with FakeVllm() as engine, proxied(engine.url) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def served(proxied: Proxied) -> Iterator[str]:
    """A proxy in front of a fake engine, in a thread of its own: schemathesis sends its requests from this one."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_served(proxied)) as url,
    ):
        yield url


@schema.parametrize()  # pyright: ignore[reportUntypedFunctionDecorator]  schemathesis has no type for it
@hypothesis.settings(max_examples=40, derandomize=True)
def test_the_proxy_keeps_to_its_document(case: schemathesis.Case[Any], served: str) -> None:
    """Whatever is sent, the answer is one that the document describes; each 4xx is an error in the API's own shape."""
    answer = case.call_and_validate(base_url=served, checks=CHECKS)

    assert answer.headers["x-request-id"]
    if 400 <= answer.status_code < 500:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] in {reason.value for reason in TABLE}
