"""Graphs for the tests of LangGraph's API."""

from dataclasses import dataclass
from operator import add
from typing import Annotated, Any, ClassVar, TypedDict

from langgraph.func import entrypoint  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph.graph import (  # pyright: ignore[reportMissingTypeStubs] - typed inline
    END,
    START,
    MessagesState,
    StateGraph,
)
from langgraph.types import interrupt


class State(TypedDict, total=False):
    """Words."""

    text: Annotated[str, add]


def _asking(question: str) -> Any:
    def ask(_state: State) -> State:
        return {"text": f"{interrupt(question)} "}

    return ask


def _echo(state: State) -> State:
    return {"text": f"echo {state.get('text')} "}


two_questions: StateGraph[Any, Any, Any, Any] = StateGraph(State)
for _name in ("a", "b"):
    two_questions.add_node(_name, _asking(_name))
    two_questions.add_edge(START, _name)
    two_questions.add_edge(_name, END)
two_questions.add_node("echo", _echo)
two_questions.add_edge("echo", END)


@entrypoint()
async def saying(word: str) -> str:
    """A graph of LangGraph's functional API, whose state is a text."""
    return f"said {word}"


@entrypoint()
async def listing(word: str) -> list[str]:
    """One whose state is a list."""
    return [word, word]


@entrypoint()
async def asking(word: str) -> list[str]:
    """One that asks before it has any state."""
    answer: str = interrupt("which?")
    return [word, answer]


def _answer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", f"{state['messages'][-1].text}: {interrupt('what then?')}")]}


waiting: StateGraph[Any, Any, Any, Any] = StateGraph(MessagesState)
waiting.add_node("answer", _answer)
waiting.add_edge(START, "answer")
waiting.add_edge("answer", END)


@dataclass
class Note:
    """Something in a state that tells how often it is read."""

    text: str
    read: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.read.append(self.text)


class Notes(TypedDict, total=False):
    """A note and how many there were."""

    count: int
    note: Note


def _note(state: Notes) -> Notes:
    count = state.get("count", 0) + 1
    return {"count": count, "note": Note(f"note {count}")}


noting: StateGraph[Any, Any, Any, Any] = StateGraph(Notes)
noting.add_node("note", _note)
noting.add_edge(START, "note")
noting.add_edge("note", END)


def breaking() -> Any:
    """A factory that is broken."""
    raise RuntimeError("CANARY")
