"""What a client has seen of a conversation, and how what it sends is joined to what a thread holds.

Clients of chat completions come in two kinds. One kind sends the whole conversation each time; the other,
which knows that the thread remembers, sends what is new. Both may name a thread, so each request is judged:

* With no assistant message in it, it is new input, and is put behind what the thread holds.
* With one, the client carries its own history. Where the thread's visible transcript (the texts of user and
  assistant) is a prefix of it, what follows that prefix is new. Otherwise the client has edited or
  regenerated something, and what it sent replaces the thread.

System and developer messages are instructions for one run. They are no part of a transcript.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage

SEPARATOR = "\n\n"
"""Between the texts of two model calls of one run, on a stream."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages that the client knows as one.

    Args:
        is_assistant: Whether the agent wrote it.
        texts: Its texts in order; an agent's turn has one for each of the run's model calls.
    """

    is_assistant: bool
    texts: tuple[str, ...]

    def reads_as(self, message: AnyMessage) -> bool:
        """Whether `message` is how a client may send this turn back, white space at its ends aside.

        A client that did not stream has the last text alone; one that did has all of them.
        """
        if isinstance(message, AIMessage) != self.is_assistant:
            return False
        return str(message.text).strip() in {self.texts[-1].strip(), joined(self.texts).strip()}


def joined(texts: Iterable[str]) -> str:
    """The texts of a run's model calls as a stream shows them."""
    return SEPARATOR.join(text for text in texts if text)


def turns(messages: Sequence[AnyMessage]) -> list[Turn]:
    """The visible transcript of a thread: tool calls and their results are left out."""
    seen: list[Turn] = []
    continues = False  # whether the last assistant message asked for tools, so that its turn goes on
    for message in messages:
        if isinstance(message, HumanMessage):
            seen.append(Turn(is_assistant=False, texts=(str(message.text),)))
            continues = False
        elif isinstance(message, AIMessage):
            earlier = seen.pop().texts if continues else ()
            seen.append(Turn(is_assistant=True, texts=(*earlier, str(message.text))))
            continues = bool(message.tool_calls)
    return seen


def reconcile(stored: list[AnyMessage], sent: list[AnyMessage]) -> list[AnyMessage]:
    """The conversation to run on, by the rule at the head of this module."""
    if not any(isinstance(message, AIMessage) for message in sent):
        return stored + sent
    known = turns(stored)
    if len(known) > len(sent) or not all(map(Turn.reads_as, known, sent)):
        return sent
    return stored + sent[len(known) :]
