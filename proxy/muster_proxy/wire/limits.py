"""The types and the limits of the fields that several APIs share.

vLLM 0.32 has the same limits where this page does not say otherwise; those without one there are bounded here so that
no request is read, held or sent whose cost its size does not show.
"""

from typing import Annotated, Any, TypeAlias

from msgspec import Meta

Parts: TypeAlias = list[dict[str, Any]]
"""The content of a message, part by part."""

MOST_MESSAGES = 10_000
"""Of a conversation; also the texts of one call of embeddings, rerank or score. vLLM has no limit."""

MOST_TOOLS = 1_024
"""OpenAI takes 128; agents with many servers of tools have been seen with some hundreds."""

MOST_PROMPTS = 1_024
"""Prompts or conversations that one call may start: vLLM's own limit for prompts (VLLM_MAX_COMPLETION_PROMPTS)."""

Model: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**31)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**31)]
Token: TypeAlias = Count
Tokens: TypeAlias = Annotated[list[Token], Meta(min_length=1)]

Choices: TypeAlias = Annotated[int, Meta(ge=1, le=128)]
"""OpenAI's limit. vLLM's is 16,384, and each choice costs as much as a request."""

Probabilities: TypeAlias = Annotated[int, Meta(ge=0, le=20)]
"""How many alternatives of a token are told. 20 is OpenAI's limit and vLLM's default (`--max-logprobs`); its -1, the
whole vocabulary, is refused here, as it makes an answer of gigabytes (CVE-2026-34756 is of that kind)."""

Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=2)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty: TypeAlias = Annotated[float, Meta(gt=0)]
TopK: TypeAlias = Annotated[int, Meta(ge=-1, le=2**31)]
Seed: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

StopText: TypeAlias = Annotated[str, Meta(max_length=1_024)]
StopTexts: TypeAlias = Annotated[list[StopText], Meta(max_length=64)]
"""OpenAI and vLLM take 4 (VLLM_MAX_STOP_STRINGS); llama.cpp any number. Each is searched for at every token."""

LogitBias: TypeAlias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[0-9]{1,10}$")], float], Meta(max_length=1_024)
]
"""By token id, in decimal."""

TokenList: TypeAlias = Annotated[list[Token], Meta(max_length=1_024)]
FunctionName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
ShortText: TypeAlias = Annotated[str, Meta(max_length=1_024)]
