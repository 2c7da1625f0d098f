"""Graphs as users bring them: one that asks inside of a subgraph, and one that remembers beyond its thread."""

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph.runtime import Runtime
from langgraph.types import interrupt


class State(TypedDict, total=False):
    """What the graphs remember."""

    text: str
    seen: list[Any]


class Decision(TypedDict):
    """The answer that is wanted."""

    is_fine: bool


def _ask(state: State) -> State:
    answer = interrupt("Is it fine?", response_schema=Decision)
    return {"text": f"{state.get('text')} {answer}"}


async def _remember(state: State, runtime: Runtime[None]) -> State:
    assert runtime.store is not None
    namespaces = await runtime.store.alist_namespaces()
    found = await runtime.store.asearch(())
    await runtime.store.aput(("notes",), "last", {"text": state.get("text", "")})
    return {"seen": [*map(list, namespaces), *(item.value for item in found)]}


def _graph(name: str, node: Any) -> Any:
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    builder.add_node(name, node)
    builder.add_edge(START, name)
    builder.add_edge(name, END)
    return builder.compile()


asking_inside = _graph("inner", _graph("deep", _ask))
remembering = _graph("remember", _remember)
