"""vLLM's `/tokenize` and `/detokenize`."""

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from muster_proxy.wire.chat import Message, contents_of
from muster_proxy.wire.limits import MOST_MESSAGES, MOST_TOOLS, Token
from muster_proxy.wire.media import Content
from muster_proxy.wire.requests import Request
from muster_proxy.wire.strict import invalid


class TokenizeRequest(Request, kw_only=True):
    """A prompt or a conversation whose tokens are asked for."""

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MOST_TOOLS)] | None = None

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        return contents_of(self.messages or (), "messages")

    def check(self) -> None:
        """Check that there is something to tokenize.

        Raises:
            RequestError: There is not.
        """
        if self.prompt is None and self.messages is None:
            raise invalid("Expected 'prompt' or 'messages'.", "prompt")


class DetokenizeRequest(Request, kw_only=True):
    """Tokens whose text is asked for."""

    tokens: list[Token]
