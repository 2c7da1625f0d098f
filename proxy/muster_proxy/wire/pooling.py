"""The routes that compute vectors and scores: `/v1/embeddings`, `/v1/rerank` and `/v1/score`."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, cast

from msgspec import Meta, Struct

from muster_proxy.wire.limits import MOST_MESSAGES, Count, Parts, Positive, ShortText
from muster_proxy.wire.media import Content
from muster_proxy.wire.requests import Request
from muster_proxy.wire.strict import invalid, typed
from muster_proxy.wire.texts import check_texts, count_of


class Utterance(Struct):
    """A message to an embedding model; templates of these have roles of their own, as `query`."""

    role: str
    content: str | Parts | None = None


_Conversation: TypeAlias = Annotated[list[Utterance], Meta(min_length=1)]
_List: TypeAlias = Annotated[list[Any], Meta(min_length=1, max_length=MOST_MESSAGES)]


class EmbeddingRequest(Request, kw_only=True):
    """An input of texts or tokens (OpenAI's), or conversations in `input` or `messages` (vLLM's)."""

    input: str | Annotated[list[Any], Meta(min_length=1)] | None = None
    messages: _List | None = None
    # vLLM's two others are raw bytes, whose usage could not be read.
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: ShortText | None = None

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it."""
        if self.messages is not None:
            return _conversations(self.messages)
        return 1 if self.input is None else max(count_of(self.input), _conversations(self.input))

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        for name, value in (("input", self.input), ("messages", self.messages)):
            if isinstance(value, list) and _is_chat(value):
                yield from _contents(value, name)

    def check(self) -> None:
        """Check the types of what is to be embedded.

        Raises:
            RequestError: There is nothing, or something of another type.
        """
        if self.messages is not None:
            _check_chat(self.messages, "messages")
        elif self.input is None:
            raise invalid("Missing required field for 'input'.", "input")
        elif isinstance(self.input, list) and _is_chat(self.input):
            _check_chat(self.input, "input")
        else:
            check_texts(self.input, "input", most=MOST_MESSAGES)


def _is_chat(value: list[Any]) -> bool:
    """Whether a list holds messages, or lists of messages."""
    first = value[0]
    if isinstance(first, list) and first:
        first = cast("list[object]", first)[0]
    return isinstance(first, dict)


def _conversations(value: str | list[Any]) -> int:
    return len(value) if isinstance(value, list) and isinstance(value[0], list) else 1


def _check_chat(value: list[Any], name: str) -> None:
    if len(value) > MOST_MESSAGES:
        raise invalid(f"Expected array of length <= {MOST_MESSAGES} for '{name}'.", name)
    if isinstance(value[0], list):
        typed(value, list[_Conversation], name)
    else:
        typed(value, list[Utterance], name)


def _contents(value: list[Any], place: str) -> Iterator[Content]:
    """The contents of checked messages that come in parts."""
    for number, each in enumerate(value):
        if isinstance(each, list):
            yield from _contents(cast("list[Any]", each), f"{place}[{number}]")
        elif isinstance(parts := each.get("content"), list):
            yield f"{place}[{number}].content", cast("list[object]", parts)


class Parted(Struct):
    """A document, or a query, that is not text alone."""

    content: Parts


_Text: TypeAlias = str | Parted
_Texts: TypeAlias = str | Parted | Annotated[list[str | Parted], Meta(min_length=1, max_length=MOST_MESSAGES)]


class RerankRequest(Request, kw_only=True):
    """A query and the documents to be ordered by it."""

    query: _Text
    documents: _Texts
    top_n: Count | None = None
    max_tokens_per_doc: Count | None = None
    max_tokens_per_query: Count | None = None

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it."""
        return _size(self.documents)

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        yield from _parted(self.query, "query")
        yield from _parted(self.documents, "documents")


_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


class ScoreRequest(Request, kw_only=True):
    """Texts to be scored against others; vLLM takes four pairs of names for them."""

    queries: _Texts | None = None
    documents: _Texts | None = None
    items: _Texts | None = None
    data_1: _Texts | None = None
    data_2: _Texts | None = None
    text_1: _Texts | None = None
    text_2: _Texts | None = None
    max_tokens_per_doc: Count | None = None
    max_tokens_per_query: Count | None = None

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it."""
        return max(_size(value) for _, value in self._sides())

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        for name, value in self._sides():
            yield from _parted(value, name)

    def check(self) -> None:
        """Check that both sides are there.

        Raises:
            RequestError: One is missing.
        """
        given = {name for name, _ in self._sides()}
        if not any(given.issuperset(pair) for pair in _PAIRS):
            raise invalid(
                "Expected 'queries' with 'documents' or 'items', or 'text_1' with 'text_2'.", "queries"
            )

    def _sides(self) -> list[tuple[str, _Texts]]:
        names = sorted({name for pair in _PAIRS for name in pair})
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]


def _size(value: _Texts) -> int:
    return len(value) if isinstance(value, list) else 1


def _parted(value: _Texts, place: str) -> Iterator[Content]:
    if isinstance(value, Parted):
        yield f"{place}.content", value.content
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _parted(each, f"{place}[{number}]")
