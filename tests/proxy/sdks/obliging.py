"""An engine that does what the tests of clients ask of a model: it calls the tools and fills in the forms."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from muster_proxy.testing import FakeVllm, Reply

_NUMBER = 3


class ObligingEngine(FakeVllm):
    """A fake engine that makes its answers from what it is asked.

    It calls the tool that is named, or the first that is offered, unless a tool has just answered; its arguments, and
    an answer that has to have a form, are the simplest that the schema allows. Every text in them is the last thing
    that was said, and every number 3.
    """

    def _play(
        self, request: Request, body: dict[str, Any], reply: Reply | None
    ) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        return super()._play(request, body, reply or _reply(body))


def _reply(body: Mapping[str, Any]) -> Reply:
    said = _said(body)
    if body.get("tools") and not _is_tools_answer(said[-1]) and body.get("tool_choice") != "none":
        tool = _tool(body)
        return Reply("", tool_calls=[(tool["name"], _filled(tool.get("parameters") or {}, said))])
    form: dict[str, Any] = body.get("response_format") or body.get("text", {}).get("format") or {}
    if form.get("type") == "json_schema":
        return Reply(_filled((form.get("json_schema") or form)["schema"], said))
    if form.get("type") == "json_object":
        return Reply(json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", _text(said)), "text")))
    return Reply()


def _said(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages, or what the Responses API has for them."""
    said = body.get("messages") or body["input"]
    return [{"role": "user", "content": said}] if isinstance(said, str) else said


def _is_tools_answer(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "tool" or message.get("type") == "function_call_output"


def _tool(body: Mapping[str, Any]) -> dict[str, Any]:
    """The tool to call."""
    tools = [tool.get("function") or tool for tool in body["tools"]]
    choice = body.get("tool_choice")
    wanted = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else tools[0]["name"]
    return next(tool for tool in tools if tool["name"] == wanted)


def _text(said: list[dict[str, Any]]) -> str:
    content: Any = said[-1].get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _filled(schema: Mapping[str, Any], said: list[dict[str, Any]]) -> str:
    return json.dumps(_instance(schema, _text(said)), ensure_ascii=False)


def _instance(schema: Mapping[str, Any], text: str) -> Any:
    schema = next(iter(schema.get("anyOf", [])), schema)
    kind = schema.get("type", "object")
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        return {name: _instance(each, text) for name, each in properties.items()}
    values: dict[str, Any] = {
        "string": text,
        "integer": _NUMBER,
        "number": _NUMBER,
        "boolean": True,
        "array": [],
    }
    return values[kind]
