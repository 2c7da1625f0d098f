"""What a run starts with: its input as it came, or a chat client's messages made to fit its thread.

Clients of chat completions come in two kinds. One sends the whole conversation each time; the other, which knows that
the thread remembers, sends what is new. Both may name a thread, so each request is judged when its run begins, with the
thread to itself:

1. System and developer messages are instructions for this run. They are part of no conversation and never stored.
2. Where no assistant message is among the rest, they are new input, put behind what the thread holds; a message that
   stands there unanswered already is a request that is made again, and is not put there twice. What was done for it
   before its run failed is no answer: the run goes on behind that. Front ends that name their chats
   (`x-openwebui-chat-id`, `x-conversation-id`) and clients that name a cache (`prompt_cache_key`) are known to send
   everything, so for them this rule does not count.
3. Where the thread's visible transcript (the texts of user and assistant) is the beginning of what was sent, what
   follows it is new, and is put behind. A part that a summary stands for is taken as matching. What a run did that
   failed before it had an answer may be missing from what was sent: its client was told of the failure alone.
4. Else the client has edited or regenerated something. Where an earlier state of the thread is what was sent up to its
   last assistant message, the thread goes on from that state: it forks, and the branch that is left stays in its
   history.
5. Else what was sent becomes the conversation. What was there stays in the history.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.message import REMOVE_ALL_MESSAGES  # pyright: ignore[reportMissingTypeStubs] - typed inline

from muster_agent.openai_api.transcript import transcript_of
from muster_agent.runs.states import state_of, states_of

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Graph

_MOST_STATES = 500


async def prepare_input(graph: "Graph", config: RunnableConfig, kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a graph's input
    """The graph's input; `config` names the state to go on from where it is not the newest."""
    transcript = cast("Mapping[str, Any] | None", kwargs.get("transcript"))
    if transcript is None:
        return kwargs["input"]
    sent = [_message(each) for each in transcript["messages"]]
    thread = _thread(config)
    state = await state_of(graph, thread)
    stored = transcript_of(_messages(state.values), is_asking=bool(state.interrupts))
    if not transcript["is_whole"] and not any(isinstance(message, AIMessage) for message in sent):
        return {"messages": [] if stored.unanswered().ends_with(sent) else sent}
    added = stored.tail_of(sent)
    if added is not None:
        return {"messages": added}
    head, tail = _split(sent)
    fork = await _state_that_reads(graph, thread, head) if head else None
    if fork is not None:
        config.get("configurable", {})["checkpoint_id"] = fork
        return {"messages": tail}
    return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), *sent]}


def _message(told: Mapping[str, str]) -> AnyMessage:
    return HumanMessage(told["content"]) if told["role"] == "user" else AIMessage(told["content"])


def _thread(config: RunnableConfig) -> RunnableConfig:
    configurable: Mapping[str, Any] = config.get("configurable", {})
    return RunnableConfig(configurable={"thread_id": configurable["thread_id"], "checkpoint_ns": ""})


def _messages(values: Any) -> list[AnyMessage]:  # noqa: ANN401 - a graph's state
    found: object = cast("dict[str, Any]", values).get("messages") if isinstance(values, dict) else None
    return cast("list[AnyMessage]", found) if isinstance(found, list) else []


def _split(sent: Sequence[AnyMessage]) -> tuple[list[AnyMessage], list[AnyMessage]]:
    """What was sent up to its last assistant message, and what is behind it."""
    places = [place for place, message in enumerate(sent) if isinstance(message, AIMessage)]
    end = places[-1] + 1 if places else 0
    return list(sent[:end]), list(sent[end:])


async def _state_that_reads(graph: "Graph", thread: RunnableConfig, head: Sequence[AnyMessage]) -> str | None:
    """The newest state at rest whose transcript is `head`: its checkpoint."""
    async for state in states_of(graph, thread, _MOST_STATES):
        if not state.next and transcript_of(_messages(state.values)).equals(head):
            return str(cast("Any", state.config)["configurable"]["checkpoint_id"])
    return None
