"""What a request asks of an engine without a model, read and refused as vLLM does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from muster_proxy.testing import made_text

DEFAULT_ANSWER_TOKENS = 16

Route: TypeAlias = Literal["batch", "chat", "completions", "messages", "responses"]
"""The routes that generate."""

_CONTENT: Mapping[Route, str] = {
    "batch": "messages",
    "chat": "messages",
    "completions": "prompt",
    "messages": "messages",
    "responses": "input",
}
"""The field that has the prompt."""

_LIMITS: Mapping[Route, tuple[str, ...]] = {
    "batch": ("max_completion_tokens", "max_tokens"),
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""The fields that limit the answer, the stronger first."""

_NUMBERS = ("temperature", "top_p", "n", "max_tokens", "max_completion_tokens", "max_output_tokens")


class RefusedError(Exception):
    """A request that vLLM refuses; the attributes are those of its answer."""

    def __init__(self, status: int, kind: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}

    def body_for(self, route: Route | None) -> dict[str, Any]:
        """The answer's body on a route: Anthropic's form for what is found out after the body's types are checked."""
        if route != "messages" or self.kind == "Bad Request":
            return self.body
        return {"type": "error", "error": {"type": self.kind, "message": str(self)}}


@dataclass(frozen=True)
class Asked:
    """An answer to make.

    Attributes:
        route: Where it was asked for.
        body: The request.
        prompts: The prompts, each to be answered `choices` times.
        choices: See `prompts`.
        is_stream: Whether the answer is given token by token.
        has_usage: Whether such an answer ends with its usage, where that is a choice.
        has_echo: Whether the answer repeats the prompt.
        alternatives: How many likeliest tokens are told for each; None if none are asked for.
        tool: The tool that must be called; None if none must.
        is_named: Whether that tool was named, and not only some tool required.
    """

    route: Route
    body: dict[str, Any]
    prompts: list[str]
    choices: int
    is_stream: bool
    has_usage: bool
    has_echo: bool
    alternatives: int | None
    tool: dict[str, Any] | None
    is_named: bool

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(made_text.tokens_in(prompt) for prompt in self.prompts)

    @property
    def limit(self) -> int | None:
        """The most tokens that an answer may have; None if the request says none."""
        limits = [self.body.get(name) for name in _LIMITS[self.route]]
        return next((limit for limit in limits if limit is not None), None)

    @property
    def is_free(self) -> bool:
        """Whether the answer ends where the model thinks best."""
        return self.limit is None and not self.body.get("ignore_eos")

    @property
    def priority(self) -> int:
        """For the engine's scheduler; lower goes first."""
        return self.body.get("priority") or 0

    def room(self, prompt: str, max_model_len: int) -> int:
        """Tokens that an answer to a prompt has if the model does not end it."""
        limit = max_model_len if self.limit is None else self.limit
        longest = DEFAULT_ANSWER_TOKENS if self.is_free else limit
        return min(longest, max_model_len - made_text.tokens_in(prompt))


def read(body: dict[str, Any], route: Route) -> Asked:
    """Read a request's body, without judging it."""
    options = cast("dict[str, Any]", body.get("stream_options") or {})
    tool, is_named = _tool(body, route)
    return Asked(
        route=route,
        body=body,
        prompts=_prompts(body, route),
        choices=1 if route in ("batch", "messages", "responses") else body.get("n") or 1,
        is_stream=bool(body.get("stream")) and route != "batch",
        has_usage=bool(options.get("include_usage")),
        has_echo=route == "completions" and bool(body.get("echo")),
        alternatives=_alternatives(body, route),
        tool=tool,
        is_named=is_named,
    )


def check(body: dict[str, Any], route: Route, *, model: str, max_model_len: int) -> None:
    """Judge a request's body.

    Raises:
        RefusedError: It names another model, lacks a field, has a wrong value, or is too long.
    """
    _check_types(body)
    check_model(body, model)
    check_has(body, _CONTENT[route])
    _check_terms(body, route)
    asked = read(body, route)
    _check_limit(asked, max_model_len)
    for prompt in asked.prompts:
        _check_room(prompt, max_model_len)


