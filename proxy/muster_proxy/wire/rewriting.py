"""Changes to a request's body: the client's bytes stay as they came where a field is only added."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from muster_proxy.wire.strict import invalid

if TYPE_CHECKING:
    from muster_proxy.wire.calls import Call


def rewritten(call: "Call", changes: Mapping[str, Any], removals: Iterable[str] = ()) -> bytes:
    """The request's body with some fields set and others taken out; as it came where there is nothing to do.

    Where the model may be named twice the body is written anew, so that the engine sees the model that was checked.

    Raises:
        RequestError: It must be written anew and is nested too deeply for that (254 levels).
    """
    if call.is_ambiguous:
        return _written(call.fields, changes, removals)
    return rewrite(call.body, call.fields, changes, removals)


def rewrite(
    body: bytes, fields: Mapping[str, Any], changes: Mapping[str, Any], removals: Iterable[str] = ()
) -> bytes:
    """The same for a body by itself.

    Args:
        body: A JSON object.
        fields: The same, parsed.
        changes: The fields to set.
        removals: The fields to take out; one that is also set stays.

    Raises:
        RequestError: It must be written anew and is nested too deeply for that (254 levels).
    """
    if not (fields.keys().isdisjoint(changes) and fields.keys().isdisjoint(removals)):
        return _written(fields, changes, removals)
    if not changes:
        return body
    # Nothing but white space follows the last brace of a JSON object.
    end = body.rindex(b"}")
    return b"".join((body[:end], b"," if fields else b"", orjson.dumps(dict(changes))[1:]))


def _written(fields: Mapping[str, Any], changes: Mapping[str, Any], removals: Iterable[str]) -> bytes:
    gone = set(removals)
    try:
        return orjson.dumps({name: fields[name] for name in fields if name not in gone} | dict(changes))
    except (orjson.JSONEncodeError, RecursionError):
        raise invalid("A value is nested too deeply.", None) from None
