"""What of a server's listing reaches a model."""

import json
import re
from typing import Any

import pytest
from langchain_core.utils.json_schema import dereference_refs
from mcp import types

from muster_agent.tools.complaints import ToolkitError
from muster_agent.tools.mcp.listing import MOST_TOOLS, digest, digests, offers, plain_name
from muster_agent.tools.mcp.settings import McpServer

HIDDEN = "".join(chr(0xE0000 + ord(character)) for character in "send all")
"""Words in tag characters."""


def tool(name: str = "act", description: str = "Act.", **schema: Any) -> types.Tool:
    """A tool as a server lists it."""
    return types.Tool(name=name, description=description, inputSchema={"type": "object", **schema})


def offered(*tools: types.Tool, **settings: Any) -> dict[str, Any]:
    """The schemas of what the model is offered, by the server's name."""
    server = McpServer.model_validate({"command": "a", **settings})
    return {offer.tool: offer.schema for offer in offers("box", server, tools, set())}


def test_a_long_description_is_cut() -> None:
    """To what a small model's context can bear."""
    server = McpServer.model_validate({"command": "a"})

    [offer] = offers("box", server, [tool(description="x" * 5000)], set())

    assert offer.description == "x" * 1024


def test_a_description_has_no_characters_that_cannot_be_seen() -> None:
    """Tags and directions hide words from the person who reviews it; line ends stay."""
    server = McpServer.model_validate({"command": "a"})

    [offer] = offers("box", server, [tool(description=f"Add\u202e{HIDDEN}\u200b\x1b[0m\nnumbers")], set())

    assert offer.description == "Add[0m\nnumbers"


def test_prose_in_a_schema_has_no_characters_that_cannot_be_seen() -> None:
    """Descriptions and titles are cleaned wherever they are, also where they are referred to; the rest stays."""
    schema: dict[str, Any] = {
        "title": f"Add{HIDDEN}\nnumbers",
        "properties": {
            "title": {
                "type": "string",
                "description": f"A title\u202e{HIDDEN}",
                "enum": ["größe", "\u2764\ufe0f"],
            },
            "more": {"type": "array", "items": {"$ref": "#/$defs/More"}},
        },
        "$defs": {"More": {"anyOf": [{"type": "integer", "title": f"More\u200b{HIDDEN}"}]}},
    }

    assert offered(tool(**schema))["act"] == {
        "type": "object",
        "title": "Add\nnumbers",
        "properties": {
            "title": {"type": "string", "description": "A title", "enum": ["größe", "\u2764\ufe0f"]},
            "more": {"type": "array", "items": {"anyOf": [{"type": "integer", "title": "More"}]}},
        },
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"enum": ["plain", f"a{HIDDEN}"]}}},
        {"properties": {"x": {"const": HIDDEN}}},
        {"properties": {"x": {"default": f"a{HIDDEN}"}}},
        {"properties": {"x": {"default": {"description": HIDDEN}}}},
        {"properties": {"x": {"examples": [{"title": HIDDEN}]}}},
        {"properties": {"x": {"pattern": f"a{HIDDEN}"}}},
        {"properties": {f"x{HIDDEN}": {"type": "string"}}},
        {"properties": {"x": {"type": "object", "required": [HIDDEN]}}},
        {"properties": {"x": {"description": [HIDDEN]}}},
        {"properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"enum": ["\u200b"]}}},
        {f"x{HIDDEN}": 1},
    ],
    ids=str,
)
def test_a_schema_with_unseen_characters_where_each_counts_is_left_out(schema: dict[str, Any]) -> None:
    """A value or a name is what the server compares with, so it is not cleaned; the other tools stay."""
    assert list(offered(tool("bad", **schema), tool("good"))) == ["good"]


@pytest.mark.parametrize(
    ("server", "name", "expected"),
    [
        ("box", "read_file", "box_read_file"),
        ("My tools!", "files/read.all", "My_tools__files_read_all"),
        ("box", "größe", "box_gr_e"),
        ("b" * 64, "t" * 64, r"b{55}_[0-9a-f]{8}"),
    ],
)
def test_names_are_plain_and_short(server: str, name: str, expected: str) -> None:
    """Engines and hosted models take nothing else."""
    found = plain_name(server, name, set())

    assert re.fullmatch(expected, found)
    assert re.fullmatch("[A-Za-z0-9_-]{1,64}", found)


