"""What a client has seen of a thread, and what of a conversation that it sends is new."""

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage

from muster_agent.openai_api.approvals import question
from muster_agent.openai_api.transcript import Turn, transcript_of

CALL = ToolCall(name="calculator", args={}, id="c", type="tool_call")
WORKING: list[AnyMessage] = [
    HumanMessage("A"),
    AIMessage("let me see", tool_calls=[CALL]),
    ToolMessage("1", tool_call_id="c"),
]
SUMMARY = HumanMessage("Summary: ...", additional_kwargs={"lc_source": "summarization"})


def _tail(stored: list[AnyMessage], *texts: str) -> list[str] | None:
    """What is new in a conversation of user and assistant by turns."""
    sent = [HumanMessage(text) if place % 2 == 0 else AIMessage(text) for place, text in enumerate(texts)]
    tail = transcript_of(stored).tail_of(sent)
    return None if tail is None else [str(message.text) for message in tail]


def test_a_run_with_tools_is_one_turn() -> None:
    """The texts of a run's model calls belong to one turn; tool results are no part of it."""
    transcript = transcript_of([*WORKING, AIMessage("one"), AIMessage("and more")])

    assert transcript.turns == (
        Turn(is_assistant=False, texts=("A",)),
        Turn(is_assistant=True, texts=("let me see", "one")),
        Turn(is_assistant=True, texts=("and more",)),
    )


def test_white_space_at_the_ends_is_no_edit() -> None:
    """A client that trims what it was shown still matches."""
    assert _tail([HumanMessage("A"), AIMessage(" a\n")], "A", "a", "B") == ["B"]


def test_texts_that_are_joined_otherwise() -> None:
    """A front end that puts one line break between the texts of a run, or none in a text, still matches."""
    stored: list[AnyMessage] = [*WORKING, AIMessage("one\n\n  two")]

    assert _tail(stored, "A", "let me see\none\n\ntwo", "B") == ["B"]
    assert _tail(stored, "A", "one two", "B") == ["B"]
    assert _tail(stored, "A", "onetwo", "B") is None
    assert _tail(WORKING, "A", "let me\nsee\nhalf an\n\nans", "B") == ["half an\n\nans", "B"]

    # What the user wrote is compared as it is: code that is indented otherwise is other code.
    assert _tail([HumanMessage("if a:\n  b"), AIMessage("c")], "if a:\n b", "c", "D") is None


def test_a_run_that_failed_may_be_missing() -> None:
    """A client that was told of a failure has no answer: what the run did stays, and what is sent goes behind it."""
    assert _tail(WORKING, "A") == []
    assert _tail(WORKING, "A", "", "B") == ["B"]
    assert transcript_of(WORKING).tail_of([HumanMessage("A"), HumanMessage("B")]) == [HumanMessage("B")]
    assert transcript_of(WORKING, is_asking=True).tail_of([HumanMessage("A")]) is None
    assert _tail([SUMMARY, *WORKING[1:]], "A") is None


def test_an_answer_that_was_broken_off_is_kept() -> None:
    """What a client has seen of an answer that is not stored becomes part of the conversation."""
    assert _tail([HumanMessage("A")], "A", "half an ans", "B") == ["half an ans", "B"]
    assert _tail(WORKING, "A", "let me see\n\nhalf an ans", "B") == ["half an ans", "B"]
    assert _tail(WORKING, "A", "something else", "B") is None


def test_a_question_is_no_part_of_the_conversation() -> None:
    """A client that sends back what it was asked matches, whether or not the question was answered elsewhere."""
    asked = question([{"id": "i", "value": {"action_requests": [{"name": "calculator", "args": {}}]}}])
    approved: list[AnyMessage] = [*WORKING, AIMessage("done")]

    assert _tail(WORKING[:2], "A", f"let me see\n\n{asked}", "B") == ["B"]
    assert _tail(WORKING[:2], "A", asked, "B") == ["B"]
    assert _tail(approved, "A", f"let me see\n\n{asked}", "B") == ["B"]


def test_an_answer_that_speaks_of_approval() -> None:
    """Only what an answer ends with is a question; a model may use the same words."""
    text = "Note: This needs your approval, and nothing has been carried out yet: ask your manager."

    assert _tail([*WORKING, AIMessage(text)], "A", text, "B") == ["B"]
    assert _tail(WORKING, "A", f"let me see\n\n{text}", "B") == [text, "B"]


def test_a_summary_stands_for_any_beginning() -> None:
    """The turns behind it are found in what was sent, as far back as they go; another ending is another one."""
    stored: list[AnyMessage] = [SUMMARY, AIMessage("c"), HumanMessage("D"), AIMessage("d")]

    assert _tail(stored, "A", "a", "C", "c", "D", "d", "E") == ["E"]
    assert _tail(stored, "C", "let me see\n\nc", "D", "d", "E") == ["E"]
    assert _tail(stored, "A", "a", "C", "c", "D", "other", "E") is None
    assert _tail(stored, "D", "d", "E") is None


TEXTS = st.text("ab", max_size=2)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)


def _conversation(pairs: list[tuple[str, str]]) -> list[AnyMessage]:
    return [message for user, agent in pairs for message in (HumanMessage(user), AIMessage(agent))]


def _texts(messages: list[AnyMessage]) -> list[tuple[str, str]]:
    return [(message.type, str(message.text)) for message in messages]


@given(TURNS, TURNS, TEXTS)
def test_the_client_gets_the_conversation_that_it_shows(
    kept: list[tuple[str, str]], sent: list[tuple[str, str]], text: str
) -> None:
    """Where a tail is found, it completes the stored conversation to the one that was sent."""
    stored, history = _conversation(kept), [*_conversation(sent), HumanMessage(text)]
    tail = transcript_of(stored).tail_of(history)

    assert (tail is not None) == (_texts(stored) == _texts(history[: len(stored)]))
    assert tail is None or _texts([*stored, *tail]) == _texts(history)
