"""What a server offers: its tools, checked, cut to size, and each with the digest that it is held to.

A server's words come from outside. What the model is shown is fixed when the server is opened; a tool whose
name, description or schema differs later is another tool, and is not called.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from mcp import types

from muster_agent.tools.complaints import ToolkitError
from muster_agent.tools.mcp.settings import McpServer
from muster_agent.tools.mcp.unseen import has_unseen, without_unseen
from muster_observability import logs

_log = logs.get("agent.mcp")

MOST_TOOLS: Final = 128
"""Tools of one server that a model may be offered: engines and models cope with far fewer."""
MOST_DESCRIPTION_CHARACTERS: Final = 1024
MOST_SCHEMA_CHARACTERS: Final = 16_384
"""Of a schema as it came, and again with its references written out: 4,000 tokens, more than any call needs."""
MOST_SCHEMA_DEPTH: Final = 64
_MOST_NAME: Final = 64
_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9_-]+")
_PROSE: Final = frozenset({"title", "description", "$comment"})
"""Keywords of a schema whose texts are for reading alone."""
_VALUES: Final = frozenset({"enum", "const", "default", "examples"})
"""Keywords of a schema that hold values, in which no key is a keyword."""


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """The schema cannot be given to a model."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool of a server, as the model gets it.

    Args:
        tool: Its name at the server.
        name: Its name for the model.
        description: What the server says of it, cut, without characters that cannot be seen.
        schema: Its arguments as a JSON schema without references; cleaned likewise where it is prose.
        digest: What the server said of it when it was opened.
        is_read_only: The operator says that it changes nothing.
    """

    tool: str
    name: str
    description: str
    schema: dict[str, Any]
    digest: str
    is_read_only: bool


def digest(tool: types.Tool) -> str:
    """SHA-256 of all that a model reads of a tool, in hexadecimal."""
    said = [tool.name, tool.description or "", tool.inputSchema]
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digests(tools: Iterable[types.Tool]) -> dict[str, str]:
    """The digest of each tool by its name; of two with one name, the first counts."""
    found: dict[str, str] = {}
    for tool in tools:
        found.setdefault(tool.name, digest(tool))
    return found


def offers(server: str, settings: McpServer, tools: Iterable[types.Tool], taken: set[str]) -> list[Offer]:
    """The tools of a server that the model is offered; their names are added to `taken`.

    A tool that is too large, or not what its pin says, is left out with a line in the log.

    Raises:
        ToolkitError: There are more tools than a model can choose from.
    """
    listed: dict[str, types.Tool] = {}
    for tool in tools:
        if settings.allow is None or tool.name in settings.allow:
            listed.setdefault(tool.name, tool)
    if len(listed) > MOST_TOOLS:
        raise ToolkitError(
            f"mcp: server {server!r} has more than {MOST_TOOLS} tools; name those that are needed in `allow`"
        )
    _tell_of_missing(server, settings, listed)
    found = [_offer(server, settings, tool, taken) for tool in listed.values()]
    return [offer for offer in found if offer is not None]


def plain_name(server: str, tool: str, taken: set[str]) -> str:
    """A name for the model, `server_tool`, that no other tool has; it is added to `taken`.

    A name that is too long, or that another tool has, ends in eight digits of a hash of both parts. So a
    tool's name depends on itself and on what was opened before it, never on what comes after.
    """
    name = _NOT_PLAIN.sub("_", f"{server}_{tool}")
    if len(name) > _MOST_NAME or name in taken:
        mark = hashlib.sha256(f"{server}\0{tool}".encode()).hexdigest()[:8]
        name = f"{name[: _MOST_NAME - 9]}_{mark}"
    taken.add(name)
    return name


def written_out(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with its references replaced by what they refer to; a circle ends in `{}`.

    LangChain writes references out at every call of the model and without a limit, so a few hundred
    characters could keep the event loop busy for good. Here it is done once, within `MOST_SCHEMA_CHARACTERS`.

    Raises:
        _Refused: It is too large, too deep, or refers to what is not in it.
    """
    body = {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
    plain = cast("dict[str, Any]", _Writer(schema).write(body, ()))
    if plain.get("type", "object") != "object" or not isinstance(plain.get("properties", {}), dict):
        raise _Refused("arguments that are no object")
    return {**plain, "type": "object", "properties": plain.get("properties", {})}


class _Writer:
    """Writes a schema's references out, counting characters."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._left = MOST_SCHEMA_CHARACTERS

    def write(self, node: object, within: tuple[str, ...], depth: int = 0) -> object:
        if depth > MOST_SCHEMA_DEPTH:
            raise _Refused("a schema that is too deep")
        match node:
            case dict():
                return self._object(cast("dict[str, object]", node), within, depth)
            case list():
                self._spend("")
                return [self.write(item, within, depth + 1) for item in cast("list[object]", node)]
            case _:
                self._spend(node)
                return node

    def _object(self, node: Mapping[str, object], within: tuple[str, ...], depth: int) -> object:
        self._spend("".join(node))
        reference = node.get("$ref")
        own = {key: self.write(value, within, depth + 1) for key, value in node.items() if key != "$ref"}
        if not isinstance(reference, str):
            return own if reference is None else {**own, "$ref": self.write(reference, within, depth + 1)}
        self._spend(reference)
        if reference in within:
            return own
        target = self.write(self._found(reference), (*within, reference), depth + 1)
        return {**cast("dict[str, object]", target), **own} if isinstance(target, dict) else target

    def _found(self, reference: str) -> object:
        first, *steps = reference.split("/")
        node: object = self._schema
        for step in steps:
            key = step.replace("~1", "/").replace("~0", "~")
            node = cast("dict[str, object]", node).get(key) if isinstance(node, dict) else None
        if first != "#" or node is None:
            raise _Refused("a reference that leads nowhere")
        return node

    def _spend(self, scalar: object) -> None:
        self._left -= len(str(scalar)) + 1
        if self._left < 0:
            raise _Refused("a schema that is too large")


def _tell_of_missing(server: str, settings: McpServer, listed: Mapping[str, object]) -> None:
    """Names in the settings that the server does not know: a slip, or the server has changed."""
    named = {*(settings.allow or ()), *settings.read_only, *settings.pins}
    if missing := sorted(named - listed.keys()):
        _log.warning("mcp server lacks tools that its settings name", server=server, tools=missing)


def _offer(server: str, settings: McpServer, tool: types.Tool, taken: set[str]) -> Offer | None:
    found = digest(tool)
    if settings.pins.get(tool.name, found) != found:
        _log.error(
            "mcp tool is not the one that was pinned; left out", server=server, tool=tool.name, sha256=found
        )
        return None
    try:
        schema = _schema(tool)
    except _Refused as refusal:
        _log.error("mcp tool left out", server=server, tool=tool.name, because=str(refusal))
        return None
    name = plain_name(server, tool.name, taken)
    _log.info("mcp tool opened", server=server, tool=tool.name, name=name, sha256=found)
    return Offer(
        tool=tool.name,
        name=name,
        description=without_unseen(tool.description or tool.name)[:MOST_DESCRIPTION_CHARACTERS],
        schema=schema,
        digest=found,
        is_read_only=tool.name in settings.read_only,
    )


def _schema(tool: types.Tool) -> dict[str, Any]:
    if len(json.dumps(tool.inputSchema)) > MOST_SCHEMA_CHARACTERS:
        raise _Refused("a schema that is too large")
    return cast("dict[str, Any]", _as_seen(written_out(tool.inputSchema), is_value=False))


def _as_seen(node: object, *, is_value: bool) -> object:
    """A schema without characters that cannot be seen; what has to stay as it is may have none.

    Args:
        node: A part of a schema whose references are written out, and so not deep.
        is_value: Whether it is within a value that a call may have, such as one of `enum`.

    Raises:
        _Refused: There is such a character in a name or a value.
    """
    match node:
        case dict():
            members = cast("dict[str, object]", node).items()
            return {_exact(key): _member_as_seen(key, value, is_value=is_value) for key, value in members}
        case list():
            return [_as_seen(item, is_value=is_value) for item in cast("list[object]", node)]
        case str():
            return _exact(node)
        case _:
            return node


def _member_as_seen(key: str, value: object, *, is_value: bool) -> object:
    if isinstance(value, str) and key in _PROSE and not is_value:
        return without_unseen(value)
    return _as_seen(value, is_value=is_value or key in _VALUES)


def _exact(text: str) -> str:
    if has_unseen(text):
        raise _Refused("a name or a value with characters that cannot be seen")
    return text
