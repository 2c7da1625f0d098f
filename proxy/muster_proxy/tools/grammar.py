"""The JSON schema that holds a model to a reply that can be read back (its forms: `tools/reply.py`).

Engines compile it to a grammar (vLLM with xgrammar, llama.cpp with its own converter). Both stop at some
keywords of JSON Schema, so a tool's schema is reduced to those that both take: what is dropped only makes
the constraint wider, never wrong.
"""

from collections.abc import Sequence
from typing import Any, cast

from muster_proxy.wire import Function, ResponseFormat

Schema = dict[str, Any]

# More calls in one answer than this are a model running in circles.
MAX_CALLS = 16

# A bound above this makes a grammar of as many rules; llama.cpp refuses repetitions above 2,000.
_MAX_REPETITIONS = 1000

_BOUNDS = {"minItems", "maxItems", "minLength", "maxLength"}
_COPIED = {"type", "required", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_NAMED_SCHEMAS = {"properties", "$defs", "definitions"}
_SCHEMA_HOLDERS = {
    *_NAMED_SCHEMAS,
    *("anyOf", "oneOf", "allOf", "prefixItems"),
    *("items", "additionalProperties"),
}


def reply_schema(
    functions: Sequence[Function],
    *,
    answer_name: str | None,
    answer_format: ResponseFormat | None = None,
    parallel: bool = False,
) -> Schema:
    """The schema of a reply.

    Args:
        functions: Those that the reply may call.
        answer_name: The name under which it may answer instead; None where it must call.
        answer_format: The form that the client wants the answer to have.
        parallel: Whether it may make several calls at once.
    """
    definitions: Schema = {}
    calls = [
        _call(function.name, _arguments(function, f"tool_{number}", definitions))
        for number, function in enumerate(functions)
    ]
    forms: list[Schema] = list(calls)
    if answer_name is not None:
        text = _answer_text(answer_format, definitions)
        forms.insert(0, _call(answer_name, _object(text=text)))
    if parallel and calls:
        forms.append({"type": "array", "items": _any_of(calls), "minItems": 1, "maxItems": MAX_CALLS})
    schema = _any_of(forms)
    return {**schema, "$defs": definitions} if definitions else schema


def _any_of(forms: list[Schema]) -> Schema:
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _object(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _call(name: str, arguments: Schema) -> Schema:
    return _object(name={"const": name}, arguments=arguments)


def _arguments(function: Function, key: str, definitions: Schema) -> Schema:
    parameters: Schema = {"type": "object", "properties": {}, **(function.parameters or {})}
    if not parameters["properties"] and "$ref" not in parameters:
        parameters.setdefault("additionalProperties", False)
    return _placed(parameters, key, definitions)


def _answer_text(answer_format: ResponseFormat | None, definitions: Schema) -> Schema:
    if answer_format is None or answer_format.type == "text":
        return {"type": "string"}
    wanted = answer_format.json_schema.schema if answer_format.json_schema else None
    return _placed(wanted, "answer", definitions) if wanted else {"type": "object"}


def _placed(schema: Schema, key: str, definitions: Schema) -> Schema:
    """The schema reduced, among the definitions where it refers to places in itself."""
    place = f"#/$defs/{key}"
    reduced = cast("Schema", _reduced(schema, place))
    if not _has_reference(reduced):
        return {name: value for name, value in reduced.items() if name not in ("$defs", "definitions")}
    definitions[key] = reduced
    return {"$ref": place}


def _reduced(schema: object, place: str) -> object:
    """A schema with the keywords that every engine takes; its references lead to `place` in the whole."""
    if not isinstance(schema, dict):
        return schema  # true and false are schemas
    reduced: Schema = {}
    for keyword, value in cast("Schema", schema).items():
        if keyword == "$ref":
            if not isinstance(value, str) or not value.startswith("#"):
                return {}  # nothing is fetched: any value will do
            reduced[keyword] = place + value[1:]
        elif keyword in _COPIED or (keyword in _BOUNDS and _is_small(value)):
            reduced[keyword] = value
        elif keyword in _SCHEMA_HOLDERS:
            reduced[keyword] = _held(value, place, is_named=keyword in _NAMED_SCHEMAS)
    return reduced


def _held(value: object, place: str, *, is_named: bool) -> object:
    """What a keyword holds, reduced: a schema, a list of schemas, or schemas by name."""
    if isinstance(value, list):
        return [_reduced(each, place) for each in cast("list[object]", value)]
    if is_named and isinstance(value, dict):
        return {name: _reduced(each, place) for name, each in cast("Schema", value).items()}
    return _reduced(value, place)


def _is_small(bound: object) -> bool:
    return isinstance(bound, int) and 0 <= bound <= _MAX_REPETITIONS


def _has_reference(schema: object) -> bool:
    if isinstance(schema, dict):
        named = cast("Schema", schema)
        return "$ref" in named or any(_has_reference(value) for value in named.values())
    return isinstance(schema, list) and any(_has_reference(each) for each in cast("list[object]", schema))
