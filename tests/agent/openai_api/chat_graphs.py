"""A graph as users bring it, that talks."""

from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import (  # pyright: ignore[reportMissingTypeStubs] - typed inline
    END,
    START,
    MessagesState,
    StateGraph,
)


def _answer(state: MessagesState, config: RunnableConfig) -> Any:
    told = config.get("configurable", {})
    text = f"{len(state['messages'])} {told['instructions']} {told['sampling'].get('temperature')}"
    return {"messages": [AIMessage(text)]}


builder: Any = StateGraph(MessagesState)
builder.add_node("answer", _answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)
