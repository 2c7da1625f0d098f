"""Text for an engine without a model: prompts as tokens, names of their blocks, and answers.

A token is four characters. A chat's messages are padded to whole tokens, and so are the answers, so a conversation
that goes on with the answer that it was given begins with the very tokens of its last turn, as a real one does.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

TOKEN_CHARS = 4

_TOKENS = (
    " the",
    " sun",
    " and",
    " sea",
    " are",
    " old",
    " but",
    " new",
    " day",
    " has",
    " one",
    " sky",
    " for",
)
_INSTANCES: Mapping[str, Any] = {
    "string": "text",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
}

_STRIDE = 7  # which has no factor in common with their number, so that an answer uses all of them


def chat_text(body: dict[str, Any]) -> str:
    """The prompt that a chat's tools and messages make, up to where the answer begins."""
    parts = [json.dumps(body["tools"])] if body.get("tools") else []
    for message in body["messages"]:
        parts += [f"<{message.get('role')}>", _content(message.get("content"))]
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"]))
    return "".join(_padded(part) for part in [*parts, "<assistant>"])


def prompt_texts(prompt: Any) -> list[str]:  # noqa: ANN401  as JSON has it
    """The prompts of a completion: a text, several, tokens, or several rows of tokens."""
    if isinstance(prompt, str):
        return [prompt]
    rows = cast("list[Any]", prompt)
    if all(isinstance(row, int) for row in rows):
        return [_tokens_text(rows)]
    return [row if isinstance(row, str) else _tokens_text(row) for row in rows]


def tokens_in(text: str) -> int:
    """How many tokens a text has, at least 1."""
    return max(1, -(-len(text) // TOKEN_CHARS))


def block_names(text: str, block_size: int) -> list[int]:
    """The names of a text's full blocks: each is a hash of all of the text up to the block's end."""
    chars = block_size * TOKEN_CHARS
    names: list[int] = []
    name = 0
    for end in range(chars, len(text) + 1, chars):
        name = hash((name, text[end - chars : end]))
        names.append(name)
    return names


def answer_tokens(prompt: str, choice: int, count: int) -> list[str]:
    """The tokens of the answer to a prompt: the same for the same prompt and choice, and otherwise others."""
    first = zlib.crc32(prompt.encode()) + choice
    return [_TOKENS[(first + index * _STRIDE) % len(_TOKENS)] for index in range(count)]


def _content(content: Any) -> str:  # noqa: ANN401  as JSON has it
    if isinstance(content, str):
        return content
    return json.dumps(content) if content else ""


def _tokens_text(tokens: Sequence[int]) -> str:
    return "".join(f"{token % 0x10000:04x}" for token in tokens)


def _padded(text: str) -> str:
    return text + " " * (-len(text) % TOKEN_CHARS)


def text_tokens(text: str) -> list[str]:
    """A text's tokens: as many as `tokens_in` says, but none of an empty text."""
    return [text[start : start + TOKEN_CHARS] for start in range(0, len(text), TOKEN_CHARS)]


def instance(schema: Mapping[str, Any]) -> Any:  # noqa: ANN401  as JSON has it
    """The simplest value that a JSON schema of the common kind allows."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        return {name: instance(properties[name]) for name in schema.get("required", properties)}
    return _INSTANCES.get(kind)


class Vocabulary:
    """Numbers for tokens, given out in the order in which they are first seen."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._tokens: list[str] = []

    def encode(self, text: str) -> list[int]:
        """A text's tokens as numbers."""
        return [self._number(token) for token in text_tokens(text)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of such numbers; those not yet given out have none."""
        return "".join(self._tokens[number] for number in numbers if number < len(self._tokens))

    def _number(self, token: str) -> int:
        if token not in self._numbers:
            self._numbers[token] = len(self._tokens)
            self._tokens.append(token)
        return self._numbers[token]
