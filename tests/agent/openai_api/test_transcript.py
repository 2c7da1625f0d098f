"""How what a client sends is joined to what a thread holds."""

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage

from muster_agent.openai_api.transcript import Turn, reconcile, turns

CALL = ToolCall(name="calculator", args={}, id="c", type="tool_call")


def _texts(messages: list[AnyMessage]) -> list[tuple[str, str]]:
    return [(message.type, str(message.text)) for message in messages]


def test_a_run_with_tools_is_one_turn() -> None:
    """The texts of a run's model calls belong to one turn; tool results are no part of it."""
    stored: list[AnyMessage] = [
        HumanMessage("A"),
        AIMessage("let me see", tool_calls=[CALL]),
        ToolMessage("1", tool_call_id="c"),
        AIMessage("one"),
        AIMessage("and more"),
    ]

    assert turns(stored) == [
        Turn(is_assistant=False, texts=("A",)),
        Turn(is_assistant=True, texts=("let me see", "one")),
        Turn(is_assistant=True, texts=("and more",)),
    ]


def test_a_shorter_history_replaces() -> None:
    """A client that goes back to an earlier point has what came after forgotten."""
    stored: list[AnyMessage] = [HumanMessage("A"), AIMessage("a"), HumanMessage("B"), AIMessage("b")]
    sent: list[AnyMessage] = [HumanMessage("A"), AIMessage("a"), HumanMessage("C")]

    assert reconcile(stored, sent) == sent


def test_white_space_at_the_ends_is_no_edit() -> None:
    """A client that trims what it was shown still matches."""
    stored: list[AnyMessage] = [HumanMessage("A"), AIMessage(" a\n")]
    sent: list[AnyMessage] = [HumanMessage("A"), AIMessage("a"), HumanMessage("B")]

    assert _texts(reconcile(stored, sent)) == [("human", "A"), ("ai", " a\n"), ("human", "B")]


TEXTS = st.text("ab", max_size=2)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)


def _conversation(pairs: list[tuple[str, str]]) -> list[AnyMessage]:
    return [message for user, agent in pairs for message in (HumanMessage(user), AIMessage(agent))]


@given(TURNS, TEXTS)
def test_resending_everything_equals_sending_what_is_new(pairs: list[tuple[str, str]], text: str) -> None:
    """On a thread of its own, a client that carries its history and one that does not see the same."""
    stored = _conversation(pairs)

    carried = reconcile(stored, [*_conversation(pairs), HumanMessage(text)])

    assert _texts(carried) == _texts(reconcile(stored, [HumanMessage(text)]))


@given(TURNS, TURNS, TEXTS)
def test_the_client_gets_the_conversation_that_it_shows(
    kept: list[tuple[str, str]], sent: list[tuple[str, str]], text: str
) -> None:
    """Whatever the thread held, a carried history is what the run goes on from, as far as can be seen."""
    history: list[AnyMessage] = [*_conversation([*sent, ("u", "a")]), HumanMessage(text)]

    assert _texts(reconcile(_conversation(kept), history)) == _texts(history)
