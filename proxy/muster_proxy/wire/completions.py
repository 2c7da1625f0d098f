"""`POST /v1/completions`."""

from typing import Annotated, Any

from msgspec import Meta

from muster_proxy.wire.limits import MOST_PROMPTS, Count, Probabilities
from muster_proxy.wire.requests import Completed
from muster_proxy.wire.strict import invalid
from muster_proxy.wire.texts import check_texts, count_of


class CompletionRequest(Completed, kw_only=True):
    """The fields of a completion request that have a type of OpenAI's, or a limit."""

    prompt: str | Annotated[list[Any], Meta(min_length=1)]
    max_tokens: Count | None = None
    logprobs: Probabilities | None = None
    echo: bool | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it: `n` for each prompt."""
        return (self.n or 1) * count_of(self.prompt)

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that all choices may have together; None where the client set no limit."""
        return None if self.max_tokens is None else self.max_tokens * self.choices

    def check(self) -> None:
        """Check the prompts, and that nothing but an echo has no tokens.

        Raises:
            RequestError: They are no texts or tokens, or too many.
        """
        check_texts(self.prompt, "prompt", most=MOST_PROMPTS)
        if self.max_tokens == 0 and not self.echo:
            raise invalid("Expected int >= 1 for 'max_tokens' without 'echo'.", "max_tokens")
