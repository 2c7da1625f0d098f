"""One request, read: what the relay, the tickets and the emulation of tools ask of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from muster_proxy.wire import forbidden
from muster_proxy.wire.chat import BatchChatRequest, ChatRequest
from muster_proxy.wire.completions import CompletionRequest
from muster_proxy.wire.media import Content, Part, parts_of
from muster_proxy.wire.messages import MessagesRequest
from muster_proxy.wire.pooling import EmbeddingRequest, RerankRequest, ScoreRequest
from muster_proxy.wire.requests import Request
from muster_proxy.wire.responses import ResponsesRequest
from muster_proxy.wire.strict import parsed, typed
from muster_proxy.wire.tokenizing import DetokenizeRequest, TokenizeRequest


class Kind(StrEnum):
    """The routes whose requests are relayed; the value is the path."""

    CHAT = "/v1/chat/completions"
    CHAT_BATCH = "/v1/chat/completions/batch"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"


_TYPES: dict[Kind, type[Request]] = {
    Kind.CHAT: ChatRequest,
    Kind.CHAT_BATCH: BatchChatRequest,
    Kind.COMPLETIONS: CompletionRequest,
    Kind.EMBEDDINGS: EmbeddingRequest,
    Kind.RESPONSES: ResponsesRequest,
    Kind.MESSAGES: MessagesRequest,
    Kind.TOKENIZE: TokenizeRequest,
    Kind.DETOKENIZE: DetokenizeRequest,
    Kind.RERANK: RerankRequest,
    Kind.SCORE: ScoreRequest,
}

_WITH_OPTIONS = (Kind.CHAT, Kind.COMPLETIONS)


@dataclass(slots=True)
class Call:
    """A request, read. Not to be changed: to make a frozen one takes longer.

    Attributes:
        kind: Its route.
        body: As it came.
        fields: The same, parsed; not to be changed.
        request: Its known fields, typed.
        is_stream: Whether the answer is asked for as an event stream.
        contents: What comes in parts, not as one text, with the path of each.
    """

    kind: Kind
    body: bytes
    fields: dict[str, Any]
    request: Request
    is_stream: bool
    contents: Sequence[Content]

    @property
    def chat(self) -> ChatRequest:
        """The request, where it is a chat completion."""
        assert isinstance(self.request, ChatRequest)  # noqa: S101  asked by what serves that route alone
        return self.request

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return self.request.model

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it: choices for each prompt, texts to embed, documents."""
        return self.request.choices

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that the answer's choices may have together.

        None where the client set no limit, 0 where nothing is generated.
        """
        return self.request.max_output_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether the client gets the usage of a stream: it asked for it, or the API always tells it."""
        return self.request.wants_usage

    @property
    def service_tier(self) -> str | None:
        """The client's `service_tier`, whatever it is."""
        return self.request.tier

    @property
    def cache_key(self) -> str | None:
        """The client's `prompt_cache_key`, whatever it is."""
        return self.request.cache_key

    @property
    def has_tools(self) -> bool:
        """Whether it offers the model tools to call."""
        return self.request.has_tools

    @property
    def may_be_final(self) -> bool:
        """Whether its answer may be an agent's last: the model has tools to call, and may call none.

        An answer that calls the tool that the client has named ends as a final answer does.
        """
        return self.request.has_tools and not self.request.names_tool

    @property
    def is_ambiguous(self) -> bool:
        """Whether the body may name the model twice, so that another reader might see another one.

        Cost: two searches of the body. True also where a text only speaks of "model", or has an escaped letter of
        that name.
        """
        at = self.body.find(b'"model"')
        return at < 0 or self.body.rfind(b'"model"') != at or b"\\u006" in self.body

    def usage_changes(self) -> dict[str, Any]:
        """The fields to set so that the engine tells the usage of a stream; none where it does so anyway."""
        if self.kind not in _WITH_OPTIONS or not self.is_stream or self.wants_usage:
            return {}
        options = cast("dict[str, Any]", self.fields.get("stream_options") or {})
        # Without its total, vLLM tells of no usage at all; with it, this would put one in every event.
        options = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
        return {"stream_options": {**options, "include_usage": True}}

    def forbidden(self) -> tuple[str, ...]:
        """The fields in it that a client may not set (the table of `wire/forbidden.py`)."""
        if forbidden.NAMES.isdisjoint(self.fields):
            return ()
        return tuple(name for name in self.fields if name in forbidden.NAMES)

    def media(self) -> Iterator[Part]:
        """The parts of messages that are no text: images, sound, files."""
        types = self.request.part_types
        for _, part in parts_of(self.contents):
            if isinstance(part, dict) and types.is_media(cast("Part", part)):
                yield part


def read(kind: Kind, body: bytes) -> Call:
    """Read a request.

    Raises:
        RequestError: The body is not strict JSON, or a known field has a wrong type or value.
    """
    fields = parsed(body)
    request = typed(fields, _TYPES[kind])
    request.check()
    return Call(kind, body, fields, request, request.is_stream, tuple(request.contents()))


def read_chat(body: bytes) -> Call:
    """Read a chat completion request.

    Raises:
        RequestError: The body is not strict JSON, or a known field has a wrong type or value.
    """
    return read(Kind.CHAT, body)