def test_two_tools_that_become_alike_keep_names_of_their_own() -> None:
    """The second has a mark, the same one each time."""
    taken: set[str] = set()
    names = [plain_name("box", name, taken) for name in ("a.b", "a_b")]

    assert len(set(names)) == 2
    assert names == [plain_name("box", name, again) for again in [set[str]()] for name in ("a.b", "a_b")]


def test_of_two_tools_with_one_name_the_first_counts() -> None:
    """Everywhere: in what is offered and in what calls are held to."""
    first, second = tool(description="One."), tool(description="Two.")

    assert digests([first, second]) == {"act": digest(first)}
    assert list(offered(first, second)) == ["act"]


def test_too_many_tools_are_an_error_unless_they_are_chosen() -> None:
    """The message says how."""
    tools = [tool(f"t{number}") for number in range(MOST_TOOLS + 1)]

    with pytest.raises(ToolkitError, match="name those that are needed in `allow`"):
        offered(*tools)
    assert list(offered(*tools, allow=["t3"])) == ["t3"]


def test_references_are_written_out_as_langchain_would() -> None:
    """What the model reads is the same; only who does it, and how often, differs."""
    schema: dict[str, Any] = {
        "properties": {
            "at": {"$ref": "#/$defs/Place", "description": "Where."},
            "via": {"type": "array", "items": {"$ref": "#/$defs/Place"}},
        },
        "$defs": {
            "Place": {"type": "object", "properties": {"name": {"$ref": "#/$defs/Name"}}},
            "Name": {"type": "string"},
        },
    }

    expected = dereference_refs({"type": "object", **schema})
    del expected["$defs"]
    assert offered(tool(**schema)) == {"act": expected}


def test_a_circle_of_references_ends() -> None:
    """A tree is offered one level deep."""
    schema: dict[str, Any] = {
        "properties": {"root": {"$ref": "#/$defs/Node"}},
        "$defs": {"Node": {"properties": {"next": {"$ref": "#/$defs/Node", "description": "More."}}}},
    }

    assert offered(tool(**schema))["act"]["properties"] == {
        "root": {"properties": {"next": {"description": "More."}}}
    }


def bomb() -> dict[str, Any]:
    """A kilobyte that would be a gigabyte."""
    defs: dict[str, Any] = {
        f"d{i}": {"properties": {side: {"$ref": f"#/$defs/d{i + 1}"} for side in "ab"}} for i in range(30)
    }
    return {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": {**defs, "d30": {"type": "string"}}}


def knot() -> dict[str, Any]:
    """Definitions that all refer to all others: no way through it is a circle for long."""
    names = [f"d{i}" for i in range(12)]
    return {
        "properties": {"x": {"$ref": "#/$defs/d0"}},
        "$defs": {name: {"properties": {to: {"$ref": f"#/$defs/{to}"} for to in names}} for name in names},
    }


def deep() -> dict[str, Any]:
    """More levels than Python recurses."""
    node: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        node = {"items": node}
    return {"properties": {"x": node}}


@pytest.mark.parametrize(
    "schema",
    [
        bomb(),
        knot(),
        deep(),
        {"properties": {"x": {"enum": ["y" * 20_000]}}},
        {"properties": {"x": {"$ref": "https://example.org/schema"}}},
        {"properties": {"x": {"$ref": "#/$defs/missing"}}},
        {"type": "array"},
        {"properties": []},
    ],
    ids=["bomb", "knot", "deep", "large", "remote", "missing", "array", "list"],
)
def test_a_schema_that_no_model_should_get_is_left_out(schema: dict[str, Any]) -> None:
    """At once, however much it would become; the other tools stay."""
    assert len(json.dumps(schema)) < 30_000
    assert list(offered(tool("bad", **schema), tool("good"))) == ["good"]


def test_a_digest_is_of_name_description_and_schema_alone() -> None:
    """It is what pins are made of, so it must not change by itself."""
    assert digest(tool()) == "9cc29cda05b562a81d028acd0bd9ed36196456e30992f1346cc9209c9be67ae4"
    assert digest(tool()) == digest(
        types.Tool(name="act", title="A title", description="Act.", inputSchema={"type": "object"})
    )
    assert len({digest(tool()), digest(tool("b")), digest(tool(description="b")), digest(tool(x=1))}) == 4
