"""What a client has seen of a conversation.

A run is one turn of the assistant for its client, however many model calls and tools it took. A client that streamed
the answer has the texts of all its model calls, set off by blank lines; one that did not has the last alone; one whose
run was broken off has some beginning of it, or nothing. How much white space there is between the texts and within them
is no difference: front ends join and trim what they show in ways of their own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage

from muster_agent.agents.summarised import is_summary
from muster_agent.openai_api.approvals import before_question

SEPARATOR = "\n\n"
"""Between the texts of two model calls of one run, on a stream."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages that the client knows as one.

    Args:
        is_assistant: Whether the agent wrote it.
        texts: Its texts in order; an agent's turn has one for each of the run's model calls.
        is_open: Whether it ended with calls of tools and no answer: it was broken off, or waits for a person.
        is_cut: Whether its beginning is part of a summary.
    """

    is_assistant: bool
    texts: tuple[str, ...]
    is_open: bool = False
    is_cut: bool = False

    def reads_as(self, message: AnyMessage) -> bool:
        """Whether `message` is how a client may send this turn back."""
        if isinstance(message, AIMessage) != self.is_assistant:
            return False
        text = str(message.text)
        if not self.is_assistant:
            return text.strip() == self.texts[0].strip()
        if self._is_told_by(text.split()):
            return True
        before = before_question(text)
        return before is not None and before.split() in [
            form for end in range(len(self.texts) + 1) for form in _forms(self.texts[:end])
        ]

    def _is_told_by(self, shown: list[str]) -> bool:
        """Whether these words are the answer, or the part of it that a client may have."""
        if self.is_open:
            return not shown or any(shown[: len(form)] == form for form in _forms(self.texts))
        told = joined(self.texts).split()
        if self.is_cut and shown[len(shown) - len(told) :] == told:
            return True
        return shown in _forms(self.texts)

    def rest_of(self, message: AnyMessage) -> str:
        """What a client has seen of this turn beyond what is stored of it: an answer that was broken off."""
        text = str(message.text)
        if not self.is_open or before_question(text) is not None:
            return ""
        shown = text.split()
        known = next((len(form) for form in _forms(self.texts) if shown[: len(form)] == form), 0)
        return "".join(text.split(maxsplit=known)[known:]).strip()


def _forms(texts: Sequence[str]) -> list[list[str]]:
    """The words that a client may have of a run's texts: all of them, or those of the last text."""
    return [joined(texts).split(), texts[-1].split() if texts else []]


def joined(texts: Iterable[str]) -> str:
    """The texts of a run's model calls as a stream shows them."""
    return SEPARATOR.join(text for text in texts if text)


@dataclass(frozen=True, slots=True)
class Transcript:
    """The visible part of a thread: tool calls and their results are left out.

    Attributes:
        turns: Its turns in order.
        is_shortened: Whether a summary stands before them in place of older ones.
        is_asking: Whether it waits for a person.
    """

    turns: tuple[Turn, ...]
    is_shortened: bool = False
    is_asking: bool = False

    def unanswered(self) -> "Transcript":
        """It without what a run did that failed before it had an answer; a question to a person is an answer."""
        has_failed = bool(self.turns) and self.turns[-1].is_open and not self.is_asking
        return replace(self, turns=self.turns[:-1]) if has_failed else self

    def ends_with(self, sent: Sequence[AnyMessage]) -> bool:
        """Whether these messages of the user stand at its end, unanswered."""
        last = self.turns[-len(sent) :]
        return len(last) == len(sent) and all(
            not turn.is_assistant and turn.texts == (str(message.text),)
            for turn, message in zip(last, sent, strict=True)
        )

    def tail_of(self, sent: Sequence[AnyMessage]) -> list[AnyMessage] | None:
        """What a client that sends a whole conversation adds to this one; None where it sends another."""
        tail, shown = self._behind(sent), self.unanswered()
        if tail is not None or shown is self or not shown.turns:  # a summary alone would match anything
            return tail
        tail = shown.tail_of(sent)
        return None if tail and isinstance(tail[0], AIMessage) else tail  # it shows another answer

    def _behind(self, sent: Sequence[AnyMessage]) -> list[AnyMessage] | None:
        for begin in self._beginnings(len(sent)):
            end = begin + len(self.turns)
            if end <= len(sent) and all(map(Turn.reads_as, self.turns, sent[begin:])):
                return [*self._rest(sent, end), *sent[end:]]
        return None

    def _beginnings(self, count: int) -> Iterable[int]:
        """Where the turns may begin in what was sent. Of a shortened thread it is not known how many came before."""
        return range(count - len(self.turns), 0, -1) if self.is_shortened else (0,)

    def _rest(self, sent: Sequence[AnyMessage], end: int) -> list[AnyMessage]:
        if not self.turns:
            return []
        rest = self.turns[-1].rest_of(sent[end - 1])
        return [AIMessage(rest)] if rest else []

    def equals(self, sent: Sequence[AnyMessage]) -> bool:
        """Whether a client that has seen this and nothing more would send this."""
        return self._behind(sent) == []


def transcript_of(messages: Sequence[AnyMessage], *, is_asking: bool = False) -> Transcript:
    """The transcript of a thread that holds these messages, and perhaps waits for a person."""
    seen: list[Turn] = []
    is_shortened = False
    for message in messages:
        if is_summary(message):
            seen, is_shortened = [], True
        elif isinstance(message, HumanMessage):
            seen.append(Turn(is_assistant=False, texts=(str(message.text),)))
        elif isinstance(message, AIMessage):
            _add(seen, message, is_first=is_shortened and not seen)
    return Transcript(tuple(seen), is_shortened, is_asking)


def _add(seen: list[Turn], message: AIMessage, *, is_first: bool) -> None:
    """Add a message to the turn that is open, or begin one."""
    text, is_open = str(message.text), bool(message.tool_calls)
    if seen and seen[-1].is_open:
        earlier = seen.pop()
        seen.append(replace(earlier, texts=(*earlier.texts, text), is_open=is_open))
    else:
        seen.append(Turn(is_assistant=True, texts=(text,), is_open=is_open, is_cut=is_first))
