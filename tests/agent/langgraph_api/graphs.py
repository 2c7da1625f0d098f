"""Graphs for the tests of LangGraph's API."""

from operator import add
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline
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
