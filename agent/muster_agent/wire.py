"""JSON as LangGraph's server writes it: messages as their fields, whatever else a state may hold as best it can."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any, cast

import orjson
from langgraph.types import Interrupt
from pydantic import BaseModel

_OPTIONS = orjson.OPT_NON_STR_KEYS
# orjson writes 254 levels. What is written here is put into other JSON, which needs some of them.
_MOST_LEVELS = 200
_INTEGERS = range(-(2**63), 2**64)


def to_json(value: object) -> bytes:
    """`value` as JSON, whatever it is: one row that could not be written would make every list with it an error.

    What has no JSON of its own is written as text, and so are integers beyond 64 bits and what is nested too deeply;
    lone surrogates become question marks.
    """
    try:
        return orjson.dumps(value, _as_json, _OPTIONS)
    except orjson.JSONEncodeError:
        return orjson.dumps(encodable(_writable(value, _MOST_LEVELS)), _as_json, _OPTIONS)


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """`value` as JSON made of dicts, lists, texts and numbers."""
    return orjson.loads(to_json(value))


def _writable(value: object, levels: int) -> Any:  # noqa: ANN401 - JSON
    """`value` as what orjson writes, in so many levels."""
    match value:
        case int() if value not in _INTEGERS:
            return _text(value)
        case None | str() | int() | float():
            return value
        case _ if levels == 0:
            return _text(value)
        case Mapping():
            items = cast("Mapping[Any, Any]", value).items()
            return {_text(key): _writable(item, levels - 1) for key, item in items}
        case list() | tuple() | set() | frozenset():
            return [_writable(item, levels - 1) for item in cast("list[Any]", value)]
        case _:
            return _writable(_as_json(value), levels - 1)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a graph's object may raise anything; Python has limits on depth and digits of its own
        return f"<{type(value).__name__}>"


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
        case BaseModel() | Interrupt():
            return _fields(cast("BaseModel | Interrupt[Any]", value))
        case BaseException():
            return {"error": type(value).__name__, "message": _text(value)}
        case set() | frozenset() | tuple():
            return list(cast("tuple[Any, ...]", value))
        case Mapping():
            return dict(cast("Mapping[Any, Any]", value))
        case date() | time():  # orjson writes these itself, as long as it writes anything
            return value.isoformat()
        case _:
            return value._asdict() if hasattr(value, "_asdict") else _text(value)


def _fields(value: "BaseModel | Interrupt[Any]") -> dict[str, Any]:
    if isinstance(value, Interrupt):
        return interrupt_as_json(value)
    try:
        return value.model_dump()
    except ValueError:  # pydantic takes what is nested deeply for a circle
        return dict(value)


def interrupt_as_json(interrupt: Interrupt[Any]) -> dict[str, Any]:
    """What waits for a person, and what an answer must look like where the graph says so."""
    told: dict[str, Any] = {"value": interrupt.value, "id": interrupt.id}
    if isinstance(interrupt.response_schema, dict):
        told["response_schema"] = interrupt.response_schema
    return told


def iso_time(seconds: float) -> str:
    """A moment as LangGraph's server writes it: `2026-11-22T10:54:18.457978+00:00`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
