"""Graphs as users bring them: compiled, as a builder, and made by a function."""

import asyncio
import itertools
import operator
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict, cast

from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph.types import interrupt


class State(TypedDict, total=False):
    """What the graphs remember."""

    text: str


def _graph(state: type[Any] = State, **nodes: Any) -> StateGraph[Any, Any, Any, Any]:
    builder: StateGraph[Any, Any, Any, Any] = StateGraph(state)
    names = list(nodes)
    for name, node in nodes.items():
        builder.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder


def _outer(state: State) -> State:
    get_stream_writer()({"step": "outer"})
    return state


def _inner(state: State) -> State:
    return {"text": f"{state.get('text')}b"}


def _fail(_state: State) -> State:
    raise ValueError("boom!")


def _ask(state: State) -> State:
    return {"text": f"{state.get('text')}{interrupt('which?')}"}


_asking = _graph(ask=_ask, deep=_inner).compile()


def _call(state: State) -> Any:
    return _asking.invoke(state)


nested = _graph(outer=_outer, inner=_graph(deep=_inner).compile()).compile()
calling = _graph(call=_call, after=_inner)
failing = _graph(fail=_fail)


def factory(config: RunnableConfig) -> StateGraph[Any, Any, Any, Any]:
    """A graph that does what its run is configured to."""
    suffix = config.get("configurable", {})["suffix"]

    def append(state: State) -> State:
        return {"text": f"{state.get('text')}{suffix}"}

    return _graph(append=append)


class Remembered(TypedDict, total=False):
    """What a subgraph remembers between its calls: how many there were."""

    count: int
    text: str


def _count(state: Remembered) -> Remembered:
    count = state.get("count", 0) + 1
    return {"count": count, "text": str(count)}


def _both(left: list[str] | None, writes: Sequence[list[str]]) -> list[str]:
    return [*(left or ()), *itertools.chain.from_iterable(writes)]


class Pieces(TypedDict, total=False):
    """A list that is stored in pieces, whole only now and then."""

    items: Annotated[list[str], DeltaChannel(_both, snapshot_frequency=4)]


def _add(_state: Pieces) -> Pieces:
    return {"items": ["added"]}


remembering = _graph(calls=_graph(Remembered, count=_count).compile(checkpointer=True)).compile()
in_pieces = _graph(Pieces, add=_add).compile()


class Said(TypedDict, total=False):
    """What has been answered, in no order."""

    log: Annotated[list[str], operator.add]


def _ask_a(_state: Said) -> Said:
    return {"log": [f"a={interrupt('a?')}"]}


async def _ask_b(_state: Said) -> Said:
    answer = interrupt("b?")
    if answer == "never":
        await asyncio.Event().wait()
    if answer == "fail":
        raise ValueError("no such answer")
    return {"log": [f"b={answer}"]}


_two = _graph(Said, b=_ask_b).add_node("a", cast("Any", _ask_a)).add_edge(START, "a").add_edge("a", END)
asking_twice = _two.compile()
asking_once = _graph(Said, b=_ask_b).compile()
