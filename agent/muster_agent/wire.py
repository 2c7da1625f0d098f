"""JSON as LangGraph's server writes it: messages as their fields, whatever else a state may hold as best it can."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import orjson
from langgraph.types import Interrupt
from pydantic import BaseModel

_OPTIONS = orjson.OPT_NON_STR_KEYS


def to_json(value: object) -> bytes:
    """`value` as JSON. What has no JSON of its own is written as text; lone surrogates become question marks."""
    try:
        return orjson.dumps(value, _as_json, _OPTIONS)
    except orjson.JSONEncodeError:
        return orjson.dumps(encodable(plain(value)), _as_json, _OPTIONS)


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """`value` as JSON made of dicts, lists, texts and numbers."""
    match value:
        case Mapping():
            return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in cast("list[Any]", value)]
        case None | str() | bool() | int() | float():
            return value
        case Interrupt():
            return interrupt_as_json(cast("Interrupt[Any]", value))
        case _:
            return plain(_as_json(value))


def encodable(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` without lone surrogates, which JSON can spell and UTF-8 cannot."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case list():
            return [encodable(item) for item in cast("list[Any]", value)]
        case dict():
            return {encodable(key): encodable(item) for key, item in cast("dict[Any, Any]", value).items()}
        case _:
            return value


def _as_json(value: Any) -> Any:  # noqa: ANN401 - orjson's hook
    match value:
        case BaseModel():
            return value.model_dump()
        case BaseException():
            return {"error": type(value).__name__, "message": str(value)}
        case set() | frozenset() | tuple():
            return list(cast("tuple[Any, ...]", value))
        case Mapping():
            return dict(cast("Mapping[Any, Any]", value))
        case _ if hasattr(value, "_asdict"):
            return value._asdict()
        case _:
            return str(value)


def interrupt_as_json(interrupt: Interrupt[Any]) -> dict[str, Any]:
    """What waits for a person, and what an answer must look like where the graph says so."""
    told: dict[str, Any] = {"value": interrupt.value, "id": interrupt.id}
    if isinstance(interrupt.response_schema, dict):
        told["response_schema"] = interrupt.response_schema
    return told


def iso_time(seconds: float) -> str:
    """A moment as LangGraph's server writes it: `2026-11-22T10:54:18.457978+00:00`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
