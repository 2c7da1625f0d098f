"""The schema that a reply is held to."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from muster_proxy.tools.grammar import reply_schema
from muster_proxy.wire import Function


def arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of a lone function's arguments."""
    schema = reply_schema([Function("f", parameters=parameters)], answer_name=None)
    result: dict[str, Any] = schema["properties"]["arguments"]
    return result


def test_keywords_that_engines_stop_at_are_dropped() -> None:
    """At any depth; names of properties are no keywords."""
    given_schema = {
        "type": "object",
        "title": "T",
        "$schema": "x",
        "properties": {
            "pattern": {"type": "string", "pattern": "a(?=b)", "minLength": 2},
            "n": {"maxItems": 10**6},
        },
        "required": ["pattern"],
        "additionalProperties": {"type": "integer", "format": "x"},
    }
    assert arguments(given_schema) == {
        "type": "object",
        "properties": {"pattern": {"type": "string", "minLength": 2}, "n": {}},
        "required": ["pattern"],
        "additionalProperties": {"type": "integer"},
    }


def test_references_lead_to_their_place_in_the_whole() -> None:
    """A tool's schema that refers to itself is set among the definitions, with its references moved along."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    schema = reply_schema(
        [
            Function(
                "f",
                parameters={
                    "type": "object",
                    "properties": {"a": {"$ref": "#/$defs/Node"}},
                    "$defs": {"Node": node},
                },
            )
        ],
        answer_name="answer",
    )
    moved = schema["$defs"]["tool_0"]

    assert schema["anyOf"][1]["properties"]["arguments"] == {"$ref": "#/$defs/tool_0"}
    assert moved["properties"]["a"] == {"$ref": "#/$defs/tool_0/$defs/Node"}
    assert moved["$defs"]["Node"]["properties"]["next"] == {"$ref": "#/$defs/tool_0/$defs/Node"}


def test_references_to_elsewhere_are_any_value() -> None:
    """Nothing is fetched on a client's word."""
    assert arguments({"properties": {"a": {"$ref": "http://127.0.0.1/x"}}})["properties"] == {"a": {}}


def test_a_function_without_parameters_takes_none() -> None:
    """As OpenAI has it."""
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert arguments({}) == nothing


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "items", "$ref", "anyOf", "enum", "$defs", "minItems", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_any_schema_is_reduced_without_an_error(value: Any) -> None:
    """What is no schema at all is the engine's to refuse; reading it must not fail here."""
    schema = reply_schema([Function("f", parameters={"properties": {"a": value}})], answer_name="answer")
    assert schema["anyOf"][1]["properties"]["name"] == {"const": "f"}
