"""JSON that clients send, as it can be stored: over HTTP and over a WebSocket alike.

It is not nested deeper than anything that will be made of it may be, and has U+FFFD in place of NUL, which PostgreSQL
cannot store.
"""

from typing import Any, cast

import orjson

from muster_agent.nesting import is_too_deep

NUL = "\0"
_REPLACED = "\N{REPLACEMENT CHARACTER}"


class ContentError(ValueError):
    """What a client sent cannot be taken; its text says why, and quotes nothing of it."""


def read_json(text: bytes | bytearray) -> object:
    """The JSON of a body or a message.

    Raises:
        ContentError: It is none, or nested too deeply.
    """
    try:
        # Refuses NaN, lone surrogates and very deep nesting, which the standard library lets through.
        content = cast("object", orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise ContentError(f"not JSON: {error}") from None
    if is_too_deep(text, content):
        raise ContentError("nested too deeply")
    return _without_nul(content) if b"\\u0000" in text else content


def _without_nul(value: Any) -> Any:  # noqa: ANN401 - any JSON
    match value:
        case str():
            return value.replace(NUL, _REPLACED)
        case list():
            return [_without_nul(item) for item in cast("list[Any]", value)]
        case dict():
            items = cast("dict[str, Any]", value).items()
            return {_without_nul(key): _without_nul(item) for key, item in items}
        case _:
            return value
