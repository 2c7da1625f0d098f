"""The routes that do not generate: tokens of a text, and what pooling models answer."""

import base64
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from muster_proxy.testing import asked, made_text
from muster_proxy.testing.made_text import Vocabulary
from muster_proxy.testing.spoken import Head

_DIMENSIONS = 8

_Score: TypeAlias = tuple[int, float]


class Plain:
    """Answers on these routes.

    Args:
        max_model_len: The most tokens that a prompt has.
    """

    def __init__(self, max_model_len: int) -> None:
        self._max_model_len = max_model_len
        self._vocabulary = Vocabulary()

    def answer(self, path: str, body: Mapping[str, Any], head: Head) -> dict[str, Any]:
        """The body of a good answer on one of `PATHS`.

        Raises:
            RefusedError: The request names another model or lacks a field.
        """
        asked.check_model(body, head.model)
        routes: dict[str, Callable[[Mapping[str, Any], Head], dict[str, Any]]] = {
            "/tokenize": self._tokenized,
            "/detokenize": self._detokenized,
            "/v1/embeddings": _embedded,
            "/v1/rerank": _reranked,
            "/v1/score": _scored,
        }
        return routes[path](body, head)

    def _tokenized(self, body: Mapping[str, Any], _head: Head) -> dict[str, Any]:
        if "prompt" not in body:
            asked.check_has(body, "prompt", "messages")
        text: str = body["prompt"] if "prompt" in body else made_text.chat_text(dict(body))
        tokens = self._vocabulary.encode(text)
        return {
            "count": len(tokens),
            "max_model_len": self._max_model_len,
            "tokens": tokens,
            "token_strs": made_text.text_tokens(text) if body.get("return_token_strs") else None,
        }

    def _detokenized(self, body: Mapping[str, Any], _head: Head) -> dict[str, Any]:
        if "tokens" not in body:
            asked.check_has(body, "tokens")
        return {"prompt": self._vocabulary.decode(body["tokens"])}


TOKEN_PATHS = ("/tokenize", "/detokenize")
POOLING_PATHS = ("/v1/embeddings", "/v1/rerank", "/v1/score")
PATHS = (*TOKEN_PATHS, *POOLING_PATHS)


def _embedded(body: Mapping[str, Any], head: Head) -> dict[str, Any]:
    asked.check_has(body, "input")
    texts = made_text.prompt_texts(body["input"])
    is_base64 = body.get("encoding_format") == "base64"
    dimensions: int = body.get("dimensions") or _DIMENSIONS
    vectors = [_vector(text, dimensions) for text in texts]
    data = [
        {"index": index, "object": "embedding", "embedding": _packed(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    return {**_list(head), "data": data, "usage": _usage(texts)}


def _reranked(body: Mapping[str, Any], head: Head) -> dict[str, Any]:
    asked.check_has(body, "query")
    asked.check_has(body, "documents")
    [query] = _texts(body["query"])
    documents = _texts(body["documents"])
    scores = sorted(_scores(query, documents), key=lambda score: -score[1])
    results = [
        {
            "index": index,
            "document": {"text": documents[index], "multi_modal": None},
            "relevance_score": score,
        }
        for index, score in scores[: body.get("top_n") or len(documents)]
    ]
    tokens = _tokens([query, *documents])
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": head.name("score-"), "model": head.model, "usage": usage, "results": results}


def _scored(body: Mapping[str, Any], head: Head) -> dict[str, Any]:
    asked.check_has(body, "text_1", "queries", "data_1")
    asked.check_has(body, "text_2", "documents", "items", "data_2")
    first = _texts(_first(body, "text_1", "queries", "data_1"))
    second = _texts(_first(body, "text_2", "documents", "items", "data_2"))
    scores = _scores(first[0], second)
    data = [{"index": index, "object": "score", "score": score} for index, score in scores]
    return {**_list(head), "data": data, "usage": _usage([*first, *second])}


def _list(head: Head) -> dict[str, Any]:
    return {"id": head.name("embd-"), "object": "list", "created": head.created_s, "model": head.model}


def _usage(texts: Sequence[str]) -> dict[str, Any]:
    tokens = _tokens(texts)
    nothing = dict.fromkeys(["prompt_tokens_details", "completion_tokens_details"])
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, **nothing}


def _tokens(texts: Sequence[str]) -> int:
    return sum(made_text.tokens_in(text) for text in texts)


def _texts(given: Any) -> list[str]:  # noqa: ANN401  as JSON has it
    """Texts to score: one or several, each a text or an object with parts, which counts as it is written."""
    several = cast("list[Any]", given) if isinstance(given, list) else [given]
    return [each if isinstance(each, str) else json.dumps(each) for each in several]


def _first(body: Mapping[str, Any], *names: str) -> Any:  # noqa: ANN401  as JSON has it
    return next(body[name] for name in names if name in body)


def _vector(text: str, dimensions: int) -> list[float]:
    """The same for the same text, each number from 0 to 1."""
    return [zlib.crc32(f"{place} {text}".encode()) / 2**32 for place in range(dimensions)]


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _scores(query: str, documents: Sequence[str]) -> list[_Score]:
    return [(index, _vector(query + text, 1)[0]) for index, text in enumerate(documents)]
