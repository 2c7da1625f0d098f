"""What the requests of all routes have in common: what the proxy wants to know of each."""

from collections.abc import Iterator
from typing import ClassVar

from msgspec import Struct

from muster_proxy.wire.limits import (
    Choices,
    Count,
    LogitBias,
    Model,
    Penalty,
    Probabilities,
    RepetitionPenalty,
    Seed,
    Share,
    ShortText,
    StopText,
    StopTexts,
    Temperature,
    TokenList,
    TopK,
)
from muster_proxy.wire.media import CHAT_PARTS, Content, PartTypes


class Request(Struct, kw_only=True):
    """A request; what is not said by its route's own type is said here for one that generates nothing."""

    part_types: ClassVar[PartTypes] = CHAT_PARTS

    model: Model

    @property
    def is_stream(self) -> bool:
        """Whether the answer is asked for as an event stream."""
        return False

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it."""
        return 1

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that all choices may have together; None where the client set no limit."""
        return 0

    @property
    def wants_usage(self) -> bool:
        """Whether the client expects the answer's usage; False only for streams where it is told on request."""
        return True

    @property
    def tier(self) -> str | None:
        """The `service_tier`."""
        return None

    @property
    def cache_key(self) -> str | None:
        """The `prompt_cache_key`."""
        return None

    @property
    def has_tools(self) -> bool:
        """Whether it offers the model tools to call."""
        return False

    @property
    def names_tool(self) -> bool:
        """Whether it names the tool that must be called."""
        return False

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        yield from ()

    def check(self) -> None:
        """Check what types cannot say.

        Raises:
            RequestError: Values that do not go together.
        """


class StreamOptions(Struct):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class Sampled(Request, kw_only=True):
    """A request for text, with the settings of OpenAI's APIs and of vLLM's that say how tokens are chosen."""

    stream: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    stop_token_ids: TokenList | None = None
    logit_bias: LogitBias | None = None
    user: ShortText | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is asked for as an event stream."""
        return bool(self.stream)

    @property
    def tier(self) -> str | None:
        """The `service_tier`."""
        return self.service_tier

    @property
    def cache_key(self) -> str | None:
        """The `prompt_cache_key`."""
        return self.prompt_cache_key


class Completed(Sampled, kw_only=True):
    """What chat completions and completions share."""

    stream_options: StreamOptions | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    min_tokens: Count | None = None
    prompt_logprobs: Probabilities | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for the usage of a stream."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
