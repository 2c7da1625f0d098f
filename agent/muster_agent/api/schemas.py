"""What a graph takes and gives, as JSON schemas."""

import warnings
from collections.abc import Callable
from typing import Any, cast

from langgraph.pregel import Pregel  # pyright: ignore[reportMissingTypeStubs] - typed inline
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError

_CANNOT = (
    PydanticInvalidForJsonSchema,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeError,
    NameError,
)


def schemas_of(graph: Pregel[Any, Any, Any, Any]) -> dict[str, Any]:
    """The schemas of a graph; null for what has none."""
    return {
        "input_schema": _schema(graph.get_input_jsonschema),
        "output_schema": _schema(graph.get_output_jsonschema),
        "state_schema": _schema(lambda: _state_schema(graph)),
        "config_schema": _schema(lambda: _context_schema(graph)),
        "context_schema": _schema(lambda: _context_schema(graph)),
    }


def _schema(of: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic warns of types without a schema, and leaves them out
        try:
            return of()
        except _CANNOT:
            return None


def _state_schema(graph: Any) -> dict[str, Any]:  # noqa: ANN401 - any kind of graph
    builder = getattr(graph, "builder", None)
    schema = getattr(builder, "state_schema", None)
    return graph.get_output_jsonschema() if schema is None else _of_type(schema)


def _context_schema(graph: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any kind of graph
    schema = getattr(getattr(graph, "builder", None), "context_schema", None)
    return None if schema is None else _of_type(schema)


def _of_type(schema: Any) -> dict[str, Any]:  # noqa: ANN401 - a type
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    return TypeAdapter[Any](cast("Any", schema)).json_schema()