def check_model(body: Mapping[str, Any], model: str) -> None:
    """Refuse a request for another model.

    Raises:
        RefusedError: It names one.
    """
    if (name := body.get("model", model)) != model:
        raise RefusedError(404, "NotFoundError", f"The model `{name}` does not exist.", "model")


def check_has(body: Mapping[str, Any], *fields: str) -> None:
    """Refuse a request that lacks all of these fields.

    Raises:
        RefusedError: It does.
    """
    if not any(body.get(field) for field in fields):
        param = f"body.{fields[0]}"
        raise RefusedError(400, "Bad Request", f"1 validation error: {param}: Field required", param)


def _check_types(body: Mapping[str, Any]) -> None:
    for name in _NUMBERS:
        if not isinstance(body.get(name, 0), int | float | None):
            message = f"1 validation error: body.{name}: Input should be a valid number"
            raise RefusedError(400, "Bad Request", message, f"body.{name}")


def _check_terms(body: Mapping[str, Any], route: Route) -> None:
    choices = body.get("n") or 1
    faults = {
        "temperature": (body.get("temperature") or 0) < 0,
        "stream_options": body.get("stream_options") is not None and not body.get("stream"),
        "tool_choice": body.get("tool_choice") not in (None, "none", "auto") and not body.get("tools"),
        "n": choices > 1 and route == "batch",
    }
    for param, is_wrong in faults.items():
        if is_wrong:
            raise RefusedError(400, "BadRequestError", f"{param} is not as it must be.", param)
    if choices > 1 and body.get("temperature") == 0:
        raise RefusedError(400, "BadRequestError", "n must be 1 when using greedy sampling.", None)


def _check_limit(asked: Asked, max_model_len: int) -> None:
    limit = asked.limit
    if limit is not None and not 1 <= limit <= max_model_len:
        message = f"The answer must have 1 to {max_model_len} tokens, got {limit}."
        name = next(name for name in _LIMITS[asked.route] if asked.body.get(name) is not None)
        raise RefusedError(400, "BadRequestError", message, name)


def _check_room(prompt: str, max_model_len: int) -> None:
    tokens = made_text.tokens_in(prompt)
    if tokens >= max_model_len:
        message = f"This model's maximum context length is {max_model_len} tokens; the prompt has {tokens}."
        raise RefusedError(400, "BadRequestError", message, "input_tokens")


def _prompts(body: dict[str, Any], route: Route) -> list[str]:
    if route == "completions":
        return made_text.prompt_texts(body.get("prompt") or "")
    if route == "batch":
        conversations = cast("list[Any]", body.get("messages") or [])
        return [made_text.chat_text({"messages": messages}) for messages in conversations]
    if route == "responses":
        return [made_text.chat_text({**body, "messages": _response_messages(body)})]
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return [made_text.chat_text({**body, "messages": [*system, *(body.get("messages") or [])]})]


def _response_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = body.get("input") or ""
    items: list[dict[str, Any]] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    instructions = body.get("instructions")
    return [{"role": "system", "content": instructions}, *items] if instructions else items


def _alternatives(body: Mapping[str, Any], route: Route) -> int | None:
    if route == "completions":
        return body.get("logprobs")
    return (body.get("top_logprobs") or 0) if body.get("logprobs") else None


def _tool(body: Mapping[str, Any], route: Route) -> tuple[dict[str, Any] | None, bool]:
    """The tool that must be called, and whether it was named."""
    if route == "batch":  # vLLM ignores tools there
        return None, False
    tools = [_described(tool) for tool in cast("list[dict[str, Any]]", body.get("tools") or [])]
    choice: Any = body.get("tool_choice")
    if choice in ("required", {"type": "any"}):
        return next(iter(tools), None), False
    if not isinstance(choice, dict):
        return None, False
    named = cast("dict[str, Any]", choice)
    name = named.get("name") or named.get("function", {}).get("name")
    return next((tool for tool in tools if tool["name"] == name), None), True


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's name and the schema of its arguments, from any of the three forms."""
    described: Mapping[str, Any] = tool.get("function") or tool
    schema = described.get("parameters") or described.get("input_schema")
    return {"name": described.get("name", ""), "schema": schema or {"type": "object"}}


def arguments(tool: Mapping[str, Any]) -> str:
    """Arguments for a tool that satisfy its schema, as JSON."""
    return json.dumps(made_text.instance(tool["schema"]))
