"""What the proxy reads of a request: strict JSON, the fields it schedules by, the types of those it knows.

The body's bytes stay as they came and are what an engine gets, but for what `rewritten` must set. Types are checked
here because engines answer a wrong one with anything from a helpful 400 to a 500; unknown fields are the engine's
business and pass, but for those of `forbidden`.
"""

from muster_proxy.wire.calls import Call, Kind, read, read_chat
from muster_proxy.wire.chat import (
    BatchChatRequest,
    ChatRequest,
    Function,
    Message,
    NamedChoice,
    ResponseFormat,
    Tool,
)
from muster_proxy.wire.completions import CompletionRequest
from muster_proxy.wire.forbidden import Treatment, names_to_strip
from muster_proxy.wire.media import refuse_media, refuse_remote_media
from muster_proxy.wire.messages import MessagesRequest
from muster_proxy.wire.pooling import EmbeddingRequest, RerankRequest, ScoreRequest
from muster_proxy.wire.requests import Request
from muster_proxy.wire.responses import ResponsesRequest
from muster_proxy.wire.rewriting import rewrite, rewritten
from muster_proxy.wire.tokenizing import DetokenizeRequest, TokenizeRequest

__all__ = [
    "BatchChatRequest",
    "Call",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "Function",
    "Kind",
    "Message",
    "MessagesRequest",
    "NamedChoice",
    "Request",
    "RerankRequest",
    "ResponseFormat",
    "ResponsesRequest",
    "ScoreRequest",
    "TokenizeRequest",
    "Tool",
    "Treatment",
    "names_to_strip",
    "read",
    "read_chat",
    "refuse_media",
    "refuse_remote_media",
    "rewrite",
    "rewritten",
]
