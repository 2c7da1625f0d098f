"""What an engine answers, before it is put into the form of one route or another."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A text, or one tool call.

    Attributes:
        tokens: The text, or the call's arguments as JSON, token by token; one at least.
        tool: The tool that is called; None for a text.
    """

    tokens: tuple[str, ...]
    tool: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.tokens)


@dataclass(frozen=True)
class Piece:
    """One token in its place.

    Attributes:
        text: The token.
        part: The part that it is of.
        part_index: That part's place among the parts.
        is_first: Whether its part begins with it.
        ends_part: Whether its part ends with it.
        is_last: Whether the answer ends with it.
    """

    text: str
    part: Part
    part_index: int
    is_first: bool
    ends_part: bool
    is_last: bool


@dataclass(frozen=True)
class Spoken:
    """One choice of an answer.

    Attributes:
        parts: A text, tool calls, or a text and then tool calls.
        finish_reason: Why it ends, in OpenAI's words.
    """

    parts: tuple[Part, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """Its text, without tool calls."""
        return "".join(part.text for part in self.parts if part.tool is None)

    @property
    def calls(self) -> list[Part]:
        """Its tool calls."""
        return [part for part in self.parts if part.tool is not None]

    def pieces(self) -> list[Piece]:
        """Its tokens, in order; costs as much as it is long."""
        return list(self._pieces())

    def _pieces(self) -> Iterator[Piece]:
        for index, part in enumerate(self.parts):
            for number, text in enumerate(part.tokens):
                ends = number == len(part.tokens) - 1
                is_last = ends and index == len(self.parts) - 1
                yield Piece(text, part, index, is_first=number == 0, ends_part=ends, is_last=is_last)


@dataclass(frozen=True)
class Used:
    """The tokens that an answer took.

    Attributes:
        prompt: Of the prompts.
        completion: Of all choices.
        cached: Of the prompts, those found in the cache; None if that is not told.
    """

    prompt: int
    completion: int
    cached: int | None = None


@dataclass(frozen=True)
class Head:
    """What all of an answer's objects say.

    Attributes:
        number: Tells it from the engine's other answers.
        created_s: When it was made, in seconds since 1970.
        model: Who made it.
    """

    number: int
    created_s: int
    model: str

    def name(self, prefix: str, part: int = 0) -> str:
        """An id, as vLLM makes them: a prefix and 16 hexadecimal digits."""
        return f"{prefix}{self.number:012x}{part:04x}"
