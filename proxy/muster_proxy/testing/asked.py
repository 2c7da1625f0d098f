"""What a request asks of an engine without a model, read and refused as vLLM does."""

from dataclasses import dataclass
from typing import Any, Literal

from muster_proxy.testing import made_text

DEFAULT_ANSWER_TOKENS = 16


class RefusedError(Exception):
    """A request that vLLM refuses; the attributes are those of its answer."""

    def __init__(self, status: int, kind: str, message: str, param: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


@dataclass(frozen=True)
class Asked:
    """A completion or a chat completion to make.

    Attributes:
        is_chat: Which of the two.
        prompts: The prompts, each to be answered `choices` times.
        choices: See `prompts`.
        lengths: For each prompt, the tokens of its answers.
        finish_reason: How they end.
        is_stream: Whether the answer is given token by token.
        has_usage: Whether such an answer ends with its usage.
        priority: For the engine's scheduler.
    """

    is_chat: bool
    prompts: list[str]
    choices: int
    lengths: list[int]
    finish_reason: Literal["length", "stop"]
    is_stream: bool
    has_usage: bool
    priority: int


def read(body: dict[str, Any], *, is_chat: bool, model: str, max_model_len: int) -> Asked:
    """Read a request's body.

    Raises:
        RefusedError: It names another model, lacks a field, or is too long.
    """
    if body.get("model", model) != model:
        raise RefusedError(404, "NotFoundError", f"The model `{body['model']}` does not exist.", "model")
    field = "messages" if is_chat else "prompt"
    if not body.get(field):
        raise RefusedError(
            400, "Bad Request", f"1 validation error: body.{field}: Field required", f"body.{field}"
        )
    prompts = [made_text.chat_text(body)] if is_chat else made_text.prompt_texts(body["prompt"])
    length = _answer_length(body, max_model_len)
    return Asked(
        is_chat=is_chat,
        prompts=prompts,
        choices=body.get("n") or 1,
        lengths=[min(length, _room(prompt, max_model_len)) for prompt in prompts],
        finish_reason="stop" if _is_free(body) else "length",
        is_stream=bool(body.get("stream")),
        has_usage=_has_usage(body),
        priority=body.get("priority") or 0,
    )


def _has_usage(body: dict[str, Any]) -> bool:
    options: dict[str, Any] = body.get("stream_options") or {}
    return bool(options.get("include_usage"))


def _limit(body: dict[str, Any]) -> int | None:
    limit: int | None = body.get("max_completion_tokens")
    return body.get("max_tokens") if limit is None else limit


def _is_free(body: dict[str, Any]) -> bool:
    """Whether the answer ends where the model thinks best."""
    return _limit(body) is None and not body.get("ignore_eos")


def _answer_length(body: dict[str, Any], max_model_len: int) -> int:
    if _is_free(body):
        return DEFAULT_ANSWER_TOKENS
    limit = _limit(body)
    if limit is None:
        return max_model_len
    if not 1 <= limit <= max_model_len:
        message = f"max_tokens must be at least 1 and at most max_model_len={max_model_len}, got {limit}."
        raise RefusedError(400, "BadRequestError", message, "max_tokens")
    return limit


def _room(prompt: str, max_model_len: int) -> int:
    tokens = made_text.tokens_in(prompt)
    if tokens >= max_model_len:
        message = f"This model's maximum context length is {max_model_len} tokens; the prompt has {tokens}."
        raise RefusedError(400, "BadRequestError", message, "input_tokens")
    return max_model_len - tokens
