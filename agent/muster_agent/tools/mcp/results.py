"""What a server answered, as text for a model."""

import json
from typing import Final, assert_never

from mcp import types

from muster_agent.tools.mcp.unseen import without_unseen

CUT: Final = "\n[The rest of the answer was cut.]"


def text_of(result: types.CallToolResult, most_characters: int) -> str:
    """The text of an answer, cut, without characters that cannot be seen; what is no text is named in brackets.

    A server that answers in structured form alone is quoted as JSON.
    """
    parts = [_text(block) for block in result.content]
    if not parts and result.structuredContent is not None:
        parts = [json.dumps(result.structuredContent, ensure_ascii=False)]
    return cut(without_unseen("\n".join(parts)) or "[empty]", most_characters)


def cut(text: str, most_characters: int) -> str:
    """`text`, with a note in place of what is too much."""
    return text if len(text) <= most_characters else text[: most_characters - len(CUT)] + CUT


def _text(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent(text=text):
            return text
        case types.EmbeddedResource(resource=types.TextResourceContents(text=text)):
            return text
        case types.ImageContent():
            return "[image]"
        case types.AudioContent():
            return "[audio]"
        case types.EmbeddedResource() | types.ResourceLink():
            return "[resource]"
        case _:
            assert_never(block)
